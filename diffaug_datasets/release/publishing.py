"""Publishing a finished run: gather what goes out, ask every gate, and send it; or say what would be sent."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.printable import shown
from diffaug_datasets.release.card import dataset_card
from diffaug_datasets.release.contents import Contents, PublishOptions, contents
from diffaug_datasets.release.gates import GateResult, check_gates, leak_check, refuse
from diffaug_datasets.release.retry import Retry
from diffaug_datasets.release.targets import AddressTarget, HubTarget, Published, Target
from diffaug_datasets.run.store import Run

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class UploadPreview:
    """What a release would be: its files, what the gates say, and the README as it would stand."""

    target: str
    contents: Contents
    gates: tuple[GateResult, ...]
    card: str


def publish(run: Run, target: str, options: PublishOptions | None = None, retry: Retry | None = None) -> Published:
    """Publish a finished run: shards, provenance, recipe, plan and card. What is there already is not sent again.

    Args:
        run: the finished run.
        target: `org/name` on the Hub, or any fsspec address such as `s3://bucket/name` or `file:///folder`.
        options: how it goes out; the default is Arrow shards with all that the licences allow.
        retry: how often a step on the Hub is tried, and how long is waited in between.

    Returns:
        Where it is, and how many files were sent.

    Raises:
        PublishError: not finished, gates say no (all are named), or the place does not take it; nothing half is
            visible then.

    >>> from pathlib import Path
    >>> from diffaug_datasets import generate, plan, publish
    >>> run = plan("fashion_5shot_txt2img", "runs/shirts", per_class=2, config={"num_inference_steps": 2})
    >>> done = generate(run, workers=1)
    >>> published = publish(run, Path("shelf/shirts").absolute().as_uri())
    >>> published.folder == f"data/fashion_5shot_txt2img/{run.plan.id[:16]}"
    True
    """
    options = options or PublishOptions()
    place = open_target(target, options, retry)
    with _gathered(run, options) as (release_contents, gates):
        refuse(gates)
        return place.upload(release_contents)


def preview(run: Run, target: str, options: PublishOptions | None = None, retry: Retry | None = None) -> UploadPreview:
    """What `publish` would do; reads, but sends nothing.

    Raises:
        PublishError: not finished, or the place cannot be read.
    """
    options = options or PublishOptions()
    place = open_target(target, options, retry)
    with _gathered(run, options) as (release_contents, gates):
        card = dataset_card(place.readme(), release_contents, place.shown, place.tag(release_contents.release))
        return UploadPreview(place.shown, release_contents, gates, card)


def open_target(target: str, options: PublishOptions, retry: Retry | None = None) -> Target:
    """Where `org/name` or an address leads; nothing is sent or asked yet.

    Raises:
        PublishError: it is neither, fsspec reaches no such place, or the options do not go with it.
    """
    if "://" in target:
        if options.create_pr or options.revision or options.private:
            raise PublishError(
                f"{shown(target)}: --private, --create-pr and --revision are for the Hub alone; leave them out."
            )
        return AddressTarget(target)
    if not HUB_NAME.fullmatch(target):
        raise PublishError(
            f"got the target {target!r}, expected org/name for the Hub or an address such as file:///folder or "
            "s3://bucket."
        )
    if options.create_pr and options.revision:
        raise PublishError("--create-pr opens a branch of its own; leave --revision out.")
    return HubTarget(target, options, retry or Retry())


@contextmanager
def _gathered(run: Run, options: PublishOptions) -> Iterator[tuple[Contents, tuple[GateResult, ...]]]:
    """What goes out, which states the gates that were overruled, and what all gates say."""
    with tempfile.TemporaryDirectory(prefix="diffaug-") as stage:
        unchecked = contents(run, options, Path(stage))
        gates = check_gates(unchecked, options)
        overruled = tuple(sorted(result.gate for result in gates if result.reason))
        yield unchecked.stating(overruled, leak_check(run)), gates
