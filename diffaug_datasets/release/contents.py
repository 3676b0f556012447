"""The files of a release: which there are, where their bytes come from, and their digests.

What a person decides when publishing.

The recipe as others may read it: nothing in it names a place of the publisher's machine.

The contact sheet of a release: for a few classes a real image, where it may be shown, above what was made.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.files import sha256_file
from diffaug_datasets.core.identity import __version__
from diffaug_datasets.core.images import decode_image
from diffaug_datasets.core.models import TINY, is_local, is_local_model, placeless
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import ROW_SCHEMA
from diffaug_datasets.core.sources import BuilderFacts
from diffaug_datasets.release.layout import BesideFile, FileFormat, Release
from diffaug_datasets.release.provenance import (
    SHOWN,
    extra_columns,
    licence_counts,
    provenance_stream,
    provenance_table,
    quality,
    write_parquet,
)
from diffaug_datasets.run.assembly import Assembled, RunFile, finished
from diffaug_datasets.run.shards import read_stream
from diffaug_datasets.run.store import Receipt, Run
from diffaug_datasets.sources.hub import DATASET_ID
from diffaug_datasets.sources.real import builder_facts


@dataclass(frozen=True)
class PublishOptions:
    """How a run goes out.

    `revision`: a branch (made if missing). `create_pr`: as a pull request. `recipe_only`: everything but pixels.
    `allow`: names of gates that may say no; the card states each. `with_rights`: the publisher holds the rights to
    derivatives of images that may not be redistributed.

    >>> from diffaug_datasets import PublishOptions
    >>> PublishOptions(file_format="parquet", recipe_only=True).allow
    ()
    """

    file_format: FileFormat = "arrow"
    private: bool = False
    create_pr: bool = False
    revision: str | None = None
    with_rights: bool = False
    recipe_only: bool = False
    allow: tuple[str, ...] = ()


def public_recipe(recipe: Recipe) -> Recipe:
    """The recipe without local paths: a local source is left out, a local model keeps its folder's name and digest."""
    content = placeless(recipe.model_dump(mode="json", by_alias=True))
    content["source"] = _public_source(recipe.source)
    if recipe.backbone.id != TINY and is_local_model(recipe.backbone.id):
        content["backbone"]["id"] = Path(recipe.backbone.id).expanduser().resolve().name  # as the plan names it
    return Recipe.from_dict(content, folder=None)


def _public_source(source: str | None) -> str | None:
    return source if source and DATASET_ID.fullmatch(source) and not is_local(source) else None


def local_models(recipe: Recipe) -> list[str]:
    """The keys of a recipe that name a folder of this machine whose model the images rest on."""
    encoder = recipe.method_config.requirements.encoder
    named = {"backbone.id": recipe.backbone.id, "config.encoder": encoder}
    return [key for key, model in named.items() if isinstance(model, str) and is_local_model(model)]


CLASSES, MADE, SIDE, GAP, FOOT = 10, 3, 96, 8, 22
PAPER, INK = "#faf8f4", "#1f1d1a"


def contact_sheet(run: Run, release: Release) -> bytes | None:
    """PNG bytes, the same for the same run; None where no image was kept."""
    assembled = finished(run)
    columns = _columns(run, assembled.files if assembled else (), release)
    if not columns:
        return None
    rows = MADE + int(release.real)
    size = (GAP + len(columns) * (SIDE + GAP), GAP + rows * (SIDE + GAP) + FOOT)
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, (label, images) in enumerate(columns.items()):
        left = GAP + place * (SIDE + GAP)
        for number, cell in enumerate(images):
            sheet.paste(_fitted(bytes(cell.as_py()["bytes"])), (left, GAP + number * (SIDE + GAP)))
        pen.text((left, size[1] - FOOT), _short(release.class_names[label]), fill=INK, font=font)
    buffer = BytesIO()
    sheet.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def _columns(run: Run, files: tuple[RunFile, ...], release: Release) -> dict[int, list[pa.StructScalar]]:
    """Label -> cells of the image column, from the top down; their bytes are read when they are shown."""
    real: dict[int, list[pa.StructScalar]] = {}
    made: dict[int, list[pa.StructScalar]] = {}
    for file in files:
        if file.split == "train" and (file.origin != "real" or release.real):
            table = read_stream(str(run.folder / file.path))
            _collect(table, real if file.origin == "real" else made, 1 if file.origin == "real" else MADE)
    return {label: [*real.get(label, []), *made[label]] for label in sorted(made)[:CLASSES]}


def _collect(table: pa.Table, found: dict[int, list[pa.StructScalar]], wanted: int) -> None:
    for index, label in enumerate(table.column("label").to_pylist()):
        images = found.setdefault(label, [])
        if len(images) < wanted:
            images.append(table.column("image")[index])


def _fitted(data: bytes) -> Image.Image:
    image = decode_image(data)
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= 14 else line[:13] + "…"


RUN_JSON, SHEET = "run.json", "sheet.png"


