"""One table of types: every column of every record has a kind, and a row goes through its columns and back."""

import pytest

from diffaug_datasets.core.plan import real_rows
from diffaug_datasets.core.rows import (
    COLUMNS,
    KINDS,
    Ending,
    Outcome,
    PlanRow,
    Row,
    SetScores,
    SourceFacts,
    column_meanings,
    column_types,
    published_columns,
    rows_beginning,
)
from diffaug_datasets.core.sources import Source, SourceTable

SOURCES = tuple(Source(f"{i:064}", i % 2, f"{i}.png") for i in range(4))
TABLE = SourceTable("toy", "train", ("a", "b"), ("a", "b"), "letter", SOURCES)
RECORDS = (PlanRow, Outcome, Row, Ending, SourceFacts, SetScores)


@pytest.mark.parametrize("record", RECORDS)
def test_every_column_has_a_kind_and_a_meaning(record: type[PlanRow]) -> None:
    assert set(column_types(record).values()) <= KINDS.keys()
    assert all(column_meanings()[name] for name in column_types(record))
    assert record is Row or column_types(record).keys() == record.model_fields.keys()


def test_parts_of_kinds_are_kinds() -> None:
    assert {part for kind in KINDS.values() for part in kind.parts.values()} <= KINDS.keys()
    assert all((kind.item is None) == bool(kind.parts) for kind in KINDS.values())


def test_a_row_is_its_published_columns_and_its_image() -> None:
    outcome = Outcome(width=8, height=8, image_format="png", pixel_sha256="0" * 64, clip_score=0.1)
    for planned in real_rows(TABLE, 0, "train"):
        row = Row(image=b"png", plan_id="1" * 64, plan=planned, outcome=outcome)
        columns = row.columns()
        assert columns.keys() == set(COLUMNS) == published_columns().keys()
        again = Row.of(columns, row.image)
        assert again.outcome == outcome
        assert again.plan == planned.model_copy(update={"k": 0})
        del columns["fallback"], columns["attempt"]  # as an older set may lack them
        assert Row.of(columns, row.image) == again
        del columns["width"]
        with pytest.raises(ValueError, match="width"):
            Row.of(columns, row.image)


def test_a_row_is_named_by_its_beginning() -> None:
    ids = ["ab12", "ab13", "ab1"]
    assert rows_beginning(ids, " AB12") == ["ab12"]
    assert rows_beginning(ids, "ab") == ids
    assert rows_beginning(ids, "ab1") == ["ab1"]
    assert rows_beginning(ids, "c") == []
