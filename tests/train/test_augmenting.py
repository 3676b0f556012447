"""One call from a folder of images to a `DatasetDict`."""

import io
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from diffaug_datasets import DiffAugError, Run, augment

QUICK: dict[str, Any] = {
    "method": "img2img",
    "per_class": 1,
    "backbone": {"id": "tiny", "height": 32, "width": 32, "dtype": "float32"},
    "config": {"num_inference_steps": 2},
    "workers": 1,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, with a test split; grey, coloured and transparent pictures."""
    folder = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 3), ("test", 1)):
        for name in ("cat", "dog"):
            for number in range(count):
                place = folder / split / name
                place.mkdir(parents=True, exist_ok=True)
                noise = Image.effect_noise((40, 36), 20 + 40 * number + len(name + split) + ord(name[0]))
                noise.convert(("L", "RGB", "RGBA")[number]).save(place / f"{number}.png")
    return folder


def test_a_folder_becomes_a_dataset_that_collates(photos: Path, tmp_path: Path) -> None:
    """Real pictures of several modes and made ones come out alike, so that their mode betrays nothing."""
    shown = io.StringIO()
    sets = augment(photos, out=tmp_path / "run", progress=shown, **QUICK)
    assert isinstance(sets, datasets.DatasetDict)
    assert {name: rows.num_rows for name, rows in sets.items()} == {"train": 8, "test": 2}
    assert sum(sets["train"]["is_synthetic"]) == 2
    assert {row["image"].mode for rows in sets.values() for row in rows} == {"RGB"}
    assert "2/2 images" in shown.getvalue()
    again = augment(photos, out=tmp_path / "run", progress=(silent := io.StringIO()), **QUICK)
    assert again["train"]["row_id"] == sets["train"]["row_id"] and silent.getvalue() == ""
    assert Run.open(tmp_path / "run").recipe.source == str(photos)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "geni"}, "method: got 'geni', expected one of"),
        ({"per_clas": 3}, "per_clas: unknown key; did you mean 'per_class'"),
        ({"per_class": 0}, "per_class: got 0, input should be greater than or equal to 1."),
        ({"config": {"strenght": 1}}, "config.strenght: unknown key"),
        ({"protocol": "five"}, "protocol: got 'five'"),
        ({"backbone": "no-such-model"}, "is neither a folder nor a Hub id"),
    ],
)
def test_mistakes_get_the_usual_sentence(photos: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(DiffAugError) as refusal:
        augment(photos, **{**QUICK, **changes})
    assert told in str(refusal.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiffAugError, match="where no folder is"):
        augment(tmp_path / "nowhere", **QUICK)
