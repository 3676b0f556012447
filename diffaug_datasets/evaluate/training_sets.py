"""What a classifier of a bench learns from: real images, synthetic ones, and how the two are mixed.

While a classifier trains, `train.replacement.Replacer` puts a synthetic image in the place of a real one with
probability p. A classifier on frozen features sees all images at once, so it takes the mean of that over all epochs: a
real image counts 1 - p, and its share p goes to the synthetic images that might stand in for it. So every line of a
draw has the same mass, the number of its real images, however many synthetic ones it has.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.identity import digest
from diffaug_datasets.evaluate.classifiers import Array, Examples
from diffaug_datasets.evaluate.draws import Images, Labelled
from diffaug_datasets.evaluate.suite import NO_MIXING, Baseline, Mixing, Rule

View = Literal["classic", "randaugment_cutmix"]


@dataclass(frozen=True)
class TrainingSet:
    """One line as a classifier learns it.

    `real`: images that count 1 each before mixing, or the synthetic ones where a line has these alone. `mass`: what all
    count together, the number of real images of the draw. `views`: real images are seen through this augmentation, so
    many times each (`copies`) where a classifier does not see them anew in every step. `baseline`: what a network does
    to them while it trains. `evaluations`: U-Net rows that the synthetic ones took, where that is known.
    """

    name: str
    real: Images
    mass: float
    synthetic: Images | None = None
    mixing: Mixing = NO_MIXING
    views: View | None = None
    baseline: Baseline | None = None
    copies: int = 1
    evaluations: int | None = None

    @property
    def content(self) -> str:
        """Digest of what is learned beside the draw's real images, in whatever way."""
        synthetic = self.synthetic.identity if self.synthetic else None
        content = [self.real.identity, synthetic, self.mixing.model_dump(), self.views, self.copies, self.baseline]
        return digest([*content, self.mass])

    def seen(self, seed: int = 0) -> Images:
        """The real images as a classifier on frozen features sees them. `seed`: of what is drawn in views."""
        if self.views is None:
            return self.real
        from diffaug_datasets.evaluate.views import seen_through

        return seen_through(self.real, self.views, self.copies, seed)

    def examples(self, features: Callable[[Images], Array], seed: int = 0) -> Examples:
        """The images' features with what each counts for each class."""
        real = self.seen(seed)
        if self.synthetic is None:
            return Examples(features(real), real.labelled.soft).with_mass(self.mass)
        made = self.synthetic
        labelled = made.labelled if self.mixing.soft_labels else made.labelled.hardened()
        of_real, of_made = shares(real.labelled, labelled, self.mixing)
        targets = [real.labelled.soft * of_real[:, None], labelled.soft * of_made[:, None]]
        return Examples(np.concatenate([features(real), features(made)]), np.concatenate(targets)).with_mass(self.mass)


def shares(real: Labelled, synthetic: Labelled, mixing: Mixing) -> tuple[Array, Array]:
    """How much each real [n] and each synthetic image [m] counts; under a rule of replacement both sum to n.

    A real image for which the rule has no synthetic one counts 1, as it always stays. `concatenate`: every image counts
    1. Then synthetic ones count `mixing.weight` times as much.

    Raises:
        RecipeError: the rule is open.
    """
    if mixing.rule is None:
        raise RecipeError("mixing.rule: got none, expected one; say which images stand in for a real one.")
    of_real, of_synthetic = np.ones(len(real)), np.zeros(len(synthetic))
    if mixing.rule == "concatenate":
        return of_real, np.full(len(synthetic), mixing.weight)
    for places, candidates in _stand_ins(real, synthetic, mixing.rule):
        of_real[places] -= mixing.probability
        for place, share in candidates.items():
            of_synthetic[place] += mixing.probability * share * len(places)
    return of_real, of_synthetic * mixing.weight


def _stand_ins(real: Labelled, synthetic: Labelled, rule: Rule) -> Iterator[tuple[list[int], Mapping[int, float]]]:
    """(places of real images, synthetic image -> how often it is the one that stands in for each of them)."""
    by_class = _places(synthetic.labels.tolist())
    if rule == "global":
        everywhere = list(range(len(synthetic)))
        if everywhere:
            yield list(range(len(real))), _even(everywhere)
    elif rule == "lt_inverse":
        counts = np.bincount(real.labels, minlength=real.soft.shape[1])
        inverse = {label: 1 / (int(counts[label]) + 1) for label in by_class}
        total = sum(inverse.values())
        drawn = {p: inverse[c] / total / len(places) for c, places in by_class.items() for p in places}
        if drawn:
            yield list(range(len(real))), drawn
    elif rule == "class":
        for label, places in _places(real.labels.tolist()).items():
            if label in by_class:
                yield places, _even(by_class[label])
    else:
        by_source: defaultdict[str, list[int]] = defaultdict(list)
        for place, ids in enumerate(synthetic.source_ids):
            for source_id in dict.fromkeys(ids):
                by_source[source_id].append(place)
        for place, ids in enumerate(real.source_ids):
            if ids and ids[0] in by_source:
                yield [place], _even(by_source[ids[0]])


def _places(labels: Sequence[int]) -> dict[int, list[int]]:
    """Class id -> the places of its images."""
    places: defaultdict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        places[label].append(place)
    return dict(places)


def _even(places: Sequence[int]) -> dict[int, float]:
    return dict.fromkeys(places, 1 / len(places))
