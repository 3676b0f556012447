"""A dataset's own columns, such as the place behind a bird, reach rows, published sets, cards and exports."""

import csv
import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_release import SMALL

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.new_run import find_recipe, price_plan
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.exporting import export
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.release.read import load
from diffaug_datasets.release.verify import verify
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.reuse import withdraw
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions
from diffaug_datasets.sources import real

SPECIES = ("001.Black_footed_Albatross", "003.Sooty_Albatross")
OWN = ("kind", "place")


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Waterbirds: of each species four training images, the last of them over water, and two test images."""
    folder, rng = tmp_path_factory.mktemp("birds") / "waterbirds", random.Random(0)
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for kind, name in enumerate(SPECIES):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            noise = Image.effect_noise((36, 36), rng.randrange(20, 90)).convert("RGB")
            noise.save(folder / name / f"{number}.png")
            place, split = int(number in (3, 5)), 2 if number > 3 else 0
            lines.append(f"{number},{name}/{number}.png,{kind},{split},{place},/x.jpg")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(birds: Path) -> Run:
    keys = {"backbone": "tiny", "source": str(birds), "partial": True, "scores": {}, "include_test": True}
    recipe = config_recipe("waterbirds_full_img2img", **{**SMALL, **keys})
    made = write_run(prepare(recipe), birds.parent / "run")
    execute(made, WorkerOptions(device="cpu"), workers=1)
    return Run.open(made.folder)


@pytest.fixture(scope="module")
def shelf(birds: Path, run: Run) -> Path:
    place = birds.parent / "shelf"
    publish(str(run.folder), place.as_uri(), PublishOptions(with_rights=True))
    return place


def stated(run: Run) -> dict[str, tuple[str, str]]:
    """sha256 of every training image -> its kind and place, by the table of the dataset."""
    rows = real.read_real("waterbirds", run.recipe.source, partial=True).train.sources
    return {
        one.id: ("water bird" if one.label else "land bird", "water" if "/3" in one.key else "land") for one in rows
    }


def test_real_and_made_rows_have_them(run: Run) -> None:
    known = stated(run)
    train, test = load(run.folder), load(run.folder, split="test")
    assert train.column_names[-2:] == test.column_names[-2:] == list(OWN)
    assert {row["origin"] for row in train} == {"real", "generated"}
    assert all((row["kind"], row["place"]) == known[row["source_ids"][0]] for row in train)
    assert sorted(zip(*(test[name] for name in OWN), strict=True)) == [
        (kind, place) for kind in ("land bird", "water bird") for place in ("land", "water")
    ]


def test_they_are_published_said_and_verified(run: Run, shelf: Path) -> None:
    known, made = stated(run), load(shelf)
    assert {row["origin"] for row in made} == {"generated"}  # the licence keeps the real ones back
    assert all((row["kind"], row["place"]) == known[row["source_ids"][0]] for row in made)
    assert verify(shelf).passed
    card = (shelf / "README.md").read_text("utf-8")
    assert "| `place` | string | the background: land or water |" in card and "- name: place" in card
    croissant = json.loads((shelf / "croissant.json").read_text("utf-8"))
    fields = {field["name"] for part in croissant["recordSet"] for field in part["field"]}
    assert set(OWN) <= fields
    [provenance] = shelf.glob("data/*/*/provenance.parquet")
    rows = pq.read_table(provenance).to_pylist()
    assert {row["place"] for row in rows if row["origin"] == "real" and row["split"] == "test"} == {"land", "water"}


def test_a_readers_own_copy_has_them(birds: Path, run: Run, shelf: Path) -> None:
    known = stated(run)
    whole = load(shelf, with_real=birds)
    real_rows = [row for row in whole if row["origin"] == "real"]
    assert len(real_rows) == 8 and all((r["kind"], r["place"]) == known[r["source_ids"][0]] for r in real_rows)
    assert set(load(shelf, split="test", with_real=birds)["place"]) == {"land", "water"}


def test_exports_have_them(run: Run, tmp_path: Path) -> None:
    export(run.folder, tmp_path / "folder")
    with (tmp_path / "folder" / "train" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["place"] for row in rows} == {"land", "water"}


def test_a_withdrawn_image_leaves_the_others_theirs(run: Run, tmp_path: Path) -> None:
    known = stated(run)
    gone = load(run.folder)[0]["source_ids"][0]
    left = load(withdraw(run, [gone], tmp_path / "left").run.folder)
    assert gone not in {source for ids in left["source_ids"] for source in ids}
    assert all((row["kind"], row["place"]) == known[row["source_ids"][0]] for row in left)


def test_a_dataset_without_any_has_the_plan_that_it_had() -> None:
    drawn = price_plan(find_recipe("fashion_5shot_txt2img", {"per_class": 1, "backbone": "tiny"}))
    header = drawn.prepared.plan.header
    assert "columns" not in header.model_dump(mode="json") and header.columns == ()


def test_a_column_that_every_set_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real.find_builder("waterbirds"), "COLUMNS", {"prompt": "what it says"})
    with pytest.raises(SourceError, match=r"^waterbirds: declares the column 'prompt', which every set has"):
        real.builder_facts("waterbirds")
