"""Finished and published runs as datasets, memory-mapped from their shards.

Files behind a folder or an fsspec address (file, memory, s3, ...), brought to this machine to be mapped.

An address may carry a password or a signature: it is printed as `shown` gives it and used as it is.

Reading a published repository, wherever it lies: on the Hub, in a folder, or behind an fsspec address.

Tables that others wrote: validated whole, for a file with bent offsets can end the process that looks into it.

Its digest is checked before (`Repository.checked`); that says who wrote it, not that they meant well.

Putting a person's own real images into a release that may not carry them: found by the sha256 of their bytes.
"""

import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffaug_datasets.core.errors import PublishError, RunError, SourceError
from diffaug_datasets.core.files import FileDigest, load_yaml, read_text, sha256_file, write_atomically
from diffaug_datasets.core.printable import LOCAL, printable, shown, without_secrets
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import ROW_SCHEMA, Ending, Row, column_types
from diffaug_datasets.core.sources import check_key
from diffaug_datasets.release.layout import (
    PROVENANCE,
    SYNTHETIC,
    BesideFile,
    FileFormat,
    Release,
    other_form,
    read_release,
)
from diffaug_datasets.run.assembly import RunFile, finished
from diffaug_datasets.run.shards import arrow_schema, arrow_type, read_stream, write_stream
from diffaug_datasets.run.store import Run
from diffaug_datasets.sources.real import RealSet, hub_choice, read_real

if TYPE_CHECKING:
    import datasets

CLIENTS = (("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError"), ("aiohttp", "ClientError"))


def place_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What fsspec raises for a place that does not do as asked: errors of the system, or of a store's client."""
    loaded = ((sys.modules.get(module), name) for module, name in CLIENTS)
    return (OSError, *more, *(getattr(module, name) for module, name in loaded if module is not None))


def local_path(address: str) -> Path | None:
    """The path that a folder or an address of this machine means, sign for sign; None for what lies elsewhere.

    Raises:
        PublishError: the name is no UTF-8, as Arrow and `datasets` want it.
    """
    try:
        address.encode()
    except UnicodeEncodeError:
        raise PublishError(
            f"{address}: its name is no UTF-8 text, and Arrow opens no such path; rename the folder."
        ) from None
    if "://" in address and not address.startswith(LOCAL):
        return None
    return Path(address.partition("://")[2] if address.startswith(LOCAL) else address).expanduser()


def opened(address: str) -> tuple[Any, str]:
    """The file system of an address, and the address's root in it.

    Raises:
        PublishError: fsspec reaches no such place, or the address chains file systems (`::`).
    """
    import fsspec

    if (path := local_path(address)) is not None:
        return fsspec.filesystem("file"), str(path.absolute())
    if "::" in re.sub(r"//\[[^]/]*\]", "", address):  # but for a host that is a number of IPv6
        raise PublishError(
            f"{shown(address)}: in an address, :: puts one file system into another, and such a place cannot be used; "
            "give a name without it."
        )
    try:
        files, root = fsspec.core.url_to_fs(address)
    except place_errors(ValueError, ImportError) as error:
        raise PublishError(f"{shown(address)}: no place that fsspec reaches ({reason(error, address)}).") from None
    return files, str(root)


def inside(root: str, path: str) -> str:
    """Where a file lies below a root; the query of a web address stays behind it."""
    if root.startswith(("http://", "https://")):
        root, mark, query = root.partition("?")
        return f"{root.rstrip('/')}/{path}{mark}{query}"
    return f"{root.rstrip('/')}/{path}" if root else path


def reason(error: BaseException, address: str) -> str:
    """What a library says of a place, on one line, without the secrets of its address."""
    return " ".join(without_secrets(str(error), address).split())[:200] or type(error).__name__


