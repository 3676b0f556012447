"""The test split that a run is compared with, and the verdict, which is kept in the run folder."""

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict

from diffaug_datasets.core.canonical import digest
from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.core.temporary import write_text
from diffaug_datasets.data.real import read_recipe_images
from diffaug_datasets.data.release import LeakCheck
from diffaug_datasets.publish.leakage import VERSION, Features, Lazily, Leak, Vectors, find_leaks
from diffaug_datasets.run.execute import resolve_device
from diffaug_datasets.run.features import read_stream
from diffaug_datasets.run.store import Run

FILE = "leakage.json"
NAMED = 5


class Compared(BaseModel):
    """`leakage.json`: how many test images were looked at, and which leaks there are. `key` says of what.

    `encoder`: whose embeddings were compared; none where the recipe names none, or torch is not installed.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = 2
    key: str
    test_images: int
    encoder: str | None
    leaks: tuple[Leak, ...]


def leak_reason(run: Run) -> str:
    """Why a run may not go out for its test images; '' where none is among its sources, or there is no test split."""
    try:
        compared = compare(run)
    except DiffAugError as error:
        return (
            f"test-leak: the test split cannot be looked at ({error}); make it reachable, or publish with "
            "--allow test-leak."
        )
    if not compared.leaks:
        return ""
    named = "; ".join(str(leak) for leak in compared.leaks[:NAMED])
    more = f" and {len(compared.leaks) - NAMED} more" if len(compared.leaks) > NAMED else ""
    count = len({leak.source for leak in compared.leaks})
    return (
        f"test-leak: {count} real training images show images of the test split: {named}{more}; take "
        "them out of the source, or publish with --allow test-leak."
    )


def leak_check(run: Run) -> LeakCheck | None:
    """What a release says where no test image was found among its sources; none where nothing could be looked at."""
    try:
        compared = compare(run)
    except DiffAugError:
        return None  # `leak_reason` says why
    if compared.leaks or not compared.test_images:
        return None
    return LeakCheck(test_images=compared.test_images, embeddings=compared.encoder is not None)


def compare(run: Run) -> Compared:
    """The comparison, from the run folder where it was made before.

    Raises:
        DiffAugError: the test split or the encoder cannot be read.
    """
    header = run.plan.header
    encoder = run.recipe.scores.encoder if find_spec("torch") and find_spec("transformers") else None
    named = [header.sources, header.test_sources, header.recipe["builder"], str(run.recipe.source), encoder]
    key = digest([VERSION, *named])
    if (known := _known(run.folder / FILE)) and known.key == key:
        return known
    test = _test_images(run)
    leaks = find_leaks(_images(run, "real"), test, _features(run, encoder) if encoder else None)
    made = Compared(key=key, test_images=len(test), encoder=encoder, leaks=tuple(leaks))
    write_text(run.folder / FILE, made.model_dump_json(indent=1))
    return made


def _features(run: Run, name: str) -> Features:
    """What the recipe's encoder sees, on the GPU where there is one."""
    from diffaug_datasets.models.features import Encoder

    encoder, shape = Encoder.load(name, resolve_device("auto")), run.recipe.batch_size

    def features(images: Iterable[Image.Image]) -> Vectors:
        """Unit-norm features [n d]."""
        return encoder.image_features(images, batch_shape=shape).numpy()

    return features


def _known(path: Path) -> Compared | None:
    try:
        return Compared(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _test_images(run: Run) -> Mapping[str, bytes]:
    """Source id -> bytes, from the run where it carries the split, else from the real dataset."""
    if images := _images(run, "test"):
        return images
    recipe = run.recipe
    real = read_recipe_images(recipe, recipe.source)
    place = {source.id: index for index, source in enumerate(real.test.sources if real.test else ())}
    return Lazily(place, lambda name: real.read("test", place[name]))


def _images(run: Run, stem: str) -> Mapping[str, bytes]:
    """Source id -> encoded bytes of the run's own real shards."""
    cells: dict[str, tuple[Any, int]] = {}
    for shard in run.plan.real_shards():
        if shard.name.startswith(stem):
            table = read_stream(str(run.shard_path(shard.name)))
            images = table.column("image")
            cells |= {ids[0]: (images, row) for row, ids in enumerate(table.column("source_ids").to_pylist())}
    return Lazily(cells, lambda name: bytes(cells[name][0][cells[name][1]].as_py()["bytes"]))
