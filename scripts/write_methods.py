"""Write docs/methods.md, the table of all methods, from what their modules declare.

python scripts/write_methods.py [--check]
"""

import argparse
from inspect import cleandoc
from pathlib import Path

from diffaug_datasets.core.method import Method, discover_methods
from diffaug_datasets.data.presets import presets

FILE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
LABELS = {"source": "hard, the sources' class", "target": "hard, the target class", "mixed": "soft, source and target"}
HEAD = """# Methods

Written by `python scripts/write_methods.py` from the modules in `diffaug_datasets/methods/`; `diffaug methods NAME`
prints a method's whole page: steps, equations, parameters, presets.

| method | in config names | what it does | paper | real images a row | needs | label | presets | the publication |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def summary(method: Method) -> str:
    """The first sentence of the module, without its title and citation."""
    first = " ".join(cleandoc(method.__doc__ or "").split("\n\n")[0].split())
    return first.partition(": ")[2].split(" (")[0].rstrip(".")


def line(method: Method) -> str:
    """A method's row."""
    count = sum(preset.method == method.NAME for preset in presets().values())
    paper = f"[{method.PAPER}](https://arxiv.org/abs/{method.PAPER})"
    needs = ", ".join(sorted(method.NEEDS)) or "-"
    cells = (f"`{method.NAME}`", f"`{method.SLUG}`", summary(method), paper, str(method.N_SOURCES), needs)
    return f"| {' | '.join((*cells, LABELS[method.LABEL_RULE], str(count), method.PARITY))} |\n"


def document() -> str:
    """The whole file."""
    return HEAD + "".join(line(discover_methods()[name]) for name in sorted(discover_methods()))


def main() -> None:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 where the file is not current")
    if parser.parse_args().check:
        raise SystemExit(FILE.read_text(encoding="utf-8") != document())
    FILE.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()
