"""A file of measures holds for the rows that it was taken of, and for no others."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from small_release import made

from diffaug_datasets.release.measures import (
    Interval,
    Measure,
    Measured,
    cells,
    keep_measures,
    read_measures,
    selection_digest,
)
from diffaug_datasets.run.store import Run


def measured(encoder: str, *measures: Measure) -> Measured:
    return Measured(
        where="runs/mine",
        encoder=encoder,
        judge="",
        synthetic=4,
        reference="9 real test images",
        warnings=(),
        notes=(),
        measures=measures,
    )


ALL, OF_BAG = Measure(name="vendi", of=None, n=4, value=2.5), Measure(name="vendi", of="Bag", n=2, value=1.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made(tmp_path_factory.mktemp("measures") / "run", "fashion_1shot_txt2img")


@pytest.fixture(autouse=True)
def empty(run: Run) -> None:
    (run.folder / "measures.json").unlink(missing_ok=True)


def test_what_encoders_found_is_kept_side_by_side(run: Run) -> None:
    assert read_measures(run) == (None, "")
    keep_measures(run, measured("a", ALL, OF_BAG))
    keep_measures(run, measured("b", ALL))
    keep_measures(run, measured("a", ALL.model_copy(update={"value": 3.0})))
    file = read_measures(run).file
    assert file is not None
    assert [one.encoder for one in file.measured] == ["b", "a"]
    assert [(m.of, m.value) for m in file.measured[1].measures] == [(None, 3.0), ("Bag", 1.5)]
    assert {one.where for one in file.measured} == {run.plan.header.name}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"plan_id": "0" * 64}, "belongs to plan 0000000000000000, and this is plan"),
        ({"selection": "0" * 64}, "belongs to another selection of this plan's rows"),
        ({"schema_version": 9}, "has schema 9, this version reads up to 1"),
        (None, "cannot be read"),
    ],
)
def test_measures_of_other_rows_are_named_and_replaced(run: Run, change: dict[str, object] | None, reason: str) -> None:
    path = keep_measures(run, measured("a", ALL))
    kept = read_measures(run).file
    assert kept is not None
    path.write_text("{" if change is None else kept.model_copy(update=change).text(), encoding="utf-8")
    file, note = read_measures(run)
    assert file is None
    assert note.startswith(f"{path}: {reason}") and note.endswith(f"`diffaug measure {run.folder}` writes it anew.")
    assert "\n" not in note
    keep_measures(run, measured("b", ALL))
    assert [one.encoder for one in read_measures(run).file.measured] == ["b"]


def test_the_selection_is_known_by_the_rows_that_it_keeps(run: Run, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    digests = []
    for keep in ([True, True], [True, False], [False, True]):
        pq.write_table(pa.table({"row_id": ["a", "b"], "keep": keep}), tmp_path / "selection.parquet")
        digests.append(selection_digest(tmp_path / "selection.parquet"))
    assert len(set(digests)) == 3
    pq.write_table(pa.table({"row_id": ["b"], "keep": [True]}), tmp_path / "selection.parquet")
    assert selection_digest(tmp_path / "selection.parquet") == digests[2]


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValidationError):
        Measure(name="vendi", of=None, n=1, value=float("nan"))


def test_cells_are_what_a_person_reads() -> None:
    floor = Interval(0.5, 0.25, 0.75)
    whole = Measure(name="coverage", of=None, n=4, value=0.123456, interval=(0.1, 0.2), floor=floor)
    assert cells(whole) == ("0.1235", "0.1 to 0.2", "0.5 (0.25 to 0.75)")
    assert cells(Measure(name="vendi", of=None, n=1, value=None, withheld="1 images")) == ("withheld", "", "1 images")
