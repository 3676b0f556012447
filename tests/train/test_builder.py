"""Runs as `datasets` builders: CUB and ImageNet-LT layouts, folders, embedded data, end to end on real models."""

from collections import Counter
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from diffaug_datasets import list_builders, load, load_builder
from diffaug_datasets.core.errors import DiffAugError, RecipeError, SourceError
from diffaug_datasets.core.prompts import suffix_list
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning import catalogue
from diffaug_datasets.run.progress import following
from diffaug_datasets.sources.real import class_phrases

QUICK = {"num_inference_steps": 3}
CONCEPTS = {"steps": 2, "batch": 2, "rank": 2}
TINY = {"id": "tiny", "dtype": "float32", "height": 32, "width": 32}
SMALL: dict[str, Any] = {"per_image": None, "batch_size": 4, "shard_rows": 6, "workers": 1, "device": "cpu"}
DIFF_II = {**QUICK, "inversion_steps": 2, "concepts": CONCEPTS, "split_ratio": 0.5}


def put(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue())


def small(**changes: Any) -> dict[str, Any]:
    return {**{k: v for k, v in SMALL.items() if v is not None}, "backbone": TINY, **changes}


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    root = tmp_path / "CUB_200_2011"
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    paths = [f"{name}/{name[4:]}_{i}.jpg" for name in names for i in range(3)]
    for i, path in enumerate(paths):
        put(root / "images" / path, i)
    numbered = list(enumerate(paths, 1))
    (root / "images.txt").write_text("".join(f"{i} {path}\n" for i, path in numbered))
    (root / "image_class_labels.txt").write_text("".join(f"{i} {int(path[:3])}\n" for i, path in numbered))
    (root / "train_test_split.txt").write_text("".join(f"{i} {int(i % 3 != 0)}\n" for i, _ in numbered))
    (root / "classes.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    return root


def test_cub_5shot_diffii_from_the_official_layout(tmp_path: Path, cub: Path) -> None:
    given = small(partial=True, per_class=3, config=DIFF_II, run_dir=tmp_path / "run", source=str(cub))
    builder = load_builder("cub_5shot_diffii", **given)
    assert isinstance(builder, datasets.DatasetBuilder)
    assert builder.hash == builder.run.plan.id[:16]
    builder.download_and_prepare()
    train = builder.as_dataset(split="train")
    assert train.features["label"].names == ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    assert train["origin"].count("real") == 4
    assert train["origin"].count("generated") == 6
    assert {p for p in train["prompt"] if p} == {"a photo of a <class_0> bird", "a photo of a <class_1> bird"}
    suffixes = {p.split(" bird ", 1)[1] for p in train["prompt_first"] if p}
    assert suffixes and suffixes <= set(suffix_list("cub_5shot"))
    assert builder.as_dataset(split="test").num_rows == 2
    assert train[0]["image"].size == (36, 40)


def test_official_counts_are_asserted_unless_partial(cub: Path) -> None:
    with pytest.raises(SourceError, match=r"200.*partial"):
        load_builder("cub_5shot_diffii", source=str(cub), backbone=TINY)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    root, wnids = tmp_path / "imagenet", list(class_phrases("imagenet"))[:4]
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label, wnid in enumerate(wnids):
        for i in range(3):
            put(root / "train" / wnid / f"{wnid}_{i}.JPEG", 10 * label + i)
            lists["train"].append(f"train/{wnid}/{wnid}_{i}.JPEG {label}")
        put(root / "val" / f"ILSVRC2012_val_{label:08d}.JPEG", 100 + label)
        lists["test"].append(f"val/ILSVRC2012_val_{label:08d}.JPEG {label}")
    for split, lines in lists.items():
        (root / f"ImageNet_LT_{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_imagenet_lt_genie_takes_a_confusion_matrix(tmp_path: Path, imagenet: Path) -> None:
    matrix = tmp_path / "confusion.csv"
    matrix.write_text("9,5,0,0\n5,9,0,0\n0,0,9,5\n0,0,5,9\n")
    given = small(partial=True, per_class=2, confusion=str(matrix), config={**QUICK, "top_confused": 1})
    builder = load_builder("imagenet_lt_genie", source=str(imagenet), run_dir=tmp_path / "run", **given)
    assert builder.config.name == "imagenet_lt_genie"
    builder.download_and_prepare()
    made = builder.as_dataset(split="train").filter(lambda row: row["is_synthetic"])
    assert {(row["label"], row["source_labels"][0]) for row in made} == {(0, 1), (1, 0), (2, 3), (3, 2)}
    assert made[0]["prompt"] in {f"a photo of a {class_phrases('imagenet')[n]}" for n in made.features["label"].names}


def test_imagenet_lt_genie_with_a_classifier_that_knows_the_classes_by_number(tmp_path: Path, imagenet: Path) -> None:
    """It names confused classes before, and is the oracle after."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=4)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "judge")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "judge")
    judge = str(tmp_path / "judge")
    given = small(partial=True, per_class=1, confusion=judge, config={**QUICK, "top_confused": 2})
    given["scores"] = {"judge": judge}
    builder = load_builder("imagenet_lt_genie", source=str(imagenet), run_dir=tmp_path / "run", **given)
    assert len(builder.run.plan.rows) == 4
    assert all(row.source_labels[0] != row.label for row in builder.run.plan.rows)
    builder.download_and_prepare()
    made = builder.as_dataset(split="train").filter(lambda row: row["is_synthetic"])
    assert len(made) == 4 and all(row["judge_label"] in range(4) and row["judge_confidence"] > 0.2 for row in made)


def test_imagenet_lt_genie_refuses_without_either(imagenet: Path) -> None:
    with pytest.raises(RecipeError, match=r"give a matrix .* or the id of a transformers image classifier"):
        load_builder("imagenet_lt_genie", source=str(imagenet), **small(partial=True))


def test_an_episode_of_mini_imagenet(tmp_path: Path) -> None:
    """Five classes of seven, 1 image each to edit and 16 to ask for; every other class's image is a source once."""
    root, wnids = tmp_path / "mini", list(class_phrases("imagenet"))[:7]
    files = [(f"{wnid}_{i}.jpg", wnid) for wnid in wnids for i in range(18)]
    for seed, (name, _) in enumerate(files):
        put(root / "images" / name, seed)
    (root / "test.csv").write_text("filename,label\n" + "".join(f"{name},{wnid}\n" for name, wnid in files))
    given = small(partial=True, per_class=4, config=QUICK, source=str(root), include_test=True)
    builder = load_builder("mini_imagenet_5way1shot_genie", run_dir=tmp_path / "run", **given)
    builder.download_and_prepare()
    train, test = builder.as_dataset(split="train"), builder.as_dataset(split="test")
    names = train.features["label"].names
    assert len(names) == 5 and names == sorted(set(names) & set(wnids))
    assert Counter(test["label"]) == dict.fromkeys(range(5), 16)
    made = train.filter(lambda row: row["is_synthetic"])
    pairs = [(row["label"], row["source_labels"][0]) for row in made]
    assert sorted(pairs) == [(a, b) for a in range(5) for b in range(5) if a != b]
    sources = {image for row in made for image in row["source_ids"]}
    assert len(sources) == 5 and sources.isdisjoint(image for ids in test["source_ids"] for image in ids)
    other = load_builder("mini_imagenet_5way1shot_seed1_genie", run_dir=tmp_path / "other", **given)
    assert other.run.plan.header.class_names != tuple(names)


def test_an_image_folder_with_one_image_in_a_class(tmp_path: Path) -> None:
    for name, count in (("ash tree", 3), ('a\'b "c" ü', 1)):
        for i in range(count):
            put(tmp_path / "pictures" / name / f"x.{i}.jpg", hash((name, i)) % 1000)
    given = small(per_class=2, config={**DIFF_II, "suffixes": ["in the rain."]}, run_dir=tmp_path / "run")
    builder = load_builder("imagefolder_full_diffii", source=str(tmp_path / "pictures"), **given)
    builder.download_and_prepare()
    made = [row for row in builder.as_dataset(split="train") if row["is_synthetic"]]
    assert [row["fallback"] for row in made if row["label"] == 0] == ["noise_partner"] * 2
    assert all(row["prompt_first"].endswith("in the rain.") for row in made)


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("fashion") / "run"
    builder = load_builder("fashion_2shot_genie", run_dir=folder, **small(per_class=1, config=QUICK))
    builder.download_and_prepare()
    return folder


def test_streaming_gives_the_same_rows_as_eager(fashion: Path) -> None:
    builder = load_builder("fashion_2shot_genie", run_dir=fashion, **small(per_class=1, config=QUICK))
    builder.download_and_prepare()
    eager = builder.as_dataset(split="train")
    stream = builder.as_streaming_dataset(split="train")
    assert [row["row_id"] for row in stream] == eager["row_id"][:] == load(fashion)["row_id"][:]


def test_plain_load_dataset_reads_a_run_folder(fashion: Path, tmp_path: Path) -> None:
    both = datasets.load_dataset(str(fashion), cache_dir=str(tmp_path))
    assert {split: rows.num_rows for split, rows in both.items()} == {"train": 30, "test": 1000}
    made = datasets.load_dataset(str(fashion), "fashion_2shot_genie_synthetic", split="train", cache_dir=str(tmp_path))
    assert made.num_rows == 10
    assert next(iter(datasets.load_dataset(str(fashion), split="train", streaming=True)))["image"].size == (32, 32)


def test_another_plan_has_another_cache(fashion: Path, tmp_path: Path) -> None:
    other = load_builder("fashion_2shot_genie", run_dir=tmp_path / "r", **small(per_class=2, config=QUICK))
    same = load_builder("fashion_2shot_genie", run_dir=fashion, **small(per_class=1, config=QUICK))
    assert other.hash != same.hash


def test_parquet_output_loads(fashion: Path, tmp_path: Path) -> None:
    builder = load_builder("fashion_2shot_genie", run_dir=fashion, **small(per_class=1, config=QUICK))
    builder.download_and_prepare(str(tmp_path / "parquet"), file_format="parquet")
    rows = datasets.load_dataset("parquet", data_files=[str(p) for p in (tmp_path / "parquet").glob("*train*.parquet")])
    assert rows["train"].num_rows == 30


def test_unknown_names_say_what_is_known() -> None:
    assert {"cub", "fashion", "imagefolder", "imagenet_lt"} <= set(list_builders())
    with pytest.raises(DiffAugError, match="begins with no builder"):
        load_builder("dogs_5shot_diffii")
    with pytest.raises(DiffAugError, match="ends in no method"):
        load_builder("cub_5shot_magic")
    with pytest.raises(DiffAugError, match="protocol"):
        load_builder("cub_manyshot_diffii")


def test_python_hears_what_plan_would_say(tmp_path: Path) -> None:
    """A notebook sees no `plan`, so what it warns of comes as Python warnings."""
    for place in ("a/0.png", "b/0.png"):
        (tmp_path / "images" / place).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / place)
    with pytest.warns(UserWarning, match="1 image is there in more than one class.*: a/0.png = b/0.png"):
        load_builder("imagefolder_full_txt2img", str(tmp_path / "images"), "tiny", tmp_path / "run", per_class=1)


def test_a_recipe_needs_no_name(tmp_path: Path) -> None:
    recipe = catalogue.config_recipe("fashion_2shot_txt2img", per_class=1, include_test=False, config=QUICK)
    file = tmp_path / "mine.yaml"
    file.write_text(recipe.to_yaml())
    assert Recipe.from_yaml(str(file)) == Recipe.from_yaml(file) == recipe
    builders = [load_builder(recipe=given, run_dir=tmp_path / "run") for given in (recipe, file, str(file))]
    assert len({builder.hash for builder in builders}) == 1
    changed = load_builder(recipe=recipe, per_class=2, config={"guidance_scale": 3.0}, run_dir=tmp_path / "other")
    assert len(changed.run.plan.rows) == 20 and changed.run.recipe.config == {**recipe.config, "guidance_scale": 3.0}
    for both in ({}, {"name": "fashion_2shot_txt2img", "recipe": recipe}):
        with pytest.raises(RecipeError, match="expected one of the two"):
            load_builder(**both)


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_shown_as_datasets_shows_it(
    tmp_path: Path, shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
    given = {"per_class": 1, "include_test": False, "config": QUICK, "workers": 1, "device": "cpu"}
    try:
        load_builder("fashion_2shot_txt2img", run_dir=tmp_path / "run", **given).download_and_prepare()
    finally:
        datasets.enable_progress_bars()
    said = capsys.readouterr()
    assert ("10/10 images" in said.err) == shown and said.out == "" and "\x1b" not in said.err


def test_a_terminal_or_notebook_gets_a_bar_and_a_file_gets_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffaug_datasets.run.progress.LINE_SECONDS", 0)

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    run = load_builder("fashion_2shot_txt2img", run_dir=tmp_path / "run", per_class=1, include_test=False).run
    for out, sign in ((Terminal(), "━"), (StringIO(), " %, 10/10 images, ")):
        with following(run, out) as on_progress:
            run.event(event="batch", unit="synthetic-00000", rows=10, failed=0)
            on_progress()
        assert sign in out.getvalue() and "10/10" in out.getvalue(), out
