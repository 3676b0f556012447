"""What planning costs a row does not grow with the plan: ratios of CPU time, with room for a busy machine."""

import hashlib
import time

import pytest

from diffaug_datasets.core.method import PlanSpec
from diffaug_datasets.core.plan import draw_plan
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.sources import PoolTable, Source, SourceTable
from diffaug_datasets.methods import genie

CLASS_IMAGES = 20


def table(images: int) -> SourceTable:
    """Invented images, in classes of twenty."""
    names = tuple(f"class {i}" for i in range(images // CLASS_IMAGES))
    ids = (hashlib.sha256(f"{i}".encode()).hexdigest() for i in range(images))
    return SourceTable(
        "b", "train", names, names, "", tuple(Source(s, i // CLASS_IMAGES, "") for i, s in enumerate(ids))
    )


@pytest.mark.full  # it measures time, which other work on the machine disturbs
@pytest.mark.parametrize("method", ["txt2img", "genie", "diff_ii", "retrieval"])
def test_a_row_costs_the_same_in_a_plan_eight_times_as_large(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genie, "_MOST_DIGESTS", 0)
    config = {"pool": "tiny", "encoder": "tiny", "query": "image"} if method == "retrieval" else {}
    content = {"builder": "fashion", "method": method, "config": config, "backbone": {"id": "tiny"}}
    recipe = Recipe.model_validate(content)

    def seconds(images: int) -> float:
        sources = table(images)
        spec = PlanSpec(0, "b", 8, 5.0, suffixes=("outside",), pool=PoolTable.of(s.id for s in sources.sources))
        begin = time.process_time()
        assert len(draw_plan("n", recipe, sources, None, spec).rows) == 5 * images
        return time.process_time() - begin

    seconds(100)
    assert min(seconds(2400) for _ in range(3)) < 8 * 2.5 * min(seconds(300) for _ in range(3))
