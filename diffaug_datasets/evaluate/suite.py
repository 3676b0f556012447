"""A bench as a person writes it: which sets are compared, with which controls, by which classifiers, at which budget.

Strict as a recipe: an unknown key, or a value that cannot be, is a sentence with the key and what is allowed. Nothing
here opens an image or imports torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from diffaug_datasets.core.recipe import checked, read_mapping
from diffaug_datasets.train.replacement import Replacement

Rule = Literal[Replacement, "concatenate"]
Control = Literal[
    "real",
    "duplicate",
    "rebalanced",
    "zero_shot",
    "synthetic_only",
    "classic",
    "randaugment_cutmix",
    "txt2img",
    "retrieval",
]
Baseline = Literal["weak", "strong", "mixup", "cutmix", "cmo", "drw", "cmo_drw"]
Group = Literal["count", "seen", "place"]

MOST_DRAWS = 10_000

ProbeKind = Literal["class_mean", "logistic", "svm"]


class Mixing(BaseModel):
    """How the synthetic images of a line are used beside the real ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Rule | None = Field(
        default=None, description="who may stand in for a real image; default: lt_inverse for a long tail, else class"
    )
    probability: float = Field(default=0.5, ge=0, le=1, description="of a real image to be replaced")
    weight: float = Field(default=1.0, gt=0, description="of a synthetic image's loss beside a real one's")
    soft_labels: bool = Field(default=True, description="learn the soft labels of methods that give some")
    same_mass: bool = Field(
        default=True,
        description="of probes: all lines count together what the real images do; else every image counts 1, as in "
        "papers, and a larger set is less regularised",
    )


NO_MIXING = Mixing(rule="class", probability=0)


