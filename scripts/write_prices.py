"""Write docs/reference/prices.md, what the papers' sets cost at full size, from the published counts of their datasets.

    python scripts/write_prices.py [--check]

Every line is what `diffaug plan NAME --price` says.
"""

import argparse
from pathlib import Path

from diffaug_datasets.planning.new_run import find_recipe
from diffaug_datasets.planning.price import ASSUMPTION
from diffaug_datasets.planning.published import PHOTO_BYTES, price_published, published_counts
from diffaug_datasets.sources.real import builder_facts

FILE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "prices.md"
SETS = (
    *(f"diff_ii@{name}_{shots}shot" for shots in (5, 10) for name in ("cub", "aircraft", "cars", "pets")),
    "diff_ii@cub_lt100",
    *(f"diff_mix@{name}_full" for name in ("cub", "aircraft", "cars", "flowers")),
    "diff_mix@cub_lt100",
    *(f"diffusemix@{name}_full" for name in ("cub", "aircraft", "cars", "flowers")),
    *(f"da_fusion@{name}_4shot" for name in ("pascal", "coco", "caltech101")),
    "datadream@aircraft_16shot",
    "gif@cars_full",
    "gif@caltech101_full",
    "diffusion_inversion@stl10_full",
    "genie@cub_20way1shot",
    "genie@imagenet_lt",
    "txt2img@imagenet_lt",
    "food101_full_diffmix",
    "imagenet_lt_full_txt2img",
)
HEAD = f"""# What the papers' sets cost

Written by `python scripts/write_prices.py`; each line is what `diffaug plan NAME --price` says. A name with `@` is the
papers' own setting (their size, steps and images per real image; `diffaug methods METHOD` says where each stands), the
others have the defaults of this package (Stable Diffusion 1.5 at 512 pixels, 5 images per real image). Rows, fits and
evaluations are counted on stand-ins for the published images; a real image is taken for {PHOTO_BYTES // 1000} kB. GPU
time is {ASSUMPTION}.
Fits are in it, a step of training as three evaluations. Requests are those of one worker on an object
store that shows how far it is: what changes something (deletions too), listings of a thousand keys, and what is read.

| set | classes | real | made | evaluations, M | of fits, M | GPU hours | GB | writes | listings | reads |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""
MIDDLE = """
The counts, and where they are published:

| dataset | classes | training images | test images | stated by |
| --- | ---: | ---: | ---: | --- |
"""


def line(name: str) -> str:
    """The line of a set."""
    found = price_published(find_recipe(name), Path())
    numbers = [
        *(f"{len(found.images_per_class):,}", f"{found.real:,}", f"{found.rows:,}", f"{found.evaluations / 1e6:,.2f}"),
        *(f"{found.fit_evaluations / 1e6:,.2f}", f"{found.gpu_hours:,.1f}", f"{found.bytes_needed / 1e9:,.1f}"),
        *(f"{found.store_writes:,}", f"{found.store_listings:,}", f"{found.store_reads:,}"),
    ]
    return f"| `{name}` | {' | '.join(numbers)} |"


def counts(builder: str) -> str:
    """The line of a dataset."""
    facts = builder_facts(builder)
    train, test = published_counts(facts)
    where = f"[{facts.title}]({facts.homepage})" if facts.homepage else facts.title
    return f"| `{builder}` | {facts.official['classes']:,} | {train:,} | {test:,} | {where} |"


def document() -> str:
    """The whole page."""
    builders = sorted({find_recipe(name).builder for name in SETS})
    return HEAD + "\n".join(map(line, SETS)) + "\n" + MIDDLE + "\n".join(map(counts, builders)) + "\n"


def main() -> None:
    """Write the page, or say whether it is what would be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    text = document()
    if parser.parse_args().check:
        if FILE.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{FILE}: is not what this writes; run it without --check.")
        return
    FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
