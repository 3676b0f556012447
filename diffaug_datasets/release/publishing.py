"""Publishing a finished run: gather what goes out, ask every gate, and send it; or say what would be sent.

A gate says in one sentence why a run may not go out, and how to pass it on one's own word. The costliest one compares
the real images with those of the test split; what it finds is kept in the run folder.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
from PIL import Image
from pydantic import BaseModel, ConfigDict

from diffaug_datasets.core.errors import DiffAugError, PublishError, shown
from diffaug_datasets.core.files import write_text
from diffaug_datasets.core.identity import digest
from diffaug_datasets.core.plan import ShardKind
from diffaug_datasets.release.card import dataset_card
from diffaug_datasets.release.card_metadata import UNKNOWN_TERMS, model_terms
from diffaug_datasets.release.contents import Contents, PublishOptions, contents, local_models
from diffaug_datasets.release.layout import LeakCheck, open_table, shard_faults
from diffaug_datasets.release.leakage import VERSION, Features, Lazily, Leak, Vectors, find_leaks
from diffaug_datasets.release.targets import AddressTarget, HubTarget, Published, Retry, Target
from diffaug_datasets.run.execute import over_budget, resolve_device
from diffaug_datasets.run.store import Run
from diffaug_datasets.sources.real import OWN_IMAGES, UNKNOWN, read_recipe_images

GATES = ("licence", "model-licence", "local-model", "failed-rows", "rows", "test-leak")
COMPARISON_FILE = "leakage.json"
MOST_NAMED = 5  # leaks in one sentence
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


Tell = Callable[[str], None]
"""(what is done next, in words)."""


def nobody(_: str) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class GateResult:
    """What a gate found: nothing, or a reason that `allowed` may overrule."""

    gate: str
    reason: str = ""
    allowed: bool = False

    @property
    def passed(self) -> bool:
        """Whether the release may go out as far as this gate knows."""
        return not self.reason or self.allowed


def check_gates(contents: Contents, options: PublishOptions, tell: Tell = nobody) -> tuple[GateResult, ...]:
    """What each of `GATES` says, in that order."""
    tell(f"checking {len(contents.items):,} files")
    reasons = (
        _licence(contents, options),
        _model_licence(contents),
        _local_model(contents),
        _failed_rows(contents),
        next(_rows(contents), ""),
        _test_leak(contents.run, tell),
    )
    allowed = {*options.allow, *(("licence",) if options.with_rights else ())}
    return tuple(GateResult(gate, reason, gate in allowed) for gate, reason in zip(GATES, reasons, strict=True))


def refuse(results: Sequence[GateResult]) -> None:
    """Raises PublishError with every reason that nobody overruled."""
    against = [result.reason for result in results if not result.passed]
    if len(against) > 1:
        numbered = " ".join(f"({number}) {reason}" for number, reason in enumerate(against, 1))
        raise PublishError(f"{len(against)} gates say no. {numbered}")
    if against:
        raise PublishError(against[0])


def _licence(contents: Contents, options: PublishOptions) -> str:
    facts = contents.facts
    if facts.redistributable or options.recipe_only:
        return ""
    if contents.run.recipe.builder == OWN_IMAGES:
        return _own_licence(contents)
    return (
        f"licence: images of {facts.title} may not be redistributed ({facts.licence}), and these are made from them; "
        "publish with --recipe-only, or with --i-have-rights where you hold the rights."
    )


def _own_licence(contents: Contents) -> str:
    """Why images of one's own may not go out: their licence is not stated, or does not let others pass them on."""
    stated, folder = contents.run.recipe.licence, contents.run.where
    if stated and stated != UNKNOWN:
        return (
            f"licence: the recipe states {stated} for {contents.facts.title}, which is not known to let others share "
            "what is made from them; publish with --recipe-only, or with --i-have-rights where you hold the rights."
        )
    return (
        f"licence: the recipe states no licence for {contents.facts.title}; where they are yours to give, set "
        f"`licence:` in it (such as cc-by-4.0), plan it again, and `diffaug generate RUN --fits-from {folder}` takes "
        "the images over; or publish with --recipe-only, or with --i-have-rights."
    )


