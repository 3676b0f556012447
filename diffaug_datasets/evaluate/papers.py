"""What papers print in their tables: numbers to compare with, each with its table and the doubts about it.

A number of ours may stand beside one of them only where it was measured on the same data by the same protocol. The
numbers are data of the package, `published.yaml`.
"""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffaug_datasets.core.files import load_yaml
from diffaug_datasets.core.recipe import checked

NO_COMPARISON = "No number of ours stands beside a paper's unless it was measured on the same data."
STRICT = ConfigDict(frozen=True, extra="forbid")


class Column(BaseModel):
    """What a column measures. `model`, `metric`: where they differ from the table's own."""

    model_config = STRICT

    dataset: str
    protocol: str
    model: str | None = None
    metric: str | None = None


class Mark(BaseModel):
    """A doubt about one printed value."""

    model_config = STRICT

    row: str
    column: str
    mark: str = Field(min_length=1)


class PaperTable(BaseModel):
    """One table, or a part of it. `number`: as printed, empty where it is not known; `suites`: those that can make it.

    `secondary`: read in another text than the paper's own. `plus_minus`: what is printed after a value's sign of plus
    and minus, in the same unit.
    """

    model_config = STRICT

    id: str
    paper: str
    arxiv: str = Field(pattern=r"^\d{4}\.\d{5}$")
    number: str
    secondary: bool = False
    model: str
    metric: str
    note: str
    suites: tuple[str, ...]
    columns: Mapping[str, Column]
    rows: Mapping[str, tuple[float, ...]]
    plus_minus: Mapping[str, tuple[float, ...]] = Field(default_factory=dict)
    marks: tuple[Mark, ...] = ()

    @model_validator(mode="after")
    def _is_a_table(self) -> "PaperTable":
        for name, values in [*self.rows.items(), *self.plus_minus.items()]:
            if len(values) != len(self.columns):
                raise ValueError(f"{self.id}: row {name!r} has {len(values)} values, expected {len(self.columns)}")
        if unknown := next((name for name in self.plus_minus if name not in self.rows), None):
            raise ValueError(f"{self.id}: plus_minus of {unknown!r}, which is no row")
        for mark in self.marks:
            if mark.row not in self.rows or mark.column not in self.columns:
                raise ValueError(f"{self.id}: a mark at {mark.row!r}, {mark.column!r}, where no value is")
        return self


class Published(NamedTuple):
    """One printed number. `number`: of the table, empty where it is not known; `plus_minus`: None where there is none.

    `mark`: "secondary" where it was read in another text, and what is doubtful; else empty.
    """

    table: str
    paper: str
    arxiv: str
    number: str
    model: str
    dataset: str
    protocol: str
    method: str
    metric: str
    value: float
    plus_minus: float | None
    mark: str


class _File(BaseModel):
    model_config = STRICT

    tables: tuple[PaperTable, ...]


@cache
def paper_tables() -> Mapping[str, PaperTable]:
    """Every table by its id, in the order of the file."""
    text = (files("diffaug_datasets.evaluate") / "published.yaml").read_text(encoding="utf-8")
    return {table.id: table for table in checked(_File, {"tables": load_yaml(text)}).tables}


def published(table: PaperTable) -> list[Published]:
    """The numbers of a table, row by row.

    >>> from diffaug_datasets.evaluate.papers import paper_tables, published
    >>> first = published(paper_tables()["diffii_1_rn50"])[0]
    >>> first.method, first.dataset, first.protocol, first.value, first.metric
    ('Original', 'cub', '5shot', 54.52, 'top-1 accuracy, %')
    """
    marks = {(mark.row, mark.column): mark.mark for mark in table.marks}
    return [
        Published(
            table=table.id,
            paper=table.paper,
            arxiv=table.arxiv,
            number=table.number,
            model=column.model or table.model,
            dataset=column.dataset,
            protocol=column.protocol,
            method=method,
            metric=column.metric or table.metric,
            value=values[place],
            plus_minus=table.plus_minus[method][place] if method in table.plus_minus else None,
            mark="; ".join(filter(None, ("secondary" * table.secondary, marks.get((method, name), "")))),
        )
        for method, values in table.rows.items()
        for place, (name, column) in enumerate(table.columns.items())
    ]


def all_published() -> list[Published]:
    """The numbers of all tables."""
    return [number for table in paper_tables().values() for number in published(table)]
