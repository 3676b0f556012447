"""The rows of a plan in columns: Arrow tables of some thousand rows, in memory or in a Parquet file, one at a time.

A plan of a million rows is drawn, hashed, priced and written table by table. Whoever looks at rows as objects gets them
a page at a time (`PlanRows` is a sequence); whoever counts asks for columns (`columns_of`), which is far cheaper.
Drawn rows are put in the order of their ids by way of the disk where they are many (`Sorting`).
"""

import json
import tempfile
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property
from hashlib import sha256
from itertools import accumulate, chain, islice, pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffaug_datasets.core.memory import ByteCache
from diffaug_datasets.core.rows import KINDS, PlanRow, column_types

GROUP_ROWS = 8192  # of a table, and of a row group of a file
HELD_ROWS = 8 * GROUP_ROWS  # a drawn plan of more lies on the disk: 25 MB of columns
PAGE_ROWS = 1024  # that are made into objects at once: 3 MB
HELD_PAGES = 8
PREFIX = 2  # characters of a row id that choose its file on the way to the disk: 256 files
SPECIAL = r'["\\\x00-\x1f]'  # what JSON escapes

Tables = Iterable[pa.Table]


def arrow_type(kind: str) -> pa.DataType:
    """The Arrow type of a kind of column, see `core.rows.KINDS`."""
    stored = KINDS[kind]
    if stored.item is None:
        return pa.struct([(name, arrow_type(part)) for name, part in stored.parts.items()])
    item = pa.type_for_alias(stored.item)
    return pa.list_(item) if stored.is_list else item


@cache
def plan_schema() -> pa.Schema:
    """The columns of plan.parquet."""
    return pa.schema([(name, arrow_type(kind)) for name, kind in column_types(PlanRow).items()])


class Groups(ABC):
    """Tables of plan rows, each given when it is asked for. `counts`: rows of each."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.ends = tuple(accumulate(counts))
        self._page = ByteCache(self._decode, lambda _: 1, HELD_PAGES)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @abstractmethod
    def table(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The table of that number, or some of its columns."""

    def at(self, place: int) -> tuple[int, int]:
        """The number of the table that holds a row, and the row's place in it."""
        number = bisect_right(self.ends, place)
        return number, place - (self.ends[number - 1] if number else 0)

    def page(self, place: int) -> tuple[int, Sequence[PlanRow]]:
        """Where the page that holds a row begins, and its rows."""
        number, inside = self.at(place)
        page = inside // PAGE_ROWS
        return place - inside + page * PAGE_ROWS, self._page((number, page))

    def _decode(self, key: tuple[int, int]) -> tuple[PlanRow, ...]:
        number, page = key
        part = self.table(number).slice(page * PAGE_ROWS, PAGE_ROWS)
        return tuple(PlanRow(**row) for row in part.to_pylist())

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_page", "_file", "_last", "_owner")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._page = ByteCache(self._decode, lambda _: 1, HELD_PAGES)


