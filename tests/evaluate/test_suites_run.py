"""The whole path of every suite at small size: its sets are planned and made, its classifier learns and is tested."""

from pathlib import Path

import pytest
from shrunk import SIDE, SPECIES, draw_pictures, draw_waterbirds, shrunk, shrunk_recipe

from diffaug_datasets import generate, plan
from diffaug_datasets.evaluate.bench import bench
from diffaug_datasets.evaluate.groups import table_of
from diffaug_datasets.evaluate.paper_suites import load_suite, suite_names
from diffaug_datasets.evaluate.suite import Bench, Network
from diffaug_datasets.models.encoders import Encoder

SHORT = ("GeNIe",)
# One bench of a suite stands for those that differ by dataset alone.
FIRST = {name: next(iter(load_suite(name).plans.values())) for name in suite_names()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A residual network of transformers with random weights, its processor beside it."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("network")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return str(folder)


def ran(whole: Bench, pictures: Path, network: str, folder: Path, draws: int) -> list[str]:
    """The lines of the shrunk bench that have predictions for all test images."""
    runs, waterbirds = [], None
    if whole.test:
        pictures = draw_pictures(folder / "birds", SPECIES)
        waterbirds = draw_waterbirds(folder / "waterbirds")
    for draw in range(draws):
        for place, entry in enumerate(whole.sets):
            run = plan(shrunk_recipe(entry, pictures, draw), folder / f"{draw}-{place}")
            generate(run, workers=1)
            runs.append(run.folder)
    small = shrunk(whole, runs, network, waterbirds)
    answer = bench(small, [Encoder.load("tiny")], folder / "bench", cache=folder / "cache")
    assert len(answer.draws) == draws and not any(line.leaks for line in answer.lines)
    assert all(len(result.correct) == 8 for result in answer.results)
    if isinstance(small.classifiers[0], Network):
        assert all(0 < result.receipt.steps <= 4 for result in answer.results)  # two, or an epoch of 12 images at most
    if whole.test:
        groups = {row.group: row for row in table_of(answer, small)}
        assert list(groups)[1:] == [
            *(f"{kind} bird at {place}" for kind in ("land", "water") for place in ("land", "water")),
            "worst group",
        ]
        assert {row.test_images for group, row in groups.items() if group} == {2}
    return sorted({result.receipt.cell.line for result in answer.results})


@pytest.mark.filterwarnings("ignore")
def test_birds_of_one_dataset_are_tested_on_those_of_another(pictures: Path, network: str, tmp_path: Path) -> None:
    whole = FIRST["diffii_ood"]
    whole = whole.model_copy(update={"sets": whole.sets[1:2], "controls": ("real", "duplicate")})
    assert ran(whole, pictures, network, tmp_path, draws=1) == ["Real-Guidance", "duplicate", "real"]


@pytest.mark.filterwarnings("ignore")
def test_episodes_on_frozen_features(pictures: Path, network: str, tmp_path: Path) -> None:
    whole = FIRST["genie_logreg"]
    whole = whole.model_copy(update={"sets": tuple(entry for entry in whole.sets if entry.name in SHORT)})
    lines = ran(whole, pictures, network, tmp_path, draws=2)
    assert {"real", "duplicate"} <= set(lines) and len(lines) >= 3


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FIRST)
def test_every_suite_runs_at_small_size(name: str, pictures: Path, network: str, tmp_path: Path) -> None:
    whole = FIRST[name]
    lines = ran(whole, pictures, network, tmp_path, draws=1)
    assert len(lines) >= 2 + len(whole.sets)
