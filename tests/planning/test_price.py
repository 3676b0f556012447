"""The price of a plan: what is counted is right, what is estimated is near."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.filesize import decimal

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.images import PIXEL_BYTES
from diffaug_datasets.core.method import FitUnit
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.recipe import Filter
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import Prepared, prepare, write_run
from diffaug_datasets.planning.price import (
    FLOP_PER_PARAMETER,
    ROW_BYTES,
    SPARE,
    Network,
    Price,
    fit_evaluations,
    network_of,
    price,
)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(config_recipe("fashion_5shot_diffii", per_class=3, config={"concepts": {"steps": 7, "batch": 4}}))


@pytest.fixture(scope="module")
def quote(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Price:
    return price(prepared, tmp_path_factory.mktemp("price") / "not" / "there" / "yet")


def test_counts_are_those_of_the_plan(prepared: Prepared, quote: Price) -> None:
    assert (quote.rows, quote.real, quote.test) == (30, 50, 1000)
    assert set(quote.images_per_class.values()) == {3} and len(quote.images_per_class) == 10
    assert quote.shards == len(prepared.plan.shards())
    assert quote.fits == {"concepts": 1, "inversions": 2}  # the full batches, and what is left over


def test_evaluations_are_the_methods_and_the_fits(prepared: Prepared, quote: Price) -> None:
    assert (quote.evaluations, quote.idle) == (32 * 2 * 25, 2 * 2 * 25)  # 30 rows in batches of 16
    used = {image for row in prepared.plan.rows for image in row.source_ids}
    assert len(used) == 41 and quote.fit_evaluations == 7 * 4 + 41 * 25


def test_a_payload_that_says_nothing_costs_nothing() -> None:
    assert fit_evaluations(FitUnit.of("embeddings", {"images": ["a"], "encoder": "tiny"})) == 0


def test_stable_diffusion_is_assumed_where_the_weights_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    network = network_of(BackboneSpec(id="stable-diffusion-v1-5/stable-diffusion-v1-5"))
    assert network == Network() and not network.measured
    assert FLOP_PER_PARAMETER * network.parameters * network.side**2 == pytest.approx(0.8e12, rel=0.02)


def test_the_packaged_network_is_measured() -> None:
    import torch

    from diffaug_datasets.models.backbone import Backbone

    network = network_of(BackboneSpec(id="tiny"))
    backbone = Backbone.load(BackboneSpec(id="tiny"), "cpu")
    assert network.measured
    assert network.parameters == sum(p.numel() for p in backbone.unet.parameters())
    assert backbone.latent_shape[1:] == (network.side, network.side)
    assert torch.tensor(network.total) > network.parameters


def test_disk_estimate_covers_what_planning_writes(prepared: Prepared, quote: Price, tmp_path: Path) -> None:
    write_run(prepared, tmp_path / "run")
    written = sum(path.stat().st_size for path in (tmp_path / "run" / "shards").iterdir())
    assert written < quote.bytes_needed < 10 * written


def test_filters_keep_what_is_left_a_second_time(prepared: Prepared, quote: Price, tmp_path: Path) -> None:
    """The shards stay as they are; what a filter leaves of them is written beside."""
    rule = Filter(column="judge_confidence", minimum=0.1)
    recipe = prepared.recipe.model_copy(update={"filters": (rule,)})
    more = price(replace(prepared, recipe=recipe), tmp_path).bytes_needed - quote.bytes_needed
    network = network_of(recipe.backbone)
    rows = quote.rows * ((network.side * network.factor) ** 2 * PIXEL_BYTES[recipe.image_format] + ROW_BYTES)
    assert more == pytest.approx(SPARE * rows, rel=0.01)


def test_too_little_memory_is_said(
    monkeypatch: pytest.MonkeyPatch, prepared: Prepared, quote: Price, tmp_path: Path
) -> None:
    monkeypatch.setattr("diffaug_datasets.planning.price.memory_free", lambda: quote.memory_to_plan + 1)
    [warning] = price(prepared, tmp_path).warnings
    needed, free = decimal(quote.memory_per_worker * quote.workers), decimal(quote.memory_to_plan + 1)
    assert warning == f"memory: CPU workers need about {needed}, {free} is free here; use fewer, or a GPU."
    monkeypatch.setattr("diffaug_datasets.planning.price.memory_free", lambda: quote.memory_to_plan - 1)
    assert [warning.split(",")[0] for warning in price(prepared, tmp_path).warnings] == [
        f"memory: CPU workers need about {needed}",
        f"memory: planning needs about {decimal(quote.memory_to_plan)}",
    ]
    for free_bytes in (quote.memory_per_worker * quote.workers, None):
        monkeypatch.setattr("diffaug_datasets.planning.price.memory_free", lambda free=free_bytes: free)
        assert price(prepared, tmp_path).warnings == ()


def test_a_full_disk_is_refused(quote: Price, tmp_path: Path) -> None:
    quote.check(tmp_path)
    with pytest.raises(
        RunError, match=r"the run needs about 5\.0 GB, the disk has 1\.0 kB free; free space, plan fewer"
    ):
        replace(quote, bytes_needed=5_000_000_000, bytes_free=1_000).check(tmp_path)


def test_more_work_takes_longer(quote: Price, prepared: Prepared, tmp_path: Path) -> None:
    twice = replace(prepared, plan=replace(prepared.plan, rows=tuple(prepared.plan.rows) * 2))
    assert price(twice, tmp_path).seconds_cpu > quote.seconds_cpu > 0
    assert price(twice, tmp_path).seconds_gpu > quote.seconds_gpu > 0
