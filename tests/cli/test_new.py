"""`diffaug new` on a terminal and off it: what it writes is planned and generated as it stands."""

import io
import json
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from command_line import Command
from PIL import Image

from diffaug_datasets.core.models import BackboneSpec, find_backbone
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.run.store import Run

sys.path.append(str(Path(__file__).parents[1] / "planning"))
from messy import messy_folder, picture

FAST = ("--set", "config.num_inference_steps=2")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder on a machine without a GPU, whatever this one has."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def beasts(root: Path, *names: str) -> Path:
    for number, name in enumerate(names or ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(root / name)
    return root


def test_a_messy_folder_goes_through_new_plan_and_generate(here: Path, diffaug: Command) -> None:
    folder = messy_folder(here)
    said = diffaug("new", folder.name)
    assert said.code == 0, said
    assert "my_photos_2024.yaml: written" in said.out
    assert "2 to give in the recipe, for no model knows what these are: '7', 'deadbeef01'" in said.out
    assert max(map(len, said.out.splitlines())) <= 130
    ends = "name the 2 classes marked NAME ME in my_photos_2024.yaml, then diffaug run my_photos_2024.yaml"
    assert said.out.splitlines()[-1] == f"next: {ends}"
    text = (here / "my_photos_2024.yaml").read_text(encoding="utf-8")
    assert "'7': '7' # NAME ME: a number, which no model knows" in text
    assert "Löwenzahn: Löwenzahn # prompts are in English for most models: give the English word" in text
    assert "n01440764: tench # WordNet n01440764" in text
    planned = diffaug("plan", "my_photos_2024.yaml", "--run", "run", *FAST)
    assert planned.code == 0, planned
    assert (
        "2 classes have a code for a name, which no model knows ('7', 'deadbeef01'); say under `classes:`"
        in planned.out
    )
    run = Run.open("run")
    assert run.plan.header.name == "my_photos_2024_full_img2img"
    assert set(run.plan.images_per_class().values()) == {2}
    gone = {image for row in run.plan.real for image in row.source_ids} & set(run.recipe.without)
    tested = {row.source_ids[0] for row in run.plan.real if row.split == "test"}
    assert gone <= tested
    made = diffaug("generate", "run", "--workers", "1", "--device", "cpu")
    assert made.code == 0, made
    assert "16 images written, 0 failed, 16 kept" in made.out


def test_nothing_is_written_over_and_force_does(here: Path, diffaug: Command) -> None:
    beasts(here / "beasts")
    (here / "mine.yaml").write_text("mine")
    assert diffaug("new", "beasts", "-o", "mine.yaml").sentence.startswith(
        "mine.yaml: is there already; give another file"
    )
    assert (here / "mine.yaml").read_text() == "mine"
    assert diffaug("new", "beasts", "-o", "mine.yaml", "--force").code == 0
    assert yaml.safe_load((here / "mine.yaml").read_text())["builder"] == "imagefolder"


def test_the_recipe_says_what_was_suggested_and_what_was_given(here: Path, diffaug: Command) -> None:
    beasts(here / "photos" / "beasts")
    said = diffaug("new", "photos/beasts", "--set", "licence=CC BY 4.0", "--set", "method=genie", "-o", "out/r.yaml")
    assert said.code == 0, said
    recipe = Recipe.from_yaml("out/r.yaml")
    assert recipe.source == str(here / "photos" / "beasts")
    assert yaml.safe_load(Path("out/r.yaml").read_text())["source"] == "../photos/beasts"
    assert (recipe.method, recipe.config, recipe.licence) == ("genie", {}, "cc-by-4.0")
    assert (recipe.name, recipe.title, recipe.metaclass) == ("beasts", "Beasts", "beast")
    assert recipe.classes == {"cat": "cat", "dog": "dog"}
    assert said.out.splitlines()[-1] == "next: diffaug run out/r.yaml"


def test_a_model_beside_the_recipe_is_named_from_there(here: Path, diffaug: Command) -> None:
    beasts(here / "beasts")
    shutil.copytree(str(find_backbone(BackboneSpec(id="tiny")).folder), here / "model")
    assert diffaug("new", "beasts", "--backbone", "model").code == 0
    text = Path("beasts.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["backbone"]["id"] == "./model" and str(here) not in text
    assert Recipe.from_yaml("beasts.yaml").backbone.id == str(here / "model")


def test_a_zip_ends_in_a_recipe_that_plans(here: Path, diffaug: Command) -> None:
    beasts(here / "src", "train/Cat/0.png", "train/Cat/1.png", "train/Dog/2.png", "test/Cat/3.png", "test/Dog/4.png")
    with zipfile.ZipFile(here / "beasts.zip", "w") as packed:
        for path in sorted((here / "src").rglob("*.png")):
            packed.write(path, path.relative_to(here / "src"))
    assert "beasts.zip unpacked into beasts/, 5 files" in diffaug("new", "beasts.zip").out
    planned = diffaug("plan", "beasts.yaml", "--dry-run")
    assert planned.code == 0, planned
    assert "3 real images for training, 2 for testing" in planned.out
    assert "beasts/: is there already" not in planned.err
    assert "is there already, where beasts.zip would be unpacked" in diffaug("new", "beasts.zip", "--force").sentence


def test_a_table_ends_in_a_recipe_that_plans(here: Path, diffaug: Command) -> None:
    beasts(here / "in", "0.png", "1.png", "2.png", "3.png")
    rows = "0.png,cat,train\n1.png,dog,train\n2.png,cat,test\n3.png,dog,test\n"
    (here / "in" / "list.csv").write_text(f"where,what,split\n{rows}")
    assert "has the columns where, what, split" in diffaug("new", "in/list.csv").sentence
    columns = ("--set", "image_column=where", "--set", "label_column=what")
    assert diffaug("new", "in/list.csv", *columns).code == 0
    planned = diffaug("plan", "list.yaml", "--dry-run")
    assert planned.code == 0, planned
    assert "2 real images for training, 2 for testing" in planned.out


def test_json_is_for_programs(here: Path, diffaug: Command) -> None:
    beasts(here / "beasts", "1/0.png", "1/1.png", "dog/2.png")
    said = json.loads(diffaug("new", "beasts", "--json").out)
    assert (said["train"], said["test"], said["nameless"]) == ({"1": 2, "dog": 1}, None, {"1": "a number"})
    assert (said["recipe"], said["suggested"]["method"]) == ("beasts.yaml", "img2img")


def test_on_a_terminal_it_asks_what_it_cannot_know(
    here: Path, diffaug: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    beasts(here / "beasts", "0/0.png", "1/1.png", "dog/2.png")
    monkeypatch.setattr("diffaug_datasets.cli.new._somebody_is_there", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("tabby cat\n\nCC-BY\nCC BY 4.0\n"))
    said = diffaug("new", "beasts")
    assert said.code == 0, said
    assert "did you mean 'cc-by-4.0'" in said.out
    recipe = Recipe.from_yaml("beasts.yaml")
    assert (recipe.classes, recipe.licence) == ({"0": "tabby cat", "1": "1", "dog": "dog"}, "cc-by-4.0")
    text = (here / "beasts.yaml").read_text()
    assert "'0': tabby cat\n" in text
    assert "'1': '1' # NAME ME" in text


def test_yes_and_no_terminal_never_ask(here: Path, diffaug: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    beasts(here / "beasts", "0/0.png", "dog/2.png")
    monkeypatch.setattr("typer.prompt", lambda *_, **__: pytest.fail("asked"))
    assert diffaug("new", "beasts").code == 0
    monkeypatch.setattr("diffaug_datasets.cli.new._somebody_is_there", lambda: True)
    assert diffaug("new", "beasts", "--yes", "--force").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("new", "beast"), "'beast': nothing is there; did you mean 'beasts'?"),
        (
            ("new", "beasts", "--set", "licence=mitt"),
            "licence: got 'mitt', expected a licence by the Hub's id; did you mean",
        ),
        (("new", "beasts", "--set", "colour=red"), "colour: unknown key"),
        (("new", "beasts", "--backbone", "nope"), "backbone 'nope' is neither a folder nor a Hub id"),
        (("new", "beasts", "-o", "beasts"), "beasts: is there already"),
        (("new", "empty"), "found no class folder"),
        (("new", "beasts/cat"), "if 'cat' is a class with its 2 images, give the folder above: '"),
        (("run", "beasts.yml"), "beasts.yml: no such recipe; did you mean my_beasts.yaml?"),
        (("status", "."), ".: is no run folder, but holds a run folder: old; give one of them."),
    ],
)
def test_mistakes_get_one_sentence_and_write_nothing(
    here: Path, diffaug: Command, words: tuple[str, ...], said: str
) -> None:
    beasts(here / "beasts")
    for folder in ("empty", "old"):
        (here / folder).mkdir()
    (here / "old" / "plan.json").touch()
    (here / "my_beasts.yaml").touch()
    before = sorted(here.rglob("*"))
    assert said in diffaug(*words).sentence
    assert sorted(here.rglob("*")) == before


def test_an_image_that_drives_a_terminal_by_its_name_does_not(here: Path, diffaug: Command) -> None:
    beasts(here / "beasts", "cat/a\x1b[31m.png", "dog/0.png")
    Image.new("RGB", (8, 8)).save(here / "beasts" / "dog" / "b\x1b]0;x\x07.png")
    said = diffaug("new", "beasts")
    assert said.code == 0, said
    assert "\x1b" not in said.out