@dataclass
class AddressFiles:
    """A folder, or whatever fsspec reaches; files that are not local are copied."""

    address: str = field(repr=False)

    def local(self, path: str) -> Path:
        """The file, or a copy of it.

        Raises:
            PublishError: it is not there.
        """
        if (root := local_path(self.address)) is not None:
            found = root / check_key(path)
            if not found.is_file():
                raise PublishError(f"{self.address}: {path} is not there; check the address, or publish it again.")
            return found
        try:
            return self._copy(check_key(path))
        except place_errors(ValueError, ImportError) as error:
            raise PublishError(
                f"{shown(self.address)}: {path} cannot be had ({reason(error, self.address)}); check the address and "
                "its credentials, or publish it again."
            ) from None

    def _copy(self, path: str) -> Path:
        """A copy for this process. A file that changed there gets another: the old one may be memory-mapped."""
        files, root = opened(self.address)
        place = inside(root, path)
        found = _copies() / str(files.ukey(place)) / Path(path).name
        if not found.is_file():
            found.parent.mkdir(parents=True, exist_ok=True)
            temporary = found.with_name(f".{found.name}.tmp")
            files.get_file(place, str(temporary))
            temporary.replace(found)
        return found


def _copies() -> Path:
    return Path(_folder().name)


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder that goes with this process."""
    return tempfile.TemporaryDirectory(prefix="diffaug-")


HEAD = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.S | re.M)
FOLDER = re.compile(r"(data/[\w.-]+/[0-9a-f]{16})/[^/]+", re.ASCII)
README, RUN_JSON = "README.md", "run.json"
LARGEST = {README: 1 << 24, "recipe.yaml": 1 << 24, RUN_JSON: 1 << 29, "plan.json": 1 << 29}


class Files(Protocol):
    """Where a repository's files come from."""

    def local(self, path: str) -> Path:
        """A file on this machine; raises PublishError if it is not there."""


@dataclass
class HubFiles:
    """A dataset of the Hub at one commit; what was read once is there without a network."""

    name: str
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    _commit: str = field(default="", init=False)

    def local(self, path: str) -> Path:
        """The downloaded file; all files are of the commit of the first one.

        Raises:
            PublishError: not on the Hub, or never read while there was a network.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

        broken: Any = HfHubHTTPError.__mro__[1]  # whatever the HTTP library of this huggingface_hub raises
        revision = self._commit or self.revision
        try:
            local = hf_hub_download(
                self.name, check_key(path), repo_type="dataset", revision=revision, token=self.token
            )
        except RepositoryNotFoundError:
            raise PublishError(
                f"{self.name}: no such dataset on the Hub, or a private one; check the name, or run `hf auth login`."
            ) from None
        except (EntryNotFoundError, broken, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise PublishError(
                f"{self.name}: {path} cannot be had ({reason}); check the name, the revision and the network, and run "
                "`hf auth login` if it is private."
            ) from None
        found = Path(local)
        self._commit = self._commit or _snapshot(found, path)
        return found


def _snapshot(found: Path, path: str) -> str:
    """The commit that a cached file belongs to: its folder's name."""
    name = found.parents[path.count("/")].name
    return name if re.fullmatch(r"[0-9a-f]{40}", name) else ""


