"""Sets that another version of a method made, or an older schema wrote: read, and said so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from command_line import Command
from datasets import ClassLabel, Features
from test_verify import Shelf

from diffaug_datasets import load
from diffaug_datasets.core.identity import digest
from diffaug_datasets.methods import genie
from diffaug_datasets.release.layout import read_release
from diffaug_datasets.run.store import Run

CAME_LATER = "fallback"  # a column that the older schema of these tests lacks
OLD = "it has release schema 0, today's is 1; its columns are those of row schema 0, today's is 1"


def without(table: pa.Table) -> pa.Table:
    """A table, and its features for `datasets`, as they were before the column came."""
    if b"huggingface" not in (table.schema.metadata or {}):
        return table.drop_columns([CAME_LATER])
    kept = Features({k: v for k, v in Features.from_arrow_schema(table.schema).items() if k != CAME_LATER})
    return table.drop_columns([CAME_LATER]).cast(kept.arrow_schema)


@pytest.fixture
def older(finished: Run, tmp_path: Path) -> Shelf:
    """The run as an older version of the package would have published it."""
    shelf = Shelf(finished, tmp_path / "fashion")
    path = shelf.folder / "run.json"
    release = read_release(path.read_bytes(), "")
    for name in (*(file.path for file in release.files), "provenance.parquet", "provenance.arrow"):
        shelf.change(name, without)
    table = pa.ipc.open_stream((shelf.folder / release.files[0].path).read_bytes()).read_all()
    content = json.loads(path.read_text())
    stated = {"schema_digest": digest(Features.from_arrow_schema(table.schema).to_dict())}
    del content["row_schema"], content["extra"], content["licences"]
    path.write_text(json.dumps({**content, **stated, "release_schema": 0, "row_schema": 0}))
    return shelf


def verified(shelf: Shelf, diffaug: Command, *words: object) -> dict[str, Any]:
    """What `verify` tells, by check."""
    told = json.loads(diffaug("verify", shelf.place, "--json", "--device", "cpu", *words).out)
    return {"passed": told["passed"], **{check["name"]: check["told"] for check in told["checks"]}}


def test_an_older_schema_is_read_and_said(older: Shelf, finished: Run, diffaug: Command) -> None:
    with pytest.warns(UserWarning, match=OLD):
        rows = load(older.place)
    assert rows.to_dict() == load(finished.folder).remove_columns(CAME_LATER).to_dict()
    told = verified(older, diffaug, "--sample", 1)
    assert told["passed"], told.get("statements")
    assert told["rows"].endswith("labels of 10 classes, columns of the older row schema 0")
    assert told["version"] == "genie version 1, here 1; release schema 0 of 1; row schema 0 of 1"
    assert "bit-equal" in told["rebuild"]
    said = diffaug("regen", older.place, finished.plan.rows[3].row_id, "--device", "cpu")
    assert (said.code, "bit-equal" in said.out) == (0, True)
    assert OLD in said.err


def longer(table: pa.Table) -> pa.Table:
    """A column that `datasets` knows nothing of."""
    return table.append_column("more", pa.array([0] * len(table)))


def relabelled(table: pa.Table) -> pa.Table:
    """The same columns with the names of the classes in another order."""
    features = Features.from_arrow_schema(table.schema)
    names = features["label"].names
    return table.cast(Features({**features, "label": ClassLabel(names=names[::-1])}).arrow_schema)


@pytest.mark.parametrize("edit", [longer, relabelled])
def test_an_older_schema_is_no_excuse(older: Shelf, diffaug: Command, edit: Callable[[pa.Table], pa.Table]) -> None:
    """A shard that differs from what run.json states is found, whatever the schema."""
    older.change("train-00001-of-00004.arrow", edit)
    told = verified(older, diffaug)
    assert (told["passed"], "has another schema than run.json" in told["rows"]) == (False, True)


def test_a_newer_row_schema_is_refused(finished: Run, tmp_path: Path, diffaug: Command) -> None:
    shelf = Shelf(finished, tmp_path / "fashion")
    path = shelf.folder / "run.json"
    path.write_text(path.read_text().replace('"row_schema":1', '"row_schema":9'))
    told = verified(shelf, diffaug)
    assert (told["passed"], "not those of row schema 1" in told["rows"]) == (False, True)


def test_another_version_of_the_method_is_said(
    finished: Run, tmp_path: Path, diffaug: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(finished, tmp_path / "fashion")
    monkeypatch.setattr(genie, "VERSION", 2)
    with pytest.warns(UserWarning, match="its images were made by genie version 1, here is version 2; the rows are"):
        rows = load(shelf.place)
    assert rows.to_dict() == load(finished.folder).to_dict()
    assert verified(shelf, diffaug)["version"].startswith("genie version 1, here 2")
    said = diffaug("regen", shelf.place, finished.plan.rows[0].row_id, "--device", "cpu")
    assert "was made by genie version 1, this is genie 2" in said.sentence


def test_a_set_of_today_is_given_without_a_word(
    finished: Run, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    load(Shelf(finished, tmp_path / "fashion").place)
    assert not recwarn.list
