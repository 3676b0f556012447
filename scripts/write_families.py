"""Write docs/families/: a page per model family and the table to decide by, from what the families' modules declare.

python scripts/write_families.py [--check]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from diffaug_datasets.cli.model_families import refusals
from diffaug_datasets.core.family import Family, Size, discover_families, usual_facts
from diffaug_datasets.core.method import discover_methods

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "families"
ORDER = (
    *("stable_diffusion", "latent_consistency", "stable_diffusion_xl", "stable_diffusion_3", "flux", "flux_2_klein"),
    *("z_image", "sana", "pixart", "qwen_image"),
)
CARDS = (8, 12, 16, 24, 40, 48, 80)  # GB of memory that GPUs have
ROOM = 1.3  # for what is computed, over the weights: an estimate, until the card at hand is asked
HEAD = """# Model families

Written by `python scripts/write_families.py` from the modules in `diffaug_datasets/families/`; `diffaug families NAME`
prints a family's page.

**Stable Diffusion 1.5 is the default, and newer is not better here.** A study of text-to-image models as makers of
training data ([arXiv 2602.19946](https://arxiv.org/abs/2602.19946)) found newer models worse at it. The shipped methods
were published on Stable Diffusion 1.x and 2.x, and what this project [measured](../measured.md) stands on small models,
none of those below: here they are checked against diffusers' own pipelines, not for what they do for a classifier. So
start with the default, and let `diffaug bench` [say whether another model helps on your
data](../guides/does-it-help.md): plan the same recipe on both, generate, and compare.

## Which one

*Card*: the smallest usual GPU memory that holds all weights in half precision with a third more for what is computed,
an estimate and not a measurement; less is needed where weights may wait in the computer's memory ([small
GPUs](../guides/small-gpus.md)). *Steps* and *guidance* are the usual ones of the family, 1 is no guidance.
*Cannot use it* names methods that are refused when a plan is made, at their default settings; all others run.

| model | for | card, GB | licence | steps | guidance | cannot use it |
| --- | --- | --- | --- | --- | --- | --- |
"""
TAIL = """
## By what you have

- **No GPU, or 4 to 8 GB**: Stable Diffusion 1.5, or a consistency model for four steps.
- **12 to 16 GB**: Stable Diffusion XL, Sana, PixArt; SD 3.5 Medium and FLUX.2-klein where 24 GB are at hand.
- **A licence that allows everything**: Z-Image, FLUX.2-klein (4B), FLUX.1-schnell and Qwen-Image have Apache 2.0.
- **Diff-II, which inverts images**: a model that was not distilled. Stable Diffusion of any number, FLUX.2-klein-base,
  Z-Image, Sana, PixArt, Qwen-Image; asked for (`config.on_distilled: true`), the distilled ones too.
- **The numbers of a paper**: the model that its preset names, which is Stable Diffusion 1.x or 2.x.

## What methods mean on a rectified flow

Stable Diffusion 3, FLUX, Z-Image, Sana and Qwen-Image go straight from noise to data: x = (1 - sigma) x0 + sigma eps,
where Stable Diffusion 1.x and PixArt have x = a x0 + s eps with a² + s² = 1. Strengths and ratios count the schedule's
time in both, and the same time holds less signal on a flow. GeNIe's `ratio_in: snr` takes the level with Stable
Diffusion's signal-to-noise ratio instead: 0.5, 0.6, 0.7, 0.8, 0.9 are sigma 0.618, 0.696, 0.769, 0.836, 0.893.
`sampler: euler` follows the flow as these models' own schedulers do (`ddim` means the same there), `dpm` is
DPM-Solver++. Diff-II inverts up to the first label below pure noise.

