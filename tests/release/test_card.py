"""The card and croissant.json: every number follows from the files beside them, whatever the names are."""

import hashlib
import json
import re
from collections import Counter
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub.server import LoopbackHub
from PIL import Image
from small_release import made

from diffaug_datasets.core.rows import COLUMNS
from diffaug_datasets.release.card import Card, markdown
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.targets import publish
from diffaug_datasets.run.store import Run
from diffaug_datasets.sources.real import read_real

NAME = "org/fashion"
HOSTILE = ("<script>alert(1)<", "--> x", "a|b|c", "`code` [link](x)", "{{ 7 * 7 }} {% raw %}", "Straßenbahn 路面電車")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run over a person's own images, whose class names would break a careless page; nothing is scored."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, name in enumerate(HOSTILE):
        (folder / "images" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (40 * number, 90, 200)).save(folder / "images" / name / "0.png")
    return made(folder / "run", "imagefolder_full_txt2img", backbone="tiny", source=str(folder / "images"), scores={})


class Repository:
    """Files of a repository, read with nothing of ours."""

    def __init__(self, files: dict[str, bytes], run: Run) -> None:
        self.files, self.folder = files, f"data/{run.plan.header.name}/{run.plan.id[:16]}"
        self.card = Card.parse(files["README.md"].decode())
        self.name = run.plan.header.name

    def table(self, path: str) -> pa.Table:
        """A shard."""
        data = self.files[path]
        return pq.read_table(BytesIO(data)) if path.endswith(".parquet") else pa.ipc.open_stream(data).read_all()

    def rows(self, ending: str = "") -> list[dict[str, Any]]:
        """All rows of a config's training split."""
        [config] = [c for c in self.card.head["configs"] if c["config_name"] == self.name + ending]
        [split] = [s for s in config["data_files"] if s["split"] == "train"]
        return [row for path in split["path"] for row in self.table(path).to_pylist()]

    def cells(self, heading: str) -> list[list[str]]:
        """The rows of the table under a heading."""
        part = self.card.body.split(f"### {heading}\n", 1)[1].split("\n### ", 1)[0]
        lines = [line for line in part.splitlines() if line.startswith("| ")][2:]
        return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def counts_of(repository: Repository, names: list[str]) -> list[list[str]]:
    """What the table of counts must say."""
    rows = repository.rows("_provenance")
    made = [row for row in rows if row["origin"] != "real"]
    columns = [
        Counter(row["label"] for row in rows if row["origin"] == "real" and row["split"] == "train"),
        Counter(row["label"] for row in made),
        Counter(row["label"] for row in made if row["status"] != "failed"),
        Counter(row["label"] for row in made if row["status"] == "failed"),
        Counter(row["label"] for row in repository.rows("_synthetic")),
    ]
    found = [[markdown(name), *(str(column[i]) for column in columns)] for i, name in enumerate(names)]
    return [*found, ["**all**", *(str(column.total()) for column in columns)]]


@pytest.mark.parametrize("file_format", ["arrow", "parquet"])
def test_every_number_follows_from_the_shards(hub: LoopbackHub, finished: Run, file_format: Any) -> None:
    publish(finished, NAME, PublishOptions(file_format=file_format))
    repository = Repository(hub.files(NAME), finished)
    assert repository.cells("Images a class") == counts_of(repository, list(finished.plan.header.class_names))
    rows = repository.rows("_synthetic")
    value = {key: np.array([row[key] for row in rows]) for key in ("clip_score", "clip_margin", "judge_confidence")}
    nearest = np.array([row["source_similarity"] for row in rows])
    agreed = np.mean([row["judge_label"] == row["label"] for row in rows])
    expected = [agreed, *(value[k].mean() for k in ("judge_confidence", "clip_score", "clip_margin")), nearest.mean()]
    said = [float(cell[1]) for cell in repository.cells("Quality")]
    assert said == pytest.approx([*expected, nearest.max()], abs=6e-5)
    total = len(repository.rows("_synthetic")), sum(row["origin"] == "real" for row in repository.rows())
    assert f"{total[0]} synthetic training images of 10 classes" in repository.card.body
    assert f"from {total[1]} real ones" in repository.card.body
    assert f"train: {total[1]} real, {total[0]} generated" in repository.card.body
    tests = read_real("fashion").test
    assert tests
    assert f"None of them shows one of the {len(tests.sources)} test images" in repository.card.body
    assert "the embeddings of the encoder" in repository.card.body


