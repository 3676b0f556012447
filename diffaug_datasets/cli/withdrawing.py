"""The verb that takes real images out of a finished run, and what it prints."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffaug_datasets.cli.screen import say, say_facts, say_json
from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.temporary import sha256_file
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.withdrawal import Withdrawal, withdraw

NAMED = 3


@dataclass(frozen=True)
class Real:
    """A real training image of a run: sha256 of its bytes, and the name of its class."""

    id: str
    class_name: str


def run_withdraw(folder: Path, words: Sequence[str], out: Path | None, as_json: bool) -> None:
    """Withdraw, and say what went and what stayed."""
    run = Run.open(folder)
    images = {found.id: found for word in words for found in [_found(run, word)]}
    made = withdraw(run, list(images), out)
    if as_json:
        facts = {"plan_id": made.run.plan.id, "run": str(made.run.folder), "images": sorted(images)}
        say_json({**facts, "rows": made.rows, "learned": made.learned})
        return
    say(f"{made.done.name}: plan {run.plan.id[:16]} without {_named(images.values())}")
    say_facts({f"  {name}": text for name, text in _facts(made).items()})
    say(f"run folder: {made.run.folder}, plan {made.run.plan.id[:16]}")
    say(f"next: diffaug publish {made.run.folder} TARGET")


def _found(run: Run, word: str) -> Real:
    """The training image that a word means: a file with its bytes, its sha256, or the first digits of that.

    Raises:
        RunError: none or several are meant.
    """
    path = Path(word)
    wanted = sha256_file(path) if path.is_file() else word.lower()
    found = {r.id: r for r in _training_images(run) if wanted and r.id.startswith(wanted)}
    if len(found) != 1:
        what = "no training image" if not found else f"{len(found)} training images"
        raise RunError(
            f"{word!r}: {what} of {run.folder} answers to it; give the file itself, or the sha256 of its bytes as the "
            "column source_ids has it."
        )
    return next(iter(found.values()))


def _training_images(run: Run) -> Iterator[Real]:
    names = run.plan.header.class_names
    return (Real(row.source_ids[0], names[row.label]) for row in run.plan.real if row.split == "train")


def _named(images: Iterable[Real]) -> str:
    found = list(images)
    if len(found) == 1:
        return f"1 image of {found[0].class_name} ({found[0].id[:16]})"
    return f"{len(found)} images"


def _facts(made: Withdrawal) -> dict[str, str]:
    rows = ", ".join(made.rows[:NAMED]) + (", ..." if len(made.rows) > NAMED else "")
    facts = {
        "rows": f"{len(made.rows)} synthetic out{f' ({rows})' if rows else ''}, {len(made.run.plan.rows)} stay",
        "shards": f"{made.taken} taken over, {made.rewritten} written without these rows and the image's own",
    }
    if made.learned:
        facts["fits"] = (
            f"{len(made.learned)} were made with the image in and stay, as other rows rest on them; "
            "`diffaug plan --set without=[...]` draws and learns anew instead"
        )
    return facts
