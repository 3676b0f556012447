"""A user's walk on the embedded data and a Hub of this machine: build, publish, load elsewhere, check, make a row
again, withdraw an image, publish again, load the old tag. What it prints stands in docs/guides/walk.md.

    python scripts/walk.py [--work FOLDER]     in the environment of scripts/demo; about 20 s on two cores
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hub.server import LoopbackHub

ROOT = Path(__file__).resolve().parents[1]
NAME, CONFIG = "tester/fashion", "fashion_5shot_genie"
SMALL = ("per_class=1", "shard_rows=4", "include_test=false", "config.num_inference_steps=10")
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
TYPE = """
import sys
scope = {}
for line in sys.argv[1:]:
    print(">>>", line)
    exec(compile(line, "<walk>", "single"), scope)
"""


class Walk:
    """Prints every step, and goes on only where it went well."""

    steps = 0

    def say(self, title: str) -> None:
        """The heading of the next step."""
        self.steps += 1
        print(f"\n[{self.steps}] {title}", flush=True)

    def diffaug(self, *words: object) -> None:
        """A command line, in this process: torch is imported once."""
        from diffaug_datasets.cli import main

        line = [str(word) for word in words]
        print("$ diffaug", *line, flush=True)
        try:
            main(line)
        except SystemExit as left:
            if left.code:
                sys.exit(f"walk: stopped, exit code {left.code}")

    def python(self, interpreter: Path, *lines: str) -> None:
        """Lines typed into another environment's Python."""
        print(f"$ {interpreter.parent.parent.name}/bin/python", flush=True)
        done = subprocess.run([interpreter, "-I", "-c", TYPE, *lines], stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            sys.exit(f"walk: stopped, exit code {done.returncode}")


def bare_environment(folder: Path, *names: str) -> Path:
    """The interpreter of a fresh environment with these packages and what they need, linked instead of downloaded."""
    venv.create(folder, symlinks=True)
    place = next(folder.glob("lib/python*/site-packages"))
    for package in needed(*names):
        for top in {Path(file).parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            origin, link = Path(str(package.locate_file(top))), place / top
            if origin.exists() and not link.exists():
                link.symlink_to(origin)
    return folder / "bin" / "python"


def needed(*names: str) -> Iterator[Distribution]:
    """The installed packages of these names, then all that they require here."""
    from packaging.requirements import Requirement

    waiting, seen = [Requirement(name) for name in names], set()
    while waiting:
        wanted = waiting.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        try:
            found = distribution(wanted.name)
        except PackageNotFoundError:
            continue  # of another system, or an older Python
        yield found
        asked = [{"extra": extra} for extra in ("", *wanted.extras)]
        more = [Requirement(line) for line in found.requires or ()]
        waiting += [one for one in more if one.marker is None or any(map(one.marker.evaluate, asked))]


def walk(hub: "LoopbackHub") -> None:
    """All steps, in the current folder."""
    from diffaug_datasets.run.store import Run

    go, begun = Walk(), time.monotonic()
    go.say("a recipe becomes a plan, the plan becomes images")
    changes = [word for change in SMALL for word in ("--set", change)]
    go.diffaug("plan", CONFIG, *changes, "--run", "run")
    go.diffaug("generate", "run", "--workers", 1, "--device", "cpu")
    run = Run.open("run")
    row, tag = run.plan.rows[0], f"{CONFIG}-{run.plan.id[:16]}"
    image = row.source_ids[0]

    go.say("it goes to the Hub, in one commit")
    go.diffaug("publish", "run", NAME)

    go.say("others load it, where datasets and pillow are and nothing of ours")
    bare = bare_environment(Path("elsewhere"), "datasets", "pillow")
    go.python(
        bare,
        "from importlib.util import find_spec",
        "[find_spec(name) for name in ('torch', 'diffaug_datasets')]",
        "from datasets import load_dataset",
        f"train = load_dataset({NAME!r}, split='train')",
        "len(train), train[-1]['method'], train[-1]['prompt'], train[-1]['image'].size",
    )

    go.say("everything that it states is checked, and one image made again, from the Hub alone")
    go.diffaug("verify", NAME)
    go.diffaug("regen", NAME, row.row_id[:12], "--device", "cpu")

    go.say("one real image is withdrawn; all rows that do not rest on it stay what they are")
    go.diffaug("withdraw", "run", image[:16], "--run", "without")
    before = len(hub.calls("lfs_put"))
    go.diffaug("publish", "without", NAME)
    sent = len(hub.calls("lfs_put")) - before
    print(f"(large files that the Hub had to be sent: {sent}, the first time {before})")
    go.diffaug("verify", NAME)

    go.say("main has it no more; who cited the first plan still loads it by its tag")
    go.python(
        bare,
        "from datasets import load_dataset",
        f"new = load_dataset({NAME!r}, split='train')",
        f"old = load_dataset({NAME!r}, split='train', revision={tag!r})",
        f"gone = {image[:16]!r}",
        "[(len(rows), sum(gone in str(ids) for ids in rows['source_ids'])) for rows in (new, old)]",
        "pixels = [set(zip(rows['row_id'], rows['pixel_sha256'])) for rows in (new, old)]",
        "pixels[0] < pixels[1]",
    )
    print(f"\nwalk: ok, {time.monotonic() - begun:.0f} s")


def main() -> None:
    """Start the Hub, point every client at it, walk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="an empty folder that stays; default: one that goes")
    work: Path | None = parser.parse_args().work
    sys.path.insert(0, str(ROOT / "tests"))
    from hub.server import LoopbackHub

    with ExitStack() as open_until_the_end:
        folder = work or Path(open_until_the_end.enter_context(tempfile.TemporaryDirectory(prefix="diffaug-walk-")))
        folder.mkdir(parents=True, exist_ok=True)
        hub = open_until_the_end.enter_context(LoopbackHub(folder / "hub"))
        os.environ.update({**hub.environment(folder / "home"), **QUIET})  # before anything imports huggingface_hub
        os.chdir(folder)
        walk(hub)
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
