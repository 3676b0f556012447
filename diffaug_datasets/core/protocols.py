"""Which real images a run may see: few-shot, long-tail and percentage subsets and episodes, drawn and frozen.

A protocol is a text of a recipe (`5shot_seed1`). `episode` draws its classes before any image is opened, `draw_subset`
its images from the table of those that were. Few-shot and long-tail draws follow Diff-Mix's code draw for draw, so the
same seed gives the same images, with one departure: a class that is too small keeps every image once (the code repeats
images, or fails).
"""

import difflib
import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.identity import canonical, digest
from diffaug_datasets.core.sources import Listed, Listing, SourceTable

MANIFEST_SCHEMA = 1
FORMS = "full, 5shot, 10shot, 5way1shot, lt100, 10pct, each optionally with a trial seed: 5shot_seed1"
QUERIES = 16
MOST_REPEATS = 1_000_000

ProtocolKind = Literal["full", "shots", "long_tail", "percent"]
SmallClass = Literal["warn", "error", "duplicate"]

_PATTERN = re.compile(
    r"(?:(?P<full>full)|(?:(?P<ways>[2-9]|[1-9]\d{1,5})way)?(?P<shots>[1-9]\d{0,5})shot|lt(?P<long_tail>[1-9]\d{0,5})"
    r"|(?P<percent>[1-9]\d{0,5})pct)(?:_seed(?P<seed>[1-9]\d{0,17}))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Protocol:
    """A subset rule. `value`: images per class, imbalance factor (at least 2) or percent (1 to 100); 0 for full.

    `trial_seed`: 0 for the first trial; it seeds the draw. `ways`: classes of an episode (at least 2); 0 for all.
    """

    kind: ProtocolKind
    value: int
    trial_seed: int
    ways: int = 0

    @property
    def name(self) -> str:
        """The canonical text, `5shot_seed1`: `parse_protocol` of it gives the protocol back."""
        shots = f"{self.ways}way{self.value}shot" if self.ways else f"{self.value}shot"
        stem = {"full": "full", "shots": shots}.get(self.kind)
        stem = stem or (f"lt{self.value}" if self.kind == "long_tail" else f"{self.value}pct")
        return f"{stem}_seed{self.trial_seed}" if self.trial_seed else stem


def parse_protocol(text: str) -> Protocol:
    """The protocol that a text names.

    Raises:
        RecipeError: not one of the allowed forms; there is one spelling for each protocol.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise RecipeError(f"protocol: got {text!r}, expected one of {FORMS}{_guess(text)}")
    seed = int(match["seed"] or 0)
    if match["full"]:
        return Protocol("full", 0, seed)
    if match["shots"]:
        return Protocol("shots", int(match["shots"]), seed, int(match["ways"] or 0))
    if match["long_tail"]:
        return Protocol("long_tail", _within(text, int(match["long_tail"]), 2, None), seed)
    return Protocol("percent", _within(text, int(match["percent"]), 1, 100), seed)


@dataclass(frozen=True)
class Subset:
    """The images of one table that a run may see: their places in drawn order, their ids, and what was not met.

    `indices`: places in the table; `ids` and `labels`: of the images there; `warnings`: classes that are too small.
    """

    protocol: Protocol
    builder: str
    indices: tuple[int, ...]
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    warnings: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 of protocol, image ids and labels: the same on any machine, wherever the images lie."""
        return digest(self._content())

    def to_json(self) -> str:
        """One line of canonical JSON: the subset by image id (sha256 of the bytes), with the digest of it all."""
        return canonical({**self._content(), "warnings": list(self.warnings), "sha256": self.digest})

    def _content(self) -> Mapping[str, object]:
        images = [{"id": id_, "label": label} for id_, label in zip(self.ids, self.labels, strict=True)]
        place = {"schema": MANIFEST_SCHEMA, "builder": self.builder, "protocol": self.protocol.name}
        return {**place, "images": images}

    def without(self, image_ids: Collection[str], key: str) -> "Subset":
        """The subset without some images; what the protocol drew beside them stays. `key`: of the recipe, for the
        message.

        Raises:
            RecipeError: an id that no image of the subset has.
        """
        if unknown := next((image_id for image_id in image_ids if image_id not in self.ids), None):
            raise RecipeError(f"{key}: got {unknown!r}, expected the sha256 of a real image of this protocol's subset.")
        kept = [place for place, image_id in enumerate(self.ids) if image_id not in image_ids]
        return replace(
            self,
            indices=tuple(self.indices[place] for place in kept),
            ids=tuple(self.ids[place] for place in kept),
            labels=tuple(self.labels[place] for place in kept),
        )


def draw_subset(protocol: Protocol, table: SourceTable, on_small_class: SmallClass = "warn") -> Subset:
    """The images that a protocol draws from the training table; `table.subset(subset.indices)` is their table.

    A class with fewer images than asked for keeps every image once and gives a warning; or its images are drawn with
    replacement, as Diff-Mix's code does (`duplicate`); or it is refused (`error`).

    Raises:
        RecipeError: names the class, what was asked for and what there is; or more repeats than anyone trains on.
    """
    places = places_by_label(table.labels)
    asked = _asked(protocol, places, len(table.class_names))
    then = "some come again" if on_small_class == "duplicate" else "all are kept, none twice"
    shortfalls = tuple(
        f"{name}: asked for {asked.get(label, 1)} images, found {count}; {then}."
        for label, name in enumerate(table.class_names)
        if (count := len(places.get(label, ()))) < asked.get(label, 1)
    )
    if shortfalls and on_small_class == "error":
        sentence = shortfalls[0].split(";")[0]
        raise RecipeError(f"{sentence}; give more images, ask for fewer, or set on_small_class to warn.")
    draws = {"shots": few_shot, "long_tail": long_tail, "percent": percent}
    if protocol.kind == "full":
        indices = list(range(len(table)))
    else:
        indices = draws[protocol.kind](table.labels, protocol.value, protocol.trial_seed)
    if on_small_class == "duplicate":
        indices += _repeats(protocol, places, asked)
    chosen = [table.sources[i] for i in indices]
    return Subset(
        protocol=protocol,
        builder=table.builder,
        indices=tuple(indices),
        ids=tuple(source.id for source in chosen),
        labels=tuple(source.label for source in chosen),
        warnings=shortfalls,
    )


def episode(listing: Listing, protocol: Protocol) -> Listing:
    """The classes of an episode, drawn without replacement and seeded by the trial; all of them where `ways` is 0.

    Where there is no test split, 16 images per class become one, or as many as leave the images that the protocol asks
    for: the queries, of which none is ever a source (GeNIe's sampler lets them be both).

    Raises:
        RecipeError: there are fewer classes than ways.
    """
    if not protocol.ways:
        return listing
    if protocol.ways > len(listing.class_names):
        raise RecipeError(
            f"protocol: {protocol.name} needs {protocol.ways} classes, found {len(listing.class_names)}; ask for fewer."
        )
    rng = random.Random(protocol.trial_seed)
    drawn = listing.only(rng.sample(range(len(listing.class_names)), protocol.ways))
    if drawn.test is not None:
        return drawn
    groups = places_by_label([item.label for item in drawn.train])
    spare = {label: max(0, len(places) - protocol.value) for label, places in groups.items()}
    asked = {place for label in sorted(groups) for place in rng.sample(groups[label], min(QUERIES, spare[label]))}
    support = tuple(item for place, item in enumerate(drawn.train) if place not in asked)
    return Listing(drawn.class_names, support, tuple(drawn.train[place] for place in sorted(asked)) or None)


def half_split(listing: Listing, seed: int = 0, odd: Literal["train", "test"] = "test") -> Listing:
    """All images pooled and every class cut in half. `odd`: which half is the larger where the count is odd.

    Follows Diff-Mix's code for the Flowers, where it is the test half, and DA-Fusion's for Caltech-101: one
    `default_rng(seed)`, one permutation per class in class order, over images in the order of their names.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    pool = sorted((*listing.train, *(listing.test or ())), key=lambda item: item.key)
    groups = places_by_label([item.label for item in pool])
    halves: dict[str, list[Listed]] = {"train": [], "test": []}
    for label in range(len(listing.class_names)):
        order = [pool[groups[label][i]] for i in rng.permutation(len(groups.get(label, ())))]
        cut = (len(order) + (odd == "train")) // 2
        halves["train"] += order[:cut]
        halves["test"] += order[cut:]
    return Listing(listing.class_names, tuple(halves["train"]), tuple(halves["test"]))


def few_shot(labels: Sequence[int], k: int, seed: int) -> list[int]:
    """Places of k images per class, drawn as `random.seed(seed)` and `random.sample` label after label would.

    A class with fewer than k images keeps them all, once.
    """
    rng = random.Random(seed)
    return [place for places in places_by_label(labels).values() for place in _sample(rng, places, k)]


def long_tail(labels: Sequence[int], imbalance: int, seed: int) -> list[int]:
    """Places of a long-tailed subset, largest class first; ties keep their order of first appearance.

    A class with fewer images than its rank asks for keeps them all.
    """
    rng = random.Random(seed)
    ranked = sorted(places_by_label(labels).values(), key=len, reverse=True)
    counts = long_tail_counts(len(labels), len(ranked), imbalance) if ranked else []
    return [place for places, count in zip(ranked, counts, strict=True) for place in _sample(rng, places, count)]


def long_tail_counts(n_images: int, n_classes: int, imbalance: int) -> list[int]:
    """Images of the class of rank 0, 1, ...: `max(int(N/C * IF^(-k/(C-2))), 1)`.

    Follows Diff-Mix's code: the head size is the mean class size and the exponent's base is C-2 (LDAM: largest class
    and C-1), so the achieved max/min is not the nominal factor. With two classes or one, 1 stands for C-2.
    """
    head, step = n_images / n_classes, max(n_classes - 2.0, 1.0)
    return [max(int(head * (1 / imbalance) ** (rank / step)), 1) for rank in range(n_classes)]


def percent(labels: Sequence[int], value: int, seed: int) -> list[int]:
    """Places of `value` percent of every class (1 to 100), halves rounded up, at least one image per class."""
    rng = random.Random(seed)
    groups = places_by_label(labels).values()
    return [place for places in groups for place in rng.sample(places, max((len(places) * value + 50) // 100, 1))]


def places_by_label(labels: Sequence[int]) -> dict[int, list[int]]:
    """Label -> places of its images, labels in order of first appearance."""
    places: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    return places


@dataclass(frozen=True)
class FrequencyGroups:
    """Class ids by number of training images, each ascending."""

    many: tuple[int, ...]
    medium: tuple[int, ...]
    few: tuple[int, ...]


def frequency_groups(counts: Sequence[int], many: int = 100, few: int = 20) -> FrequencyGroups:
    """Classes with more than `many`, from `few` to `many`, and fewer than `few` images (`counts[i]`: class i).

    ImageNet-LT: 100 and 20 (the default); CUB-LT: 20 and 5; Flower-LT: 30 and 10.
    """
    return FrequencyGroups(
        many=tuple(i for i, n in enumerate(counts) if n > many),
        medium=tuple(i for i, n in enumerate(counts) if few <= n <= many),
        few=tuple(i for i, n in enumerate(counts) if n < few),
    )


def _sample(rng: random.Random, places: list[int], count: int) -> list[int]:
    return rng.sample(places, count) if count <= len(places) else list(places)


def _asked(protocol: Protocol, places: Mapping[int, list[int]], classes: int) -> Mapping[int, int]:
    """Class id -> images that the protocol asks for; where it names no number a class is absent, and one is enough."""
    if protocol.kind == "shots":
        return dict.fromkeys(range(classes), protocol.value)
    if protocol.kind == "long_tail" and places:
        ranked = sorted(places, key=lambda label: len(places[label]), reverse=True)
        total = sum(len(group) for group in places.values())
        return dict(zip(ranked, long_tail_counts(total, len(ranked), protocol.value), strict=True))
    return {}


def _repeats(protocol: Protocol, places: Mapping[int, list[int]], asked: Mapping[int, int]) -> list[int]:
    """For every class that has images but too few: so many of its places again, drawn with replacement.

    Raises:
        RecipeError: more repeats than anyone trains on.
    """
    lacking = {label: max(0, asked.get(label, 0) - len(own)) for label, own in places.items()}
    if (count := sum(lacking.values())) > MOST_REPEATS:
        raise RecipeError(
            f"protocol: {protocol.name} with on_small_class: duplicate repeats images {count:,} times, expected "
            f"{MOST_REPEATS:,} at most; ask for fewer, or set on_small_class to warn."
        )
    rng = random.Random(protocol.trial_seed)
    return [i for label, own in places.items() for i in rng.choices(own, k=lacking[label])]


def _guess(text: str) -> str:
    """The end of the sentence: the form that a text is nearest to, with its own number in it."""
    number = next(iter(re.findall(r"[1-9]\d{0,5}", text)), "5")
    forms = ["full", f"{number}shot", f"lt{number}", f"{number}pct", f"{number}way1shot"]
    spelt = {"percent": "pct", "longtail": "lt", "all": "full"}
    plain = re.sub(r"[\W_]+", "", text.casefold().replace("%", "pct"))
    for word, short in spelt.items():
        plain = plain.replace(word, short)
    near = difflib.get_close_matches(plain, forms, n=1) or [f for f in forms if sorted(f) == sorted(plain)]
    return f"; did you mean {near[0]!r}?" if near else "."


def _within(text: str, value: int, low: int, high: int | None) -> int:
    if value < low or (high is not None and value > high):
        allowed = f"{low} to {high}" if high else f"{low} or more"
        raise RecipeError(f"protocol: got {text!r}, expected a number of {allowed} there; forms: {FORMS}.")
    return value
