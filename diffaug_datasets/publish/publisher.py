"""A finished run to the Hub (`org/name`) or to any fsspec address: check, then send; or say what would be sent."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.printable import shown
from diffaug_datasets.publish.card import dataset_card
from diffaug_datasets.publish.contents import Contents, contents, stating
from diffaug_datasets.publish.gates import Verdict, refuse, verdicts
from diffaug_datasets.publish.options import PublishOptions
from diffaug_datasets.publish.patience import Patience
from diffaug_datasets.publish.place import Place
from diffaug_datasets.publish.push import README, Published, Push
from diffaug_datasets.publish.testing import leak_check
from diffaug_datasets.run.store import Run

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class Preview:
    """What a release would be: its files, what the gates say, and the README as it would stand."""

    target: str
    contents: Contents
    verdicts: tuple[Verdict, ...]
    card: str


def publish(
    run: Run, target: str, options: PublishOptions | None = None, patience: Patience | None = None
) -> Published:
    """Publish a finished run.

    Raises:
        PublishError: not finished, gates say no (all are named), or the place does not take it; nothing half is
            visible then.
    """
    options = options or PublishOptions()
    with _opened(run, target, options) as (found, said):
        refuse(said)
        if "://" in target:
            return Place(target).publish(found)
        return _push(target, found, options, patience).run()


def preview(run: Run, target: str, options: PublishOptions | None = None, patience: Patience | None = None) -> Preview:
    """What `publish` would do; reads, but sends nothing."""
    options = options or PublishOptions()
    with _opened(run, target, options) as (found, said):
        remote = "://" not in target
        old = _push(target, found, options, patience).preview() if remote else Place(target).text(README)
        card = dataset_card(old, found, shown(target), found.release.tag if remote else None)
        return Preview(shown(target), found, said, card)


@contextmanager
def _opened(run: Run, target: str, options: PublishOptions) -> Iterator[tuple[Contents, tuple[Verdict, ...]]]:
    """What goes out, which says what the gates found, and their verdicts."""
    if "://" not in target and not REPO.fullmatch(target):
        raise PublishError(
            f"got the target {target!r}, expected org/name for the Hub or an address such as file:///folder or s3://bucket."
        )
    if "://" in target and (options.create_pr or options.revision or options.private):
        raise PublishError(
            f"{shown(target)}: --private, --create-pr and --revision are for the Hub alone; leave them out."
        )
    if options.create_pr and options.revision:
        raise PublishError("--create-pr opens a branch of its own; leave --revision out.")
    with tempfile.TemporaryDirectory(prefix="diffaug-") as stage:
        found = contents(run, options, Path(stage))
        said = verdicts(found, options)
        yield (
            stating(found, overrides=tuple(sorted(v.gate for v in said if v.reason)), leak_check=leak_check(run)),
            said,
        )


def _push(target: str, found: Contents, options: PublishOptions, patience: Patience | None) -> Push:
    from huggingface_hub import HfApi

    api = HfApi(library_name="diffaug-datasets", library_version=found.release.package)
    return Push(api, target, found, options, patience or Patience())
