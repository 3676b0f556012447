"""The form of a published config: where its files lie, what `run.json` says of them, what a shard must hold.

README.md  croissant.json
data/<config>/<plan id>/{train,test}-00000-of-00005.arrow  provenance.parquet  recipe.yaml  plan.*  fits/  run.json
"""

import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from diffaug_datasets.core.errors import PublishError, one_line
from diffaug_datasets.core.files import FileDigest, load_yaml
from diffaug_datasets.core.identity import canonical
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.rows import ROW_SCHEMA
from diffaug_datasets.run.assembly import RUN_SCHEMA, Assembled, RunFile
from diffaug_datasets.run.shards import arrow_schema, read_stream, schema_digest

RELEASE_SCHEMA = 1
README, CROISSANT, RUN_JSON = "README.md", "croissant.json", "run.json"
PROVENANCE_FILE, PART_ROWS = "provenance.parquet", 10_000  # rows of a part: a row group that is written, a batch read
SYNTHETIC, PROVENANCE = "_synthetic", "_provenance"  # endings of the configs that a card lists beside the whole one
FileFormat = Literal["arrow", "parquet"]
CONFIG_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
PLAIN_NAME = re.compile(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+){0,2}", re.ASCII)
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
    row_schema: int
    package: str
    method_version: int
    file_format: FileFormat
    real: bool
    recipe_only: bool
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
    if not CONFIG_NAME.fullmatch(name) or not re.fullmatch(r"[0-9a-f]{16,64}", plan_id):
        raise PublishError(f"got the config {name!r} of plan {plan_id!r}, expected a plain name and hex digits.")
    return f"data/{name}/{plan_id[:16]}"


def read_release(text: str | bytes, where: str) -> Release:
    """A checked `run.json`; `where` is for the message.

    Raises:
        PublishError: no such file of ours, a newer schema, or a file name that leads out of its folder.
    """
    try:
        release = Release.model_validate_json(text)
    except ValueError as error:
        reason = one_line(error)
        raise PublishError(f"{where}: is no run.json of a published config ({reason}); publish it again.") from None
    for kind, schema, newest in (
        ("run", release.schema_version, RUN_SCHEMA),
        ("release", release.release_schema, RELEASE_SCHEMA),
    ):
        if schema > newest:
            raise PublishError(
                f"{where}: has {kind} schema {schema}, this version reads up to {newest}; update diffaug-datasets."
            )
    for name in [*(file.path for file in release.files), *(file.file for file in release.beside)]:
        if not PLAIN_NAME.fullmatch(name) or any(RESERVED.fullmatch(part) for part in name.split("/")):
            raise PublishError(
                f"{where}: names the file {name!r}, expected plain names inside its folder; do not use it."
            )
    release_folder(release.name, release.plan_id)
    return release


def split_card(text: str) -> tuple[dict[str, object], str]:
    """The metadata of a card (its YAML head) and its body; metadata is empty where there is none.

    The head is found by the expression of `huggingface_hub`, which is the Hub's own, and parsed by the strict reader
    alone: aliases, tags, keys that come twice and deep nesting never reach a library.

    Raises:
        ValueError: the head is no YAML, or has what the strict reader refuses; one line.
        TypeError: it is no mapping of texts.
    """
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    head = REGEX_YAML_BLOCK.search(text)
    if head is None:
        return {}, text
    metadata = load_yaml(head[2])
    if metadata is None:
        return {}, text[head.end() :]
    if not isinstance(metadata, dict) or not all(isinstance(key, str) for key in metadata):
        raise TypeError("is no mapping of texts")
    return metadata, text[head.end() :]


def difference_of_form(release: Release) -> str:
    """What to say of a set that another version of its method made, or that has newer columns; '' of any other."""
    method, differences = discover_methods().get(release.method), []
    if method is None or release.method_version != method.VERSION:
        here = f"version {method.VERSION}" if method else "no such method"
        differences.append(f"its images were made by {release.method} version {release.method_version}, here is {here}")
    if release.row_schema != ROW_SCHEMA:
        differences.append(f"its columns are those of row schema {release.row_schema}, today's is {ROW_SCHEMA}")
    return "; ".join(differences)


def open_table(content: Path | bytes, file_format: FileFormat) -> pa.Table:
    """A shard; memory-mapped where it is an Arrow file."""
    if file_format == "parquet":
        return pq.read_table(BytesIO(content) if isinstance(content, bytes) else content)
    return pa.ipc.open_stream(content).read_all() if isinstance(content, bytes) else read_stream(str(content))


def shard_faults(table: pa.Table, file: RunFile, stated: Assembled) -> Iterator[str]:
    """A sentence for whatever is wrong with schema, number of rows, labels or images; none where all is well.

    `stated`: what `run.json` says of classes and features; features for `datasets`, label order included, count.
    """
    class_names = stated.class_names
    expected, key = arrow_schema(class_names, stated.columns), b"huggingface"
    has_features = (table.schema.metadata or {}).get(key) == expected.metadata[key]
    digest = schema_digest(class_names, stated.columns)
    if stated.schema_digest != digest or not table.schema.equals(expected) or not has_features:
        yield f"{file.path} has another schema than run.json"
        return
    if table.num_rows != file.rows:
        yield f"{file.path} has {table.num_rows} rows, stated are {file.rows}"
    labels = table.column("label").to_pylist()
    if any(label is None or not 0 <= label < len(class_names) for label in labels):
        yield f"{file.path} has a label that no class has"
    if pc.struct_field(table.column("image"), "bytes").null_count:
        yield f"{file.path} has rows without image bytes"
