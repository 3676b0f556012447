"""Real training images that a draw does not use: to choose a setting with, and to say what more real images would do.

They come from the training split of the source that the draw came from, in an order that the draw alone decides. An
image of the draw or of the test split, by its bytes or by its pixels, is never among them.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from diffaug_datasets.core.errors import RunError, SourceError
from diffaug_datasets.core.images import decode_image, pixel_sha256
from diffaug_datasets.core.models import local_path
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.evaluate.draws import Draw, Images, Labelled
from diffaug_datasets.sources.real import RealSet, builder_facts, read_recipe_images

if TYPE_CHECKING:
    from PIL.Image import Image


def not_at_hand(recipe: Recipe, copy: str | None = None) -> str:
    """Why the real images of a recipe cannot be read on this machine without a download; '' where they can."""
    source = copy or recipe.source
    if source is None:
        title = builder_facts(recipe.builder).title
        return "" if builder_facts(recipe.builder).embedded else f"no copy of {title} on this machine is named"
    path = local_path(source)
    if path is None:
        return f"its real images are on the Hub ({source})"
    return "" if path.is_dir() else f"its real images are not at {source}"


class Spare(NamedTuple):
    """Images that a draw does not use, class by class; `totals`: all training images of each class at the source."""

    images: Images
    totals: tuple[int, ...]


def spare_images(recipe: Recipe, draw: Draw, per_class: int, copy: str | None = None) -> Images:
    """Up to `per_class` images of every class that the draw does not use, class by class; errors as `read_spare`."""
    return read_spare(recipe, draw, per_class, copy=copy).images


def up_to_share(share: float, totals: Sequence[int], drawn: Sequence[int]) -> tuple[int, ...]:
    """How many more images of each class make its drawn ones `share` of all, in (0, 1); none where they are more."""
    return tuple(max(round(share * total) - have, 0) for total, have in zip(totals, drawn, strict=True))


def read_spare(recipe: Recipe, draw: Draw, per_class: int, share: float = 0, copy: str | None = None) -> Spare:
    """Images of every class that the draw does not use: `per_class`, and what fills it up to `share` of the class.

    `copy`: where the real images of the recipe lie, instead of its own place.

    Raises:
        SourceError: the real images cannot be read.
        RunError: they are of other classes than the draw.
    """
    real = read_recipe_images(recipe, copy)
    if real.train.class_names != draw.class_names:
        raise RunError(f"{recipe.builder}: the source has other classes than the set that was made from it.")
    taken = {source for ids in draw.real.labelled.source_ids for source in ids}
    taken |= {source.id for source in real.test.sources} if real.test else set()
    orders: defaultdict[int, list[tuple[str, int]]] = defaultdict(list)
    for place, source in enumerate(real.train.sources):
        if source.id not in taken:
            orders[source.label].append((_order(draw, source.id), place))
    held = Counter(source.label for source in real.train.sources)
    totals = tuple(held[label] for label in range(len(draw.class_names)))
    wanted = [per_class + more for more in up_to_share(share, totals, draw.real.counts)]
    pixels = {*draw.real.keys, *draw.test.keys}
    places: dict[str, int] = {}
    for label in range(len(draw.class_names)):
        found = 0
        for _, place in sorted(orders[label]):
            if found == wanted[label]:
                break
            key = pixel_sha256(_picture(real, place))
            if key not in pixels and key not in places:
                places[key] = place
                found += 1
    return Spare(_images(real, places), totals)


def _order(draw: Draw, source_id: str) -> str:
    return hashlib.sha256(f"{draw.key}|spare|{source_id}".encode()).hexdigest()


def _picture(real: RealSet, place: int) -> "Image":
    return decode_image(real.read("train", place), real.train.sources[place].key)


def _images(real: RealSet, places: Mapping[str, int]) -> Images:
    chosen: Sequence[int] = list(places.values())
    sources = [real.train.sources[place] for place in chosen]
    if not sources:
        raise SourceError(f"{real.train.builder}: its training split has no image that the draw does not use.")
    labelled = Labelled.hard(
        [source.label for source in sources], len(real.train.class_names), [(source.id,) for source in sources]
    )
    return Images(labelled, tuple(places), lambda i: _picture(real, chosen[i]).convert("RGB"))
