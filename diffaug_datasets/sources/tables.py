"""Tables of paths and labels: a CSV, TSV, JSON lines or Parquet file that says which image shows which class.

A table lies beside the images or above them; what it names elsewhere is refused. `labelled_folder` finds the tables
that `datasets` puts into folders without class folders: `metadata.csv` at the top, or one in each of train/ and test/.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path, PurePosixPath

from diffaug_datasets.core.errors import SourceError, few, one_line, shown_name
from diffaug_datasets.core.sources import Attribution, Listed, Listing, Survey, check_key, stated_attribution
from diffaug_datasets.sources.folders import METADATA_FILES, FolderFetch
from diffaug_datasets.sources.names import FILLERS, TEST, TRAIN, VAL, split_word

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
PATHS = (
    *("file_name", "filename", "file", "path", "filepath", "file_path", "image_path", "img_path", "image_file"),
    *("image", "img", "image_name", "photo"),
)
LABELS = ("label", "class", "category", "class_name", "classname", "label_name", "species", "target", "name")
SPLITS = ("split", "set", "subset", "partition", "dataset")
ENOUGH_NAMES = 100  # classes that any table may have; above, half of its rows
BATCH_ROWS = 4096

TableRow = Mapping[str, object]


@dataclass(frozen=True)
class TableColumns:
    """The columns that count, as the table spells them; `split` is '' where there is none."""

    path: str
    label: str
    split: str = ""


@dataclass(frozen=True)
class LabelledTable:
    """What tables say: images with their classes, and the attributions that stand beside them."""

    listing: Listing
    attributions: Mapping[str, Attribution]


def table_columns(names: Sequence[str], path: str | None = None, label: str | None = None) -> TableColumns | None:
    """The columns of paths, labels and splits by their usual names in any case; None where one of the first two lacks.

    `path`, `label`: columns that somebody named.
    """
    plain = {str(name).strip().casefold(): name for name in reversed(names)}

    def first(wanted: Sequence[str]) -> str:
        return next((plain[name] for name in wanted if name in plain), "")

    found = path or first(PATHS), label or first([name for name in LABELS if plain.get(name) != path])
    return TableColumns(*found, first(SPLITS)) if all(found) else None


def labelled_table(fetch: FolderFetch, name: str, path: str | None = None, label: str | None = None) -> LabelledTable:
    """The images that one table of a folder names. `path`, `label`: its columns, where they are called otherwise.

    Raises:
        SourceError: no table that can be read, no such columns, or none of its images is there.
    """
    return _gathered(fetch, [_Part(name, "", None)], path, label)


def labelled_folder(folder: Path) -> LabelledTable | None:
    """The images of a folder without class folders, as its metadata files label them; None where they do not.

    Raises:
        SourceError: a metadata file cannot be read.
    """
    folders = _folders_with_files(folder)
    plain = [name for name in folders if not split_word(name) and name.casefold() not in FILLERS]
    if plain:
        return None
    fetch = FolderFetch(folder.resolve())
    if own := _metadata(folder):
        parts = [_Part(own, "", None)]
    else:
        named = {below: _metadata(folder / below) for below in folders if split_word(below)}
        parts = [_Part(f"{below}/{name}", below, split_word(below)) for below, name in named.items() if name]
        if TRAIN not in {part.split for part in parts}:
            return None
    return _gathered(fetch, parts, None, None) if all(_has_labels(fetch, part.name) for part in parts) else None


@dataclass(frozen=True)
class _Part:
    """One table: its `name` below the root, the `folder` that its paths start at, the split that this folder is."""

    name: str
    folder: str
    split: str | None


@dataclass(frozen=True)
class _Entry:
    key: str
    label: str
    split: str
    attribution: Attribution


def _gathered(fetch: FolderFetch, parts: Sequence[_Part], path: str | None, label: str | None) -> LabelledTable:
    entries: dict[str, _Entry] = {}
    missing, unlabelled, twice = [], 0, set()
    for part in parts:
        for entry in _entries(fetch, part, path, label):
            if not entry.label:
                unlabelled += 1
            elif not (fetch.root / entry.key).is_file():
                missing.append(entry.key)
            elif entries.setdefault(entry.key, entry).label != entry.label:
                twice.add(entry.key)
    names = " and ".join(part.name for part in parts)
    kept = [entry for key, entry in entries.items() if key not in twice]
    if not kept:
        why = f"there is no {shown_name(missing[0])!r} below '{fetch.root}'" if missing else "no row has path and label"
        raise SourceError(f"{names}: names no image that is there ({why}); paths start at the folder of the table.")
    labels = {entry.label for entry in kept}
    if len(labels) > max(ENOUGH_NAMES, len(kept) // 2):
        raise SourceError(
            f"{names}: has {len(labels):,} different labels for {len(kept):,} images, expected class names; name the "
            "right column as label_column."
        )
    are_numbers = all(name.isdecimal() for name in labels)
    class_names = tuple(sorted(labels, key=lambda name: (int(name), name) if are_numbers else (0, name)))
    splits = _by_split(kept)
    held = splits[TEST] or splits[VAL]
    warnings = _complaints(names, missing, unlabelled, sorted(twice))
    unused = (
        [f"{len(splits[VAL]):,} images of {VAL} ({TEST} is the test split)"] if splits[TEST] and splits[VAL] else []
    )
    layout = f"{names}: paths and labels" + (
        "" if not held else f", split into train and {TEST if splits[TEST] else VAL}"
    )
    place = {name: number for number, name in enumerate(class_names)}
    listing = Listing(
        class_names,
        tuple(Listed(entry.key, place[entry.label]) for entry in splits[TRAIN]),
        tuple(Listed(entry.key, place[entry.label]) for entry in held) or None,
        survey=Survey(layout, tuple(unused), tuple(warnings)),
    )
    return LabelledTable(listing, {entry.key: entry.attribution for entry in kept if entry.attribution})


def _by_split(entries: Sequence[_Entry]) -> Mapping[str, list[_Entry]]:
    splits: dict[str, list[_Entry]] = {TRAIN: [], VAL: [], TEST: []}
    for entry in entries:
        splits[entry.split].append(entry)
    return splits


def _complaints(names: str, missing: Sequence[str], unlabelled: int, twice: Sequence[str]) -> Iterator[str]:
    if missing:
        shown = few([shown_name(key) for key in missing])
        yield f"{names}: {len(missing):,} {_rows_are(len(missing))} left out, for their images are not there: {shown}"
    if unlabelled:
        yield f"{names}: {unlabelled:,} {_rows_are(unlabelled)} left out, for they have no label"
    if twice:
        shown = few([shown_name(key) for key in twice])
        yield f"{names}: {len(twice):,} images are left out, for they stand there with several labels: {shown}"


def _rows_are(count: int) -> str:
    return "row is" if count == 1 else "rows are"


def _entries(fetch: FolderFetch, part: _Part, path: str | None, label: str | None) -> Iterator[_Entry]:
    """Every row that names an image. Raises SourceError where a path leads out of the folder."""
    columns: TableColumns | None = None
    for row in table_rows(fetch, part.name):
        if columns is None:
            columns = table_columns(list(row), path, label)
            if columns is None or not {columns.path, columns.label} <= set(row):
                held = shown_name(few(list(row), 10))
                raise SourceError(
                    f"{part.name}: has the columns {held}, expected one of paths ({', '.join(PATHS[:4])}, ...) and one "
                    f"of labels ({', '.join(LABELS[:3])}, ...); name them as image_column and label_column."
                )
        if (text := _text(row.get(columns.path))) and _text(text):
            split = part.split or split_word(_text(row.get(columns.split))) or TRAIN
            yield _Entry(_key(fetch, part, text), _text(row.get(columns.label)), split, stated_attribution(row))


def _key(fetch: FolderFetch, part: _Part, text: str) -> str:
    """The image that a row names, below the root."""
    given = PurePosixPath(text.replace("\\", "/"))
    if given.is_absolute() and given.is_relative_to(fetch.root.as_posix()):
        return str(given.relative_to(fetch.root.as_posix()))
    try:
        return check_key(str(PurePosixPath(part.folder) / given if not given.is_absolute() else given))
    except SourceError:
        raise SourceError(
            f"{part.name}: names {shown_name(text)!r}, which lies outside the table's folder '{fetch.root}'; put the "
            "table above its images, with paths that start there."
        ) from None


def _text(value: object) -> str:
    """A cell as text: 3 and 3.0 are '3'; nothing is ''."""
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if value != value else str(int(value)) if value.is_integer() else str(value)
    return str(value).strip()


def table_rows(fetch: FolderFetch, name: str) -> Iterator[TableRow]:
    """The rows of a table, each a mapping of its columns.

    Raises:
        SourceError: it cannot be read; names the line.
    """
    if name.lower().endswith(".parquet"):
        yield from _parquet_rows(name, fetch(name))
    elif name.lower().endswith(".jsonl"):
        for number, line in enumerate(fetch.text(name).split("\n"), 1):
            if line.strip():
                yield _json_row(name, number, line)
    else:
        text = fetch.text(name)
        head = text.partition("\n")[0]
        delimiter = max(",;\t", key=head.count)
        reader = csv.DictReader(StringIO(text, newline=""), delimiter=delimiter)
        try:
            for row in reader:
                yield {str(column): value for column, value in row.items()}
        except csv.Error as error:
            raise SourceError(f"{name}, line {reader.line_num}: is no CSV ({error}); restore the file.") from None


def _json_row(name: str, number: int, line: str) -> TableRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise SourceError(f"{name}, line {number}: is no JSON object; expected one per line.")
    return row


def _parquet_rows(name: str, data: bytes) -> Iterator[TableRow]:
    """The columns of texts and numbers, a batch at a time; embedded images are not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(BytesIO(data))
        schema = file.schema_arrow
        if any(pa.types.is_struct(kind) or pa.types.is_binary(kind) for kind in schema.types):
            raise SourceError(
                f'{name}: holds images itself; give its folder to `load_dataset("parquet")`, put it on the Hub, or '
                "write the images as files and name them in it."
            )
        plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
        for batch in file.iter_batches(BATCH_ROWS, columns=plain):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{name}: is no Parquet file that can be read ({one_line(error)}); restore it.") from None


def _has_labels(fetch: FolderFetch, name: str) -> bool:
    first = next(iter(table_rows(fetch, name)), None)
    return first is not None and table_columns(list(first)) is not None


def _metadata(folder: Path) -> str:
    """The metadata file that lies in a folder, or ''."""
    return next((name for name in METADATA_FILES if (folder / name).is_file()), "")


def _folders_with_files(folder: Path) -> list[str]:
    """Folders right below that hold anything, hidden ones and links out."""
    try:
        below = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.is_symlink()]
        return [path.name for path in below if not path.name.startswith(("._", ".", "__")) and any(path.iterdir())]
    except OSError as error:
        raise SourceError(f"'{folder}': cannot be read ({error.strerror}); check the folder and its rights.") from None