@dataclass
class Repository:
    """A published repository: its card names the configs, each config's `run.json` its files.

    `where`: its place as it may be printed.
    """

    where: str
    files: Files

    @classmethod
    def open(cls, where: str, revision: str | None = None, token: str | bool | None = None) -> "Repository":
        """`org/name`, a folder, or an address with `://`."""
        if (path := local_path(where)) is None or where.startswith(LOCAL) or path.is_dir():
            return cls(shown(where), AddressFiles(where))
        return cls(where, HubFiles(where, revision, token))

    @cached_property
    def configs(self) -> dict[str, list[str]]:
        """Config name -> the files that the card lists, the default first.

        Raises:
            PublishError: the card cannot be read or lists none.
        """
        path = self._small(README)
        try:
            head = HEAD.match(read_text(path))
            listed = (load_yaml(head[1]) if head else {}).get("configs") or []
            ordered = sorted(listed, key=lambda config: not config.get("default"))
            found = {str(config["config_name"]): _paths(config["data_files"]) for config in ordered}
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise PublishError(f"{self.where}: its README.md names no configs that can be read ({reason}).") from None
        if not found:
            raise PublishError(f"{self.where}: its README.md names no config; it was not published by diffaug.")
        return found

    def folder(self, config: str | None) -> str:
        """`data/<config>/<plan id>` of a config, or of the default one.

        Raises:
            PublishError: there is no such config; names those that are.
        """
        name = config or next(iter(self.configs))
        paths = self.configs.get(name) or self.configs.get(name + PROVENANCE) or []
        found = {match[1] for path in paths if (match := FOLDER.fullmatch(path))}
        if len(found) != 1:
            known = ", ".join(self.configs)
            raise PublishError(f"{self.where}: has no config {name!r} of a diffaug run; it has {known}.")
        return found.pop()

    def release(self, config: str | None) -> Release:
        """What `run.json` of a config says."""
        folder = self.folder(config)
        release = read_release(self._small(f"{folder}/{RUN_JSON}").read_bytes(), f"{self.where}, {folder}")
        if release.folder != folder:
            raise PublishError(f"{self.where}: {folder}/{RUN_JSON} speaks of {release.folder}; publish it again.")
        return release

    def checked(self, release: Release, name: str, check: bool = True) -> Path:
        """A file of a release on this machine; with `check`, only if its bytes have the digest of `run.json`.

        Raises:
            PublishError: it is missing, not named by the release, or has other bytes.
        """
        known: dict[str, RunFile | BesideFile] = {file.path: file for file in release.files}
        known |= {file.file: file for file in release.beside}
        if name not in known:
            raise PublishError(f"{self.where}: {release.folder} has no {name}.")
        path, stated = self._small(f"{release.folder}/{name}"), known[name]
        if check and (path.stat().st_size != stated.size or sha256_file(path) != stated.sha256):
            raise PublishError(
                f"{self.where}: {release.folder}/{name} has other bytes than run.json states; do not use it."
            )
        return path

    def _small(self, path: str) -> Path:
        """A file on this machine; what is read whole may not be larger than such a file ever is."""
        found, most = self.files.local(path), LARGEST.get(path.rpartition("/")[2])
        if most is not None and (size := found.stat().st_size) > most:
            raise PublishError(
                f"{self.where}: {path} has {size:,} bytes, expected at most {most:,} of such a file; do not use it."
            )
        return found

    def beside(self, release: Release, start: str) -> tuple[FileDigest, ...]:
        """The files of a release whose names begin so (`fits/`)."""
        return tuple(file for file in release.beside if file.file.startswith(start))


def _paths(data_files: Any) -> list[str]:
    found = []
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        path = entry["path"] if isinstance(entry, dict) else entry
        found += [str(item) for item in (path if isinstance(path, list) else [path])]
    return found


def ending(config: str | None, release: Release) -> str:
    """`_synthetic`, `_provenance` or '' of a config name."""
    found = (config or release.name).removeprefix(release.name)
    return found if found in (SYNTHETIC, PROVENANCE) else ""


PROVENANCE_FILE, PART_ROWS = "provenance.parquet", 10_000
NEEDED = ("row_id", "origin", "label", "status", "split", "source_ids")  # by whoever reads, whatever the row schema


def read_foreign(path: Path, file_format: FileFormat) -> pa.Table:
    """A shard or a provenance table; memory-mapped where it is an Arrow file.

    Raises:
        PublishError: it is no such file, or its parts do not fit together.
    """
    with _told(path, file_format):
        table = pq.read_table(path) if file_format == "parquet" else read_stream(str(path))
        table.validate(full=True)
    return table


def shard_table(repository: Repository, release: Release, name: str, check: bool = True) -> pa.Table:
    """A shard of a release; with `check`, its digest is looked at first."""
    return read_foreign(repository.checked(release, name, check), release.file_format)


