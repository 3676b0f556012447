"""Every image of a run, small, for a person to look through: contact sheets, and what the page's script knows of a row.

The page carries the pictures as a few sheets of tiles and the rows as one JSON text; `cards/report.js` shows, filters
and sorts them. Where a run has more rows than a page holds, the worst ones are there.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO

from PIL import Image

from diffaug_datasets.report.rendering import data_uri, decoded
from diffaug_datasets.report.run_view import RunView, ScannedRow, worst

TILE = 48  # pixels of a tile's side at most; smaller images keep their size
COLUMNS, LINES = 25, 20  # tiles of a sheet
MOST_ROWS = 5_000  # of all runs of a page
SHEETS_BYTES = 5_500_000  # of all sheets of a page, as they lie in it
QUALITIES = (70, 45, 25)  # of WebP, tried in this order
EMPTY = (127, 127, 127)


@dataclass(frozen=True)
class GridRow:
    """A tile: what is known of its row. `judged`: the class id that the judge sees; `dropped`: why it is left out."""

    row_id: str
    label: int
    judged: int | None
    score: float | None
    dropped: str


@dataclass(frozen=True)
class GridRun:
    """The tiles of a run, the worst first; tile i is tile i % (COLUMNS * LINES) of sheet i // (COLUMNS * LINES)."""

    title: str
    name: str
    folder: str
    class_names: tuple[str, ...]
    total: int
    side: int
    rows: tuple[GridRow, ...]
    sheets: tuple[str, ...]

    def content(self) -> dict[str, object]:
        """What the page's script reads."""
        rows = [[row.row_id, row.label, row.judged, row.score, row.dropped] for row in self.rows]
        names = {"title": self.title, "name": self.name, "folder": self.folder, "classes": self.class_names}
        sheet = {"side": self.side, "columns": COLUMNS, "lines": LINES, "sheets": self.sheets}
        return {**names, **sheet, "total": self.total, "rows": rows}


@dataclass(frozen=True)
class Grid:
    """The images of a page's runs, as texts for its template."""

    runs: tuple[GridRun, ...]

    @property
    def data(self) -> str:
        """JSON in which no `<` stands, so that nothing in it ends the element around it."""
        text = json.dumps([run.content() for run in self.runs], ensure_ascii=False, allow_nan=False)
        return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")

    @property
    def script(self) -> str:
        """The script that shows them."""
        return (files("diffaug_datasets.cards") / "report.js").read_text(encoding="utf-8")

    @property
    def script_hash(self) -> str:
        """The script's name in a content security policy, which lets no other one run."""
        return "sha256-" + base64.b64encode(hashlib.sha256(self.script.encode()).digest()).decode("ascii")

    @property
    def order(self) -> str:
        """What comes first, in words: what is known of the rows decides it."""
        judged = any(row.judged is not None for run in self.runs for row in run.rows)
        scored = any(row.score is not None for run in self.runs for row in run.rows)
        firsts = ["what is judged to be another class"] * judged + ["the lowest scores"] * scored
        if not firsts:
            return "Nobody has judged or scored these images, so they stand in the order of the plan."
        return f"The worst come first: {', then '.join(firsts)}."

    @property
    def shown(self) -> int:
        """How many tiles there are."""
        return sum(len(run.rows) for run in self.runs)

    @property
    def total(self) -> int:
        """How many images the runs have."""
        return sum(run.total for run in self.runs)


def grid(views: Sequence[RunView], titles: Sequence[str]) -> Grid:
    """The images of several runs; a run without images is left out.

    Their sheets take at most SHEETS_BYTES: where the pictures are many and busy, they are stored more coarsely, and at
    the coarsest fewer of them are shown. Each image is decoded once, and only its tile is kept.
    """
    named = [(view, title) for view, title in zip(views, titles, strict=True) if view.rows]
    most = MOST_ROWS // max(1, len(named))
    shown = [ordered(view.rows)[:most] for view, _ in named]
    tiles = [[_tile(view.data(row)) for row in rows] for (view, _), rows in zip(named, shown, strict=True)]
    while True:
        for quality in QUALITIES:
            runs = [
                _run(view, title, rows[:most], made[:most], quality)
                for (view, title), rows, made in zip(named, shown, tiles, strict=True)
            ]
            if most == 1 or sum(len(sheet) for run in runs for sheet in run.sheets) <= SHEETS_BYTES:
                return Grid(tuple(runs))
        most = max(1, min(most, max(map(len, shown))) // 2)


def _tile(data: bytes) -> Image.Image | None:
    """The picture of encoded bytes, at TILE pixels at most; None where they cannot be decoded."""
    picture = decoded(data)
    if picture is None:
        return None
    small = picture.convert("RGB")
    small.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return small


def _run(
    view: RunView, title: str, shown: Sequence[ScannedRow], tiles: Sequence[Image.Image | None], quality: int
) -> GridRun:
    side = max([1, *(max(tile.size) for tile in tiles if tile)])
    rows = tuple(
        GridRow(row.row_id, row.label, row.judge_label, _rounded(row.margin), view.dropped.get(row.row_id, ""))
        for row in shown
    )
    sheets = tuple(data_uri(sheet, "image/webp") for sheet in _sheets(tiles, side, quality))
    return GridRun(title, view.header.name, view.run.where, view.class_names, len(view.rows), side, rows, sheets)


def ordered(rows: Sequence[ScannedRow]) -> list[ScannedRow]:
    """All rows, the worst first; those that nobody scored come last, in their order."""
    first = worst(rows, len(rows))
    known = {row.row_id for row in first}
    return [*first, *(row for row in rows if row.row_id not in known)]


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)


def _sheets(tiles: Sequence[Image.Image | None], side: int, quality: int) -> Iterator[bytes]:
    """WebP files; a tile stands in the middle of its place, and one that cannot be had is grey."""
    each = COLUMNS * LINES
    for start in range(0, len(tiles), each):
        part = tiles[start : start + each]
        sheet = Image.new("RGB", (COLUMNS * side, -(-len(part) // COLUMNS) * side), EMPTY)
        for place, tile in enumerate(part):
            if tile is not None:
                left, top = place % COLUMNS * side, place // COLUMNS * side
                sheet.paste(tile, (left + (side - tile.width) // 2, top + (side - tile.height) // 2))
        buffer = BytesIO()
        sheet.save(buffer, "WEBP", quality=quality, method=4)
        yield buffer.getvalue()