class HeldGroups(Groups):
    """Tables in memory."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        super().__init__([table.num_rows for table in tables])
        self._tables = tuple(tables)

    def table(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """As `Groups.table`."""
        table = self._tables[number]
        return table if columns is None else table.select(list(columns))


class FileGroups(Groups):
    """The row groups of a Parquet file. `owner`: what keeps the file there, such as its temporary folder.

    Raises:
        ValueError, pa.ArrowException: it is no such file, or its columns are others.
    """

    def __init__(self, path: Path, owner: object = None) -> None:
        self.path, self._owner = path, owner
        metadata = self._file.metadata
        super().__init__([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
        found = self._file.schema_arrow
        if missing := [name for name in plan_schema().names if name not in found.names]:
            raise ValueError(f"there is no column {missing[0]}")
        if unknown := [name for name in found.names if name not in plan_schema().names]:
            raise ValueError(f"there is a column {unknown[0]}")
        self._last: tuple[int, pa.Table] | None = None

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path)

    def table(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """As `Groups.table`; the whole one that was read last is kept."""
        last = vars(self).get("_last")
        if last is not None and last[0] == number:
            return last[1] if columns is None else last[1].select(list(columns))
        names = plan_schema().names if columns is None else list(columns)
        table = self._file.read_row_group(number, columns=names).select(names)
        table = table.cast(pa.schema([plan_schema().field(name) for name in names]))
        table.validate(full=True)
        if columns is None:
            self._last = number, table
        return table


class PlanRows(Sequence[PlanRow]):
    """Rows of a plan that are made into objects when they are looked at; a slice of them is a view."""

    def __init__(self, groups: Groups, begin: int = 0, end: int | None = None) -> None:
        self.groups, self.begin, self.end = groups, begin, len(groups) if end is None else end

    @classmethod
    def of(cls, rows: Iterable[PlanRow]) -> "PlanRows":
        """These rows, held as columns: a tenth of what they take as objects."""
        return cls(HeldGroups(list(map(table_of, chunks(rows, GROUP_ROWS)))))

    def __len__(self) -> int:
        return max(0, self.end - self.begin)

    def __iter__(self) -> Iterator[PlanRow]:
        place = self.begin
        while place < self.end:
            start, rows = self.groups.page(place)
            yield from rows[place - start : self.end - start]
            place = start + len(rows)

    @overload
    def __getitem__(self, place: int) -> PlanRow: ...

    @overload
    def __getitem__(self, place: slice) -> "PlanRows": ...

    def __getitem__(self, place: int | slice) -> "PlanRow | PlanRows":
        if isinstance(place, slice):
            begin, end, step = place.indices(len(self))
            if step != 1:
                return PlanRows.of(self[i] for i in range(begin, end, step))
            return PlanRows(self.groups, self.begin + begin, self.begin + max(begin, end))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place = self.begin + place % len(self)
        start, rows = self.groups.page(place)
        return rows[place - start]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (PlanRows, tuple, list)) or len(self) != len(other):
            return NotImplemented if not isinstance(other, (PlanRows, tuple, list)) else False
        if isinstance(other, PlanRows):
            return self._digest == other._digest
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list: nothing is to be looked up by a million rows

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows as tables, in order, or some columns of them."""
        place = self.begin
        while place < self.end:
            number, inside = self.groups.at(place)
            table = self.groups.table(number, columns).slice(inside, self.end - place)
            yield table
            place += table.num_rows

    @cached_property
    def _digest(self) -> str:
        hasher = sha256()
        for table in self.tables():
            hasher.update(lines_of(table))
        return hasher.hexdigest()


def chunks(rows: Iterable[PlanRow], size: int) -> Iterator[list[PlanRow]]:
    """The rows, so many at a time."""
    rows = iter(rows)
    while chunk := list(islice(rows, size)):
        yield chunk


def table_of(rows: Sequence[PlanRow]) -> pa.Table:
    """Rows as a table."""
    values = zip(*map(attrgetter(*plan_schema().names), rows), strict=True)
    arrays = [_array(column, field.type) for column, field in zip(values, plan_schema(), strict=True)]
    return pa.table(arrays or [[]] * len(plan_schema()), schema=plan_schema())


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values of rows as a column; where all are one, it is converted once."""
    if not pa.types.is_struct(kind) and values.count(values[0]) == len(values):
        return pa.repeat(_array_of([values[0]], kind)[0], len(values))
    return _array_of(values, kind)


def _array_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_struct(kind):  # a soft label
        parts = {"class": [value.classes for value in values], "weight": [value.weight for value in values]}
        arrays = [_array_of(parts[part.name], part.type) for part in kind]
        return pa.StructArray.from_arrays(arrays, fields=list(kind))
    if pa.types.is_list(kind):
        ends = [0, *accumulate(map(len, values))]
        flat = pa.array(list(chain.from_iterable(values)), kind.value_type)
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), flat)
    return pa.array(values, kind)


def tables_of(rows: Sequence[PlanRow], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Rows of whatever kind as tables, or some columns of them."""
    if isinstance(rows, PlanRows):
        yield from rows.tables(columns)
        return
    for chunk in chunks(rows, GROUP_ROWS):
        yield table_of(chunk) if columns is None else table_of(chunk).select(list(columns))


