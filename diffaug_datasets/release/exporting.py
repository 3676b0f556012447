"""A run or a published set as plain files that other programs read: class folders, tar files, Parquet, a table.

    imagefolder   {train,test}/CLASS/ROW.png and {train,test}/metadata.csv, what may be null as JSON in `details`
    webdataset    {train,test}-000000.tar with ROW.png, ROW.cls (the class id) and ROW.json, which holds the same
    parquet       {train,test}-00000.parquet, images inside, as `datasets` stores them
    csv           images/ROW.png and {train,test}.csv

An image keeps its bytes, XMP packet included, but for formats that few programs read, which become PNG. `export.json`
is written first, says what the folder holds, and names what is finished: the same call goes on where it was, and looks
at every file again. Names of classes come from data, so folders have made-safe ones; tables keep the originals.
"""

import csv
import io
import json
import re
import tarfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow.compute as pc

from diffaug_datasets.core.errors import PublishError, RunError, one_of
from diffaug_datasets.core.files import sha256_file, temporary_path, write_atomically, write_text
from diffaug_datasets.core.images import decode_image, encode_image
from diffaug_datasets.core.rows import Outcome, PlanRow, row_urn
from diffaug_datasets.release.layout import RESERVED
from diffaug_datasets.release.places import run_at
from diffaug_datasets.release.provenance import write_parquet
from diffaug_datasets.release.read import EmptySplit, load
from diffaug_datasets.release.repository import Repository
from diffaug_datasets.run.store import on_this_machine

if TYPE_CHECKING:
    import datasets

Form = Literal["imagefolder", "webdataset", "parquet", "csv"]
FORMS: tuple[Form, ...] = get_args(Form)
EXPORT_JSON, EXPORT_SCHEMA = "export.json", 1
SPLITS = ("train", "test")
ROW_ID = re.compile(r"[0-9a-f]{24}")
NULLABLE = {name for model in (PlanRow, Outcome) for name, info in model.model_fields.items() if info.default is None}
SUFFIXES = {"png": "png", "jpeg": "jpg", "mpo": "jpg", "webp": "webp", "bmp": "bmp", "tiff": "tif"}
ROWS_AT_ONCE = 16
PART_ROWS, PART_BYTES = 1000, 256 << 20  # of a tar file
FILE_ROWS, FILE_BYTES = 100_000, 500_000_000  # of a Parquet file
NAME_BYTES = 80
TABLE_ABOVE = 2  # folders above an image, at most, that its table lies in
TABLE_COLUMNS = {"file_name", "label", "urn", "row_id", "is_synthetic"}
SPLIT_WORDS = "train|training|test|testing|eval|evaluation|val|valid|validation|dev"  # that `datasets` looks for
SPLIT_WORD = re.compile(rf"(?<![^\W\d_])({SPLIT_WORDS})(?![^\W\d_])", re.IGNORECASE)
OnRow = Callable[[int, int], None]
"""(rows that are done, of how many)."""


@dataclass(frozen=True)
class Exported:
    """What an export left: rows by split, files written now, files that were there as they should be.

    `class_folders`: the name of each class and of its folder. `was_finished`: nothing was left to do.
    """

    folder: Path
    form: Form
    name: str
    plan_id: str
    rows: Mapping[str, int]
    written: int
    kept: int
    class_folders: Mapping[str, str]
    was_finished: bool


