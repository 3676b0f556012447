"""The card: every number follows from the files beside them, whatever the names are."""

import re
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub.server import LoopbackHub
from huggingface_hub import DatasetCard
from PIL import Image
from small_release import made

from diffaug_datasets.core.rows import COLUMNS
from diffaug_datasets.release.card import dataset_card, markdown
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.publishing import preview, publish
from diffaug_datasets.run.assembly import _card, current
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
        self.card = DatasetCard(files["README.md"].decode())
        self.name = run.plan.header.name

    def table(self, path: str) -> pa.Table:
        """A shard."""
        data = self.files[path]
        return pq.read_table(BytesIO(data)) if path.endswith(".parquet") else pa.ipc.open_stream(data).read_all()

    def rows(self, ending: str = "") -> list[dict[str, Any]]:
        """All rows of a config's training split."""
        [config] = [c for c in self.card.data["configs"] if c["config_name"] == self.name + ending]
        [split] = [s for s in config["data_files"] if s["split"] == "train"]
        return [row for path in split["path"] for row in self.table(path).to_pylist()]

    def cells(self, heading: str) -> list[list[str]]:
        """The rows of the table under a heading."""
        part = self.card.text.split(f"### {heading}\n", 1)[1].split("\n### ", 1)[0]
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
    assert repository.cells("Images per class") == counts_of(repository, list(finished.plan.header.class_names))
    rows = repository.rows("_synthetic")
    value = {key: np.array([row[key] for row in rows]) for key in ("clip_score", "clip_margin", "judge_confidence")}
    nearest = np.array([row["source_similarity"] for row in rows])
    agreed = np.mean([row["judge_label"] == row["label"] for row in rows])
    expected = [agreed, *(value[k].mean() for k in ("judge_confidence", "clip_score", "clip_margin")), nearest.mean()]
    said = [float(cell[1]) for cell in repository.cells("Quality")]
    assert said == pytest.approx([*expected, nearest.max()], abs=6e-5)
    total = len(repository.rows("_synthetic")), sum(row["origin"] == "real" for row in repository.rows())
    assert f"{total[0]} synthetic training images of 10 classes" in repository.card.text
    assert f"from {total[1]} real ones" in repository.card.text
    assert f"train: {total[1]} real, {total[0]} generated" in repository.card.text
    tests = read_real("fashion").test
    assert tests
    assert f"None of them shows one of the {len(tests.sources)} test images" in repository.card.text
    assert "the embeddings of the encoder" in repository.card.text


def test_the_head_counts_rows_and_bytes(hub: LoopbackHub, finished: Run) -> None:
    publish(finished, NAME)
    repository = Repository(hub.files(NAME), finished)
    infos = {info["config_name"]: info for info in repository.card.data["dataset_info"]}
    assert set(infos) == {config["config_name"] for config in repository.card.data["configs"]}
    for config in repository.card.data["configs"]:
        info = infos[config["config_name"]]
        for split, told in zip(config["data_files"], info["splits"], strict=True):
            assert told["num_examples"] == sum(repository.table(path).num_rows for path in split["path"])
        paths = [path for split in config["data_files"] for path in split["path"]]
        assert info["download_size"] == sum(len(repository.files[path]) for path in paths)
    columns = [feature["name"] for feature in infos[repository.name]["features"]]
    assert (
        tuple(columns) == COLUMNS == tuple(cell[0].strip("`") for cell in repository.cells("Columns"))[: len(COLUMNS)]
    )
    assert repository.card.data["license"] == "mit"
    assert {"synthetic", "genie", "arxiv:2312.02548"} <= set(repository.card.data["tags"])


def test_the_card_of_ten_thousand_shards_is_short(finished: Run, tmp_path: Path) -> None:
    """That which goes out, and the run folder's own."""
    seen = preview(finished, (tmp_path / "shelf").as_uri()).contents
    names = [f"train-{i:05d}-of-10000.arrow" for i in range(10_000)]
    last = seen.release.files[-1]
    release = seen.release.model_copy(update={"files": tuple(last.model_copy(update={"path": n}) for n in names)})
    items = tuple(replace(seen.items[0], path=f"{release.folder}/{name}") for name in names)
    card = dataset_card(None, replace(seen, release=release, items=(*items, *seen.items)), NAME, None)
    assert f"num_examples: {10_000 * last.rows}\n" in card and len(card.encode()) < 40_000
    assembled = current(finished)
    assert assembled is not None
    paths = [f"shards/{kind}-{i:05d}.arrow" for kind in ("real", "synthetic") for i in range(10_000)]
    many = assembled.model_copy(update={"files": tuple(last.model_copy(update={"path": path}) for path in paths)})
    assert len(_card(many).encode()) < 2_000


def test_hostile_names_stay_words_and_unmeasured_quality_is_absent(hub: LoopbackHub, hostile: Run) -> None:
    publish(hostile, NAME, PublishOptions(with_rights=True))
    repository = Repository(hub.files(NAME), hostile)
    names = list(hostile.plan.header.class_names)
    assert sorted(names) == sorted(HOSTILE)
    assert repository.cells("Images per class") == counts_of(repository, names)
    body = repository.card.text
    assert "### Quality" not in body
    assert "no judge looked at these" in body
    assert "<script>" not in body
    assert "\n49" not in body
    outside = re.sub(r"<!-- .*? -->", "", body)
    assert "-->" not in outside
    assert body.count("<!-- diffaug: begin") == body.count("<!-- diffaug: end") == 1
    features = repository.card.data["dataset_info"][0]["features"][1]
    assert list(features["dtype"]["class_label"]["names"].values()) == names
    publish(hostile, NAME, PublishOptions(with_rights=True, file_format="parquet"))
    assert hub.files(NAME)["README.md"].count(b"<!-- diffaug: begin") == 1


def test_what_the_card_must_tell(hub: LoopbackHub, finished: Run) -> None:
    publish(finished, NAME)
    body = DatasetCard(hub.files(NAME)["README.md"].decode()).text
    for told in (
        *("### Loading", "### Method", "### Models and source", "### Known limits", "### Columns", "### Citation"),
        *("arXiv:2312.02548", "@article{koohpayegani2023genie", "@article{fashion_mnist", "apache-2.0", "MIT"),
        *("tier T0", "diffaug-tiny, revision ", "https://github.com/zalandoresearch/fashion-mnist", "sheet.png"),
        *("z_r = sqrt(ab_t) z_0", "Every image is decoded as RGB"),
    ):
        assert told in body, told
    sheet = Image.open(BytesIO(next(d for p, d in hub.files(NAME).items() if p.endswith("sheet.png"))))
    assert sheet.size == (8 + 10 * 104, 8 + 4 * 104 + 22)
    assert len(set(sheet.convert("L").tobytes())) > 50, "the contact sheet is empty"
