"""The verb that turns pictures into context suffixes."""

from dataclasses import replace
from pathlib import Path

from diffaug_datasets.cli.planning import read_recipe
from diffaug_datasets.cli.screen import say, waiting
from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.places import Place
from diffaug_datasets.core.temporary import write_text
from diffaug_datasets.data.captions import Wording, write_suffixes


def make_suffixes(text: str, out: Path, source: str | None, wording: Wording) -> None:
    """Write a suffix file that is not there yet.

    Raises:
        RecipeError: the file is there.
    """
    if out.exists():
        raise RecipeError(f"{out}: is there already; give another file name, or remove it first.")
    recipe = read_recipe(text, source, ())
    wording = replace(
        wording,
        captioner=Place().absolute(wording.captioner, Path()),
        summariser=Place(packaged=("clusters",)).absolute(wording.summariser, Path()),
    )
    with waiting(f"captioning the real images of {recipe.builder}"):
        document = write_suffixes(recipe, wording)
    write_text(out, document.to_json())
    for suffix in document.suffixes:
        say(f"  {suffix}")
    for dropped in document.dropped:
        say(f"  left out: {dropped.text} ({dropped.reason})")
    say(f"{out}: written; next: diffaug plan {text} --set config.suffixes={out}")
