"""Mutated inputs of every format that is read from others, each format in a process of its own.

    python fuzz_readers.py FOLDER COUNT

FOLDER holds a finished `run` and `seeds`, a good file of each format. A line per format: its name, how many were
refused with one sentence, how many were read, and how its process ended (0, or minus the signal).
"""

import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.core.images import check_image, decode_image
from diffaug_datasets.core.prompts import read_suffixes
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.confusion import read_confusion
from diffaug_datasets.release import card_metadata
from diffaug_datasets.release.card import section_licences
from diffaug_datasets.release.contents import PublishOptions, contents
from diffaug_datasets.release.croissant import croissant
from diffaug_datasets.release.layout import read_release, shard_faults
from diffaug_datasets.release.provenance import selected_rows
from diffaug_datasets.release.read import Provenance, read_foreign
from diffaug_datasets.release.repository import Repository
from diffaug_datasets.release.verify import read_planned
from diffaug_datasets.run.store import Run

SECONDS = 100
PLAN = ("plan.json", "plan.parquet", "recipe.yaml")
WORDS = (
    *(b"../../etc/passwd", b"!!python/object/apply:os.system [id]", b"\0", b"\xff\xfe", b'"' * 50, b"[" * 3000),
    *(
        b"999999999999999999999",
        b"-1",
        b"null",
        b"{}",
        b"&a [*a, *a]",
        b"1e999",
        b"NaN",
        b"\\ud800",
        b"\x1b]0;x\x07",
        b"\xed\xa0\x80",
        b"[1]",
        b"\n- 3\n",
    ),
)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Cut, repeated, flipped, or with a hostile word put in."""
    start = draw.randrange(len(data))
    end = min(len(data), start + draw.choice((0, 1, 4, 40)))
    kind = draw.randrange(4)
    if kind == 0:
        return data[:start]
    if kind == 1:
        return data[:end] + data[start:]
    if kind == 2:
        return data[:start] + bytes(draw.randrange(256) for _ in range(end - start)) + data[end:]
    return data[:start] + draw.choice(WORDS) + data[draw.choice((start, end)) :]


class Readers:
    """How each format is read; the name of a seed says which."""

    def __init__(self, folder: Path, desk: Path) -> None:
        self.run, self.desk = Run.open(folder / "run"), desk
        self.release = read_release((folder / "seeds" / "run.json").read_bytes(), "run.json")
        (desk / "stage").mkdir()
        self.contents = contents(self.run, PublishOptions(), desk / "stage")

    def of(self, name: str) -> Callable[[Path], object]:
        """The reader of a seed."""
        return {
            "recipe.yaml": Recipe.from_yaml,
            "run.json": lambda path: read_release(path.read_bytes(), "run.json"),
            "README.md": lambda path: Repository.open(str(path.parent)).configs,
            "card.md": self.card,
            "croissant.json": lambda path: croissant(self.text(path), self.contents, "org/name"),
            "receipt.json": self.receipt,
            "plan.json": self.plan,
            "plan.parquet": self.plan,
            "selection.parquet": self.selection,
            "suffixes.json": read_suffixes,
            "confusion.csv": lambda path: read_confusion(path, ("a", "b", "c")),
            "confusion.json": lambda path: read_confusion(path, ("a", "b", "c")),
            "provenance.parquet": self.provenance,
            "provenance.arrow": self.provenance,
            "train.arrow": self.shard,
            "train.parquet": self.shard,
            "picture.png": self.picture,
        }[name]

    def card(self, path: Path) -> None:
        """Taken apart and merged; writing it down takes longest, and reads nothing."""
        metadata, body = card_metadata.parse_card(self.text(path))
        card_metadata.merged_metadata(metadata, self.contents, section_licences(body))

    def text(self, path: Path) -> str:
        """What reaches the readers of text: others are refused where they come in."""
        return path.read_text(encoding="utf-8", errors="replace")

    def _placed(self, path: Path, name: str) -> Run:
        """A run with this file in it; its plan is read when somebody asks for it."""
        run = Run(self.desk / path.name)
        target = run.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copyfile(path, target)
        return run

    def plan(self, path: Path) -> None:
        """plan.json or plan.parquet beside the good rest."""
        folder = self._placed(path, path.name).folder
        for other in {*PLAN} - {path.name}:
            if not (folder / other).exists():
                shutil.copyfile(self.run.folder / other, folder / other)
        with suppress(DiffAugError):  # as `verify` reads it; what it says does not keep us from the other reader
            read_planned(folder / "plan.json", folder / "plan.parquet")
        list(Run.open(folder).plan.real_shards())

    def receipt(self, path: Path) -> None:
        """A shard's receipt; one that cannot be read is none."""
        run = self._placed(path, "shards/synthetic-00000.json")
        run.__dict__["plan"] = self.run.plan
        run.receipt("synthetic-00000")

    def selection(self, path: Path) -> None:
        """What the filters took out."""
        selected_rows(self._placed(path, "selection.parquet"))

    def provenance(self, path: Path) -> None:
        """As others read it, its digest being right."""
        if path.suffix == ".arrow":
            read_foreign(path, "arrow").to_pylist()
            return
        list(Provenance.at(path, self.release).rows())

    def shard(self, path: Path) -> None:
        """As `verify` reads it, its digest being right."""
        table = read_foreign(path, "arrow" if path.suffix == ".arrow" else "parquet")
        list(shard_faults(table, self.release.files[0], self.release))
        table.to_pylist()

    def picture(self, path: Path) -> None:
        """The header, then the pixels."""
        data = path.read_bytes()
        check_image(data)
        decode_image(data)


def loop(read: Callable[[Path], object], seed: Path, place: Path, count: int) -> tuple[int, int]:
    """How many mutations were refused and how many read; anything else ends the process."""
    data, draw, refused = seed.read_bytes(), random.Random(seed.name), 0
    path = place / seed.name
    place.mkdir()
    for _ in range(count):
        path.unlink(missing_ok=True)
        path.write_bytes(mutated(data, draw))
        try:
            read(path)
        except DiffAugError as error:
            assert str(error) and "Traceback" not in str(error)
            refused += 1
    return refused, count - refused


def main() -> None:
    """All formats, one after the other."""
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    with tempfile.TemporaryDirectory(dir=folder) as desk:
        readers = Readers(folder, Path(desk))
        infos = card_metadata.info_entries(readers.contents)
        card_metadata.info_entries = lambda _: infos  # what we write, the same for every input, takes longest
        for seed in sorted((folder / "seeds").iterdir()):
            sys.stdout.write(f"{seed.name} ")
            sys.stdout.flush()
            child = os.fork()
            if not child:
                signal.alarm(SECONDS)
                code = 1
                try:
                    refused, read = loop(readers.of(seed.name), seed, Path(desk) / f"in-{seed.name}", count)
                    sys.stdout.write(f"{refused} {read} ")
                    sys.stdout.flush()
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
