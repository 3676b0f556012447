"""One call: from a folder of photographs to a dataset of real and synthetic images."""

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TextIO, TypedDict, Unpack

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.method import find_method
from diffaug_datasets.core.protocols import parse_protocol
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.catalogue import config_name
from diffaug_datasets.planning.new_run import find_recipe, price_plan
from diffaug_datasets.release.read import EmptySplit, load
from diffaug_datasets.run.execute import generate, over_budget
from diffaug_datasets.sources.real import discover_builders

if TYPE_CHECKING:
    import datasets

FOLDERS = "imagefolder"  # the builder of class folders and Hub datasets


class RecipeKeys(TypedDict, total=False):
    """Keys of a recipe, which `Recipe` explains; any other one is taken too, or refused with what it may be."""

    per_class: int
    per_image: float
    config: Mapping[str, object]
    backbone: str | Mapping[str, object]
    scores: Mapping[str, object]
    filters: Sequence[Mapping[str, object]]
    targets: str
    confusion: str
    seed: int
    batch_size: int
    shard_rows: int
    include_test: bool
    on_bad_image: str
    on_small_class: str
    image_column: str
    label_column: str


def augment(
    source: str | os.PathLike[str],
    *,
    method: str = "genie",
    protocol: str = "full",
    out: str | os.PathLike[str] | None = None,
    workers: int = 0,
    device: str = "auto",
    progress: TextIO | bool | None = True,
    **keys: Unpack[RecipeKeys],
) -> "datasets.DatasetDict":
    """Augment your own images: plan, generate, and load what came of it. Needs the extra `generate`.

    The same call goes on after a stop (images of shards that were not finished are made again), and answers at once
    where everything is made. `Run.open(out)` is the run behind it, for `publish` or a report.

    Args:
        source: a folder with one folder per class (below `train` and `test` where there is a split), a Hub dataset, or
            the name of a dataset that is known (`fashion`; `diffaug builders` lists them).
        method: see `diffaug methods`; its own parameters go into the key `config`.
        protocol: which real images may be seen: `full`, `5shot`, `lt100`, `10pct`, ...
        out: the run folder; default: `runs/NAME-PLANID`.
        workers: processes that share the work; 0 = one per GPU, or one per core.
        device: auto, cpu, cuda or cuda:N.
        progress: the stream that shows how far it is; True is standard error, None or False is nowhere.
        keys: of a recipe: `per_class=20`, `backbone="tiny"`, `config={"ratio": 0.7}`, ...

    Returns:
        `train` (real and synthetic rows, column `is_synthetic`) and, where the source has one, `test`.

    Raises:
        DiffAugError: one sentence on the source, a key, the model or the run folder, or that too many rows failed.

    >>> from diffaug_datasets import augment
    >>> quick = {"num_inference_steps": 2}
    >>> sets = augment("fashion", method="txt2img", protocol="5shot", per_class=2, config=quick, workers=1)
    >>> sets["train"].num_rows, sum(sets["train"]["is_synthetic"]), sets["test"].num_rows
    (70, 20, 1000)
    """
    drawn = price_plan(_recipe(os.fspath(source), method, protocol, keys), out)
    for text in drawn.warnings:
        warnings.warn(text, stacklevel=2)
    run = drawn.write()
    shown = sys.stderr if progress is True else progress or None
    if trouble := over_budget(run, generate(run, workers=workers, device=device, progress=shown)):
        raise RunError(trouble)
    return _splits(str(run.folder))


def _recipe(source: str, method: str, protocol: str, keys: RecipeKeys) -> Recipe:
    """The defaults of the source's builder and the method, with the keys on top."""
    is_known = source in discover_builders() and not os.path.exists(source)  # noqa: PTH110, it may be a name
    changes = dict(keys) if is_known else {**keys, "source": source}
    builder = source if is_known else FOLDERS
    return find_recipe(config_name(builder, parse_protocol(protocol).name, find_method(method).NAME), changes)


def _splits(folder: str) -> "datasets.DatasetDict":
    from datasets import DatasetDict

    splits = {}
    for split in ("train", "test"):
        try:
            splits[split] = load(folder, split=split)
        except EmptySplit:
            continue
    return DatasetDict(splits)
