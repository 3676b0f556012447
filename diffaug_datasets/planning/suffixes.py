"""From real images to context suffixes: caption each image, sum the captions up, check, keep the whole story."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.identity import uint63
from diffaug_datasets.core.images import decode_image
from diffaug_datasets.core.prompts import Caption, SuffixDocument, Summary, accepted, caption_prefix, fill
from diffaug_datasets.core.protocols import parse_protocol, select
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.sources.real import RealSet, read_recipe_images

LOCAL = "local:"
Summarise = Callable[[Sequence[str], str], tuple[list[str], Summary]]


@dataclass(frozen=True)
class Wording:
    """Who captions and who sums up.

    `summariser`: `clusters` (no model), a folder with a language model, `local:` and the Hub id of one, or the id of a
    chat model. `endpoint`: the URL of an OpenAI-like service, null for the Hub's own; where it is given, it is asked,
    whatever its model is called. `limit`: images that are captioned at most, as in Diff-II's code.
    """

    captioner: str
    summariser: str = "clusters"
    endpoint: str | None = None
    limit: int = 200
    device: str = "cpu"


def write_suffixes(recipe: Recipe, wording: Wording) -> SuffixDocument:
    """The suffixes of a recipe's real training images.

    Follows the steps of Diff-II, appendix A.5; the images, where there are more than `limit`, follow from the recipe's
    seed.

    Raises:
        DiffAugError: the images, the captioner or the language model cannot be reached, or no suffix is left.
    """
    from diffaug_datasets.models.captioning import Captioner, length_check

    real = read_recipe_images(recipe)
    prefix = caption_prefix(real.train.metaclass)
    captioner, summarise = Captioner.load(wording.captioner, wording.device), _summariser(wording)
    captions = []
    for index in _chosen(recipe, wording.limit, real):
        image = decode_image(real.read("train", index), real.train.sources[index].key)
        captions.append(Caption(source_id=real.train.sources[index].id, text=captioner.caption(image, prefix)))
    proposed, summary = summarise([caption.text for caption in captions], prefix)
    names = [*real.train.class_names, *real.train.prompt_names]
    is_too_long = length_check(recipe.backbone, _longest_prompt(real))
    taken, dropped = accepted(proposed, names, is_too_long)
    if not taken:
        reasons = ", ".join(sorted({one.reason for one in dropped})) or "nothing was proposed"
        raise RecipeError(f"captions: no suffix is left ({reasons}); use another captioner or --summariser.")
    return SuffixDocument(
        builder=recipe.builder,
        protocol=recipe.protocol,
        prefix=prefix,
        captioner=captioner.name,
        captions=tuple(captions),
        summary=summary,
        tokens_checked=is_too_long is not None,
        suffixes=taken,
        dropped=dropped,
    )


def _summariser(wording: Wording) -> Summarise:
    """Who sums up; a local model is loaded at once, so that a wrong one is refused before any image is captioned."""
    from diffaug_datasets.models.captioning import (
        LanguageModel,
        summarise_by_chat,
        summarise_by_clusters,
        summarise_locally,
    )

    if wording.summariser == "clusters":
        return summarise_by_clusters
    name = wording.summariser.removeprefix(LOCAL)
    runs_here = name != wording.summariser or Path(name).expanduser().is_dir()
    if runs_here and wording.endpoint is None:
        return partial(summarise_locally, model=LanguageModel.load(name, wording.device))
    return partial(summarise_by_chat, model=wording.summariser, endpoint=wording.endpoint)


def _chosen(recipe: Recipe, limit: int, real: RealSet) -> list[int]:
    """Places of the images of the recipe's protocol, in the table's order; of too many, those of the lowest draws."""
    places = list(select(parse_protocol(recipe.protocol), real.train, recipe.on_small_class).indices)
    draws = {i: uint63(f"{recipe.seed}|captions|{real.train.sources[i].id}") for i in places}
    return sorted(sorted(set(places), key=lambda i: (draws[i], i))[:limit])


def _longest_prompt(real: RealSet) -> str:
    prompts = [fill("a photo of a {name} {metaclass}", name, real.train.metaclass) for name in real.train.prompt_names]
    return max(prompts, key=len)
