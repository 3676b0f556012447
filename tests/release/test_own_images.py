"""Images of one's own have an identity: what the recipe states of them reaches gates, rows, card, croissant, verify."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from PIL import Image
from small_release import SMALL

from diffaug_datasets.core.errors import PublishError, RecipeError
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.new_run import plan
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.release.verify import verify
from diffaug_datasets.run.execute import execute, generate
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions

IDENTITY: Mapping[str, Any] = {
    "name": "garden",
    "title": "My [garden]",
    "licence": "cc-by-4.0",
    "citation": "@misc{garden, title = {My garden}}",
    "homepage": "https://me.example/garden",
    "metaclass": "flower",
    "classes": {"n01440764": "red rose", "tulip": "tulip"},
}


def photos(folder: Path) -> Path:
    shapes = [(s, c, n) for s in ("train", "test") for c in ("n01440764", "tulip") for n in range(2)]
    for number, (split, name, index) in enumerate(shapes):
        place = folder / "photos" / split / name / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_mandelbrot((40, 40), (-2 + number / 3, -1, 1, 1), 40 + number).convert("RGB").save(place)
    return folder / "photos"


def changed(folder: Path, **changes: Any) -> dict[str, Any]:
    given = {"backbone": "tiny", "source": str(folder / "photos"), "scores": {}, "include_test": True, **IDENTITY}
    return {**given, **changes}


def made(folder: Path, changes: dict[str, Any]) -> Run:
    run = write_run(prepare(config_recipe("imagefolder_full_img2img", **{**SMALL, **changes})), folder)
    execute(run, WorkerOptions(device="cpu"), workers=1)
    return Run.open(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    photos(folder)
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    return made(place / "run", changed(place))


@pytest.fixture(scope="module")
def shelf(place: Path, run: Run) -> Path:
    publish(run, (place / "shelf").as_uri())
    return place / "shelf"


def test_name_phrases_and_metaclass_are_planned(run: Run) -> None:
    header = run.plan.header
    assert (header.name, header.metaclass) == ("garden_full_img2img", "flower")
    assert (header.class_names, header.prompt_names) == (("n01440764", "tulip"), ("red rose", "tulip"))
    assert {row.prompt for row in run.plan.rows} == {"a photo of a red rose flower", "a photo of a tulip flower"}


def test_open_images_go_out_with_their_real_and_test_rows_and_no_overruled_gate(shelf: Path) -> None:
    [folder] = (shelf / "data" / "garden_full_img2img").iterdir()
    release = json.loads((folder / "run.json").read_text())
    assert (release["real"], release["overrides"]) == (True, [])
    files = sorted(str(path) for path in folder.glob("*-of-*.arrow"))
    rows = datasets.concatenate_datasets([datasets.Dataset.from_file(path) for path in files])
    assert sorted(rows["origin"]) == ["generated"] * 2 + ["real"] * 8
    stated = [json.loads(text).get("license") for text, kind in zip(rows["measured"], rows["origin"], strict=True)
              if kind == "real"]  # fmt: skip
    assert stated == ["CC BY 4.0"] * 8
    assert all(check.outcome != "WRONG" for check in verify(str(shelf)).checks)


def test_the_card_and_croissant_say_what_the_recipe_says(shelf: Path) -> None:
    head, _, body = (shelf / "README.md").read_text(encoding="utf-8").removeprefix("---\n").partition("\n---\n")
    stated = yaml.safe_load(head)
    assert (stated["license"], stated["pretty_name"], stated["source_datasets"]) == (
        "cc-by-4.0",
        "My [garden]",
        ["original"],
    )
    assert "4 real ones of My &#91;garden&#93;" in body
    assert "| real images | My &#91;garden&#93; | CC BY 4.0 |" in body
    assert "<https://me.example/garden>" in body
    assert "@misc{garden" in body
    assert "| CC BY 4.0 | 4 | 2 |" in body
    about = json.loads((shelf / "croissant.json").read_text(encoding="utf-8"))
    assert about["license"] == "https://creativecommons.org/licenses/by/4.0/"
    assert about["description"].startswith("My [garden], augmented")
    assert "@misc{garden" in about["citeAs"]
    assert about["rai:dataCollection"].startswith("Real images of the publisher")
    [source] = about["prov:wasDerivedFrom"]
    assert (source["name"], source["url"]) == ("My [garden]", "https://me.example/garden")


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        (None, r"licence: the recipe states no licence for My \[garden\]; .* set `licence:` in it .*--fits-from"),
        ("unknown", "licence: the recipe states no licence for"),
        ("cc-by-nd-4.0", "licence: the recipe states cc-by-nd-4.0 for .* which is not known to let others share"),
        ("other", "licence: the recipe states other for"),
    ],
)
def test_what_is_not_stated_or_not_open_does_not_go_out(
    run: Run, tmp_path: Path, licence: str | None, said: str
) -> None:
    closed = restated(run, tmp_path / "run", licence=licence)
    with pytest.raises(PublishError, match=said):
        publish(closed, (tmp_path / "shelf").as_uri())
    assert not (tmp_path / "shelf").exists()
    done = publish(closed, (tmp_path / "shelf").as_uri(), PublishOptions(with_rights=True))
    release = json.loads((tmp_path / "shelf" / done.folder / "run.json").read_text())
    assert (release["real"], release["overrides"]) == (False, ["licence"])


def restated(run: Run, folder: Path, **changes: Any) -> Run:
    """The run under another recipe, whose images are taken over."""
    made_again = plan(run.recipe, folder, **changes)
    generate(made_again, workers=1, device="cpu", fits_from=[run.folder])
    return made_again


def test_another_licence_or_name_takes_the_images_over(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        pytest.fail("an image was generated")

    monkeypatch.setattr("diffaug_datasets.run.batch.BatchJob.make", never)
    stated = restated(run, tmp_path / "stated", licence="mit", name="yard")
    assert (stated.plan.rows, stated.plan.id == run.plan.id) == (run.plan.rows, False)
    assert stated.plan.header.name == "yard_full_img2img"
    [shard] = stated.plan.shards()
    assert stated.table(shard).column("pixel_sha256") == run.table(shard).column("pixel_sha256")
    publish(stated, (tmp_path / "shelf").as_uri())


def test_a_title_may_change_after_the_images_were_made(place: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "shards").iterdir()}
    recipe = config_recipe("imagefolder_full_img2img", **{**run.recipe.model_dump(by_alias=True), "title": "Roses"})
    prepared = prepare(recipe)
    assert prepared.plan.id == run.plan.id
    again = write_run(prepared, tmp_path / "run")
    assert again.recipe == run.recipe.model_copy(update={"title": "Roses"})
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "shards").iterdir()} == before
    publish(again, (tmp_path / "shelf").as_uri())
    assert "real ones of Roses" in (tmp_path / "shelf" / "README.md").read_text(encoding="utf-8")


def test_a_dataset_with_terms_of_its_own_cannot_be_given_others() -> None:
    for key in ("licence", "name", "title", "citation", "homepage"):
        value = {"licence": "mit", "homepage": "https://x.example"}.get(key, "x")
        with pytest.raises(RecipeError, match=f"{key}: is for images of your own .*; Fashion-MNIST has its own"):
            prepare(config_recipe("fashion_1shot_img2img", **{key: value}))
    with pytest.raises(RecipeError, match="name: got 'cub', which is a dataset of this package"):
        prepare(config_recipe("imagefolder_full_img2img", name="cub", source="."))
    phrased = prepare(config_recipe("fashion_1shot_img2img", classes={"Bag": "handbag"}, metaclass="garment"))
    assert (phrased.plan.header.prompt_names[8], phrased.plan.header.metaclass) == ("handbag", "garment")


def test_phrases_of_classes_that_are_not_there_are_refused(place: Path) -> None:
    with pytest.raises(RecipeError, match="classes: the real images have no class 'tulips'; did you mean 'tulip'"):
        prepare(config_recipe("imagefolder_full_img2img", **changed(place, classes={"tulips": "tulip"})))
    with pytest.raises(RecipeError, match="classes: 'n01440764' and 'tulip' are both called 'tulip'"):
        prepare(config_recipe("imagefolder_full_img2img", **changed(place, classes={"n01440764": "tulip"})))


def test_a_tampered_recipe_opens_no_gate_of_another_dataset(run: Run) -> None:
    """Whoever writes a licence into the recipe of a published set whose builder has terms of its own gains nothing."""
    from diffaug_datasets.sources.real import builder_facts, recipe_facts

    forged = config_recipe("cub_5shot_img2img").model_copy(update={"licence": "mit", "title": "Birds"})
    assert recipe_facts(forged) == replace(builder_facts("cub"))