def columns_of(rows: Sequence[PlanRow], *names: str) -> Iterator[tuple[Any, ...]]:
    """Of each row the values of some columns, lists as lists: without making a million objects of them.

    For `fits`, of a method whose fits rest on what the rows cite.
    """
    for table in tables_of(rows, list(dict.fromkeys(names))):
        yield from zip(*(table.column(name).to_pylist() for name in names), strict=True)


def column_of(rows: Sequence[PlanRow], name: str) -> pa.ChunkedArray:
    """One column of all rows."""
    tables = [table.column(name) for table in tables_of(rows, [name])]
    arrays = [chunk for column in tables for chunk in column.chunks]
    return pa.chunked_array(arrays, plan_schema().field(name).type)


def lines_of(table: pa.Table) -> pa.Buffer | bytes:
    """The canonical JSON of rows, a line each with its line feed, as `identity.canonical` writes it: UTF-8.

    Raises:
        ValueError: a list has no value, or a number is not finite.
    """
    parts: list[Any] = []
    text = "{"
    for name in sorted(table.column_names):
        parts += [f'{text}"{name}":', _json(_whole(table.column(name)))]
        text = ","
    if not table.num_rows:
        return b""
    joined = pc.binary_join_element_wise(*map(_large, (*parts, "}\n", "")))  # the last one joins the others
    _, offsets, data = joined.buffers()
    ends = np.frombuffer(offsets, np.int64)[[joined.offset, joined.offset + len(joined)]]
    return data.slice(int(ends[0]), int(ends[1] - ends[0]))


def _large(part: Any) -> Any:
    """Texts whose offsets do not end at 2 GiB."""
    return pa.scalar(part, pa.large_string()) if isinstance(part, str) else part.cast(pa.large_string())


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _json(array: pa.Array) -> pa.Array:
    """Values as JSON texts."""
    kind = array.type
    if pa.types.is_struct(kind):
        names = sorted(field.name for field in kind)
        fields = dict(zip([field.name for field in kind], array.flatten(), strict=True))
        parts: list[Any] = []
        for place, name in enumerate(names):
            parts += [("{" if place == 0 else ",") + f'"{name}":', _json(fields[name])]
        return pc.binary_join_element_wise(*parts, "}", "")
    if pa.types.is_list(kind):
        if array.null_count:
            raise ValueError("a list is missing")
        offsets = pc.subtract(array.offsets, array.offsets[0])
        lists = pa.ListArray.from_arrays(offsets.cast(pa.int32()), _json(array.flatten()).cast(pa.string()))
        return pc.binary_join_element_wise("[", pc.binary_join(lists, ","), "]", "")
    if pa.types.is_integer(kind):
        return pc.fill_null(array.cast(pa.string()), "null")
    if pa.types.is_string(kind) and not pc.any(pc.match_substring_regex(array, SPECIAL)).as_py():
        return pc.fill_null(pc.binary_join_element_wise('"', array, '"', ""), "null")
    encoded = array.dictionary_encode()
    texts = [json.dumps(v, ensure_ascii=False, allow_nan=False) for v in encoded.dictionary.to_pylist()]
    decoded = pa.DictionaryArray.from_arrays(encoded.indices, pa.array(texts, pa.string()))
    return pc.fill_null(decoded.cast(pa.string()), "null")


