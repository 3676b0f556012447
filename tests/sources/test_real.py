"""Builders and sources: how they are found and read, and the sentences where one cannot be."""

import pickle
import unicodedata
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from PIL import Image

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.images import decode_image
from diffaug_datasets.core.sources import BuilderFacts, Listed, Listing
from diffaug_datasets.sources import real
from diffaug_datasets.sources.folders import FolderFetch
from diffaug_datasets.sources.hub import ColumnFetch, HubChoice, commit_of
from diffaug_datasets.sources.real import (
    builder_facts,
    check_counts,
    class_phrases,
    discover_builders,
    find_builder,
    read_real,
)

SHIPPED = (
    *(
        "aircraft",
        "bloodmnist",
        "caltech101",
        "caltech256",
        "cars",
        "cifar10",
        "cifar100",
        "coco",
        "cub",
        "dermamnist",
        "dtd",
        "eurosat",
        "fashion",
        "flowers",
        "food101",
    ),
    *(
        "imagefolder",
        "imagenet",
        "imagenet100",
        "imagenet_lt",
        "imagenette",
        "inat",
        "mini_imagenet",
        "pascal",
        "pathmnist",
        "pets",
        "stl10",
        "tiered_imagenet",
        "waterbirds",
    ),
)


def png(value: int, size=(4, 4)) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, (value % 256, value // 256 % 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def put(root: Path, *names: str) -> Path:
    for n, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(n))
    return root


def refused(source, builder="imagefolder", **options) -> str:
    with pytest.raises(SourceError) as error:
        read_real(builder, source, **options)
    return str(error.value)


# -- builders ---------------------------------------------------------------------------------------------------------


def test_every_shipped_builder_is_found_by_name():
    found = discover_builders()
    assert set(SHIPPED) <= set(found)
    assert list(found) == sorted(found)


def test_an_unknown_builder_suggests_the_nearest():
    with pytest.raises(SourceError, match=r"got 'cubb', expected one of .*imagenet_lt.*; did you mean 'cub'\?"):
        find_builder("cubb")
    with pytest.raises(SourceError, match=r"waterbirds\.$"):
        find_builder("zzzzzz")


def test_a_plugged_in_builder_is_found_and_never_replaces_a_shipped_one(monkeypatch):
    class Own:
        NAME = "own"

    class Impostor:
        NAME = "cub"

    class Point:
        def __init__(self, target):
            self.load = lambda: target

    monkeypatch.setattr(real, "entry_points", lambda group: [Point(Own), Point(Impostor)])
    found = discover_builders.__wrapped__()
    assert found["own"] is Own
    assert found["cub"].METACLASS == "bird"


def test_what_a_fact_sheet_leaves_out_is_careful():
    facts = builder_facts("imagefolder")
    assert (facts.redistributable, facts.licence, facts.protocol, facts.metaclass) == (False, "unknown", None, "")
    assert facts.official == {} and facts.hub_id is None


# -- folders ----------------------------------------------------------------------------------------------------------


def test_an_image_that_changes_after_listing_is_refused(tmp_path):
    found = read_real("imagefolder", put(tmp_path, "a/0.png"))
    (tmp_path / "a/0.png").write_bytes(png(99))
    with pytest.raises(SourceError, match=r"a/0\.png: the image changed since it was listed"):
        found.read("train", 0)
    (tmp_path / "a/0.png").unlink()
    with pytest.raises(SourceError, match=r"a/0.png: expected in '.*', but not there; complete the copy\."):
        found.read("train", 0)


@pytest.mark.parametrize("key", ["../x.png", "/etc/hostname", "a\\..\\x"])
def test_no_entry_leaves_the_folder(tmp_path, key):
    with pytest.raises(SourceError, match="expected a '/'-separated path inside the dataset's folder"):
        FolderFetch(tmp_path)(key)


def test_a_list_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(
        SourceError, match=r"x\.txt: got bytes that are not UTF-8, expected a text list; restore the file, or save it"
    ):
        FolderFetch(tmp_path).text("x.txt")
    with pytest.raises(SourceError, match="cannot be read"):
        FolderFetch(tmp_path.parent)(tmp_path.name)


def test_a_reader_travels_to_another_process(tmp_path):
    found = read_real("imagefolder", put(tmp_path, "a/0.png"))
    assert pickle.loads(pickle.dumps(found.read))("train", 0) == png(0)  # noqa: S301


