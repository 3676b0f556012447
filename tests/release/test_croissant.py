"""croissant.json follows the format and the files beside it, and MLCommons' own library reads the records of it."""

import hashlib
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub.server import LoopbackHub
from huggingface_hub import HfApi
from PIL import Image

from diffaug_datasets import load
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.run.store import Run

NAME = "org/fashion"


@pytest.fixture(autouse=True)
def mlcroissant_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Downloads of mlcroissant go to a folder of the test's own."""
    from etils import epath
    from mlcroissant._src.core import constants

    for name in ("DOWNLOAD_PATH", "EXTRACT_PATH"):
        monkeypatch.setattr(constants, name, epath.Path(tmp_path / "croissant" / name))
    yield


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


def opened(hub: LoopbackHub, tmp_path: Path) -> Any:
    """The metadata with this Hub for huggingface.co, and a clone of the repository, which is no git server here."""
    import mlcroissant

    for path, data in hub.files(NAME).items():
        (tmp_path / "clone" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / path).write_bytes(data)
    text = hub.files(NAME)["croissant.json"].decode().replace("https://huggingface.co", hub.url)
    (tmp_path / "croissant.json").write_text(text)
    return mlcroissant.Dataset(jsonld=str(tmp_path / "croissant.json"), mapping={"repo": str(tmp_path / "clone")})


def column(dataset: Any, records: str, name: str) -> list[Any]:
    found = [record[f"{records}/{name}"] for record in dataset.records(records)]
    return [value.decode() if isinstance(value, bytes) else value for value in found]


@pytest.mark.parametrize("others", [[], pytest.param(["other_config"], marks=pytest.mark.full)])
def test_every_record_is_read(
    hub: LoopbackHub, finished: Run, others: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Shards from a clone, provenance over HTTP with its digest checked; also with two configs in one file."""
    runs = [finished, *(request.getfixturevalue(name) for name in others)]
    for run in runs:
        publish(run, NAME, PublishOptions(file_format="parquet"))
    dataset = opened(hub, tmp_path)
    assert (dataset.metadata.issues.errors, dataset.metadata.issues.warnings) == (set(), set())
    assert dataset.metadata.name == "fashion"
    assert dataset.metadata.cite_as.count("@article{") == 2
    for run in runs:
        name, rows = run.plan.header.name, load(run.folder)
        expected = dict(zip(rows["row_id"], rows, strict=True))
        assert sorted(column(dataset, f"{name}/train", "row_id")) == sorted(expected)
        for record in dataset.records(f"{name}/train"):
            row = expected[record[f"{name}/train/row_id"].decode()]
            assert record[f"{name}/train/label"] == row["label"]
            assert [source.decode() for source in record[f"{name}/train/source_ids"]] == row["source_ids"]
            picture: Image.Image = record[f"{name}/train/image"]
            assert picture.convert("RGB").tobytes() == row["image"].convert("RGB").tobytes()
        provenance = load(NAME, f"{name}_provenance")
        assert column(dataset, f"{name}/provenance", "status") == provenance["status"][:]
        assert column(dataset, f"{name}/labels", "name") == rows.features["label"].names


def test_arrow_shards_validate_and_a_changed_file_is_refused(hub: LoopbackHub, finished: Run, tmp_path: Path) -> None:
    """mlcroissant reads no Arrow streams; the provenance is Parquet in any case."""
    publish(finished, NAME)
    dataset, name = opened(hub, tmp_path), finished.plan.header.name
    assert (dataset.metadata.issues.errors, dataset.metadata.issues.warnings) == (set(), set())
    content = json.loads((tmp_path / "croissant.json").read_text())
    entry = next(node for node in content["distribution"] if node["name"] == "provenance.parquet")
    entry["sha256"] = "0" * 64
    (tmp_path / "croissant.json").write_text(json.dumps(content))
    import mlcroissant

    with pytest.raises(Exception, match=r"(?i)hash|error occur"):
        next(iter(mlcroissant.Dataset(jsonld=str(tmp_path / "croissant.json")).records(f"{name}/provenance")))


def test_a_hole_is_found_by_mlcroissant_too(hub: LoopbackHub, finished: Run, tmp_path: Path) -> None:
    import mlcroissant

    publish(finished, NAME)
    content = json.loads(hub.files(NAME)["croissant.json"])
    content["recordSet"][0]["field"][0]["source"]["fileSet"]["@id"] = "elsewhere"
    (tmp_path / "croissant.json").write_text(json.dumps(content))
    with pytest.raises(mlcroissant.ValidationError):
        mlcroissant.Dataset(jsonld=str(tmp_path / "croissant.json"))
