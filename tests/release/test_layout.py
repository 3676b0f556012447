"""Sets of another form: newer ones are refused or said to be so, and what differs from its own `run.json` is found."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from command_line import Command
from datasets import ClassLabel, Features
from test_verify import Shelf

from diffaug_datasets import load
from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.method import discover_methods, find_method
from diffaug_datasets.run.store import Run


@pytest.fixture
def shelf(finished: Run, tmp_path: Path) -> Shelf:
    return Shelf(finished, tmp_path / "fashion")


def stated(shelf: Shelf, **changes: object) -> None:
    """Let `run.json` state something else."""
    path = shelf.folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def verified(shelf: Shelf, diffaug: Command, *words: object) -> dict[str, Any]:
    """What `verify` tells, by check."""
    told = json.loads(diffaug("verify", shelf.place, "--json", "--device", "cpu", *words).out)
    return {"passed": told["passed"], **{check["name"]: check["told"] for check in told["checks"]}}


@pytest.mark.parametrize(("key", "kind"), [("schema", "run"), ("release_schema", "release")])
def test_a_newer_run_json_is_refused(shelf: Shelf, key: str, kind: str) -> None:
    stated(shelf, **{key: 9})
    with pytest.raises(PublishError, match=f"has {kind} schema 9, this version reads up to 1; update diffaug-datasets"):
        load(shelf.place)


def test_newer_columns_are_said_and_not_vouched_for(shelf: Shelf, finished: Run, diffaug: Command) -> None:
    stated(shelf, row_schema=9)
    with pytest.warns(UserWarning, match="its columns are those of row schema 9, today's is 1; the rows are given as"):
        rows = load(shelf.place)
    assert rows.to_dict() == load(finished.folder).to_dict()
    told = verified(shelf, diffaug)
    assert (told["passed"], "not those of row schema 1" in told["rows"]) == (False, True)
    assert told["version"] == "genie version 1, here 1; release schema 1 of 1; row schema 9 of 1"


def longer(table: pa.Table) -> pa.Table:
    """A column that `datasets` knows nothing of."""
    return table.append_column("more", pa.array([0] * len(table)))


def relabelled(table: pa.Table) -> pa.Table:
    """The same columns with the names of the classes in another order."""
    features = Features.from_arrow_schema(table.schema)
    names = features["label"].names
    return table.cast(Features({**features, "label": ClassLabel(names=names[::-1])}).arrow_schema)


@pytest.mark.parametrize("edit", [longer, relabelled])
def test_a_shard_of_another_schema_is_found(
    shelf: Shelf, diffaug: Command, edit: Callable[[pa.Table], pa.Table]
) -> None:
    shelf.change("train-00001-of-00004.arrow", edit)
    told = verified(shelf, diffaug)
    assert (told["passed"], "has another schema than run.json" in told["rows"]) == (False, True)


def test_another_version_of_the_method_is_said(
    shelf: Shelf, finished: Run, diffaug: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(discover_methods(), "genie", replace(find_method("genie"), VERSION=2))
    with pytest.warns(UserWarning, match="its images were made by genie version 1, here is version 2; the rows are"):
        rows = load(shelf.place)
    assert rows.to_dict() == load(finished.folder).to_dict()
    assert verified(shelf, diffaug)["version"].startswith("genie version 1, here 2")
    said = diffaug("regen", shelf.place, finished.plan.rows[0].row_id, "--device", "cpu")
    assert "was made by genie version 1, this is genie 2" in said.sentence


def test_a_set_of_today_is_given_without_a_word(shelf: Shelf, recwarn: pytest.WarningsRecorder) -> None:
    load(shelf.place)
    assert not recwarn.list
