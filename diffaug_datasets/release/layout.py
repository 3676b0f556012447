"""What must hold of the rows of a shard, before it goes out and after it came in.

A published config: where its files lie in a repository, and what its `run.json` says of them.

data/<config>/<plan id>/{train,test}-00000-of-00005.arrow  provenance.parquet  recipe.yaml  plan.*  fits/  run.json
"""

import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features
from pydantic import BaseModel, ConfigDict, Field

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.files import FileDigest
from diffaug_datasets.core.identity import canonical, digest
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.rows import ROW_SCHEMA
from diffaug_datasets.run.assembly import RUN_SCHEMA, Assembled, RunFile
from diffaug_datasets.run.shards import arrow_schema, read_stream, schema_digest

RELEASE_SCHEMA = 1
FileFormat = Literal["arrow", "parquet"]
SYNTHETIC, PROVENANCE = "_synthetic", "_provenance"
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
PLAIN = re.compile(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+){0,2}", re.ASCII)
RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?|.*\.", re.ASCII | re.IGNORECASE)  # of Windows


class BesideFile(FileDigest):
    """A file of a release that is no shard, by its path in the config's folder (`fits/NAME/receipt.json`)."""

    file: str


class LicenceCount(BaseModel):
    """Real training images under a licence, and images made from such ones; '' is a licence that nobody stated."""

    model_config = ConfigDict(frozen=True)

    licence: str
    real: int
    made: int


class LeakCheck(BaseModel):
    """How many test images the real ones were compared with, and whether by embeddings too; none was found again."""

    model_config = ConfigDict(frozen=True)

    test_images: int
    embeddings: bool


class Release(Assembled):
    """`run.json` of a published config; `files` are relative to its folder.

    `real`: real rows lie beside the synthetic ones. `recipe_only`: no pixels at all. `beside`: the other files.
    `overrides`: gates that objected and were overruled, as the card states. `leak_check`: how it was made sure that no
    test image is among the real ones; none where it was not, or where there is no test split. `quality`: means over the
    kept synthetic rows. `extra`: columns of the provenance that not every set has. `licences`: of the source images,
    where they state one.
    """

    release_schema: int = RELEASE_SCHEMA
    row_schema: int = 1
    package: str
    method_version: int
    file_format: FileFormat
    real: bool
    recipe_only: bool = False
    beside: tuple[BesideFile, ...] = ()
    overrides: tuple[str, ...] = ()
    leak_check: LeakCheck | None = None
    quality: dict[str, float] = Field(default_factory=dict)
    extra: tuple[str, ...] = ()
    licences: tuple[LicenceCount, ...] = ()

    @property
    def folder(self) -> str:
        """Where the config's files lie in the repository."""
        return release_folder(self.name, self.plan_id)

    @property
    def tag(self) -> str:
        """The tag under which this plan stays loadable."""
        return f"{self.name}-{self.plan_id[:16]}"

    def text(self) -> str:
        """Canonical JSON."""
        return canonical(self.model_dump(mode="json", by_alias=True)) + "\n"


def release_folder(name: str, plan_id: str) -> str:
    """`data/<config>/<first 16 digits of the plan id>`.

    Raises:
        PublishError: the name or the id could lead elsewhere.
    """
    if not NAME.fullmatch(name) or not re.fullmatch(r"[0-9a-f]{16,64}", plan_id):
        raise PublishError(f"got the config {name!r} of plan {plan_id!r}, expected a plain name and hex digits.")
    return f"data/{name}/{plan_id[:16]}"


def read_release(text: str | bytes, where: str) -> Release:
    """A checked `run.json`; `where` is for the message.

    Raises:
        PublishError: no such file of ours, a newer schema, or a file name that leads out of its folder.
    """
    try:
        found = Release.model_validate_json(text)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise PublishError(f"{where}: is no run.json of a published config ({reason}); publish it again.") from None
    if found.schema_version > RUN_SCHEMA:
        raise PublishError(
            f"{where}: has run schema {found.schema_version}, this version reads up to {RUN_SCHEMA}; update "
            "diffaug-datasets."
        )
    if found.release_schema > RELEASE_SCHEMA:
        raise PublishError(
            f"{where}: has release schema {found.release_schema}, this version reads up to {RELEASE_SCHEMA}; "
            "update diffaug-datasets."
        )
    names = [*(file.path for file in found.files), *(file.file for file in found.beside)]
    for name in names:
        if not PLAIN.fullmatch(name) or any(RESERVED.fullmatch(part) for part in name.split("/")):
            raise PublishError(
                f"{where}: names the file {name!r}, expected plain names inside its folder; do not use it."
            )
    release_folder(found.name, found.plan_id)
    return found


def other_form(release: Release) -> str:
    """What to say of a set that another version made or wrote; '' where it is of this one's form."""
    method, told = discover_methods().get(release.method), []
    if method is None or release.method_version != method.VERSION:
        here = f"version {method.VERSION}" if method else "no such method"
        told.append(f"its images were made by {release.method} version {release.method_version}, here is {here}")
    if release.release_schema < RELEASE_SCHEMA:
        told.append(f"it has release schema {release.release_schema}, today's is {RELEASE_SCHEMA}")
    if release.row_schema != ROW_SCHEMA:
        told.append(f"its columns are those of row schema {release.row_schema}, today's is {ROW_SCHEMA}")
    return "; ".join(told)


OLDEST = {"image", "label", "row_id", "plan_id", "origin", "pixel_sha256"}  # what no row schema goes without


def open_table(content: Path | bytes, file_format: FileFormat) -> pa.Table:
    """A shard; memory-mapped where it is an Arrow file."""
    if file_format == "parquet":
        return pq.read_table(BytesIO(content) if isinstance(content, bytes) else content)
    return pa.ipc.open_stream(content).read_all() if isinstance(content, bytes) else read_stream(str(content))


def faults(table: pa.Table, file: RunFile, class_names: Sequence[str], schema: str) -> Iterator[str]:
    """Sentences on schema (`schema`: the digest of its features), labels, images, count; none where all is well."""
    if not _has(table.schema, class_names, schema):
        yield f"{file.path} has another schema than run.json"
        return
    if table.num_rows != file.rows:
        yield f"{file.path} has {table.num_rows} rows, stated are {file.rows}"
    labels = table.column("label").to_pylist()
    if any(label is None or not 0 <= label < len(class_names) for label in labels):
        yield f"{file.path} has a label that no class has"
    if pc.struct_field(table.column("image"), "bytes").null_count:
        yield f"{file.path} has rows without image bytes"


def _has(found: pa.Schema, class_names: Sequence[str], schema: str) -> bool:
    """Whether columns and features for `datasets`, label order included, are those of the digest: ours or older."""
    if schema == schema_digest(class_names):
        return _same(found, arrow_schema(class_names))
    try:
        stated = Features.from_arrow_schema(found)
        return digest(stated.to_dict()) == schema and _same(found, stated.arrow_schema) and set(stated) >= OLDEST
    except (KeyError, TypeError, ValueError):
        return False


def _same(found: pa.Schema, expected: pa.Schema) -> bool:
    key = b"huggingface"
    return bool(found.equals(expected) and (found.metadata or {}).get(key) == expected.metadata[key])
