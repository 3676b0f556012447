"""Verbs that look at published sets: check one, make one of its rows again."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from diffaug_datasets.cli.screen import note, say, say_json
from diffaug_datasets.data.release import other_form
from diffaug_datasets.data.repository import Repository
from diffaug_datasets.publish.rebuild import Rebuilder
from diffaug_datasets.publish.verify import SAMPLE, UNKNOWN, WRONG, verify


@dataclass(frozen=True)
class Where:
    """A config of a published set, and the real images and the model where it does not carry them."""

    place: str
    config: str | None
    revision: str | None
    source: str | None
    device: str
    backbone: str | None = None


@contextmanager
def opened(where: Where) -> Iterator[Rebuilder]:
    """The release, ready to be rebuilt."""
    repository = Repository.open(where.place, where.revision)
    release = repository.release(where.config)
    with tempfile.TemporaryDirectory(prefix="diffaug-") as folder:
        yield Rebuilder(repository, release, Path(folder), where.source, where.device, where.backbone)


def run_verify(where: Where, sample: int, as_json: bool) -> int:
    """Print every check; 1 where something is wrong, 3 where nothing is and the rows asked for could not be checked."""
    checks = []
    with opened(where) as rebuilder:
        if not as_json:
            say(f"{rebuilder.repository.where}: {rebuilder.release.name}, plan {rebuilder.release.plan_id[:16]}")
        for check in verify(rebuilder.repository, rebuilder.release, rebuilder, sample):
            checks.append(check)
            if not as_json:
                say(f"  {check.name}: {check.outcome}{':' if check.outcome == UNKNOWN else ','} {check.told}")
    is_wrong = any(check.outcome == WRONG for check in checks)
    is_blind = any(check.name == SAMPLE and check.outcome == UNKNOWN for check in checks)
    if as_json:
        say_json({"passed": not is_wrong, "checks": [asdict(check) for check in checks]})
    return 1 if is_wrong else 3 if is_blind else 0


def rebuild_published(where: Where, prefix: str, out: Path | None, as_json: bool) -> int:
    """Make one row again; the exit codes are those of `say_closeness`."""
    from diffaug_datasets.cli.inspecting import say_closeness, write_new

    with opened(where) as rebuilder:
        made, found = rebuilder.rebuild(rebuilder.row(prefix))
        if said := other_form(rebuilder.release):
            note(f"{rebuilder.repository.where}: {said}")
    if out is not None:
        write_new(out, made.data)
    return say_closeness(found, as_json)


def build_published(place: str, source: str | None, folder: Path | None, workers: int, device: str) -> int:
    """Make a published plan's images here and say how many are equal; 1 where some are not on the very same stack."""
    from diffaug_datasets.cli.running import finish
    from diffaug_datasets.publish.remake import match, planned_again
    from diffaug_datasets.run.worker import WorkerOptions

    repository = Repository.open(place)
    release = repository.release(None)
    run = planned_again(repository, release, source, folder)
    say(f"{release.name}: {len(run.plan.rows)} images to have, plan {run.plan.id[:16]}")
    finish(run, WorkerOptions(device=device), workers)
    found = match(repository, release, run)
    say(f"{release.name}: {found}")
    say(f"run folder: {run.folder}")
    return int(not found.is_good)