def _model_licence(contents: Contents) -> str:
    backbone = contents.run.plan.header.backbone
    if model_terms(backbone) != UNKNOWN_TERMS:
        return ""
    return (
        f"model-licence: the terms of {backbone} are not known here; read them, then publish with "
        "--allow model-licence."
    )


def _local_model(contents: Contents) -> str:
    keys = local_models(contents.run.recipe)
    if not keys:
        return ""
    return (
        f"local-model: {' and '.join(keys)} of the recipe {'names' if len(keys) == 1 else 'name'} a folder of this "
        "machine, so nobody else could make the images again; put the model on the Hub and plan with its id, or "
        "publish with --allow local-model."
    )


def _failed_rows(contents: Contents) -> str:
    if trouble := over_budget(contents.run, contents.release):
        return f"failed-rows: {trouble} Publish with --allow failed-rows if that is meant."
    if not any(count.kept for count in contents.release.counts):
        return "failed-rows: no synthetic row was kept; loosen the filters, or publish with --allow failed-rows."
    return ""


def _rows(contents: Contents) -> Iterator[str]:
    """One schema over all shards, every image there, every label in range, counts as stated."""
    release, kept = contents.release, 0
    for item, file in zip(contents.items, release.files, strict=False):
        table = open_table(item.content, release.file_format)
        for fault in shard_faults(table, file, release):
            yield f"rows: {fault}; `diffaug generate {contents.run.where}` makes it again."
        kept += table.num_rows if file.origin != "real" else 0
    stated = sum(count.kept for count in release.counts)
    if kept != stated and not release.recipe_only:
        yield f"rows: {kept} synthetic rows lie in the shards, stated are {stated}; assemble the run again."


def _test_leak(run: Run, tell: Tell) -> str:
    """'' where no test image is among the real ones, or there is no test split."""
    try:
        leaks = compare_test_split(run, tell).leaks
    except DiffAugError as error:
        return (
            f"test-leak: the test split cannot be looked at ({error}); make it reachable, or publish with "
            "--allow test-leak."
        )
    if not leaks:
        return ""
    named = "; ".join(str(leak) for leak in leaks[:MOST_NAMED])
    more = f" and {len(leaks) - MOST_NAMED} more" if len(leaks) > MOST_NAMED else ""
    sources = list(dict.fromkeys(leak.source[:16] for leak in leaks))
    one = len(sources) == 1
    subject = "1 real training image shows an image" if one else f"{len(sources)} real training images show images"
    out = " ".join(sources[:MOST_NAMED]) + " ..." * (len(sources) > MOST_NAMED)
    return (
        f"test-leak: {subject} of the test split: {named}{more}; `diffaug withdraw {run.where} {out}` takes "
        f"{'it' if one else 'them'} out with the rows made from {'it' if one else 'them'}, or publish with "
        "--allow test-leak."
    )


def leak_check(run: Run) -> LeakCheck | None:
    """What a release says where no test image was found among its sources; none where nothing could be looked at."""
    try:
        comparison = compare_test_split(run)
    except DiffAugError:
        return None  # the gate says why
    if comparison.leaks or not comparison.test_images:
        return None
    return LeakCheck(test_images=comparison.test_images, embeddings=comparison.encoder is not None)