@dataclass(frozen=True)
class Item:
    """One file: its path in the repository, its bytes or the file that holds them, their digest."""

    path: str
    content: Path | bytes
    sha256: str
    size: int

    @classmethod
    def of(cls, path: str, content: Path | bytes) -> "Item":
        """A file with its digest taken now."""
        if isinstance(content, bytes):
            return cls(path, content, hashlib.sha256(content).hexdigest(), len(content))
        return cls(path, content, sha256_file(content), content.stat().st_size)

    @property
    def name(self) -> str:
        """Its path inside the config's folder."""
        return self.path.split("/", 3)[-1]

    def read(self) -> bytes:
        """The bytes."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()

    @property
    def blob_id(self) -> str:
        """What git calls these bytes (sha1)."""
        data = self.read()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Contents:
    """A run as it goes out: all files of its folder, `run.json` last; the card is made from `release` and `run`."""

    run: Run
    release: Release
    facts: BuilderFacts
    items: tuple[Item, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(item.size for item in self.items)


def done(run: Run) -> Assembled:
    """The finished run.

    Raises:
        PublishError: it is not finished.
    """
    found = finished(run)
    if found is None:
        raise PublishError(f"{run.folder}: not finished; `diffaug generate {run.folder}` continues it.")
    return found


def contents(run: Run, options: PublishOptions, stage: Path) -> Contents:
    """Everything that a release of this run consists of; converted shards are written to `stage`.

    Raises:
        PublishError: the run is not finished, or a file is not the one that its receipt names.
    """
    assembled, facts = done(run), builder_facts(str(run.plan.header.recipe["builder"]))
    files = [] if options.recipe_only else [f for f in assembled.files if f.origin != "real" or facts.redistributable]
    release = Release(
        **{**assembled.model_dump(by_alias=True), "files": (), "stacks": assembled.stacks},
        row_schema=ROW_SCHEMA,
        package=__version__,
        method_version=run.plan.header.method_version,
        file_format=options.file_format,
        real=facts.redistributable and not options.recipe_only,
        recipe_only=options.recipe_only,
    )
    shards = tuple(_shards(run, release, files, stage))
    table = provenance_table(run, release)
    beside, rows = tuple(_beside(run, release, options, table)), table.to_pylist()
    told = {
        "files": tuple(file for file, _ in shards),
        "beside": tuple(BesideFile(file=i.name, sha256=i.sha256, size=i.size) for i in beside),
        "quality": quality(table),
        "extra": extra_columns(table),
        "licences": licence_counts(rows, SHOWN),
    }
    release = release.model_copy(update=told)
    return Contents(run, release, facts, (*(item for _, item in shards), *beside, _run_json(release)))


def stating(found: Contents, **told: Any) -> Contents:
    """The same contents with more said in `run.json`."""
    release = found.release.model_copy(update=told)
    return replace(found, release=release, items=(*found.items[:-1], _run_json(release)))


def _run_json(release: Release) -> Item:
    return Item.of(f"{release.folder}/{RUN_JSON}", release.text().encode())


def _shards(run: Run, release: Release, files: Sequence[RunFile], stage: Path) -> Iterator[tuple[RunFile, Item]]:
    for split in ("train", "test"):
        chosen = [file for file in files if file.split == split]
        for number, file in enumerate(chosen):
            name = f"{split}-{number:05d}-of-{len(chosen):05d}.{release.file_format}"
            item = _shard(run, file, f"{release.folder}/{name}", stage)
            changes = {"path": name, "sha256": item.sha256, "size": item.size}
            yield file.model_copy(update=changes), item


def _shard(run: Run, file: RunFile, path: str, stage: Path) -> Item:
    """The shard itself, or its rows as Parquet."""
    own = Item.of(path, checked(run, file))
    if path.endswith(".arrow"):
        return own
    converted = stage / path.replace("/", "_")
    write_parquet(read_stream(str(own.content)), converted)
    return Item.of(path, converted)


def checked(run: Run, file: RunFile) -> Path:
    """A file of the run, if it still is the one that `run.json` names.

    Raises:
        PublishError: it is missing or has other bytes.
    """
    path = run.folder / file.path
    if not path.is_file() or sha256_file(path) != file.sha256:
        raise PublishError(
            f"{path}: missing or not the file that run.json names; `diffaug generate {run.folder}` makes it again."
        )
    return path


def _beside(run: Run, release: Release, options: PublishOptions, table: pa.Table) -> Iterator[Item]:
    """What stands beside the shards: provenance, recipe, plan, selection, fits, contact sheet."""
    folder = release.folder
    if options.file_format == "arrow":
        yield Item.of(f"{folder}/provenance.arrow", provenance_stream(table))
    yield Item.of(f"{folder}/provenance.parquet", write_parquet(table))
    yield Item.of(f"{folder}/recipe.yaml", public_recipe(run.recipe).to_yaml().encode())
    for name in ("plan.json", "plan.parquet", "selection.parquet"):
        yield Item.of(f"{folder}/{name}", run.folder / name)
    for unit in run.plan.fits:
        yield from _fit(run, unit.name, folder)
    if not options.recipe_only and (sheet := contact_sheet(run, release)):
        yield Item.of(f"{folder}/{SHEET}", sheet)


def _fit(run: Run, name: str, folder: str) -> Iterator[Item]:
    """The files of a fit and its receipt, without the name of the machine."""
    receipt = run.receipt(name)
    if receipt is None or not run.intact(name):
        raise PublishError(f"{run.fit_folder(name)}: damaged or not finished; `diffaug fit {run.folder}` makes it.")
    for file in receipt.files:
        yield Item.of(f"{folder}/fits/{name}/{file.file}", run.fit_folder(name) / file.file)
    told: Receipt = receipt.model_copy(update={"worker": ""})
    yield Item.of(f"{folder}/fits/{name}/receipt.json", told.model_dump_json(indent=1).encode())
