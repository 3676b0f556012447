"""Context suffixes of real images: caption some, sum the captions up, check each proposal, keep the whole story.

The steps are those of Diff-II, appendix A.5. This is the only step before planning that may ask a language model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.identity import uint63
from diffaug_datasets.core.images import decode_image
from diffaug_datasets.core.prompts import Caption, SuffixDocument, Summary, accepted, caption_prefix, fill
from diffaug_datasets.core.protocols import draw_subset, parse_protocol
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.sources.real import read_recipe_images

LOCAL_PREFIX = "local:"
Summarise = Callable[[Sequence[str], str], tuple[list[str], Summary]]
"""Captions and their common prefix -> proposed suffixes, and how they were made."""


@dataclass(frozen=True)
class CaptionOptions:
    """Which models caption and sum up.

    `captioner`: a folder or a Hub id. `summariser`: `clusters` (no model), a folder with a language model, `local:` and
    the Hub id of one, or the id of a chat model. `endpoint`: the URL of an OpenAI-like service, null for the Hub's own;
    where it is given, it is asked, whatever its model is called. `limit`: images that are captioned at most, as in
    Diff-II's code.
    """

    captioner: str
    summariser: str = "clusters"
    endpoint: str | None = None
    limit: int = 200
    device: str = "cpu"


def write_suffixes(recipe: Recipe, options: CaptionOptions) -> SuffixDocument:
    """The suffixes of a recipe's real training images.

    Of more than `limit` images those are captioned that have the lowest draws by the recipe's seed.

    Raises:
        DiffAugError: the images, the captioner or the language model cannot be reached, or no suffix is left.
    """
    from diffaug_datasets.models.captioning import Captioner, length_check

    real = read_recipe_images(recipe)
    table, prefix = real.train, caption_prefix(real.train.metaclass)
    captioner, summarise = Captioner.load(options.captioner, options.device), _summariser(options)
    allowed = draw_subset(parse_protocol(recipe.protocol), table, recipe.on_small_class).indices
    draws = {i: uint63(f"{recipe.seed}|captions|{table.sources[i].id}") for i in allowed}
    captions = []
    for index in sorted(sorted(draws, key=lambda i: (draws[i], i))[: options.limit]):
        source = table.sources[index]
        image = decode_image(real.read("train", index), source.key)
        captions.append(Caption(source_id=source.id, text=captioner.caption(image, prefix)))
    proposed, summary = summarise([caption.text for caption in captions], prefix)
    prompts = [fill("a photo of a {name} {metaclass}", name, table.metaclass) for name in table.prompt_names]
    is_too_long = length_check(recipe.backbone, max(prompts, key=len))
    taken, dropped = accepted(proposed, [*table.class_names, *table.prompt_names], is_too_long)
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


def _summariser(options: CaptionOptions) -> Summarise:
    """What sums captions up; a local model is loaded at once, so that a wrong one is refused first."""
    from diffaug_datasets.models.captioning import (
        LanguageModel,
        summarise_by_chat,
        summarise_by_clusters,
        summarise_locally,
    )

    if options.summariser == "clusters":
        return summarise_by_clusters
    name = options.summariser.removeprefix(LOCAL_PREFIX)
    runs_here = name != options.summariser or Path(name).expanduser().is_dir()
    if runs_here and options.endpoint is None:
        return partial(summarise_locally, model=LanguageModel.load(name, options.device))
    return partial(summarise_by_chat, model=options.summariser, endpoint=options.endpoint)
