"""One row as a picture: its sources, an arrow, its result, with their classes beneath."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.images import decode_image
from diffaug_datasets.evaluate.gather import Gathered, Picture

SIDE, GAP, MARGIN, FOOT = 256, 28, 32, 64
PAPER, INK, SOFT, REAL, MADE = "#faf8f4", "#1f1d1a", "#69645b", "#2a5f93", "#b8480f"


@dataclass(frozen=True)
class Tile:
    """One image of the sheet; None where it cannot be shown."""

    image: Image.Image | None
    caption: str
    colour: str


def draw_sheet(gathered: Gathered, picture: Picture, path: Path) -> None:
    """Write the sheet as PNG. Small images are enlarged without smoothing, large ones reduced."""
    tiles = [*_source_tiles(gathered, picture), _result_tile(gathered, picture)]
    width = 2 * MARGIN + len(tiles) * SIDE + (len(tiles) - 1) * GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + SIDE + FOOT), PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, tile in enumerate(tiles):
        _draw_tile(sheet, pen, tile, MARGIN + place * (SIDE + GAP))
    if len(tiles) > 1:
        _draw_arrow(pen, MARGIN + (len(tiles) - 1) * (SIDE + GAP) - GAP // 2)
    sheet.save(path, "PNG")


def _source_tiles(gathered: Gathered, picture: Picture) -> list[Tile]:
    row, tiles = picture.planned, []
    if row.origin == "real":
        return []
    for source_id, label in zip(row.source_ids, row.source_labels, strict=True):
        found = gathered.source(source_id)
        tiles.append(Tile(_decoded(found.data) if found else None, gathered.class_names[label], REAL))
    return tiles


def _result_tile(gathered: Gathered, picture: Picture) -> Tile:
    row = picture.planned
    colour = REAL if row.origin == "real" else MADE
    return Tile(_decoded(picture.data), gathered.class_names[row.label], colour)


def _decoded(data: bytes) -> Image.Image | None:
    try:
        return decode_image(data)
    except SourceError:
        return None


def _draw_tile(sheet: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, left: int) -> None:
    box = (left - 2, MARGIN - 2, left + SIDE + 1, MARGIN + SIDE + 1)
    pen.rectangle(box, outline=tile.colour, width=2)
    if tile.image is not None:
        fitted = _fitted(tile.image)
        sheet.paste(fitted, (left + (SIDE - fitted.width) // 2, MARGIN + (SIDE - fitted.height) // 2))
    pen.text((left, MARGIN + SIDE + 14), _shortened(tile.caption), fill=tile.colour, font=ImageFont.load_default(18))


def _fitted(image: Image.Image) -> Image.Image:
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _shortened(caption: str) -> str:
    line = " ".join(caption.split())
    return line if len(line) <= 26 else line[:25] + "…"


def _draw_arrow(pen: ImageDraw.ImageDraw, middle: int) -> None:
    y = MARGIN + SIDE // 2
    pen.line((middle - 8, y, middle + 6, y), fill=SOFT, width=2)
    pen.polygon(((middle + 9, y), (middle + 3, y - 5), (middle + 3, y + 5)), fill=SOFT)