Where text encoders are language models, they take no learned tokens: a class's token then stands for a rare word and
the class's name, and LoRA on the transformer learns what it looks like. The files are those that diffusers'
`load_lora_weights` reads.
"""


def line(cells: Sequence[object]) -> str:
    """A row of a table."""
    return f"| {' | '.join(map(str, cells))} |\n"


def card(size: Size) -> str:
    """The smallest usual memory that holds a model."""
    needed = ROOM * size.gigabytes
    return str(next((memory for memory in CARDS if memory >= needed), f"more than {CARDS[-1]}"))


def methods_without(family: Family, size: Size) -> str:
    """The methods that cannot use a model, or `-`."""
    return ", ".join(f"`{name}`" for name in refusals(family, size.id)) or "-"


def usual(family: Family, size: Size) -> tuple[str, str]:
    """Steps and guidance: the family's, of a few-step model at most as many as it bears."""
    facts, said = usual_facts(family, size.id), family.DEFAULTS
    steps = f"up to {facts.most_steps}" if facts.most_steps and facts.most_steps < said.steps else str(said.steps)
    return steps, "1" if facts.guidance == "none" else f"{said.guidance:g}"


def index() -> str:
    """The table to decide by."""
    rows = ""
    for family in families():
        for size in family.SIZES:
            name = f"[{size.id.partition('/')[2]}]({family.NAME}.md)"
            without = methods_without(family, size)
            rows += line((name, family.PURPOSE, card(size), family.LICENCE, *usual(family, size), without))
    return HEAD + rows + TAIL


def page(family: Family) -> str:
    """The page of a family."""
    said = family.DEFAULTS
    text = f"# {family.TITLE}\n\n{family.page}\n\n## Published models\n\n"
    text += line(("Hub id", "network, billions", "beside it", "weights, GB", "prediction", "guided by", "inverts"))
    text += line(["---"] * 7)
    for size in family.SIZES:
        facts = usual_facts(family, size.id)
        way = {"cfg": "two branches", "embedded": "a scale that it is told", "none": "nothing"}[facts.guidance]
        gigabytes = f"{size.gigabytes:.1f}"
        cells = (f"`{size.id}`", size.network, size.beside, gigabytes, facts.prediction, way)
        text += line((*cells, "yes" if facts.inverts else "no"))
    text += "\nWeights: in half precision, without what is computed.\n\n## In a recipe\n\n"
    text += f"```yaml\nbackbone: {{id: {family.SIZES[0].id}, dtype: {said.dtype}}}\nconfig:\n"
    text += (
        f"  sampler: {said.sampler}\n  num_inference_steps: {said.steps}\n  guidance_scale: {said.guidance:g}\n```\n\n"
    )
    text += (
        f"Sides are multiples of {said.multiple_of} pixels; it was made for {said.side}. Pipelines that are driven: "
    )
    text += f"{', '.join(f'`{kind}`' for kind in family.CLASSES)}. LoRA lies beside "
    text += f"{', '.join(f'`{name}`' for name in family.LORA_TARGETS)} of its network"
    text += (
        f"; learned tokens go into {' and '.join(f'`{name}`' for name in family.TOKENS)}.\n" if family.TOKENS else ".\n"
    )
    return text + _refused(family)


def _refused(family: Family) -> str:
    """Which methods cannot use it, and why."""
    reasons: dict[str, dict[str, str]] = {size.id: refusals(family, size.id) for size in family.SIZES}
    names = sorted({name for refused in reasons.values() for name in refused})
    if not names:
        return "\n## Methods\n\nAll methods can use it.\n"
    text = "\n## Methods\n\nAll but these can use it, at their default settings:\n\n"
    text += line(("method", "refused, for it", "on")) + line(["---"] * 3)
    for name in names:
        where = [hub_id for hub_id, refused in reasons.items() if name in refused]
        on = "all" if len(where) == len(reasons) else ", ".join(f"`{hub_id}`" for hub_id in where)
        text += line((f"`{name}`", reasons[where[0]][name], on))
    return text + f"\n{len(discover_methods()) - len(names)} methods run on all of them.\n"


def families() -> list[Family]:
    """In the order of the table; plugged-in ones are not ours to document."""
    found = discover_families()
    return [found[name] for name in ORDER]


def pages() -> dict[str, str]:
    """File name -> text."""
    return {"index.md": index(), **{f"{family.NAME}.md": page(family) for family in families()}}


def main() -> None:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a file is not current")
    written = pages()
    if parser.parse_args().check:
        held = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
        raise SystemExit(held != written)
    FOLDER.mkdir(exist_ok=True)
    for name, text in written.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