class Probe(BaseModel):
    """A classifier on frozen, L2-normalised features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ProbeKind
    penalty: float | tuple[float, ...] = Field(
        default=1.0, description="scikit-learn's C, larger = less regularised; of several the best on `val`"
    )


class Network(BaseModel):
    """A network that is trained on images: its head alone, all of it, or from random weights.

    The defaults are for `small_resnet` on images of about 32 pixels: a cell takes 6 seconds of one CPU core.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["head", "fine_tuned", "scratch"]
    model: str = Field(
        default="small_resnet", description="a folder or Hub id of transformers, or for `scratch` also `small_resnet`"
    )
    steps: int = Field(default=400, gt=0, description="optimiser steps, the same for every line")
    epochs: int | None = Field(
        default=None, gt=0, description="instead of steps: passes over the real images, see `of_draw`"
    )
    batch_size: int = Field(default=32, gt=0)
    learning_rate: float = Field(default=0.05, gt=0)
    optimizer: Literal["sgd", "adamw", "adam"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(default=5e-4, ge=0)
    warm_up: float = Field(default=0.1, ge=0, lt=1, description="share of the steps")
    schedule: Literal["cosine", "constant", "steps"] = "cosine"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="part of a label that the other classes share")
    augmentation: Literal["none", "weak", "strong", "classic", "resized_crop"] = Field(
        default="weak", description="of every line's images"
    )
    image_size: int | None = Field(default=None, gt=0, description="pixels; default: the model's own, or the images'")
    select: Literal["last", "val"] = Field(default="last", description="which step is tested; never the best on test")

    @model_validator(mode="after")
    def _has_weights(self) -> "Network":
        if self.kind != "scratch" and self.model == "small_resnet":
            raise ValueError(f"model: {self.kind} needs weights to begin with, and small_resnet has none; name a model")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> "Network":
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError("steps, epochs: expected one of the two; say how long the network learns")
        return self

    def of_draw(self, real_images: int) -> "Network":
        """The same in steps: an epoch is ceil(real_images / batch_size) of them, for every line of the draw.

        The synthetic images of a line make its epochs no longer: they stand in for real ones.
        """
        steps = self.steps if self.epochs is None else self.epochs * -(-real_images // self.batch_size)
        return self.model_copy(update={"steps": steps, "epochs": None})


def _by_kind(value: object) -> object:
    """A probe may be given by its name alone."""
    return {"kind": value} if isinstance(value, str) else value


Classifier = Annotated[Annotated[Probe | Network, Field(discriminator="kind")], BeforeValidator(_by_kind)]


class Entry(BaseModel):
    """One set of a bench, or one for each draw where it is a config name or a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    set: str = Field(description="a run folder, org/name or address of a published set, a config name or a recipe file")
    name: str | None = Field(default=None, description="in the table; default: its method")
    config: str | None = Field(default=None, description="of a published set")
    with_real: str | None = Field(default=None, description="your copy of the real images of a published set")
    mixing: Mixing | None = Field(
        default=None, description="the whole rule of this line, instead of the bench's (a paper's own p)"
    )
    changes: Mapping[str, Any] = Field(default_factory=dict, description="recipe keys of a config name")


class OtherTest(BaseModel):
    """Images to test on that are not those of the sets; classes go by their names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    builder: str = Field(description="of the dataset whose test split it is")
    source: str | None = Field(default=None, description="its folder or Hub id; default: what the builder knows")
    partial: bool = Field(default=False, description="accept other than the official counts")


def _by_set(value: object) -> object:
    return {"set": value} if isinstance(value, str) else value


def _counted(value: object) -> object:
    """A number of draws stands for the first so many: 600 for 0 to 599."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= MOST_DRAWS:
            raise ValueError(f"expected 1 to {MOST_DRAWS:,} draws")
        return tuple(range(value))
    return value


def _amount(value: int | float) -> int | float:
    if value <= 0 or (isinstance(value, float) and value >= 1):
        raise ValueError("expected a whole number of images per class, or a share between 0 and 1")
    return value


Amount = Annotated[int | float, AfterValidator(_amount)]
"""More real images: so many of every class, or the share of all real images that there are with them."""


class Bench(BaseModel):
    """Sets, controls, classifiers and budget: all that decides a bench but the machine.

    >>> from diffaug_datasets.evaluate.suite import Bench
    >>> bench = Bench.from_dict({"sets": ["fashion_5shot_genie"], "classifiers": ["logistic"]})
    >>> bench.sets[0].set, bench.classifiers[0].kind, bench.mixing.probability
    ('fashion_5shot_genie', 'logistic', 0.5)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal[1] = Field(default=1, alias="schema", description="version of this file's form")
    title: str = ""
    sets: tuple[Annotated[Entry, BeforeValidator(_by_set)], ...] = Field(min_length=1)
    draws: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_counted)] = Field(
        default=(0, 1, 2, 3, 4),
        min_length=1,
        max_length=MOST_DRAWS,
        description="trial seeds of config names and recipes; a number stands for the first so many (episodes: 600)",
    )
    changes: Mapping[str, Any] = Field(default_factory=dict, description="recipe keys set in every config name")
    fresh_images: bool = Field(
        default=True, description="the draw is added to the recipe's seed, so that no draw has another's noise"
    )
    encoders: tuple[str, ...] = Field(
        default=("tiny",), min_length=1, description="of probes: tiny, a folder, a Hub id"
    )
    classifiers: tuple[Classifier, ...] = Field(default=(Probe(kind="logistic"),), min_length=1)
    mixing: Mixing = Mixing()
    controls: tuple[Control, ...] = Field(
        default=("real", "duplicate", "rebalanced", "classic", "txt2img", "zero_shot", "synthetic_only"),
        description="lines of every draw that need no set; `real` is always there, `rebalanced` where lt_inverse mixes",
    )
    baselines: tuple[Baseline, ...] = Field(default=(), description="real images alone, augmented while training")
    more_real: tuple[Amount, ...] = Field(
        default=(), description="brackets: so many more real images per class, or 0.2 for a fifth of all real images"
    )
    views_per_image: int = Field(
        default=5, gt=0, description="of classic and randaugment_cutmix, that a classifier on frozen features sees"
    )
    affordable: float = Field(
        default=60, ge=0, description="seconds of this machine that the images of txt2img or retrieval may take"
    )
    test: OtherTest | None = Field(
        default=None, description="test images of another dataset, for all lines; default: those of the sets"
    )
    images_per_class: int | None = Field(
        default=None, gt=0, description="synthetic ones, the first in row order; default: all, equal for all lines"
    )
    val_per_class: int = Field(default=0, ge=0, description="real training images outside the draw, to choose with")
    groups: tuple[Group, ...] = ()
    count_bounds: tuple[int, int] = Field(default=(20, 5), description="many: above the first; few: below the second")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="initialisations, crossed with draws")

    @field_validator("draws", "seeds", "more_real", "encoders", "groups")
    @classmethod
    def _each_once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if repeated := next((one for place, one in enumerate(value) if one in value[:place]), None):
            raise ValueError(f"{repeated!r} stands there twice; name each once")
        return value

    @field_validator("sets")
    @classmethod
    def _told_apart(cls, value: tuple[Entry, ...]) -> tuple[Entry, ...]:
        known = [(entry.set, entry.config, entry.name) for entry in value]
        if repeated := next((one for place, one in enumerate(known) if one in known[:place]), None):
            raise ValueError(f"{repeated[0]} stands there twice; give each a name of its own (`name`)")
        return value

    @field_validator("count_bounds")
    @classmethod
    def _many_above_few(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not value[0] >= value[1] >= 0:
            raise ValueError("the first number must not be below the second")
        return value

    @field_validator("controls")
    @classmethod
    def _real_is_there(cls, value: tuple[Control, ...]) -> tuple[Control, ...]:
        return value if "real" in value else ("real", *value)

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> "Bench":
        """A bench of plain values.

        Raises:
            RecipeError: names the key, what it got and what is allowed.
        """
        return checked(cls, content)

    @classmethod
    def from_yaml(cls, path: Path) -> "Bench":
        """A bench of a YAML file.

        Raises:
            RecipeError: the file cannot be read, or holds what a bench cannot have.
        """
        return cls.from_dict(cls.placed(read_mapping(path, "bench"), path.parent))

    @staticmethod
    def placed(content: Mapping[str, object], folder: Path) -> dict[str, object]:
        """The keys of a file in `folder`: sets that lie there by a relative path have that path from here."""
        placed = dict(content)
        if isinstance(sets := content.get("sets"), list):
            placed["sets"] = [_placed(entry, folder) for entry in sets]
        if "test" in content:
            placed["test"] = _placed(content["test"], folder)
        return placed


def _placed(entry: object, folder: Path) -> object:
    if isinstance(entry, Mapping):
        places = ("set", "with_real", "source")
        return {key: _placed(value, folder) if key in places else value for key, value in entry.items()}
    is_there = isinstance(entry, str) and entry and (folder / entry).exists()
    return str(folder / entry) if is_there and isinstance(entry, str) else entry
