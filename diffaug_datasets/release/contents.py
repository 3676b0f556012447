"""What a release consists of: which files there are, where their bytes come from, and their digests.

A person decides how a run goes out (`PublishOptions`); nothing that goes out names a place of the publisher's machine.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

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
from diffaug_datasets.release.layout import (
    PROVENANCE_FILE,
    RUN_JSON,
    BesideFile,
    FileFormat,
    LeakCheck,
    Release,
)
from diffaug_datasets.release.measures import MEASURES_FILE, read_measures
from diffaug_datasets.release.provenance import (
    SHOWN,
    TableRows,
    extra_columns,
    licence_counts,
    provenance_stream,
    provenance_table,
    quality,
    write_parquet,
)
from diffaug_datasets.run.assembly import RunFile, finished
from diffaug_datasets.run.shards import read_stream
from diffaug_datasets.run.store import Run
from diffaug_datasets.sources.hub import DATASET_ID
from diffaug_datasets.sources.real import recipe_facts

SHEET = "sheet.png"
SHEET_CLASSES, SHEET_MADE = 10, 3  # columns of the contact sheet, and images made in each
SIDE, GAP, FOOT = 96, 8, 22  # pixels: of an image, between images, for the class names
PAPER, INK = "#faf8f4", "#1f1d1a"


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


@dataclass(frozen=True)
class Item:
    """One file: its path in the repository, its bytes or the file that holds them, their digest and size in bytes."""

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

    def stating(self, overrides: tuple[str, ...], leak_check: LeakCheck | None) -> "Contents":
        """The same contents, whose `run.json` says which gates were overruled and how test images were looked for."""
        release = self.release.model_copy(update={"overrides": overrides, "leak_check": leak_check})
        return replace(self, release=release, items=(*self.items[:-1], _run_json(release)))


def contents(run: Run, options: PublishOptions, stage: Path) -> Contents:
    """Everything that a release of this run consists of; converted shards are written to `stage`.

    Raises:
        PublishError: the run is not finished, or a file is not the one that its receipt names.
    """
    assembled, facts = finished(run), recipe_facts(run.recipe)
    if assembled is None:
        raise PublishError(f"{run.where}: not finished; `diffaug generate {run.where}` continues it.")
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
    beside = tuple(_beside(run, release, options, table))
    stated = {
        "files": tuple(file for file, _ in shards),
        "beside": tuple(BesideFile(file=item.name, sha256=item.sha256, size=item.size) for item in beside),
        "quality": quality(table),
        "extra": extra_columns(table.column_names),
        "licences": licence_counts(TableRows(table), SHOWN),
    }
    release = release.model_copy(update=stated)
    return Contents(run, release, facts, (*(item for _, item in shards), *beside, _run_json(release)))


def _run_json(release: Release) -> Item:
    return Item.of(f"{release.folder}/{RUN_JSON}", release.text().encode())


def _shards(run: Run, release: Release, files: Sequence[RunFile], stage: Path) -> Iterator[tuple[RunFile, Item]]:
    """The shards as they lie in the run, or their rows as Parquet, under the names that they have in a release."""
    for split in ("train", "test"):
        chosen = [file for file in files if file.split == split]
        for number, file in enumerate(chosen):
            path = run.folder / file.path
            if not path.is_file() or sha256_file(path) != file.sha256:
                raise PublishError(
                    f"{path}: missing or not the file that run.json names; `diffaug generate {run.where}` makes it "
                    "again."
                )
            name = f"{split}-{number:05d}-of-{len(chosen):05d}.{release.file_format}"
            if release.file_format == "parquet":
                table, path = read_stream(str(path)), stage / name
                write_parquet(table, path)
            item = Item.of(f"{release.folder}/{name}", path)
            yield file.model_copy(update={"path": name, "sha256": item.sha256, "size": item.size}), item


def _beside(run: Run, release: Release, options: PublishOptions, table: pa.Table) -> Iterator[Item]:
    """What stands beside the shards: provenance, recipe, plan, selection, measures, fits, contact sheet."""
    folder = release.folder
    if options.file_format == "arrow":
        yield Item.of(f"{folder}/provenance.arrow", provenance_stream(table))
    yield Item.of(f"{folder}/{PROVENANCE_FILE}", write_parquet(table))
    yield Item.of(f"{folder}/recipe.yaml", public_recipe(run.recipe).to_yaml().encode())
    for name in ("plan.json", "plan.parquet", "selection.parquet"):
        yield Item.of(f"{folder}/{name}", run.folder / name)
    if measures := read_measures(run).file:
        yield Item.of(f"{folder}/{MEASURES_FILE}", measures.text().encode())
    for unit in run.plan.fits:
        receipt, fit_folder = run.receipt(unit.name), run.fit_folder(unit.name)
        if receipt is None or not run.intact(unit.name):
            raise PublishError(f"{fit_folder}: damaged or not finished; `diffaug fit {run.where}` makes it.")
        for file in receipt.files:
            yield Item.of(f"{folder}/fits/{unit.name}/{file.file}", fit_folder / file.file)
        nameless = receipt.model_copy(update={"worker": ""})  # the name of a machine
        yield Item.of(f"{folder}/fits/{unit.name}/receipt.json", nameless.model_dump_json(indent=1).encode())
    if not options.recipe_only and (sheet := contact_sheet(run, release)):
        yield Item.of(f"{folder}/{SHEET}", sheet)


def public_recipe(recipe: Recipe) -> Recipe:
    """The recipe without local paths: a local source is left out, a local model keeps its folder's name and digest."""
    content = placeless(recipe.model_dump(mode="json", by_alias=True))
    is_public = recipe.source and DATASET_ID.fullmatch(recipe.source) and not is_local(recipe.source)
    content["source"] = recipe.source if is_public else None
    if recipe.backbone.id != TINY and is_local_model(recipe.backbone.id):
        content["backbone"]["id"] = Path(recipe.backbone.id).expanduser().resolve().name  # as the plan names it
    return Recipe.from_dict(content, folder=None)


