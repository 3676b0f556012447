"""Equal budgets: lines of a draw that are compared have as many synthetic images of every class, or are refused.

Where a class is drawn before an image of it (`lt_inverse`) its number of images decides little, and methods for long
tails spread theirs differently by design; there the lines have as many in all.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.evaluate.draws import Draw, Line
from diffaug_datasets.evaluate.suite import Rule


def check_budgets(
    draws: Mapping[str, Draw], lines: Sequence[tuple[str, Line]], images_per_class: int | None, rule: Rule | None = None
) -> tuple[str, ...]:
    """Refuse lines of a draw that differ in their number of synthetic images; gives sentences on what may be unequal.

    `draws` by key, `lines` with the key of their draw; `rule`: how their images are mixed with the real ones. Under
    `images_per_class` a line may lack images of a class that another has where it has none at all, as with methods that
    augment few classes alone.

    Raises:
        RecipeError: names two lines, a class and their numbers, and how they become equal.
    """
    notes: dict[str, None] = {}
    fewest = min((count for _, line in lines for count in line.synthetic.counts if count), default=0)
    for key, draw in draws.items():
        of_draw = [line for other, line in lines if other == key]
        for first, second in pairwise(of_draw):
            ours, theirs = first.synthetic.counts, second.synthetic.counts
            if rule == "lt_inverse":
                if sum(ours) != sum(theirs):
                    raise RecipeError(
                        f"budget: {first.name} has {sum(ours):,} synthetic images and {second.name} has "
                        f"{sum(theirs):,}, so more images might win and not better ones; plan both with the same "
                        "number."
                    )
                continue
            differing = [label for label, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
            if not differing:
                continue
            label = differing[0]
            if fewest != images_per_class:
                raise RecipeError(
                    f"budget: {first.name} has {ours[label]} synthetic images of {draw.class_names[label]!r} and "
                    f"{second.name} has {theirs[label]}, so more images might win and not better ones; give "
                    f"--images-per-class {fewest} (`images_per_class`) to compare the first {fewest} of every class."
                )
            fewer, more = (first, second) if ours[label] < theirs[label] else (second, first)
            name = draw.class_names[label]
            notes[f"{fewer.name} has no synthetic image of {name!r} and {more.name} has some."] = None
    return tuple(notes)