class SplitComparison(BaseModel):
    """`leakage.json`: how many test images were looked at, and which leaks there are. `key` says of what.

    `encoder`: whose embeddings were compared; none where the recipe names none, or torch is not installed.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = 2
    key: str
    test_images: int
    encoder: str | None
    leaks: tuple[Leak, ...]


def compare_test_split(run: Run, tell: Tell = nobody) -> SplitComparison:
    """The real images compared with those of the test split, from the run folder where that was done before.

    Raises:
        DiffAugError: the test split or the encoder cannot be read.
    """
    header = run.plan.header
    encoder = run.recipe.scores.encoder if find_spec("torch") and find_spec("transformers") else None
    named = [header.sources, header.test_sources, header.recipe["builder"], str(run.recipe.source), encoder]
    key, path = digest([VERSION, *named]), run.folder / COMPARISON_FILE
    with suppress(OSError, ValueError):  # not there, or damaged: made again
        known = SplitComparison.model_validate_json(path.read_text(encoding="utf-8"))
        if known.key == key:
            return known
    test = _test_images(run)
    sources = _shard_images(run, "real")
    tell(f"comparing {len(sources):,} real training images with {len(test):,} test images")
    leaks = find_leaks(sources, test, _encoder_features(run, encoder) if encoder else None)
    comparison = SplitComparison(key=key, test_images=len(test), encoder=encoder, leaks=tuple(leaks))
    write_text(path, comparison.model_dump_json(indent=1))
    return comparison


def _test_images(run: Run) -> Mapping[str, bytes]:
    """Source id -> bytes, from the run where it carries the split, else from the real dataset."""
    if images := _shard_images(run, "test"):
        return images
    real = read_recipe_images(run.recipe, run.recipe.source)
    place = {source.id: index for index, source in enumerate(real.test.sources if real.test else ())}
    return Lazily(place, lambda name: real.read("test", place[name]))


def _shard_images(run: Run, kind: ShardKind) -> Mapping[str, bytes]:
    """Source id -> encoded bytes of the run's own real shards, `real` (for training) or `test`."""
    cells: dict[str, tuple[pa.ChunkedArray, int]] = {}
    for shard in run.plan.real_shards():
        if shard.kind == kind:
            table = run.table(shard)
            images = table.column("image")
            cells |= {ids[0]: (images, row) for row, ids in enumerate(table.column("source_ids").to_pylist())}
    return Lazily(cells, lambda name: bytes(cells[name][0][cells[name][1]].as_py()["bytes"]))


def _encoder_features(run: Run, name: str) -> Features:
    """What the recipe's encoder sees, on the GPU where there is one."""
    from diffaug_datasets.models.encoders import Encoder

    encoder, shape = Encoder.load(name, resolve_device("auto")), run.recipe.batch_size

    def features(images: Iterable[Image.Image]) -> Vectors:
        """Unit-norm features [n d]."""
        return encoder.image_features(images, batch_shape=shape).numpy()

    return features


@dataclass(frozen=True)
class UploadPreview:
    """What a release would be: its files, what the gates say, and the README as it would stand."""

    target: str
    contents: Contents
    gates: tuple[GateResult, ...]
    card: str


def publish(
    run: Run | str | os.PathLike[str],
    target: str,
    options: PublishOptions | None = None,
    retry: Retry | None = None,
    tell: Tell = nobody,
) -> Published:
    """Publish a finished run: shards, provenance, recipe, plan and card. What is there already is not sent again.

    Args:
        run: the finished run, or its folder.
        target: `org/name` on the Hub, or any fsspec address such as `s3://bucket/name` or `file:///folder`.
        options: how it goes out; the default is Arrow shards with all that the licences allow.
        retry: how often a step on the Hub is tried, and how long is waited in between.
        tell: is told what is done next, in words.

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
    options, run = options or PublishOptions(), run if isinstance(run, Run) else Run.open(run, whole=True)
    place = open_target(target, options, retry)
    with _gathered(run, options, tell) as (release_contents, gates):
        refuse(gates)
        tell(f"sending what {place.shown} lacks of {len(release_contents.items):,} files")
        return place.upload(release_contents)


def preview(
    run: Run,
    target: str,
    options: PublishOptions | None = None,
    retry: Retry | None = None,
    tell: Tell = nobody,
) -> UploadPreview:
    """What `publish` would do; reads, but sends nothing. `tell`: as of `publish`.

    Raises:
        PublishError: not finished, or the place cannot be read.
    """
    options = options or PublishOptions()
    place = open_target(target, options, retry)
    with _gathered(run, options, tell) as (release_contents, gates):
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
def _gathered(run: Run, options: PublishOptions, tell: Tell) -> Iterator[tuple[Contents, tuple[GateResult, ...]]]:
    """What goes out, which states the gates that were overruled, and what all gates say."""
    with tempfile.TemporaryDirectory(prefix="diffaug-") as stage:
        unchecked = contents(run, options, Path(stage))
        gates = check_gates(unchecked, options, tell)
        overruled = tuple(sorted(result.gate for result in gates if result.reason))
        yield unchecked.stating(overruled, leak_check(run)), gates
