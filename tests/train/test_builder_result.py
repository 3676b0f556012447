"""The finished set: columns, schema, and how it goes together with others."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from torch.utils.data import DataLoader

from diffaug_datasets import load, load_builder
from diffaug_datasets.core.rows import COLUMNS, Outcome, PlanRow, column_types

QUICK: dict[str, Any] = {"per_class": 1, "batch_size": 4, "workers": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, datasets.Dataset]:
    made = {}
    for slug in ("txt2img", "img2img"):
        folder: Path = tmp_path_factory.mktemp(slug) / "run"
        builder = load_builder(f"fashion_1shot_{slug}", run_dir=folder, config={"num_inference_steps": 3}, **QUICK)
        builder.download_and_prepare()
        made[slug] = builder.as_dataset(split="train")
        made["real"] = load(folder, split="test")
    return made


def test_columns_are_the_contract(sets: dict[str, datasets.Dataset]) -> None:
    assert tuple(sets["txt2img"].column_names) == COLUMNS
    planned = set(column_types(PlanRow)) - {"k", "split"}
    assert set(COLUMNS) == planned | set(column_types(Outcome)) | {"image", "plan_id"}


def test_real_and_two_methods_concatenate_without_a_cast(sets: dict[str, datasets.Dataset]) -> None:
    both = datasets.concatenate_datasets(list(sets.values()))
    assert both.num_rows == sum(part.num_rows for part in sets.values())
    assert all(part.features == both.features for part in sets.values())


def test_image_and_label_go_through_a_default_loader(sets: dict[str, datasets.Dataset]) -> None:
    pairs = sets["txt2img"].select_columns(["image", "label"]).with_format("torch")
    batch = next(iter(DataLoader(pairs, batch_size=4)))
    assert tuple(batch["image"].shape) == (4, 3, 32, 32)
    assert batch["label"].tolist() == sets["txt2img"]["label"][:4]


def test_nothing_unmeasured_is_zero(sets: dict[str, datasets.Dataset]) -> None:
    real = [row for row in sets["txt2img"] if row["origin"] == "real"]
    assert all(row["clip_score"] is None and row["judge_label"] is None and row["prompt"] is None for row in real)
    generated = [row for row in sets["txt2img"] if row["is_synthetic"]]
    assert all(row["source_similarity"] is None for row in generated)
    assert all(
        row["clip_score"] is not None and row["soft_label"] == {"class": [row["label"]], "weight": [1.0]}
        for row in generated
    )


def test_ids_are_unique_over_real_and_synthetic(sets: dict[str, datasets.Dataset]) -> None:
    ids = sets["txt2img"]["row_id"][:] + sets["real"]["row_id"][:]
    assert len(ids) == len(set(ids))