def local_models(recipe: Recipe) -> list[str]:
    """The keys of a recipe that name a folder of this machine whose model the images rest on."""
    needed = recipe.method_config.requirements
    named = {"backbone.id": recipe.backbone.id, "config.encoder": needed.encoder}
    named |= {"config.controlnet": needed.controlnet or None}
    named |= {"backbone.vae": recipe.backbone.vae, "backbone.single_file": recipe.backbone.single_file}
    named |= {f"backbone.lora.{place}": lora.file for place, lora in enumerate(recipe.backbone.lora)}
    return [key for key, model in named.items() if isinstance(model, str) and is_local_model(model)]


def contact_sheet(run: Run, release: Release) -> bytes | None:
    """For a few classes a real image, where it may be shown, above what was made.

    PNG bytes, the same for the same run; None where no image was kept.
    """
    cells = _sheet_cells(run, release)
    if not cells:
        return None
    rows = SHEET_MADE + int(release.real)
    width, height = GAP + len(cells) * (SIDE + GAP), GAP + rows * (SIDE + GAP) + FOOT
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, (label, images) in enumerate(cells.items()):
        left = GAP + place * (SIDE + GAP)
        for number, cell in enumerate(images):
            image = decode_image(bytes(cell.as_py()["bytes"]))
            scale = SIDE / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
            sheet.paste(image.resize(size, resampling), (left, GAP + number * (SIDE + GAP)))
        name = " ".join(release.class_names[label].split())
        short = name if len(name) <= 14 else name[:13] + "…"
        pen.text((left, height - FOOT), short, fill=INK, font=font)
    buffer = BytesIO()
    sheet.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def _sheet_cells(run: Run, release: Release) -> dict[int, list[pa.StructScalar]]:
    """Label -> cells of the image column, from the top down; their bytes are read when they are shown."""
    real: dict[int, list[pa.StructScalar]] = {}
    made: dict[int, list[pa.StructScalar]] = {}
    assembled = finished(run)
    for file in assembled.split_files("train") if assembled else ():
        if file.origin == "real" and not release.real:
            continue
        cells, wanted = (real, 1) if file.origin == "real" else (made, SHEET_MADE)
        table = read_stream(str(run.folder / file.path))
        for index, label in enumerate(table.column("label").to_pylist()):
            if len(images := cells.setdefault(label, [])) < wanted:
                images.append(table.column("image")[index])
    return {label: [*real.get(label, []), *made[label]] for label in sorted(made)[:SHEET_CLASSES]}
