"""The card's own lines, word for word: what a stranger can do with them, and what the card says that he cannot."""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Command
from hub.server import LoopbackHub
from PIL import Image
from small_release import made

import diffaug_datasets
from diffaug_datasets import load
from diffaug_datasets.release import contents, verify
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.publishing import preview, publish
from diffaug_datasets.run.store import Run

NAME = "org/fashion"
TINY = Path(diffaug_datasets.__file__).parent / "assets" / "tiny"
ALLOWED = ("local-model", "model-licence")


@pytest.fixture(scope="module")
def local_model(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose diffusion model lies in a folder of the publisher's machine."""
    folder = tmp_path_factory.mktemp("local")
    shutil.copytree(TINY / "pipeline", folder / "our-model")
    return made(folder / "run", backbone=str(folder / "our-model"))


@pytest.fixture
def withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real images may not be passed on."""
    real = contents.recipe_facts
    for module in (contents, verify):
        monkeypatch.setattr(module, "recipe_facts", lambda recipe: replace(real(recipe), redistributable=False))


@pytest.fixture
def images(finished: Run, tmp_path: Path) -> Path:
    """A reader's own copy of the real images, under names of their own."""
    for shard in finished.plan.real_shards():
        for row in finished.table(shard).to_pylist():
            path = tmp_path / "my copy" / f"kind {row['label']}" / f"{row['row_id']}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"]["bytes"])
    return tmp_path / "my copy"


class Stranger:
    """Who has the card and nothing else: no run folder, another home, another current folder."""

    def __init__(self, hub: LoopbackHub, run: Run, shell: Command) -> None:
        self.hub, self.shell = hub, shell
        self.card = hub.files(NAME)["README.md"].decode()
        self.row = run.plan.rows[3].row_id

    def commands(self, **places: Path) -> Iterator[tuple[str, ...]]:
        """The words of each command of the card, its placeholders filled."""
        for line in re.findall(r"^\$ diffaug (.*)$", self.card, re.M):
            yield tuple(str({**places, "ROW_ID": self.row}.get(word, word)) for word in shlex.split(line))

    def python(self) -> None:
        """All Python of the card, in a process of its own."""
        blocks = re.findall(r"```python\n(.*?)```", self.card, re.S)
        found = re.findall(r"^(\w+) = load", "".join(blocks), re.M)
        said = self.shell(
            sys.executable,
            "-c",
            "".join(blocks) + f"print(len({'), len('.join(found)}))",
            **self.hub.environment(Path.cwd()),
        )
        assert said.code == 0 and all(map(int, said.out.split())), said


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger").mkdir()
    monkeypatch.chdir(tmp_path / "stranger")


def test_a_set_that_has_everything(hub: LoopbackHub, finished: Run, diffaug: Command, shell: Command) -> None:
    publish(finished, NAME)
    stranger = Stranger(hub, finished, shell)
    said = [diffaug(*words, "--device", "cpu") for words in stranger.commands()]
    assert [answer.code for answer in said] == [0, 0, 0], said
    assert (said[1].out.count(": bit-equal"), said[2].out.count(": bit-equal")) == (10, 1)
    stranger.python()
    for told in ("and can be made again. Plan", "comes with diffaug-datasets", "The real images lie in the release"):
        assert told in stranger.card


def test_a_model_that_nobody_else_has(
    hub: LoopbackHub, local_model: Run, diffaug: Command, shell: Command, tmp_path: Path
) -> None:
    """Anybody can check; who has the very model can make rows again; another model is no stand-in."""
    ours = Path(local_model.recipe.backbone.id)
    hidden = ours.rename(tmp_path / "the same model") if ours.exists() else tmp_path
    try:
        shutil.copytree(hidden, ours)
        publish(local_model, NAME, PublishOptions(allow=ALLOWED))
        shutil.rmtree(ours)
        stranger = Stranger(hub, local_model, shell)
        check, sample, regen = stranger.commands(MODEL_FOLDER=hidden)
        assert diffaug(*check).code == 0
        stranger.python()
        assert str(ours.parent) not in stranger.card
        for told in (
            "With the model, not without it",
            "a folder of the publisher that is not published",
            "MODEL_FOLDER",
        ):
            assert told in stranger.card
        assert "can be made again. Plan" not in stranger.card
        said = [diffaug(*words, "--device", "cpu") for words in (sample, regen)]
        assert [answer.code for answer in said] == [0, 0], said
        assert "bit-equal" in said[1].out
        without = diffaug(*regen[:5], "--device", "cpu")
        assert "made by our-model@" in without.sentence and "give your copy with --backbone" in without.sentence
        (hidden / "unet" / "config.json").write_text((hidden / "unet" / "config.json").read_text() + " ")
        other = diffaug(*regen, "--device", "cpu")
        assert "and this is the same model@" in other.sentence and "give that very model" in other.sentence
        assert "neither a folder nor a Hub id" in diffaug(*regen[:-1], "/nowhere/at all", "--device", "cpu").sentence
    finally:
        if not ours.exists():
            shutil.copytree(TINY / "pipeline", ours)