@dataclass(frozen=True)
class Provenance:
    """The provenance of a release, read in parts each time that it is asked for: millions of rows are never held."""

    path: Path
    release: Release

    @classmethod
    def of(cls, repository: Repository, release: Release, check: bool = True) -> "Provenance":
        """Of a published set; with `check`, its digest is looked at first.

        Raises:
            PublishError: the file is missing, has other bytes, or lacks columns that the rows need.
        """
        return cls.at(repository.checked(release, PROVENANCE_FILE, check), release)

    @classmethod
    def at(cls, path: Path, release: Release) -> "Provenance":
        """A file whose digest is right."""
        found = cls(path, release)
        with _told(found.path, "parquet"), pq.ParquetFile(found.path) as file:
            check_columns(file.schema_arrow, release)
        return found

    def columns(self) -> list[str]:
        """The names of its columns."""
        names: list[str] = pq.read_schema(self.path).names
        return names

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Its rows in order, some thousands at a time; columns that it lacks are left out.

        Raises:
            PublishError: a part cannot be read, or has rows without what every row needs.
        """
        with _told(self.path, "parquet"), pq.ParquetFile(self.path) as file:
            known = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(PART_ROWS, columns=known):
                part = pa.Table.from_batches([batch])
                part.validate(full=True)
                if null := [name for name in NEEDED if name in part.column_names and part.column(name).null_count]:
                    raise PublishError(
                        f"{self.path.name}: the column {null[0]!r} has rows without a value; do not use it."
                    )
                yield part

    def table(self, columns: Sequence[str]) -> pa.Table:
        """A few columns, whole."""
        parts = list(self.parts(columns))
        return pa.concat_tables(parts) if parts else self._schema(columns).empty_table()

    def _schema(self, columns: Sequence[str]) -> pa.Schema:
        found = pq.read_schema(self.path)
        return pa.schema([found.field(name) for name in columns if name in found.names])

    def rows(self, only: pc.Expression | None = None, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Row after row, those alone for which `only` holds."""
        for part in self.parts(columns):
            yield from (part if only is None else part.filter(only)).to_pylist()


