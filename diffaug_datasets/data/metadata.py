"""Url, author and licence of real images: from text columns, or the metadata files of an image folder.

As `datasets` reads them: `metadata.jsonl` or `metadata.csv` with one line an image, named by `file_name`, which is
relative to the metadata file; of several files above an image the nearest counts.
"""

import csv
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from io import StringIO
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from diffaug_datasets.core.attribution import Facts, fact_columns, stated_facts
from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.data.fetching import FolderFetch

if TYPE_CHECKING:
    import datasets

FILES, NAME = ("metadata.jsonl", "metadata.csv"), "file_name"
TEXTS = ("string", "large_string")
Row = dict[str, object]


def column_facts(splits: "Mapping[str, datasets.Dataset]") -> dict[str, Facts]:
    """`<split>/<row>` -> facts of every row that states one in a text column."""
    found: dict[str, Facts] = {}
    for split, table in splits.items():
        texts = {name for name, kind in table.features.items() if getattr(kind, "dtype", "") in TEXTS}
        if wanted := [name for name in fact_columns(table.column_names) if name in texts]:
            columns = table.select_columns(wanted).with_format(None)
            for place, row in enumerate(columns):
                if facts := stated_facts(row):
                    found[f"{split}/{place:07d}"] = facts
    return found


def folder_facts(fetch: FolderFetch, keys: Iterable[str]) -> dict[str, Facts]:
    """Key -> facts of every image that a metadata file above it names.

    Raises:
        SourceError: a metadata file cannot be read; names file and line.
    """
    tables: dict[PurePosixPath, dict[str, Facts] | None] = {}
    found: dict[str, Facts] = {}
    for key in keys:
        for folder in PurePosixPath(key).parents:
            if folder not in tables:
                tables[folder] = _table(fetch, folder)
            if (table := tables[folder]) is not None:
                if facts := table.get(_plain(PurePosixPath(key))):
                    found[key] = facts
                break
    return found


def _table(fetch: FolderFetch, folder: PurePosixPath) -> dict[str, Facts] | None:
    """Key -> facts, from the metadata file in a folder; None where there is none."""
    for name in FILES:
        key = str(folder / name)
        if (fetch.root / key).is_file():
            read = _json_lines if name.endswith(".jsonl") else _csv_lines
            return {_plain(folder / file): facts for file, facts in _named(key, read(key, fetch.text(key)))}
    return None


def _named(key: str, rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[str, Facts]]:
    """File name and facts of every line; a line that names no file and states nothing is not ours."""
    for number, row in rows:
        facts, file = stated_facts(row), row.get(NAME)
        if isinstance(file, str):
            yield file, facts
        elif facts:
            raise SourceError(f"{key}, line {number}: names no image; expected a {NAME!r} beside {facts[0][0]!r}.")


def _json_lines(key: str, text: str) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise SourceError(f"{key}, line {number}: is no JSON object; expected one a line, or remove the file.")
        yield number, row


def _csv_lines(key: str, text: str) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader(StringIO(text))
    try:
        for row in reader:
            yield reader.line_num, {str(name): value for name, value in row.items()}
    except csv.Error as error:
        raise SourceError(f"{key}, line {reader.line_num}: is no CSV ({error}); restore or remove the file.") from None


def _plain(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", str(path))