@pytest.mark.usefixtures("withheld")
@pytest.mark.parametrize("recipe_only", [False, True])
def test_real_images_that_are_not_published(
    hub: LoopbackHub, finished: Run, diffaug: Command, shell: Command, images: Path, recipe_only: bool
) -> None:
    publish(finished, NAME, PublishOptions(with_rights=True, recipe_only=recipe_only))
    stranger = Stranger(hub, finished, shell)
    said = [diffaug(*words, "--device", "cpu") for words in stranger.commands(YOUR_IMAGES=images)]
    assert [answer.code for answer in said] == [0, 0, 0], said
    assert (said[1].out.count(": bit-equal"), said[2].out.count(": bit-equal")) == (10, 1)
    stranger.python()
    assert "YOUR_IMAGES is your own copy of Fashion-MNIST" in stranger.card
    assert ("`diffaug build org/fashion --source YOUR_IMAGES` makes" in stranger.card) is recipe_only
    if not recipe_only:
        assert len(load(NAME, with_real=images)) == 20


def test_images_that_only_the_publisher_has(tmp_path: Path, diffaug: Command) -> None:
    """Rows that start from them need them; rows made from text alone need nothing."""
    for number in range(2):
        (tmp_path / "own" / f"kind {number}").mkdir(parents=True)
        Image.effect_noise((32, 32), 50 + number).save(tmp_path / "own" / f"kind {number}" / "0.png")
    given = {"backbone": "tiny", "source": str(tmp_path / "own"), "scores": {}}
    edited = made(tmp_path / "edited", "imagefolder_full_img2img", **given)
    written = made(tmp_path / "written", "imagefolder_full_txt2img", **given)
    options = PublishOptions(recipe_only=True)
    card = preview(edited, f"file://{tmp_path}/a", options).card
    assert "With the real images, not without them" in card and "are the publisher's own and not published" in card
    assert "can be made again. Plan" not in card
    place = f"file://{tmp_path}/b"
    publish(written, place, options)
    shutil.rmtree(tmp_path / "own")
    card = (tmp_path / "b" / "README.md").read_text("utf-8")
    assert "No row starts from a real image, so none is needed." in card and "--source" not in card
    assert diffaug("verify", place, "--sample", 2, "--device", "cpu").code == 0


def test_private_scores_are_named(tmp_path: Path, local_model: Run) -> None:
    shutil.copytree(TINY / "encoder", tmp_path / "our-encoder")
    run = made(tmp_path / "run", scores={"encoder": str(tmp_path / "our-encoder")})
    card = preview(run, f"file://{tmp_path}/a").card
    assert re.search(r"rest on `our-encoder@[0-9a-f]{12}`, which is a folder of the publisher", card)
    assert "can be made again. Plan" in card


def test_words_of_published_sets_are_refused_for_run_folders(finished: Run, diffaug: Command) -> None:
    for option in ("--source", "--backbone", "--config", "--revision"):
        said = diffaug("regen", finished.folder, finished.plan.rows[0].row_id, option, "x")
        assert f"{option}: is for published sets" in said.sentence


def test_every_image_names_its_plan_and_row(hub: LoopbackHub, finished: Run, diffaug: Command) -> None:
    """A row id alone repeats across plans."""
    publish(finished, NAME)
    for row in load(NAME, augmented_only=True).data.to_pylist():
        urn = f"urn:diffaug:{finished.plan.id[:16]}:{row['row_id']}"
        assert f"<dc:identifier>{urn}</dc:identifier>".encode() in row["image"]["bytes"]
        assert row["plan_id"] == finished.plan.id
    assert "`urn:diffaug:<plan>:<row id>`" in hub.files(NAME)["README.md"].decode()
    assert urn in diffaug("show", finished.folder, row["row_id"]).out