@contextmanager
def _told(path: Path, file_format: FileFormat) -> Iterator[None]:
    """One sentence for whatever is wrong with a file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PublishError(
            f"{path.name}: is no {file_format} file that can be read ({reason}); do not use it."
        ) from None


def check_columns(schema: pa.Schema, release: Release) -> None:
    """Raises PublishError where a column is missing or of another type; more columns than ours do no harm.

    Of sets with an older row schema, only the columns that every reader needs are looked at.
    """
    wanted = {field.name: field.type for field in arrow_schema(release.class_names) if field.name != "image"}
    wanted |= {name: arrow_type(kind) for name, kind in column_types(Ending).items()}
    if release.row_schema < ROW_SCHEMA:
        wanted = {name: wanted[name] for name in NEEDED}
    found = {field.name: field.type for field in schema}
    if wrong := [name for name, kind in wanted.items() if found.get(name) != kind]:
        raise PublishError(
            f"{PROVENANCE_FILE}: the column {wrong[0]!r} is {found.get(wrong[0], 'missing')}, expected "
            f"{wanted[wrong[0]]}; do not use it."
        )


Place = tuple[str, int]


def real_rows(repository: Repository, release: Release, split: str, source: str | Path) -> "datasets.Dataset":
    """The real rows of a split as the run had them, written once to the cache of `datasets`.

    Raises:
        PublishError: the release has its real rows already.
        SourceError: `source` cannot be read or lacks images that the plan names.
    """
    import datasets

    if release.real:
        raise PublishError(f"{repository.where}: {release.name} has its real images; leave with_real out.")
    rows = planned_real(repository, release, split)
    recipe = Recipe.from_yaml(repository.checked(release, "recipe.yaml"), folder=None)
    choice = hub_choice(recipe, str(source))
    real = read_real(recipe.builder, source, partial=True, choice=choice, on_bad_image="skip")  # found by their bytes
    places = located(real, rows, str(source))
    path = Path(datasets.config.HF_DATASETS_CACHE) / "diffaug_datasets" / f"{release.plan_id[:16]}-{split}.arrow"
    schema = arrow_schema(release.class_names)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as sink:
            write_stream(sink, _filled(rows, real, places), schema)

    write_atomically(path, write)
    return datasets.Dataset.from_file(str(path))


def planned_real(repository: Repository, release: Release, split: str) -> list[dict[str, Any]]:
    """Provenance of the real rows of a split."""
    real = (pc.field("origin") == "real") & (pc.field("split") == split)
    return list(Provenance.of(repository, release).rows(real))


def located(real: RealSet, rows: list[dict[str, Any]], source: str) -> Mapping[str, Place]:
    """Source id -> where a source has it.

    Raises:
        SourceError: images are missing; says how many and names one.
    """
    places: dict[str, Place] = {}
    for name, table in (("test", real.test), ("train", real.train)):
        if table is not None:
            places |= {found.id: (name, index) for index, found in enumerate(table.sources)}
    missing = [row["source_ids"][0] for row in rows if row["source_ids"][0] not in places]
    if missing:
        raise SourceError(
            f"{source}: lacks {len(missing)} of {len(rows)} real images of this release, such as the one with sha256 "
            f"{missing[0][:16]}; give the same files that the run was made from."
        )
    return places


def _filled(rows: list[dict[str, Any]], real: RealSet, places: Mapping[str, Place]) -> Iterator[Row]:
    for row in rows:
        yield Row.of(row, real.read(*places[row["source_ids"][0]]))


def load(
    where: str | Path,
    config: str | None = None,
    split: str = "train",
    *,
    revision: str | None = None,
    augmented_only: bool = False,
    with_real: str | Path | None = None,
    check: bool | None = None,
    token: str | bool | None = None,
) -> "datasets.Dataset":
    """A split of a run folder, a Hub dataset (`org/name`) or a published address, without a second copy.

    `config`: as the card lists it; default: the card's. `revision`: a tag, branch or commit of the Hub.
    `augmented_only` leaves the real rows out. `with_real`: your own copy of the real dataset (folder or Hub id), whose
    images are put in, by sha256, where the release may not carry them. `check` reads every byte and compares digests
    first; default: for published sets, not for run folders. Shards are opened only after that. Warns where another
    version of the method or of the columns made the set.

    Raises:
        DiffAugError: not finished or published, no such config, split or image, or a file with other bytes.

    >>> from diffaug_datasets import generate, load, plan
    >>> run = plan("fashion_5shot_txt2img", "runs/shirts", per_class=2, config={"num_inference_steps": 2})
    >>> done = generate(run, workers=1)
    >>> train = load("runs/shirts", split="train")
    >>> train.num_rows, train[-1]["method"], train[-1]["image"].size
    (70, 'txt2img', (32, 32))
    """
    if (Path(where) / "plan.json").is_file():
        return _load_run(Run.open(where), split, augmented_only, bool(check))
    repository = Repository.open(str(where), revision, token)
    release = repository.release(config)
    if said := other_form(release):
        told = f"{repository.where}, {release.name}: {said}; the rows are given as they were published."
        warnings.warn(printable(told), stacklevel=2)
    if ending(config, release) == PROVENANCE:
        return _table(repository, release, check is not False)
    only = augmented_only or ending(config, release) == SYNTHETIC
    names = [f.path for f in release.split_files(split) if not (only and f.origin == "real")]
    parts = [_published(repository, release, name, check is not False) for name in names]
    if with_real is not None and not only:
        parts.insert(0, real_rows(repository, release, split, with_real))
    return _joined(parts, f"{repository.where}, {release.name}", split, release)


def _joined(
    parts: "list[datasets.Dataset]", where: str, split: str, release: Release | None = None
) -> "datasets.Dataset":
    import datasets

    if not parts and release is not None and release.recipe_only:
        raise PublishError(f"{where}: was published without pixels; `diffaug build` makes the images again.")
    if not parts:
        raise RunError(f"{where}: has no rows for split {split!r}; it has train and test at most.")
    return datasets.concatenate_datasets(parts)


def _load_run(run: Run, split: str, augmented_only: bool, check: bool) -> "datasets.Dataset":
    done = finished(run)
    if done is None:
        raise RunError(f"{run.folder}: not finished; `diffaug generate {run.folder}` continues it.")
    files = [f for f in done.split_files(split) if not (augmented_only and f.origin == "real")]
    for file in files if check else []:
        if sha256_file(run.folder / file.path) != file.sha256:
            raise RunError(f"{run.folder / file.path}: damaged; `diffaug generate {run.folder}` makes it again.")
    return _joined([_open(run.folder / f.path) for f in files], str(run.folder), split)


def _table(repository: Repository, release: Release, check: bool) -> "datasets.Dataset":
    return _published(repository, release, f"provenance.{release.file_format}", check)


def _published(repository: Repository, release: Release, name: str, check: bool) -> "datasets.Dataset":
    """A file of a release; with `check`, its digest and everything in it is looked at before it is opened."""
    path = repository.checked(release, name, check)
    if check:
        read_foreign(path, release.file_format)
    return _open(path, release.file_format)


def _open(path: Path, file_format: FileFormat = "arrow") -> "datasets.Dataset":
    """An Arrow stream as it lies there; Parquet through the cache of `datasets`."""
    import datasets

    if file_format == "parquet":
        return datasets.Dataset.from_parquet(str(path))
    return datasets.Dataset.from_file(str(path))
