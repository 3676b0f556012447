"""Draw docs/layers.svg, the layers of the package, from the import contract in pyproject.toml (`lint-imports`).

    python scripts/draw_layers.py [--check]

A box is a layer of the contract; packages of one layer share it. Each package stands with the first sentence of its
docstring. Standard library only; the colours follow the reader's light or dark scheme.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "layers.svg"
WIDTH, GUTTER, GAP, INSIDE = 840, 64, 14, 16  # pixels, as all below
LINE, NAME, SENTENCE = 18, 15, 13  # of a line, of the letters of a name and of a sentence
LETTER = 6.35  # mean width of a letter of a sentence
STYLE = f"""
  text {{ font-family: ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }}
  .box {{ fill: #faf8f4; stroke: #d9d3c7; }}
  .rule {{ stroke: #d9d3c7; }}
  .name {{ fill: #b8480f; font-size: {NAME}px; font-weight: 600; }}
  .sentence {{ fill: #1f1d1a; font-size: {SENTENCE}px; }}
  .aside {{ fill: #8a8378; font-size: 12px; }}
  .arrow {{ stroke: #8a8378; fill: none; stroke-width: 1.5; }}
  @media (prefers-color-scheme: dark) {{
    .box {{ fill: #262421; stroke: #4a463f; }}
    .rule {{ stroke: #4a463f; }}
    .name {{ fill: #f0a070; }}
    .sentence {{ fill: #ece7df; }}
  }}
"""


def layers() -> list[list[str]]:
    """The packages of every layer, the highest first, as the contract lists them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    [contract] = [contract for contract in contracts if contract["type"] == "layers"]
    return [[name.strip().partition(".")[2] for name in re.split(r"[|:]", layer)] for layer in contract["layers"]]


def _source(package: str) -> Path:
    folder = ROOT / "diffaug_datasets" / package
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def first_sentence(package: str) -> str:
    """The first sentence of a package's docstring."""
    text = _source(package).read_text(encoding="utf-8")
    line = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
    return re.split(r"(?<=\.)\s", line, maxsplit=1)[0].replace("`", "")


def picture() -> str:
    """The whole file."""
    parts: list[str] = []
    top = INSIDE
    for packages in layers():
        elements, height = box(packages, top)
        parts += elements
        top += height + GAP
    middle, end = GUTTER // 2, top - GAP - 4
    parts += [
        f'<path class="arrow" d="M{middle} {INSIDE + 4} V{end} m-5 -8 l5 8 l5 -8"/>',
        f'<text class="aside" transform="translate({middle - 8} {top // 2}) rotate(-90)" text-anchor="middle">'
        "imports only what lies below</text>",
    ]
    body = "\n".join(parts)
    title = "The layers of diffaug_datasets: each imports only what lies below it"
    size = f'viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{title}">'
    return f"{opening}\n<title>{title}</title>\n<style>{STYLE}</style>\n{body}\n</svg>\n"


def box(packages: Sequence[str], top: int) -> tuple[list[str], int]:
    """The elements of a layer's box, and its height."""
    width = WIDTH - GUTTER - INSIDE
    cell = width // len(packages)
    texts = [wrap(first_sentence(package), int((cell - 2 * INSIDE) / LETTER)) for package in packages]
    height = LINE * (1 + max(map(len, texts))) + INSIDE + 4
    parts = [f'<rect class="box" x="{GUTTER}" y="{top}" width="{width}" height="{height}" rx="8"/>']
    for place, (package, sentence) in enumerate(zip(packages, texts, strict=True)):
        left = GUTTER + place * cell
        if place:
            parts.append(f'<path class="rule" d="M{left} {top + 10} V{top + height - 10}"/>')
        parts.append(f'<text class="name" x="{left + INSIDE}" y="{top + 25}">{escape(package)}</text>')
        for number, line in enumerate(sentence, 1):
            y = top + 27 + number * LINE
            parts.append(f'<text class="sentence" x="{left + INSIDE}" y="{y}">{escape(line, quote=False)}</text>')
    return parts, height


def main(arguments: list[str]) -> None:
    """Write, or compare: exit status 1 where the file is not current."""
    if arguments == ["--check"]:
        sys.exit(FILE.read_text(encoding="utf-8") != picture())
    if arguments:
        sys.exit(__doc__)
    FILE.write_text(picture(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
