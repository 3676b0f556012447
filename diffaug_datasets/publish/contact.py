"""The contact sheet of a release: for a few classes a real image, where it may be shown, above what was made."""

from io import BytesIO

import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from diffaug_datasets.core.images import decode_image
from diffaug_datasets.data.release import Release
from diffaug_datasets.run.assembly import RunFile, finished
from diffaug_datasets.run.features import read_stream
from diffaug_datasets.run.store import Run

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