def export(
    where: str | Path,
    folder: str | Path,
    form: Form = "imagefolder",
    *,
    config: str | None = None,
    revision: str | None = None,
    synthetic_only: bool = False,
    with_real: str | Path | None = None,
    on_row: OnRow | None = None,
) -> Exported:
    """Write a finished run, a Hub dataset or a published address into a folder as plain files.

    Args:
        where: a run folder, `org/name` on the Hub, or the address of a run or of a published set.
        folder: a new folder, an empty one, or one that the same call began.
        form: `imagefolder`, `webdataset`, `parquet` or `csv`.
        config, revision, with_real: as `load` takes them.
        synthetic_only: leave the real images out.
        on_row: called with the rows that are done and how many there are.

    Raises:
        RunError: the run is not finished, the folder holds something else, or it cannot be written.
        PublishError: nothing is published there, or a file of it has other bytes than it states.
    """
    if form not in FORMS:
        raise RunError(f"--as: got {form!r}, {one_of(form, FORMS)}")
    place = on_this_machine(folder, "export folder")
    name, plan_id = _identity(where, config, revision)
    asked = {"name": name, "plan_id": plan_id, "form": form, "synthetic_only": synthetic_only}
    asked["with_real"] = with_real is not None
    journal = Journal.claim(place, asked)
    parts: dict[str, datasets.Dataset] = {}
    for split in SPLITS:
        try:
            options: dict[str, Any] = {"revision": revision, "with_real": with_real, "check": True}
            parts[split] = load(where, config, split, augmented_only=synthetic_only, **options)
        except EmptySplit:
            continue
    if not any("image" in part.column_names for part in parts.values()):
        raise RunError(f"{where}: holds no images of this kind, expected some to export; choose another config.")
    if not (place / EXPORT_JSON).is_file():
        journal.write()
    class_names = next(iter(parts.values())).features["label"].names
    writer = Writer(journal, class_names, safe_names(class_names), sum(map(len, parts.values())), on_row)
    for split, part in parts.items():
        {"imagefolder": writer.folders, "csv": writer.flat, "webdataset": writer.tars, "parquet": writer.tables}[form](
            split, part
        )
    was_finished = journal.finished and not writer.written
    rows = {split: len(part) for split, part in parts.items()}
    folders = dict(zip(class_names, writer.folder_names, strict=True)) if form == "imagefolder" else {}
    journal.finish(rows, folders)
    return Exported(place, form, name, plan_id, rows, writer.written, writer.kept, folders, was_finished)


def exported_row(image: Path) -> Mapping[str, str] | None:
    """What the tables of the export around an image say of it, by column; None where it lies in no export."""
    image = image.absolute()
    for folder in image.parents[:TABLE_ABOVE]:
        name = image.relative_to(folder).as_posix()
        for table in (folder / "metadata.csv", *(folder / f"{split}.csv" for split in SPLITS)):
            if row := _row_in(table, name):
                return row
    return None


def _row_in(table: Path, name: str) -> Mapping[str, str] | None:
    """The row of an image in a table that an export wrote."""
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if not set(rows.fieldnames or ()) >= TABLE_COLUMNS:
                return None
            return next((row for row in rows if row["file_name"] == name and None not in row.values()), None)
    except (OSError, ValueError, csv.Error):  # none, or none of ours
        return None


def _identity(where: str | Path, config: str | None, revision: str | None) -> tuple[str, str]:
    """Name of the config and plan id."""
    if run := run_at(where):
        return run.plan.header.name, run.plan.id
    release = Repository.open(str(where), revision).release(config)
    return config or release.name, release.plan_id


