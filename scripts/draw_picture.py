"""Draw the pictures of the documents from finished runs.

python scripts/draw_picture.py runs/fashion_* --out docs/fashion.png      a column per class: a line of real images
                                                                          and one per run (the README's)
python scripts/draw_picture.py RUN --judged --out doubted.png             a line per class: real images, then made ones,
                                                                          framed where the judge sees another class
"""

import argparse
from pathlib import Path

from datasets import Dataset
from PIL import Image, ImageDraw, ImageFont

from diffaug_datasets import Run, load

TILE, GAP, LEFT, TOP = 64, 6, 92, 26
REAL, MADE = 2, 10  # images per class of a judged run
PAPER, INK, SOFT, DOUBT = "#faf8f4", "#1f1d1a", "#69645b", "#d1242f"


def firsts(rows: Dataset, origin: str) -> dict[int, Image.Image]:
    """The first image of each class with that origin."""
    found: dict[int, Image.Image] = {}
    for row in rows:
        if row["origin"] == origin:
            found.setdefault(row["label"], row["image"])
    return found


def draw(folders: list[Path]) -> Image.Image:
    """A column per class, a line per run; images are enlarged without smoothing."""
    rows = [load(folder) for folder in folders]
    names = rows[0].features["label"].names
    lines = {"real": firsts(rows[0], "real")}
    lines |= {
        Run.open(f).recipe.method_definition.TITLE: firsts(r, "generated") for f, r in zip(folders, rows, strict=True)
    }
    sheet, pen = paper(len(names), len(lines), TOP)
    for i, name in enumerate(names):
        pen.text((LEFT + i * (TILE + GAP), 7), name, fill=SOFT, font=ImageFont.load_default(11))
    for j, (title, images) in enumerate(lines.items()):
        top = TOP + j * (TILE + GAP)
        pen.text((10, top + TILE // 2 - 8), title, fill=INK, font=ImageFont.load_default(13))
        for label, image in images.items():
            paste(sheet, image, LEFT + label * (TILE + GAP), top)
    return sheet


def draw_judged(folder: Path) -> Image.Image:
    """A line per class: two real images, a gap, and made ones from all over its rows."""
    rows = load(folder)
    names = rows.features["label"].names
    labels, real = rows["label"], [origin == "real" for origin in rows["origin"]]
    sheet, pen = paper(REAL + MADE, len(names), GAP)
    for j, name in enumerate(names):
        top = GAP + j * (TILE + GAP)
        pen.text((10, top + TILE // 2 - 8), name, fill=INK, font=ImageFont.load_default(13))
        own = [i for i, label in enumerate(labels) if label == j and real[i]]
        made = [i for i, label in enumerate(labels) if label == j and not real[i]]
        for place, i in [*enumerate(own[:REAL]), *enumerate(made[:: -(-len(made) // MADE)], REAL)]:
            left, row = LEFT + place * (TILE + GAP) + (place >= REAL) * GAP, rows[i]
            paste(sheet, row["image"], left, top)
            if not real[i] and row["judge_label"] != j:
                pen.rectangle((left - 2, top - 2, left + TILE + 1, top + TILE + 1), outline=DOUBT, width=3)
    return sheet


def paper(columns: int, lines: int, top: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty sheet for so many tiles."""
    step = TILE + GAP
    sheet = Image.new("RGB", (LEFT + columns * step + 2 * GAP, top + lines * step + GAP), PAPER)
    return sheet, ImageDraw.Draw(sheet)


def paste(sheet: Image.Image, image: Image.Image, left: int, top: int) -> None:
    """Put an image on the sheet."""
    sheet.paste(image.resize((TILE, TILE), Image.Resampling.NEAREST), (left, top))


def main() -> None:
    """Write the PNG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--judged", action="store_true", help="one run, with what its judge doubts")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.judged and len(given.runs) != 1:
        raise SystemExit(f"--judged: got {len(given.runs)} runs, expected one.")
    sheet = draw_judged(given.runs[0]) if given.judged else draw(given.runs)
    sheet.save(given.out, optimize=True)


if __name__ == "__main__":
    main()
