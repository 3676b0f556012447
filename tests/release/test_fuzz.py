"""Whatever is in a file of somebody else's: one sentence, and no process that dies of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fuzz_readers import Readers
from huggingface_hub import DatasetCard

from diffaug_datasets.core.prompts import Caption, SuffixDocument, Summary
from diffaug_datasets.release.card_metadata import card_text
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.run.store import Run

INPUTS = 1000
FORGIVING = ("receipt.json",)  # what cannot be read is none, and the unit is made again
HARMLESS = ("croissant.json", "card.md")  # what people write there stays, so that most changes are no fault


@pytest.fixture(scope="module")
def seeds(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file of every format, beside the run that they come from."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "seeds").mkdir()
    (folder / "run").symlink_to(finished.folder)
    for name, data in found(finished, folder).items():
        (folder / "seeds" / name).write_bytes(data)
    return folder


def found(run: Run, folder: Path) -> dict[str, bytes]:
    done = publish(run, f"file://{folder}/arrow")
    publish(run, f"file://{folder}/parquet", PublishOptions(file_format="parquet"))
    place, other = folder / "arrow" / done.folder, folder / "parquet" / done.folder
    names = ("run.json", "plan.json", "plan.parquet", "selection.parquet")
    files = {name: place / name for name in (*names, "provenance.arrow", "provenance.parquet")}
    files |= {
        "train.arrow": place / "train-00001-of-00004.arrow",
        "train.parquet": other / "train-00001-of-00004.parquet",
    }
    files |= {
        "receipt.json": run.folder / "shards" / "synthetic-00000.json",
        "croissant.json": folder / "arrow" / "croissant.json",
    }
    texts = {"README.md": card(folder, "configs"), "card.md": card(folder, "license", "tags", "configs")}
    texts |= {
        "recipe.yaml": yaml.safe_dump(run.recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)),
        "suffixes.json": suffixes(),
        "confusion.csv": "1,2,3\n4,5,6\n7,8,9\n",
        "confusion.json": "[[1,2,3],[4,5,6],[7,8,9]]",
    }
    picture = {"picture.png": (folder / "arrow" / done.folder / "sheet.png").read_bytes()}
    return {n: p.read_bytes() for n, p in files.items()} | {n: t.encode() for n, t in texts.items()} | picture


def card(folder: Path, *keys: str) -> str:
    """The README with these parts of its head: all of it takes long to parse, and is not what is read."""
    head = DatasetCard((folder / "arrow" / "README.md").read_text("utf-8")).data.to_dict()
    head["configs"] = head["configs"][:1]
    body = "\n# Fashion\n\n<!-- diffaug: begin other licence=mit -->\ntext\n<!-- diffaug: end other -->\n"
    return card_text({key: head[key] for key in keys}, body)


def suffixes() -> str:
    return SuffixDocument(
        builder="fashion",
        protocol="5shot",
        prefix="a photo of",
        captioner="someone/captions@0123",
        captions=(Caption(source_id="0" * 64, text="a photo of a shirt on a table"),),
        summary=Summary(kind="clusters", model="none"),
        tokens_checked=True,
        suffixes=("on a table.", "in the snow."),
    ).to_json()


def test_mutated_files_are_one_clear_error(seeds: Path) -> None:
    """A thousand inputs a format: none may kill, hang or leave its folder, or raise anything but our sentences."""
    before = listing(seeds)
    line = [sys.executable, str(Path(__file__).with_name("fuzz_readers.py")), str(seeds), str(INPUTS)]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=280)
    print(ended.stdout)
    told = {words[0]: [int(word) for word in words[1:]] for words in map(str.split, ended.stdout.splitlines())}
    assert ended.returncode == 0 and set(told) == {path.name for path in (seeds / "seeds").iterdir()}, ended.stderr[
        -3000:
    ]
    assert {name: numbers for name, numbers in told.items() if numbers[-1] != 0} == {}, ended.stderr[-3000:]
    for name, (refused, read, _) in told.items():
        assert refused + read == INPUTS
        assert refused > 50 or name in (*FORGIVING, *HARMLESS), (
            f"{name}: the mutations did no harm, so they show nothing"
        )
    assert listing(seeds) == before


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.parent.rglob("*"))


def test_the_readers_read_what_is_good(seeds: Path, tmp_path: Path) -> None:
    """Else nothing is shown by what they refuse."""
    readers = Readers(seeds, tmp_path)
    for seed in (seeds / "seeds").iterdir():
        readers.of(seed.name)(seed)
    assert json.loads((seeds / "seeds" / "run.json").read_text())["files"]
