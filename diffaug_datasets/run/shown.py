"""Do the images show the class of their label? Counted over the rows that stay, by one oracle that is named.

Two oracles may differ by 20 points on the same images, so a share never stands without the one that sees, and how
often that one is right on real images. A class is called far below the others where its 95 % interval (Wilson 1927)
ends below the one of all other classes together. Needs no torch.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import islice
from math import sqrt
from statistics import NormalDist
from typing import Literal, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.plan import PlanHeader

Z = NormalDist().inv_cdf(0.975)
SEEN_COLUMNS = ("label", "judge_label", "clip_margin", "seen_label")
OPEN_SHARDS = 100  # at once
LEAST_RIGHT = 0.5  # of real images, for an oracle to be listened to
NAMED = 5  # classes far below the others that a text names
LEARNS = "diff_ii or diff_mix"  # methods that learn what a class looks like from its images
EDITED_BY = ("ratio", "levels", "strengths", "strength")  # keys of `config`: how much of a source is made anew

OracleKind = Literal["judge", "zero-shot", "shots"]
SeenColumn = Literal["judge_label", "clip_margin", "seen_label"]


class Share(NamedTuple):
    """A share of n and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class RealCheck(BaseModel):
    """How many real images of each class an oracle looked at, and in how many it saw their class."""

    model_config = ConfigDict(frozen=True)

    of: Literal["test", "training"]
    images: tuple[NonNegativeInt, ...]
    right: tuple[NonNegativeInt, ...]

    @property
    def share(self) -> Share:
        """Over all classes; of no image, 0 to 1."""
        return share(sum(self.right), sum(self.images))


class Oracle(BaseModel):
    """Who says what an image shows.

    `kind`: a `judge` (a classifier of these classes), `zero-shot` (the class whose prompt an image-text encoder finds
    nearest) or `shots` (the class whose real training images an encoder finds nearest on average). `model`: its name.
    `column`: where its verdicts stand. `real`: how it does on real images.
    """

    model_config = ConfigDict(frozen=True)

    kind: OracleKind
    model: str
    column: SeenColumn
    real: RealCheck

    @property
    def is_poor(self) -> bool:
        """Whether it is right on fewer than half of the real images, or no more often than chance may be.

        What such an oracle sees says more of itself than of the images. False where so few images cannot tell.
        """
        classes, images = sum(n > 0 for n in self.real.images), sum(self.real.images)
        can_tell = share(images, images).low > 1 / max(1, classes)
        return can_tell and (self.real.share.low <= 1 / classes or self.real.share.value < LEAST_RIGHT)

    def text(self) -> str:
        """`by the judge diffaug-tiny, right on 87 % of 1,000 real test images`, and which classes were not tried."""
        words = {"judge": "the judge {}", "zero-shot": "{} and the class prompts", "shots": "{} and the real images"}
        images = sum(self.real.images)
        if not images:
            return f"by {words[self.kind].format(self.model)}, not tried on real images (one per class is too few)"
        right = f"{percent(self.real.share.value)} of {images:,} real {self.real.of} images"
        untried = sum(not n for n in self.real.images) if self.real.of == "training" else 0
        left = f" ({untried:,} class{'es' * (untried > 1)} of one image or none not tried)" if untried else ""
        return f"by {words[self.kind].format(self.model)}, right on {right}{left}"


class ClassShown(BaseModel):
    """A class: images that the oracle looked at, in how many it saw the class, the class it saw most of the others as.

    `remark`: why it is far below the other classes, probably, and what to do; '' where it is not.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    images: int
    shown: int
    instead: str = ""
    as_instead: int = 0
    remark: str = ""

    @property
    def value(self) -> float:
        """The share that shows the class."""
        return self.shown / self.images

    def text(self) -> str:
        """`iris: 40 % of 20 images; 9 are seen as tulip: ...`."""
        seen = f"; {self.as_instead} are seen as {self.instead}" if self.as_instead > 1 else ""
        return f"{self.name}: {percent(self.value)} of {self.images} images{seen}; {self.remark}"


class Shown(BaseModel):
    """What an oracle sees in a run's images. `withheld`: why there is no oracle; `classes`: those that it judged."""

    model_config = ConfigDict(frozen=True)

    oracle: Oracle | None = None
    classes: tuple[ClassShown, ...] = ()
    withheld: str = ""

    @property
    def value(self) -> float | None:
        """The share of all images that show their class."""
        images = sum(one.images for one in self.classes)
        return sum(one.shown for one in self.classes) / images if images else None

    @property
    def far_below(self) -> tuple[ClassShown, ...]:
        """The classes that stand out, the worst first."""
        return tuple(sorted((one for one in self.classes if one.remark), key=lambda one: (one.value, one.name)))

    def headline(self) -> str:
        """`shows its class: 83 % (best daisy 95, worst iris 40)`, or why that is not known."""
        if self.value is None or self.oracle is None:
            return f"shows its class: not known, {self.withheld}"
        ordered = sorted(self.classes, key=lambda one: (one.value, one.name))
        ends = f"best {ordered[-1].name} {100 * ordered[-1].value:.0f}, worst {ordered[0].name}"
        span = f" ({ends} {100 * ordered[0].value:.0f})" if len(ordered) > 1 else ""
        return f"shows its class: {percent(self.value)}{span}"

    def lines(self) -> Iterator[str]:
        """The headline, the oracle, and the classes that stand out."""
        yield self.headline()
        if self.oracle is not None and self.value is not None:
            yield f"  {self.oracle.text()}"
            yield from (f"  {one.text()}" for one in self.far_below[:NAMED])
            if more := len(self.far_below) - NAMED:
                yield from [f"  and {more} more classes far below the others"] * (more > 0)

    def facts(self) -> dict[str, object]:
        """For programs: everything, with the shares."""
        classes = {one.name: {**one.model_dump(exclude={"name"}), "value": one.value} for one in self.classes}
        return {"value": self.value, **self.model_dump(mode="json", exclude={"classes"}), "classes": classes}