def test_the_head_counts_rows_and_bytes(hub: LoopbackHub, finished: Run) -> None:
    publish(finished, NAME)
    repository = Repository(hub.files(NAME), finished)
    infos = {info["config_name"]: info for info in repository.card.head["dataset_info"]}
    assert set(infos) == {config["config_name"] for config in repository.card.head["configs"]}
    for config in repository.card.head["configs"]:
        info = infos[config["config_name"]]
        for split, told in zip(config["data_files"], info["splits"], strict=True):
            assert told["num_examples"] == sum(repository.table(path).num_rows for path in split["path"])
        paths = [path for split in config["data_files"] for path in split["path"]]
        assert info["download_size"] == sum(len(repository.files[path]) for path in paths)
    columns = [feature["name"] for feature in infos[repository.name]["features"]]
    assert (
        tuple(columns) == COLUMNS == tuple(cell[0].strip("`") for cell in repository.cells("Columns"))[: len(COLUMNS)]
    )
    assert repository.card.head["license"] == "mit"
    assert {"synthetic", "genie", "arxiv:2312.02548"} <= set(repository.card.head["tags"])


def test_hostile_names_stay_words_and_unmeasured_quality_is_absent(hub: LoopbackHub, hostile: Run) -> None:
    publish(hostile, NAME, PublishOptions(with_rights=True))
    repository = Repository(hub.files(NAME), hostile)
    names = list(hostile.plan.header.class_names)
    assert sorted(names) == sorted(HOSTILE)
    assert repository.cells("Images a class") == counts_of(repository, names)
    body = repository.card.body
    assert "### Quality" not in body
    assert "no judge looked at these" in body
    assert "<script>" not in body
    assert "\n49" not in body
    outside = re.sub(r"<!-- .*? -->", "", body)
    assert "-->" not in outside
    assert body.count("<!-- diffaug: begin") == body.count("<!-- diffaug: end") == 1
    features = repository.card.head["dataset_info"][0]["features"][1]
    assert list(features["dtype"]["class_label"]["names"].values()) == names
    publish(hostile, NAME, PublishOptions(with_rights=True, file_format="parquet"))
    assert hub.files(NAME)["README.md"].count(b"<!-- diffaug: begin") == 1


def test_what_the_card_must_tell(hub: LoopbackHub, finished: Run) -> None:
    publish(finished, NAME)
    body = Card.parse(hub.files(NAME)["README.md"].decode()).body
    for told in (
        *("### Loading", "### Method", "### Models and source", "### Known limits", "### Columns", "### Citation"),
        *("arXiv:2312.02548", "@article{koohpayegani2023genie", "@article{fashion_mnist", "apache-2.0", "MIT"),
        *("tier T0", "diffaug-tiny, revision ", "https://github.com/zalandoresearch/fashion-mnist", "sheet.png"),
        *("z_r = sqrt(ab_t) z_0", 'its own colour mode; `image.convert("RGB")` gives one for all.'),
    ):
        assert told in body, told
    sheet = Image.open(BytesIO(next(d for p, d in hub.files(NAME).items() if p.endswith("sheet.png"))))
    assert sheet.size == (8 + 10 * 104, 8 + 4 * 104 + 22)
    assert len(set(sheet.convert("L").tobytes())) > 50, "the contact sheet is empty"


def ids(node: Any) -> list[str]:
    """Every `@id` that a node defines (it has a type), in order."""
    if isinstance(node, list):
        return [found for item in node for found in ids(item)]
    if not isinstance(node, dict):
        return []
    inner = [found for key, value in node.items() if key != "@context" for found in ids(value)]
    return [*([node["@id"]] if "@id" in node and "@type" in node else []), *inner]


