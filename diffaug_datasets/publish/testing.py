"""The test split that a run is compared with, and the verdict, which is kept in the run folder."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from diffaug_datasets.core.canonical import digest
from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.data.real import read_real
from diffaug_datasets.publish.leakage import VERSION, Leak, find_leaks
from diffaug_datasets.run.features import read_stream
from diffaug_datasets.run.store import Run, write_text

FILE = "leakage.json"
NAMED = 5


class Compared(BaseModel):
    """`leakage.json`: how many test images were looked at, and which leaks there are. `key` says of what."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    key: str
    test_images: int
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
    return (
        f"test-leak: {len(compared.leaks)} real training images show images of the test split: {named}{more}; take "
        "them out of the source, or publish with --allow test-leak."
    )


def compare(run: Run) -> Compared:
    """The comparison, from the run folder where it was made before.

    Raises:
        DiffAugError: the test split cannot be read.
    """
    header = run.plan.header
    named = [header.sources, header.test_sources, header.recipe["builder"], str(run.recipe.source)]
    key = digest([VERSION, *named])
    if (known := _known(run.folder / FILE)) and known.key == key:
        return known
    test = _test_images(run)
    leaks = find_leaks(_images(run, "real"), test)
    made = Compared(key=key, test_images=len(test), leaks=tuple(leaks))
    write_text(run.folder / FILE, made.model_dump_json(indent=1))
    return made


def _known(path: Path) -> Compared | None:
    try:
        return Compared(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _test_images(run: Run) -> Mapping[str, bytes]:
    """Source id -> bytes, from the run where it carries the split, else from the real dataset."""
    if images := _images(run, "test"):
        return images
    real = read_real(run.recipe.builder, run.recipe.source, run.recipe.partial)
    found = real.test.sources if real.test else ()
    return {source.id: real.read("test", index) for index, source in enumerate(found)}


def _images(run: Run, stem: str) -> dict[str, bytes]:
    """Source id -> encoded bytes of the run's own real shards."""
    found: dict[str, bytes] = {}
    for shard in run.plan.real_shards():
        if shard.name.startswith(stem):
            table = read_stream(str(run.shard_path(shard.name)))
            ids = (row[0] for row in table.column("source_ids").to_pylist())
            found |= {name: cell["bytes"] for name, cell in zip(ids, table.column("image").to_pylist(), strict=True)}
    return found