@dataclass
class Journal:
    """`export.json`: what a folder holds, and the digests of the files that are finished but for single images."""

    folder: Path
    asked: Mapping[str, object]
    files: dict[str, str] = field(default_factory=dict)
    finished: bool = False

    @classmethod
    def claim(cls, folder: Path, asked: Mapping[str, object]) -> "Journal":
        """The journal of a folder that is new, empty, or holds the same export.

        Raises:
            RunError: it holds something else.
        """
        path = folder / EXPORT_JSON
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            known = {key: content[key] for key in asked}
            if known != asked:
                what = ", ".join(f"{key} {known[key]!r}" for key in asked if known[key] != asked[key])
                raise RunError(f"{folder}: holds another export ({what}); give another folder.")
            files = {str(name): str(sha256) for name, sha256 in content["files"].items()}
            return cls(folder, asked, files, bool(content["finished"]))
        except FileNotFoundError:
            if folder.exists() and any(folder.iterdir()):
                raise RunError(
                    f"{folder}: is not empty and holds no export of ours (no {EXPORT_JSON}); give a new folder."
                ) from None
        except NotADirectoryError:
            raise RunError(f"{folder}: is a file, expected a folder to write to.") from None
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: cannot be read ({error}); remove the folder, or give another one.") from None
        return cls(folder, asked)

    def has(self, name: str) -> bool:
        """Whether a file is finished and still has its digest."""
        path = self.folder / name
        return name in self.files and path.is_file() and sha256_file(path) == self.files[name]

    def add(self, name: str, sha256: str) -> None:
        """A file is finished."""
        self.files[name] = sha256
        self.write()

    def finish(self, rows: Mapping[str, int], class_folders: Mapping[str, str]) -> None:
        """The last write."""
        self.finished = True
        self.write(rows=rows, class_folders=class_folders)

    def write(self, **more: object) -> None:
        """Everything that is known."""
        content = {"schema": EXPORT_SCHEMA, **self.asked, "finished": bool(more), "files": self.files, **more}
        write_text(self.folder / EXPORT_JSON, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@dataclass
class Writer:
    """Writes what a folder lacks, split by split; counts files written now and files that were there."""

    journal: Journal
    class_names: Sequence[str]
    folder_names: Sequence[str]
    total: int
    on_row: OnRow | None = None
    written: int = 0
    kept: int = 0
    done: int = 0

    def folders(self, split: str, rows: "datasets.Dataset") -> None:
        """One folder per class, and a table."""
        self._images(split, rows, f"{split}/metadata.csv", lambda row: f"{self.folder_names[row.label]}/{row.file}")

    def flat(self, split: str, rows: "datasets.Dataset") -> None:
        """One folder for all, and a table."""
        self._images("", rows, f"{split}.csv", lambda row: f"images/{row.file}")

    def _images(self, below: str, rows: "datasets.Dataset", table: str, name_of: "Callable[[ExportRow], str]") -> None:
        root = self.journal.folder / below

        def write(unfinished: Path) -> None:
            with unfinished.open("w", encoding="utf-8", newline="") as file:
                writer: csv.DictWriter[str] | None = None
                for row in self._rows(rows):
                    name = name_of(row)
                    self._put(root / name, row.data)
                    facts = {"file_name": name, **(_nested(row.facts) if below else row.facts)}
                    if writer is None:
                        writer = csv.DictWriter(file, list(facts), lineterminator="\n")
                        writer.writeheader()
                    writer.writerow({key: _cell(value) for key, value in facts.items()})

        before = self.journal.files.get(table) if (self.journal.folder / table).is_file() else None
        is_whole = self.journal.has(table)
        made = write_atomically(self.journal.folder / table, write)
        self._count(is_whole and made.sha256 == before)
        if made.sha256 != before:
            self.journal.add(table, made.sha256)

    def tars(self, split: str, rows: "datasets.Dataset") -> None:
        """Tar files as webdataset reads them: the files of a row lie behind one another and share their stem."""
        for number, part in enumerate(_parts(rows, PART_ROWS, PART_BYTES)):
            self._part(f"{split}-{number:06d}.tar", part, partial(self._write_tar, part))

    def _write_tar(self, rows: "datasets.Dataset", path: Path) -> None:
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in self._rows(rows):
                cells = {key: _cell(value) for key, value in _nested(row.facts).items()}
                facts = json.dumps(cells, ensure_ascii=False).encode()
                for suffix, data in ((row.suffix, row.data), ("cls", str(row.label).encode()), ("json", facts)):
                    member = tarfile.TarInfo(f"{row.id}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))

    def tables(self, split: str, rows: "datasets.Dataset") -> None:
        """Parquet files with the images inside."""

        def write(part: "datasets.Dataset", path: Path) -> None:
            for _ in self._rows(part):  # ids and labels are looked at; the rows go out as they are
                pass
            write_parquet(part.with_format("arrow")[:].cast(part.features.arrow_schema), path)

        for number, part in enumerate(_parts(rows, FILE_ROWS, FILE_BYTES)):
            self._part(f"{split}-{number:05d}.parquet", part, partial(write, part))

    def _part(self, name: str, rows: "datasets.Dataset", write: Callable[[Path], None]) -> None:
        if self.journal.has(name):
            self._count(True)
            self._tell(len(rows))
            return
        done = write_atomically(self.journal.folder / name, write)
        self._count(False)
        self.journal.add(name, done.sha256)

    def _rows(self, rows: "datasets.Dataset") -> "Iterator[ExportRow]":
        columns = [name for name in rows.column_names if name != "image"]
        for batch in rows.with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
            images = batch.column("image")
            for index, facts in enumerate(batch.select(columns).to_pylist()):
                yield ExportRow.of(facts, bytes(images[index].as_py()["bytes"]), self.class_names)
                self._tell(1)

    def _put(self, path: Path, data: bytes) -> None:
        """Write an image that is not there with these bytes. A reader sees the whole of it or nothing."""
        try:
            if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
                self._count(True)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = temporary_path(path)
            try:
                unfinished.write_bytes(data)
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror}); free space or check rights.") from None
        self._count(False)

    def _count(self, was_there: bool) -> None:
        self.kept += was_there
        self.written += not was_there

    def _tell(self, rows: int) -> None:
        self.done += rows
        if self.on_row:
            self.on_row(self.done, self.total)