def references(node: Any) -> set[str]:
    """Every `@id` that stands alone: a reference to a node defined elsewhere."""
    if isinstance(node, list):
        return {found for item in node for found in references(item)}
    if not isinstance(node, dict):
        return set()
    if set(node) == {"@id"}:
        return {node["@id"]}
    return {found for key, value in node.items() if key != "@context" for found in references(value)}


def check_croissant(content: dict[str, Any], files: dict[str, bytes]) -> None:
    """What the format demands, without an RDF library."""
    assert {"name", "description", "license", "url", "conformsTo", "distribution", "recordSet"} <= set(content)
    defined = ids(content)
    assert len(defined) == len(set(defined)), "an @id is defined twice"
    assert references(content) <= set(defined), "a reference leads nowhere"
    prefixes = {key for key, value in content["@context"].items() if isinstance(value, str)}
    for key in content:
        assert ":" not in key or key.split(":")[0] in prefixes, key
    for node in content["distribution"]:
        assert {"@type", "@id", "name", "encodingFormat"} <= set(node)
        assert set(node.get("includes", ())) <= set(files)
        if node["@type"] == "cr:FileObject" and node["@id"] != "repo":
            path = node["contentUrl"].split("/resolve/main/")[1]
            assert hashlib.sha256(files[path]).hexdigest() == node["sha256"]
    for records in content["recordSet"]:
        if "data" in records:
            assert {key for row in records["data"] for key in row} == {field["@id"] for field in records["field"]}
            continue
        [place] = {
            (field["source"].get("fileSet") or field["source"]["fileObject"])["@id"] for field in records["field"]
        }
        source = next(n for n in content["distribution"] if n["@id"] == place)
        path = source["includes"][0] if "includes" in source else source["contentUrl"].split("/resolve/main/")[1]
        table = (
            pq.read_table(BytesIO(files[path]))
            if path.endswith(".parquet")
            else pa.ipc.open_stream(files[path]).read_all()
        )
        for field in records["field"]:
            assert field["source"]["extract"]["column"] in table.column_names
            assert field["dataType"].startswith("sc:")


@pytest.mark.parametrize("file_format", ["arrow", "parquet"])
def test_croissant(hub: LoopbackHub, finished: Run, other_plan: Run, other_config: Run, file_format: Any) -> None:
    options = PublishOptions(file_format=file_format)
    publish(finished, NAME, options)
    first = json.loads(hub.files(NAME)["croissant.json"])
    check_croissant(first, hub.files(NAME))
    assert first["rai:hasSyntheticData"] is True
    assert first["prov:wasDerivedFrom"][0]["name"] == "Fashion-MNIST"
    assert finished.plan.id in first["prov:wasGeneratedBy"][0]["prov:label"]
    from huggingface_hub import HfApi

    assert first["version"] == ".".join(str(int(part)) for part in first["dateModified"][:10].split("-"))
    by_hand = {"description": "By hand.", "keywords": ["ours"], "version": "2.0.0"}
    edited = json.dumps({**first, **by_hand}).encode()
    HfApi().upload_file(path_or_fileobj=edited, path_in_repo="croissant.json", repo_id=NAME, repo_type="dataset")
    publish(other_plan, NAME, options)
    publish(other_config, NAME, options)
    second = json.loads(hub.files(NAME)["croissant.json"])
    check_croissant(second, hub.files(NAME))
    assert {key: second[key] for key in by_hand} == by_hand
    assert len(second["prov:wasGeneratedBy"]) == 2
    assert len(second["recordSet"]) == 2 * len(first["recordSet"]) == 6
    assert finished.plan.id[:16] not in json.dumps(second)


def test_a_croissant_with_a_hole_is_found(hub: LoopbackHub, finished: Run) -> None:
    publish(finished, NAME)
    files = hub.files(NAME)
    content = json.loads(files["croissant.json"])
    content["recordSet"][0]["field"][0]["source"]["fileSet"]["@id"] = "elsewhere"
    with pytest.raises(AssertionError, match="leads nowhere"):
        check_croissant(content, files)