class Sorting:
    """Rows that are put in the order of their ids: in memory, or, where they are more than `held`, on the disk.

    On the disk every row goes into a file by the first characters of its id; one file at a time is read and sorted.
    `folder`: makes the folder for those, once one is needed.
    """

    def __init__(self, folder: Callable[[], Path], held: int = HELD_ROWS) -> None:
        self._folder, self._held = folder, held
        self._waiting: list[pa.Table] = []
        self._files: dict[str, tuple[Path, pa.ipc.RecordBatchStreamWriter]] = {}
        self.rows = 0

    def add(self, table: pa.Table) -> None:
        """Take in more rows."""
        self._waiting.append(table)
        self.rows += table.num_rows
        if sum(each.num_rows for each in self._waiting) > self._held:
            self._spill()

    def tables(self) -> Iterator[pa.Table]:
        """All rows, in order; tables of any number of rows. Rows of one id stand beside each other."""
        if not self._files:
            yield _in_order(self._waiting)
            return
        self._spill()
        for _, writer in self._files.values():
            writer.close()
        for _, (path, _) in sorted(self._files.items()):
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
                parts = [pa.Table.from_batches(list(stream), plan_schema())]
            path.unlink()
            yield _in_order(parts)

    def _spill(self) -> None:
        if not self._waiting:
            return
        table = _in_order(self._waiting)
        self._waiting = []
        prefixes = pc.utf8_slice_codeunits(table.column("row_id"), 0, PREFIX).combine_chunks().dictionary_encode()
        indices = _whole(pa.chunked_array(prefixes.chunks)) if isinstance(prefixes, pa.ChunkedArray) else prefixes
        codes, names = indices.indices.to_numpy(), indices.dictionary.to_pylist()
        cuts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
        for begin, end in pairwise(cuts):
            name = names[codes[begin]]
            if name not in self._files:
                path = self._folder() / f"part-{len(self._files):05d}.arrows"
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                self._files[name] = path, pa.ipc.new_stream(str(path), plan_schema(), options=options)
            self._files[name][1].write_table(table.slice(begin, end - begin))


def _in_order(tables: Sequence[pa.Table]) -> pa.Table:
    table = pa.concat_tables(tables) if tables else plan_schema().empty_table()
    return table.take(pc.sort_indices(table, [("row_id", "ascending")])).combine_chunks()


def regrouped(tables: Tables, size: int = GROUP_ROWS) -> Iterator[pa.Table]:
    """The same rows in tables of `size` rows, the last of which may be short."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += table.num_rows
        if count < size:
            continue
        whole = pa.concat_tables(waiting)
        for begin in range(0, count - size + 1, size):
            yield whole.slice(begin, size).combine_chunks()
        rest = whole.slice(count - count % size)
        waiting, count = [rest] if rest.num_rows else [], rest.num_rows
    if count:
        yield pa.concat_tables(waiting).combine_chunks()


def write_groups(path: Path, *parts: Tables) -> None:
    """Tables as a Parquet file, a row group each; `parts` begin with a row group of their own."""
    with pq.ParquetWriter(path, plan_schema()) as writer:
        for part in parts:
            for table in regrouped(part):
                writer.write_table(table, row_group_size=GROUP_ROWS)


def stored(real: Callable[[], Tables], made: Sorting, folder: Callable[[], Path], owner: object, count: int) -> Groups:
    """Real rows, then made ones in order: in memory where they are at most `HELD_ROWS`, else in a file."""
    if made.rows + count <= HELD_ROWS:
        return HeldGroups([*regrouped(real()), *regrouped(made.tables())])
    path = folder() / "plan.parquet"
    write_groups(path, real(), made.tables())
    return FileGroups(path, owner)


class TemporaryRows:
    """A folder for rows on the disk, made when it is asked for; it goes when nobody refers to it any more."""

    @cached_property
    def _folder(self) -> "tempfile.TemporaryDirectory[str]":
        return tempfile.TemporaryDirectory(prefix="diffaug-plan-", ignore_cleanup_errors=True)

    def __call__(self) -> Path:
        """Its path."""
        return Path(self._folder.name)