def percent(value: float) -> str:
    """`83 %`."""
    return f"{100 * value:.0f} %"


def share(hits: int, n: int) -> Share:
    """Wilson's interval at 95 %; of nothing, 0 to 1."""
    if not n:
        return Share(0.0, 0.0, 1.0)
    hits = min(hits, n)
    p, reach = hits / n, Z**2 / n
    middle, half = p + reach / 2, sqrt(reach * (p * (1 - p) + reach / 4))
    low, high = ((middle + sign * half) / (1 + reach) for sign in (-1, 1))
    return Share(p, 0.0 if hits == 0 else low, 1.0 if hits == n else high)


class Verdicts(NamedTuple):
    """By class id: images judged, images that show their class, and what the others are seen as."""

    images: Counter[int]
    shown: Counter[int]
    instead: Mapping[int, Counter[int]]


def verdicts(table: pa.Table, column: SeenColumn, classes: int) -> Verdicts:
    """Counts over a table with the columns `label` and the oracle's; rows without a verdict are left out.

    Of a margin only its sign is known: above 0 where the label's own prompt is the nearest.
    """
    images, shown = Counter[int](), Counter[int]()
    instead: dict[int, Counter[int]] = {}
    for label, seen in zip(table.column("label").to_pylist(), table.column(column).to_pylist(), strict=True):
        if seen is None or not 0 <= label < classes:
            continue
        images[label] += 1
        is_shown = seen > 0 if column == "clip_margin" else seen == label
        shown[label] += is_shown
        if not is_shown and column != "clip_margin" and 0 <= seen < classes:
            instead.setdefault(label, Counter())[seen] += 1
    return Verdicts(images, shown, instead)


def class_shown(oracle: Oracle | None, table: pa.Table, header: PlanHeader, withheld: str = "") -> Shown:
    """What the oracle sees in the images that stay.

    `table`: those of `SEEN_COLUMNS` that there are, of the rows that stay. `withheld`: why there is no oracle.
    """
    names, phrases = header.class_names, header.prompt_names
    if oracle is None or oracle.column not in table.column_names:
        return Shown(withheld=withheld or "nobody has looked at these images")
    counts = verdicts(table, oracle.column, len(names))
    if not counts.images:
        return Shown(withheld="no image was judged")
    total, right = counts.images.total(), counts.shown.total()
    low = {
        label
        for label, n in counts.images.items()
        if share(counts.shown[label], n).high < share(right - counts.shown[label], total - n).low
    }
    classes = []
    for label, n in sorted(counts.images.items()):
        others = counts.instead.get(label) or Counter[int]()
        other, times = min(others.items(), key=lambda item: (-item[1], item[0]), default=(0, 0))
        told = ClassShown(
            name=names[label],
            images=n,
            shown=counts.shown[label],
            instead=names[other] if times else "",
            as_instead=times,
        )
        remark = _remark(label, phrases[label], oracle, header.recipe) if label in low else ""
        classes.append(told.model_copy(update={"remark": remark}))
    return Shown(oracle=oracle, classes=tuple(classes))


def with_seen(tables: Iterable[pa.Table], seen: Mapping[str, int], without: Set[str]) -> pa.Table:
    """The columns that verdicts are counted from, of the rows of shards but some; `seen`: row id -> `seen_label`.

    Copies, of some shards at a time, so that no shard stays open.
    """
    left, parts = iter(tables), []
    while group := list(islice(left, OPEN_SHARDS)):
        columns = ["row_id", *(name for name in SEEN_COLUMNS if name != "seen_label")]
        table = pa.concat_tables(table.select(columns).replace_schema_metadata() for table in group)
        ids = table.column("row_id").to_pylist()
        table = table.append_column("seen_label", pa.array([seen.get(row_id) for row_id in ids], pa.int32()))
        parts.append(table.filter(pa.array([row_id not in without for row_id in ids], pa.bool_())).combine_chunks())
    return pa.concat_tables(parts)


def _remark(label: int, phrase: str, oracle: Oracle, recipe: Mapping[str, object]) -> str:
    """The likely reason and what to do: the oracle itself, what is left of another class's image, or the words."""
    real = oracle.real
    is_known = label < min(len(real.images), len(real.right))
    if is_known and share(real.right[label], real.images[label]).high < real.share.low:
        right = f"{percent(real.right[label] / real.images[label])} of its {real.images[label]} real images"
        return f"this oracle is right on {right} only, so look at the images themselves"
    method = discover_methods().get(str(recipe.get("method")))
    if method is None:
        return "look at the images themselves"
    if "concepts" in method.NEEDS:
        return f"its concept may be learned too little: raise config.concepts.steps, or call it other than {phrase!r}"
    if "lora" in method.NEEDS:
        return f"it may be learned too little: raise config.lora.epochs, or call it other than {phrase!r}"
    if "image_embeddings" in method.NEEDS:
        return "its images may be learned too little: raise config.embeddings.steps"
    if "pool" in method.NEEDS:
        return f"the pool may hold too few of it: give another one, or call it other than {phrase!r}"
    words = f"the model may not know {phrase!r}: call it otherwise, or learn it from its images ({LEARNS})"
    if method.LABEL_RULE != "source" and method.N_SOURCES:
        key = next((f"config.{key}" for key in EDITED_BY if key in method.Config.model_fields), "the strength")
        return f"the class of its source may show through: raise {key}; or {words}"
    return words