def test_sources_that_are_nothing_say_every_way_out(tmp_path):
    ways = (
        "expected a folder with CUB-200-2011 in its own layout or as class folders, or a Hub id such as "
        "bentrevett/caltech-ucsd-birds-200-2011."
    )
    (tmp_path / "x.zip").write_bytes(b"x")
    assert refused(tmp_path / "x.zip", "cub") == f"cub: got the file '{tmp_path / 'x.zip'}', {ways}"
    assert refused(tmp_path / "gone", "cub") == f"cub: got '{tmp_path / 'gone'}', where no folder is, {ways}"
    assert refused(None).startswith("imagefolder: got no source, expected a folder with images")


# -- embedded ---------------------------------------------------------------------------------------------------------


def test_fashion_is_inside_the_package():
    found = read_real("fashion")
    assert found.train.class_names[0] == "T-shirt/top" and found.train.prompt_names[0] == "t-shirt"
    assert found.train.prompt_names[-1] == "ankle boot"
    assert {len(group) for group in found.train.by_class().values()} == {200}
    assert {len(group) for group in found.test.by_class().values()} == {100}
    assert decode_image(found.read("test", 0)).mode == "RGB"
    assert found.facts.redistributable and found.facts.licence_id == "mit"


def test_missing_embedded_data_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(real, "files", lambda package: tmp_path)
    assert "pool.parquet' is not there; install the package again." in refused(None, "fashion")


# -- Hub --------------------------------------------------------------------------------------------------------------


def hub_split(labels, names=("a/b", "c d"), image="image", label="label", **columns) -> datasets.Dataset:
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=list(names))}
    features |= {key: datasets.Value("string") for key in columns}
    rows = {image: [{"bytes": png(i), "path": f"{i}.png"} for i in range(len(labels))], label: list(labels), **columns}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@pytest.fixture
def hub(monkeypatch):
    asked = []

    def serve(**splits):
        def load(name, config=None, revision=None, streaming=False):
            asked.append((name, revision, streaming))
            return datasets.DatasetDict(splits)

        monkeypatch.setattr(datasets, "load_dataset", load)
        return asked

    return serve


def test_a_hub_dataset_keeps_its_encoded_bytes_and_names(hub):
    asked = hub(train=hub_split([1, 0, 1]), test=hub_split([0]))
    found = read_real("imagefolder", "org/name@v1.0")
    assert asked == [("org/name", "v1.0", False)]
    assert found.train.class_names == ("a/b", "c d")
    assert [s.label for s in found.train.sources] == [1, 0, 1]
    assert [found.read("train", i) for i in range(3)] == [png(0), png(1), png(2)]
    assert found.train.sources[2].key == "train/0000002"
    assert found.train.revision == "v1.0"
    assert len(found.test) == 1


def test_a_fallback_to_the_validation_split_and_pooled_training_splits(hub):
    hub(train=hub_split([0]), validation=hub_split([1, 1]))
    assert len(read_real("imagefolder", "org/name").test) == 2
    hub(train=hub_split([0, 1]), val=hub_split([1]), test=hub_split([0]))
    found = read_real("aircraft", "org/name", partial=True)
    assert [s.key for s in found.train.sources] == ["train/0000000", "train/0000001", "val/0000000"]
    assert len(found.test) == 1


def test_image_and_label_columns_are_found_by_type(hub):
    hub(train=hub_split([0, 1], image="img", label="fine"))
    assert len(read_real("imagefolder", "org/name").train) == 2
    train = hub_split([0, 1]).add_column("other", [0, 1]).cast_column("other", datasets.ClassLabel(names=["x", "y"]))
    hub(train=train)
    assert refused("org/name") == "org/name: has the label columns label, other; name one as label_column."
    assert read_real("imagefolder", "org/name", choice=HubChoice(label="other")).train.class_names == ("x", "y")
    assert read_real("cifar10", "org/name", partial=True).train.class_names == ("a/b", "c d")  # its facts say label


def test_columns_that_are_not_there_are_named(hub):
    hub(train=hub_split([0]).cast_column("label", datasets.Value("int64")))
    assert "label (int64)" in refused("org/name", choice=HubChoice(label="lable"))


def test_unlabelled_rows_other_splits_and_missing_bytes_are_refused(hub, tmp_path):
    hub(train=hub_split([0, -1]))
    assert refused("org/name") == "train/1: got the label -1, expected a class id; use a labelled split."
    hub(unlabelled=hub_split([0]))
    assert refused("org/name") == (
        "org/name: got the splits unlabelled, expected train; name the one to train from as source_split."
    )


