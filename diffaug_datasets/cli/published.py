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
from diffaug_datasets.publish.verify import verify


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
    """Print every check; 1 where one failed."""
    failed, told = False, []
    with opened(where) as rebuilder:
        if not as_json:
            say(f"{rebuilder.repository.where}: {rebuilder.release.name}, plan {rebuilder.release.plan_id[:16]}")
        for check in verify(rebuilder.repository, rebuilder.release, rebuilder, sample):
            failed |= not check.passed
            told.append(asdict(check))
            if not as_json:
                say(f"  {check.name}: {'ok' if check.passed else 'WRONG'}, {check.told}")
    if as_json:
        say_json({"passed": not failed, "checks": told})
    return int(failed)


def rebuild_published(where: Where, prefix: str, out: Path | None, as_json: bool) -> int:
    """Make one row again; 1 where its pixels are others than the published ones."""
    from diffaug_datasets.cli.inspecting import write_new

    with opened(where) as rebuilder:
        made, closeness = rebuilder.rebuild(rebuilder.row(prefix))
        if said := other_form(rebuilder.release):
            note(f"{rebuilder.repository.where}: {said}")
    if out is not None:
        write_new(out, made.data)
    if as_json:
        say_json(asdict(closeness))
    else:
        say(str(closeness))
    return 0 if closeness.equal else 1


def build_published(place: str, source: str | None, folder: Path | None, workers: int, device: str) -> int:
    """Make a published plan's images here and say how many are equal; 1 where some are not."""
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
    return int(found.equal != found.published)
