"""Hub datasets as they are: configs, splits, columns and labels that must be named, and why one cannot be had."""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from command_line import Command
from datasets import ClassLabel, Features, List, Value
from hub.clients import loopback_hub
from hub.server import LoopbackHub
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import close_session
from PIL import Image

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.prepare import prepare
from diffaug_datasets.sources.hub import HubChoice
from diffaug_datasets.sources.real import RealSet, read_real

NAME = "org/birds"
OWN = ("--set", "backbone=tiny", "--set", "per_class=1", "--set", "config.num_inference_steps=2")
LABEL = ClassLabel(names=["wren", "owl"])


def png(value: int) -> bytes:
    """A small picture."""
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (value % 256, value // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def table(labels: list[Any], kind: Any = LABEL, label: str = "label", image: str = "image", start: int = 0) -> Any:
    """A split of pictures with one column of labels."""
    cells = [{"bytes": png(start + row), "path": None} for row in range(len(labels))]
    return datasets.Dataset.from_dict(
        {image: cells, label: labels}, features=Features({image: datasets.Image(), label: kind})
    )


def more(found: Any, **columns: tuple[list[Any], Any]) -> Any:
    """The split with other columns beside."""
    for name, (values, kind) in columns.items():
        found = found.add_column(name, values, feature=kind)
    return found


def parquet(found: Any) -> bytes:
    """A split as a file."""
    buffer = BytesIO()
    found.to_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub that `datasets` takes for the real one."""
    with loopback_hub(tmp_path) as found:
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", found.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
        datasets.disable_progress_bars()
        yield found


def push(**files: bytes) -> None:
    """One commit of files, by name with `__` for `/`."""
    api = HfApi()
    api.create_repo(NAME, repo_type="dataset", exist_ok=True)
    named = {
        name.replace("__", "/").replace("_md", ".md").replace("_parquet", ".parquet"): d for name, d in files.items()
    }
    additions = [CommitOperationAdd(name, data) for name, data in named.items()]
    api.create_commit(NAME, additions, commit_message="files", repo_type="dataset")


def refused(source: str = NAME, **options: Any) -> str:
    """The sentence of a refusal."""
    with pytest.raises(SourceError) as error:
        read_real("imagefolder", source, **options)
    return str(error.value)


def card(*names: str) -> bytes:
    """A card with configs, none of them the default one."""
    entry = "- config_name: {0}\n  data_files:\n  - split: train\n    path: {0}/train.parquet\n"
    return ("---\nconfigs:\n" + "".join(map(entry.format, names)) + "---\n").encode()


# -- configs, on a Hub ------------------------------------------------------------------------------------------------


def test_one_of_several_configs_is_named(hub: LoopbackHub, diffaug: Command, tmp_path: Path) -> None:
    small, large = parquet(table([0, 1, 1])), parquet(table([0, 1, 1, 0], start=9))
    push(README_md=card("small", "large"), small__train_parquet=small, large__train_parquet=large)
    line = ("plan", "imagefolder_full_img2img", "--source", NAME, *OWN)
    said = diffaug(*line, "--run", tmp_path / "run").sentence
    assert said == "imagefolder: org/birds has the configs small, large and no default one; name it as source_config."
    said = diffaug(*line, "--run", tmp_path / "run", "--set", "source_config=smal").sentence
    assert said == "imagefolder: source_config: got 'smal', expected one of small, large of org/birds."
    assert not (tmp_path / "run").exists()
    ids = set()
    for config, count in (("small", 3), ("large", 4)):
        recipe = Recipe(builder="imagefolder", method="img2img", source=NAME, source_config=config, per_class=1)
        prepared = prepare(recipe)
        assert len(prepared.real.train) == count and prepared.plan.header.recipe["source_config"] == config
        ids.add(prepared.plan.id)
    assert len(ids) == 2
    assert diffaug(*line, "--run", tmp_path / "run", "--set", "source_config=small").code == 0
    assert "source_config: small" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_a_hub_id_ends_in_a_recipe_that_plans(
    hub: LoopbackHub, diffaug: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    train, test = parquet(table([0, 1, 1])), parquet(table([0, 1], start=9))
    push(README_md=b"---\nlicense: cc-by-4.0\n---\n", train_parquet=train, test_parquet=test)
    said = diffaug("new", NAME, "-o", tmp_path / "birds.yaml")
    assert said.code == 0, said
    recipe = Recipe.from_yaml(tmp_path / "birds.yaml")
    assert (recipe.source, recipe.name, recipe.licence) == (NAME, "birds", "cc-by-4.0")
    assert (recipe.metaclass, recipe.classes) == ("bird", {"wren": "wren", "owl": "owl"})
    planned = diffaug("plan", tmp_path / "birds.yaml", "--dry-run")
    assert planned.code == 0, planned
    assert "3 real images for training, 2 for testing" in planned.out


# -- why one cannot be had, on a Hub ----------------------------------------------------------------------------------


def test_what_is_not_there_private_or_of_no_such_revision(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("org/none").startswith(
        "imagefolder: the Hub shows this login no dataset 'org/none': it is private or not there; check the id, run "
        "`hf auth login`, or give a folder with images"
    )
    push(train_parquet=parquet(table([0, 1])))
    assert "org/birds has no revision 'v9'; name one of its branches" in refused(f"{NAME}@v9")
    hub.repo(NAME).private = True
    monkeypatch.delenv("HF_TOKEN")
    assert "the Hub shows visitors without a login no dataset 'org/birds': it is private or" in refused()


def test_a_gated_dataset_says_where_to_ask(hub: LoopbackHub) -> None:
    push(README_md=b"# Birds", train_parquet=parquet(table([0, 1])))
    hub.breaks("resolve", 403, times=99, X_Error_Code="GatedRepo")
    said = refused()
    assert f"org/birds is gated and this login has no access; ask for it at {hub.url}/datasets/org/birds, run" in said
    assert "network" not in said


def test_a_hub_that_answers_errors_or_nothing(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    push(README_md=b"# Birds", train_parquet=parquet(table([0, 1])))
    hub.breaks("resolve", 500, times=99)
    hub.breaks("repo_info", 500, times=99)
    said = refused()
    assert "imagefolder: the Hub answers 500 and org/birds is not in the cache; check the network, or give" in said
    hub.__exit__()
    close_session()  # the connections that are still open
    assert "the Hub cannot be reached (" in refused() and "auth login" not in refused()


def test_a_dataset_made_by_a_script_or_of_no_images(hub: LoopbackHub) -> None:
    push(README_md=b"# Birds", **{"birds.py": b"raise SystemExit('this must never run')"})
    assert refused().startswith(
        "imagefolder: org/birds is made by a script (birds.py), which `datasets` no longer runs; give its Parquet copy "
        "(org/birds@refs/convert/parquet), where the Hub has one, or a folder"
    )
    HfApi().delete_file("birds.py", NAME, repo_type="dataset")
    assert "org/birds is on the Hub, but `datasets` cannot read it (" in refused()


def test_a_folder_of_the_current_one_is_no_hub_dataset(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(train_parquet=parquet(table([0, 1, 1])))
    (tmp_path / "job" / "org" / "birds" / "x").mkdir(parents=True)
    (tmp_path / "job" / "org" / "birds" / "x" / "0.png").write_bytes(png(3))
    (tmp_path / "mine").mkdir()
    recipe = tmp_path / "mine" / "r.yaml"
    recipe.write_text("builder: imagefolder\nmethod: img2img\nsource: org/birds\nper_class: 1\n")
    monkeypatch.chdir(tmp_path / "job")
    assert prepare(Recipe.from_yaml(recipe)).plan.header.class_names == ("wren", "owl")
    assert read_real("imagefolder", "org/birds").train.class_names == ("x",), "said in this folder, it is meant here"


# -- splits, columns and labels ---------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RealSet]:
    """The images of splits as if they came from the Hub; keys of a choice beside them."""

    def read(splits: dict[str, Any], builder: str = "imagefolder", **choice: str) -> RealSet:
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(splits))
        return read_real(builder, NAME, partial=True, choice=HubChoice(**choice))

    return read


def test_a_split_to_train_from(reads: Callable[..., RealSet]) -> None:
    splits = {"all": table([0, 1, 1]), "test": table([0], start=9), "extra": table([0], start=20)}
    found = reads(splits, split="all")
    assert (len(found.train), len(found.test or ())) == (3, 1)
    assert found.notes == ("not used: the splits extra (source_split names the one to train from)",)
    assert len(reads(splits, split="test").train) == 1 and reads(splits, split="test").test is None
    with pytest.raises(SourceError, match=r"source_split: got 'al', expected one of all, test, extra of org/birds\."):
        reads(splits, split="al")


def test_hidden_test_labels_are_said_and_the_next_split_is_taken(reads: Callable[..., RealSet]) -> None:
    found = reads({"train": table([0, 1]), "test": table([-1, -1]), "validation": table([1], start=9)})
    assert found.test is not None and found.test.labels == (1,)
    assert found.notes == ("split test is left out: its labels are hidden (label: 2 of 2 rows have none)",)
    bare = table([0, 1]).remove_columns("label")
    found = reads({"train": table([0, 1]), "test": bare})
    assert found.test is None
    assert found.notes == ("split test is left out: its labels are hidden (label: has no such column)",)
    with pytest.raises(SourceError, match=r"train/1: got the label -1, expected a class id"):
        reads({"train": table([0, -1])})


def test_texts_become_sorted_classes(reads: Callable[..., RealSet]) -> None:
    text = Value("string")
    splits = {"train": table(["owl", "wren", "owl"], text), "test": table(["wren", "owl"], text, start=9)}
    found = reads(splits)
    assert found.train.class_names == ("owl", "wren") and found.train.labels == (0, 1, 0)
    assert found.test is not None and found.test.labels == (1, 0)
    assert found.notes == ("classes are the texts of column label, in sorted order",)
    hidden = {"train": splits["train"], "test": table(["", None], text)}
    assert reads(hidden).test is None
    captions = table([f"a bird, number {i}" for i in range(300)], text, label="caption")
    with pytest.raises(SourceError, match="has 300 different texts in 300 rows, expected class names"):
        reads({"train": captions}, label="caption")


def test_numbers_without_names_are_their_own_names(reads: Callable[..., RealSet]) -> None:
    found = reads({"train": table([10, 2, 10], Value("int64")), "test": table([-1], Value("int64"))})
    assert found.train.class_names == ("2", "10") and found.train.labels == (1, 0, 1) and found.test is None
    assert "column label has numbers without names, so classes and prompts say the numbers" in found.notes[0]


def test_classes_of_the_test_split_that_are_not_those_of_training(reads: Callable[..., RealSet]) -> None:
    with pytest.raises(SourceError, match="the classes of split test are not those of training"):
        reads({"train": table([0, 1]), "test": table([0], ClassLabel(names=["owl", "wren"]))})


def test_columns_are_named_where_there_is_a_choice(reads: Callable[..., RealSet]) -> None:
    cells = [{"bytes": png(90 + row), "path": None} for row in range(2)]
    two = more(table([0, 1]), mask=(cells, datasets.Image()), kind=([1, 0], ClassLabel(names=["x", "y"])))
    with pytest.raises(SourceError, match=r"org/birds: has the image columns image, mask; name one as image_column\."):
        reads({"train": two})
    with pytest.raises(SourceError, match=r"org/birds: has the label columns label, kind; name one as label_column\."):
        reads({"train": two}, image="mask")
    found = reads({"train": two}, image="mask", label="kind")
    assert found.train.class_names == ("x", "y") and found.read("train", 1) == png(91)
    known = reads({"train": two}, builder="pets")
    assert known.train.class_names == ("wren", "owl") and known.read("train", 1) == png(1)
    with pytest.raises(SourceError, match=r"image_column: got 'img', expected one of the columns image \(Image\), la"):
        reads({"train": two}, image="img")
    with pytest.raises(SourceError, match=r"image_column: 'kind' of org/birds is ClassLabel, expected encoded images"):
        reads({"train": two}, image="kind")


def test_bytes_that_no_feature_calls_images(reads: Callable[..., RealSet]) -> None:
    plain = datasets.Dataset(pa.table({"jpg": [png(0), png(1)], "label": [0, 1]}))
    with pytest.raises(SourceError, match=r"has no Image column among jpg \(binary\), label \(int64\); name one of"):
        reads({"train": plain})
    assert reads({"train": plain}, image="jpg").read("train", 1) == png(1)
    cells = [{"bytes": png(row), "path": f"{row}.png"} for row in range(2)]
    packed = datasets.Dataset(pa.table({"photo": cells, "label": [0, 1]}))
    assert reads({"train": packed}, image="photo").read("train", 0) == png(0)


def test_several_labels_per_image_are_refused_by_name(reads: Callable[..., RealSet]) -> None:
    many = more(
        table([0, 1]).remove_columns("label"), tags=([[0], [0, 1]], List(LABEL)), size=([1.5, 2.5], Value("float32"))
    )
    with pytest.raises(SourceError, match=r"\(tags is multi-label, which is not one class per image\); name"):
        reads({"train": many})
    with pytest.raises(SourceError, match=r"label_column: 'tags' of org/birds is list of ClassLabel, .*multi-label"):
        reads({"train": many}, label="tags")
    with pytest.raises(SourceError, match=r"'size' of org/birds is float32, expected classes, texts or integers\."):
        reads({"train": many}, label="size")


def test_keys_of_a_hub_source_beside_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(png(0))
    recipe = Recipe(builder="imagefolder", method="img2img", source=str(tmp_path), label_column="species")
    with pytest.raises(SourceError, match=r"label_column: got 'species', which chooses from a dataset of the Hub, but"):
        prepare(recipe)
    with pytest.raises(SourceError, match=r"source_split: got 'x', .* but the source is inside the package; drop the"):
        prepare(Recipe(builder="fashion", method="img2img", source_split="x"))
    assert len(prepare(recipe, str(tmp_path)).real.train) == 1, "a reader's own copy needs no columns"
