"""Draw the README's picture from the demo's runs: a column a class, a line of real images and one a method.

python scripts/draw_picture.py runs/fashion_* --out docs/fashion.png
"""

import argparse
from pathlib import Path

from datasets import Dataset
from PIL import Image, ImageDraw, ImageFont

from diffaug_datasets import Run, load

TILE, GAP, LEFT, TOP = 64, 6, 92, 26
PAPER, INK, SOFT = "#faf8f4", "#1f1d1a", "#69645b"


def firsts(rows: Dataset, origin: str) -> dict[int, Image.Image]:
    """The first image of each class with that origin."""
    found: dict[int, Image.Image] = {}
    for row in rows:
        if row["origin"] == origin:
            found.setdefault(row["label"], row["image"])
    return found


def draw(folders: list[Path]) -> Image.Image:
    """The picture; images are enlarged without smoothing."""
    rows = [load(folder) for folder in folders]
    names = rows[0].features["label"].names
    lines = {"real": firsts(rows[0], "real")}
    lines |= {Run.open(f).recipe.module.TITLE: firsts(r, "generated") for f, r in zip(folders, rows, strict=True)}
    step = TILE + GAP
    sheet = Image.new("RGB", (LEFT + len(names) * step + GAP, TOP + len(lines) * step + GAP), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, name in enumerate(names):
        pen.text((LEFT + i * step, 7), name, fill=SOFT, font=ImageFont.load_default(11))
    for j, (title, images) in enumerate(lines.items()):
        top = TOP + j * step
        pen.text((10, top + TILE // 2 - 8), title, fill=INK, font=font)
        for label, image in images.items():
            sheet.paste(image.resize((TILE, TILE), Image.Resampling.NEAREST), (LEFT + label * step, top))
    return sheet


def main() -> None:
    """Write the PNG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    draw(given.runs).save(given.out, optimize=True)


if __name__ == "__main__":
    main()
