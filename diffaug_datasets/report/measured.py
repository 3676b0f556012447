"""What `measure` found of a run, as a report shows it: a table of all images, and one of each class."""

from dataclasses import dataclass

from diffaug_datasets.release.measures import TITLES, Measure, Measured, MeasuresFile, cells


@dataclass(frozen=True)
class MeasureRow:
    """A measure as text; `floor` says why there is no value where it is withheld. `of`: its class, '' for all."""

    of: str
    title: str
    value: str
    interval: str
    floor: str


@dataclass(frozen=True)
class MeasureTable:
    """What one encoder found; `classes` has the numbers of single classes that are not withheld."""

    encoder: str
    judge: str
    images: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    rows: tuple[MeasureRow, ...]
    classes: tuple[MeasureRow, ...]


def measure_tables(kept: MeasuresFile | None) -> tuple[MeasureTable, ...]:
    """A table for each encoder that was asked; none where nothing was measured."""
    return tuple(map(_table, kept.measured)) if kept else ()


def _table(measured: Measured) -> MeasureTable:
    return MeasureTable(
        encoder=measured.encoder,
        judge=measured.judge,
        images=f"{measured.synthetic:,} synthetic images beside {measured.reference}",
        warnings=measured.warnings,
        notes=measured.notes,
        rows=tuple(_row(one) for one in measured.measures if one.of is None),
        classes=tuple(_row(one) for one in measured.measures if one.of is not None and one.value is not None),
    )


def _row(one: Measure) -> MeasureRow:
    return MeasureRow(one.of or "", TITLES.get(one.name, one.name), *cells(one))