def test_a_path_in_a_row_is_never_opened_outside_the_caches(tmp_path):
    put(tmp_path, "cache/x.png", "secret.png")
    paths = ["cache/x.png", "secret.png", "cache/../secret.png", "gone.png"]
    column = pa.chunked_array([[{"bytes": None, "path": str(tmp_path / path)} for path in paths] + [None]])
    fetch = ColumnFetch({"train": column}, (tmp_path / "cache",))
    assert fetch("train/0000000") == png(0)
    for row in range(1, 5):
        with pytest.raises(SourceError) as error:
            fetch(f"train/{row}")
        assert str(error.value) == (
            f"train/{row}: the row holds no image bytes; expected images stored inside the dataset."
        )


def test_duplicate_and_clashing_hub_names_are_refused(hub, monkeypatch):
    def broken(name, config, **options):
        return datasets.ClassLabel(names=["a", "a"])

    monkeypatch.setattr(datasets, "load_dataset", broken)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: "README.md")
    said = "imagefolder: org/name is on the Hub, but `datasets` cannot read it (Some label names are duplicated."
    assert refused("org/name").startswith(said)
    hub(train=hub_split([0, 1], names=("é", unicodedata.normalize("NFD", "é"))))
    assert "share one name; rename or merge them." in refused("org/name")


def test_an_unreachable_hub_says_every_way_out(monkeypatch):
    def offline(name, config, **options):
        raise ConnectionError("Couldn't reach it\n on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert refused(None, "cub") == (
        "cub: the Hub cannot be reached (Couldn't reach it on the Hub) and bentrevett/caltech-ucsd-birds-200-2011 is "
        "not in the cache; check the network, or give a folder with CUB-200-2011 in its own layout or as class "
        "folders, or a Hub id such as bentrevett/caltech-ucsd-birds-200-2011; `fashion` needs no download."
    )


def test_the_commit_is_read_from_what_was_downloaded():
    split = hub_split([0])
    commit = "0123456789abcdef0123456789abcdef01234567"
    split.info.download_checksums = {f"hf://datasets/org/name@{commit}/data/train.parquet": {}}
    assert commit_of(split) == commit
    assert commit_of(hub_split([0])) == ""


# -- counts -----------------------------------------------------------------------------------------------------------


def test_counts_say_expected_found_and_the_way_out():
    facts = BuilderFacts("cub", "CUB", official={"classes": 200, "train": 5994, "test": 5794})
    with pytest.raises(SourceError) as error:
        check_counts(facts, Listing(("a",), (Listed("x", 0),)), "'/data'")
    assert str(error.value) == (
        "cub: expected 200 classes, 5994 training images, 5794 test images, found 1 classes, 1 training images, "
        "0 test images in '/data'; complete the copy, or pass partial=True (`partial: true` in a recipe) to use it "
        "as it is."
    )
    check_counts(replace(facts, official={"total": 1}), Listing(("a",), (Listed("x", 0),)), "")


def test_other_than_official_counts_need_partial(hub):
    hub(train=hub_split([0, 1]), test=hub_split([1]))
    message = refused("org/name", "cub")
    assert message.startswith("cub: expected 200 classes, 5994 training images, 5794 test images, found 2 classes, 2 ")
    assert message.endswith("in org/name on the Hub; complete the copy, or pass partial=True (`partial: true` in a "
                            "recipe) to use it as it is.")  # fmt: skip


def test_partial_drops_classes_without_training_images(hub):
    hub(train=hub_split([2, 0, 2], names=("a", "b", "c")), test=hub_split([1, 2], names=("a", "b", "c")))
    found = read_real("cub", "org/name", partial=True)
    assert found.train.class_names == ("a", "c")
    assert (found.train.labels, found.test.labels) == ((1, 0, 1), (1,))
    assert found.survey.left_out == ("1 class without a training image (partial)",)
    assert found.read("test", 0) == png(1)


def test_a_source_without_training_images_is_refused(hub):
    hub(train=hub_split([]), test=hub_split([0]))
    assert refused("org/name") == (
        "imagefolder: found no training image in org/name on the Hub; expected at least one."
    )


def test_phrase_tables_are_read_by_name():
    assert next(iter(class_phrases("cub"))) == "001.Black_footed_Albatross"
    with pytest.raises(SourceError):
        class_phrases("../../secret")
