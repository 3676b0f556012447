"""croissant.json as MLCommons' own library reads it: no error, no warning, and the records of the release."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub.server import LoopbackHub
from PIL import Image

from diffaug_datasets import load
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.targets import publish
from diffaug_datasets.run.store import Run

NAME = "org/fashion"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Downloads of mlcroissant go to a folder of the test's own."""
    from etils import epath
    from mlcroissant._src.core import constants

    for name in ("DOWNLOAD_PATH", "EXTRACT_PATH"):
        monkeypatch.setattr(constants, name, epath.Path(tmp_path / "croissant" / name))
    yield


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