@dataclass(frozen=True)
class ExportRow:
    """A row on its way out: the bytes of its file, and everything else that is known of it, with names for numbers."""

    id: str
    label: int
    suffix: str
    data: bytes
    facts: Mapping[str, object]

    @classmethod
    def of(cls, columns: Mapping[str, Any], data: bytes, class_names: Sequence[str]) -> "ExportRow":
        """Raises PublishError where an id or a label cannot be one, as in a set that somebody else wrote."""
        row_id, label = str(columns["row_id"]), int(columns["label"])
        if not ROW_ID.fullmatch(row_id) or not 0 <= label < len(class_names):
            raise PublishError(f"row {row_id[:40]!r} of class {label}: is no row of ours; do not use this set.")
        suffix = SUFFIXES.get(str(columns["image_format"]))
        if suffix is None:  # GIF, AVIF, HEIC: few loaders of class folders read them
            suffix, data = "png", encode_image(decode_image(data, row_id), "png")
        rest = {name: value for name, value in columns.items() if name != "label"}
        named = {"label": class_names[label], "class_id": label, "urn": row_urn(str(columns["plan_id"]), row_id)}
        return cls(row_id, label, suffix, data, {**named, **rest})

    @property
    def file(self) -> str:
        """`ROW.png`."""
        return f"{self.id}.{self.suffix}"


def _parts(rows: "datasets.Dataset", most_rows: int, most_bytes: int) -> "Iterator[datasets.Dataset]":
    """The rows in files of so many, cut where the images weigh more."""
    begin = weight = 0
    lengths = pc.binary_length(pc.struct_field(rows.data.table.column("image"), "bytes"))
    for place, length in enumerate(lengths.to_pylist()):
        if place > begin and (place - begin == most_rows or weight + length > most_bytes):
            yield rows.select(range(begin, place))
            begin, weight = place, 0
        weight += length
    yield rows.select(range(begin, len(rows)))


def _nested(facts: Mapping[str, object]) -> dict[str, object]:
    """What may be null as one JSON text, `details`.

    `datasets` guesses types from the table of each split by itself, so a column that is empty in one split would have
    another type there; and of a long number beside empty cells it makes a float.
    """
    details = {name: facts[name] for name in facts if name in NULLABLE and facts[name] is not None}
    always = {name: value for name, value in facts.items() if name not in NULLABLE}
    return {**always, "details": json.dumps(details, ensure_ascii=False)}


def _cell(value: object) -> object:
    """A value of a table: lists and mappings as JSON, for an empty list tells no type; nothing for null."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def safe_names(names: Sequence[str]) -> tuple[str, ...]:
    """A folder name for each class, which any file system takes and no two of which are one on any.

    Letters and digits of all scripts stay, everything else becomes `_`. Names that Windows reserves, that hide a
    folder, or that `datasets` takes for a split (`test tube`) are changed, long ones cut, equal ones numbered.
    """
    taken: set[str] = set()
    safe = []
    for number, name in enumerate(names):
        stem = _safe_name(name) or "class"
        candidate = stem
        while _folded(candidate) in taken:
            candidate = f"{stem}-{number}"
            stem += "-"
        taken.add(_folded(candidate))
        safe.append(candidate)
    return tuple(safe)


def _folded(name: str) -> str:
    """What a file system that knows no case, or another normal form, makes of a name."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _safe_name(name: str) -> str:
    plain = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFKC", name.encode("utf-8", "replace").decode()))
    plain = SPLIT_WORD.sub(lambda word: f"{word[0]}x", plain)
    plain = plain.encode()[:NAME_BYTES].decode(errors="ignore").strip("_-")
    return f"{plain}_" if RESERVED.fullmatch(plain) else plain
