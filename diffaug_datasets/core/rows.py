"""The row: what was planned, what came of it and its picture, in one typed form from the plan to the Arrow file.

Each field states its `Column`, and its description is the text of the card's column table. From these fields and the
table `KINDS` follow the record, the plan file, the Arrow schema, the `datasets` features, the card and Croissant.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

ROW_SCHEMA = 1

Origin = Literal["real", "generated", "retrieved"]
Split = Literal["train", "test"]

COLUMNS = (
    *("image", "label", "soft_label", "row_id", "plan_id", "origin", "is_synthetic", "method", "method_version"),
    *("source_ids", "source_labels", "prompt", "prompt_first", "negative_prompt", "seed", "num_inference_steps"),
    *("start_step", "guidance_scale", "strength", "draw", "measured", "clip_score", "clip_margin"),
    *("judge_confidence", "source_similarity", "judge_label", "fallback", "attempt", "batch_shape", "backbone"),
    *("adapters", "width", "height", "image_format", "pixel_sha256"),
)


@dataclass(frozen=True)
class Kind:
    """How the values of a column are stored.

    `item`: Arrow's name for the type of a value, or of each entry of a list. A struct has none, but `parts`: names of
    kinds by field. `croissant`: Croissant's name for the type; None where it has none. `words`: what a card calls it,
    where that is not Arrow's name.
    """

    item: str | None
    croissant: str | None
    is_list: bool = False
    parts: Mapping[str, str] = field(default_factory=dict)
    words: str = ""

    @property
    def text(self) -> str:
        """What a card calls the type, such as `list of string`."""
        return self.words or f"{'list of ' if self.is_list else ''}{self.item}"


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "string": Kind("string", "sc:Text"),
        "strings": Kind("string", "sc:Text", is_list=True),
        "bool": Kind("bool", "sc:Boolean"),
        "int32": Kind("int32", "sc:Integer"),
        "int32s": Kind("int32", "sc:Integer", is_list=True),
        "int64": Kind("int64", "sc:Integer"),
        "float32": Kind("float32", "sc:Float"),
        "float32s": Kind("float32", "sc:Float", is_list=True),
        "binary": Kind("binary", None),
        # a class id, with the names of the classes where a format has a place for them
        "label": Kind("int32", "sc:Integer", words="class label"),
        "soft_label": Kind(
            item=None,
            croissant=None,
            parts={"class": "int32s", "weight": "float32s"},
            words="lists class (int32) and weight (float32)",
        ),
        "image": Kind(None, "sc:ImageObject", parts={"bytes": "binary", "path": "string"}, words="image"),
    }
)


@dataclass(frozen=True)
class Column:
    """How a field is stored: the name of its kind in `KINDS`; published, or part of the plan file alone."""

    kind: str
    published: bool = True


_FLOAT32 = struct.Struct("<f")


def float32(value: float) -> float:
    """The nearest number that a float32 column holds.

    Raises:
        OverflowError: it is larger than any.
    """
    (stored,) = _FLOAT32.unpack(_FLOAT32.pack(value))
    return float(stored)


Float = Annotated[float, AfterValidator(float32)]
"""Rounded when the row is made, so that the plan, a shard and the provenance say the same number to the bit."""


class SoftLabel(BaseModel):
    """A sparse label distribution: `weight[i]` belongs to class id `classes[i]`."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    classes: tuple[int, ...] = Field(alias="class")
    weight: tuple[Float, ...]

    @classmethod
    def hard(cls, label: int) -> "SoftLabel":
        """All weight on one class."""
        return _hard(label)

    @classmethod
    def mixed(cls, weights: Sequence[tuple[int, float]]) -> "SoftLabel":
        """Weights by class id, in this order."""
        return cls.model_validate({"class": [c for c, _ in weights], "weight": [w for _, w in weights]})


@lru_cache(maxsize=100_000)  # of every class one, shared by its rows
def _hard(label: int) -> SoftLabel:
    return SoftLabel.mixed(((label, 1.0),))


Text = Annotated[str, Column("string")]
OptionalText = Annotated[str | None, Column("string")]
Int = Annotated[int, Column("int32")]
OptionalInt = Annotated[int | None, Column("int32")]
OptionalFloat = Annotated[Float | None, Column("float32")]


class PlanRow(BaseModel):
    """One image to make: everything that is drawn, nothing that is measured.

    What generation decides by a threshold (a label, an index, a count) is decided when the row is drawn, from the
    recipe's own numbers, and stored as a whole number: in its column, or in `draw`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: Annotated[int, Column("label")] = Field(description="the class to train the row as (the target class)")
    soft_label: Annotated[SoftLabel, Column("soft_label")] = Field(
        description="sparse class weights; one entry of weight 1 when the label is hard"
    )
    row_id: Text = Field(description="24 hex digits of sha256(recipe seed, method, class, k)")
    origin: Annotated[Origin, Column("string")] = Field(description="real, generated or retrieved")
    is_synthetic: Annotated[bool, Column("bool")] = Field(description="origin is generated")
    method: Text = Field(description="name of the method; `real` for real rows")
    method_version: Int = Field(description="version of the method's code; 0 for real rows")
    source_ids: Annotated[tuple[str, ...], Column("strings")] = Field(
        default=(), description="sha256 of the encoded bytes of the real images used, in the method's order"
    )
    source_labels: Annotated[tuple[int, ...], Column("int32s")] = Field(
        default=(), description="class ids of those images"
    )
    prompt: OptionalText = Field(default=None, description="prompt of the (last) denoising stage")
    prompt_first: OptionalText = Field(
        default=None, description="prompt of the high-noise stage of two-stage denoising"
    )
    negative_prompt: OptionalText = Field(default=None, description="prompt of the unconditional branch")
    seed: Annotated[int | None, Column("int64")] = Field(default=None, description="seed of the row's noise, 63 bits")
    num_inference_steps: OptionalInt = Field(default=None, description="length of the sampling schedule")
    start_step: OptionalInt = Field(default=None, description="index of the first step that runs")
    guidance_scale: OptionalFloat = Field(default=None, description="classifier-free guidance, 1 = none")
    strength: OptionalFloat = Field(default=None, description="fraction of the schedule that is denoised (GeNIe's r)")
    draw: Text = Field(default="{}", description="the method's own draws, canonical JSON")
    fallback: OptionalText = Field(default=None, description="policy that applied to a degenerate case")
    backbone: OptionalText = Field(default=None, description="diffusion model, id@revision")
    adapters: Annotated[tuple[str, ...], Column("strings")] = Field(default=(), description="fits that were used")
    k: Annotated[int, Column("int32", published=False)] = Field(description="number of the row inside its class")
    split: Annotated[Split, Column("string", published=False)] = Field(default="train", description="train or test")

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> Self:
        """The planned part of a published row; its number and split, which are not published, are 0 and `train`.

        A column that a set of another version lacks has its default.

        Raises:
            ValueError: a column has another type, or is missing and has no default.
        """
        return cls(**{name: columns[name] for name in _published(cls) & columns.keys()}, k=0)

    def columns(self) -> dict[str, object]:
        """The published columns that the plan decides, as JSON values."""
        return self.model_dump(mode="json", by_alias=True, include=_published(PlanRow))


class RowScores(BaseModel):
    """What an encoder and a judge make of a finished image; None is what nobody measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clip_score: OptionalFloat = Field(default=None, description="cosine of image and prompt of its class")
    clip_margin: OptionalFloat = Field(default=None, description="that cosine minus the best other class's")
    judge_confidence: OptionalFloat = Field(default=None, description="the judge's probability of `judge_label`")
    judge_label: OptionalInt = Field(default=None, description="the class a judge classifier sees")
    source_similarity: OptionalFloat = Field(default=None, description="largest cosine to a source image")


class Outcome(RowScores):
    """What came of a planned row: known only once its image exists."""

    measured: Text = Field(default="{}", description="what generation measured, canonical JSON")
    attempt: Int = Field(default=0, description="0 = first try; seeds of later tries differ")
    batch_shape: Int = Field(default=0, description="rows in the batch that the network saw; 0 for real rows")
    width: Int = Field(description="pixels")
    height: Int = Field(description="pixels")
    image_format: Text = Field(description="png, webp, jpeg, ... as stored")
    pixel_sha256: Text = Field(description="sha256 over width, height and the decoded RGB bytes")


class Row(BaseModel):
    """A finished row: its encoded image, the plan that it was made under, what was planned and what came of it.

    `own`: values of the dataset's own columns, see `core.sources.BuilderFacts`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Annotated[bytes, Column("image")] = Field(description="the encoded image")
    plan_id: Text = Field(description="sha256 of the plan that the row was made under")
    plan: PlanRow
    outcome: Outcome
    own: Mapping[str, str | None] = Field(default_factory=dict)

    @classmethod
    def of(cls, columns: Mapping[str, Any], image: bytes, own: Sequence[str] = ()) -> Self:
        """A row from its published columns, and its encoded image (empty where it is not there).

        `own`: names of columns of its dataset's own.

        Raises:
            LookupError: there is no `plan_id`.
            ValueError: as `PlanRow.of`.
        """
        outcome = Outcome(**{name: columns[name] for name in Outcome.model_fields.keys() & columns.keys()})
        stated = {name: columns.get(name) for name in own}
        return cls(image=image, plan_id=columns["plan_id"], plan=PlanRow.of(columns), outcome=outcome, own=stated)

    @property
    def id(self) -> str:
        """The row id."""
        return self.plan.row_id

    def columns(self) -> dict[str, object]:
        """The published columns, as an Arrow writer takes them."""
        image = {"bytes": self.image, "path": None}
        return {"image": image, "plan_id": self.plan_id, **self.plan.columns(), **self.outcome.model_dump(), **self.own}


class SourceFacts(BaseModel):
    """What is known of the images in `source_ids`; columns of a provenance where a source states one of them."""

    source_urls: Annotated[tuple[str | None, ...], Column("strings")] = Field(
        description="where each image of `source_ids` comes from, as its dataset states"
    )
    source_authors: Annotated[tuple[str | None, ...], Column("strings")] = Field(
        description="who made each image of `source_ids`, as its dataset states"
    )
    source_licenses: Annotated[tuple[str | None, ...], Column("strings")] = Field(
        description="the terms of each image of `source_ids`, as its dataset states"
    )


class SetScores(BaseModel):
    """What is measured of a row once the whole set is made; columns of a provenance where it was."""

    model_config = ConfigDict(frozen=True)

    test_similarity: OptionalFloat = Field(default=None, description="largest cosine to an image of the test split")
    nearest_test: OptionalText = Field(default=None, description="sha256 of that test image")
    seen_label: OptionalInt = Field(
        default=None, description="the class that the set's oracle sees, where neither a judge nor a margin says it"
    )
    inversion_psnr: OptionalFloat = Field(
        default=None, description="of a real image: dB against what its inversion gives when denoised again"
    )
    inversion_norm: OptionalFloat = Field(
        default=None, description="of a real image: root mean square of its inverted latent; 1 for N(0, 1)"
    )
    inversion_kurtosis: OptionalFloat = Field(
        default=None, description="of a real image: kurtosis of its inverted latent's values; 3 for N(0, 1)"
    )
    self_interpolation: OptionalFloat = Field(
        default=None,
        description="of a real image: dB against the picture half-way on the circle between its inversion and the "
        "inversion of what that gives back",
    )


class Ending(BaseModel):
    """How a planned row ended; columns of every provenance."""

    status: Text = Field(
        description="kept: published; filtered: dropped by the selection; failed: has no image; withheld: a real image "
        "that may not be redistributed, or pixels left out of a recipe-only release"
    )
    reason: OptionalText = Field(
        description="why a row was dropped or failed; of a kept row, the filter whose min_keep saved it"
    )
    split: Annotated[Split, Column("string")] = Field(description="train or test")


class FailedRow(BaseModel):
    """A planned row that has no image, and why."""

    model_config = ConfigDict(frozen=True)

    row_id: str
    reason: str
    attempts: int


def row_urn(plan_id: str, row_id: str) -> str:
    """`urn:diffaug:<first 16 digits of the plan id>:<row id>`: the name of a row, wherever it goes.

    A row id alone repeats across plans: it does not depend on the dataset. The plan is the one that the image was made
    under (column `plan_id`): images that another plan takes over keep their bytes, and so their name.
    """
    return f"urn:diffaug:{plan_id[:16]}:{row_id}"


def rows_beginning(ids: Iterable[str], prefix: str) -> list[str]:
    """The row ids that begin so, in their order; the one alone that is equal, if there is one."""
    wanted = prefix.strip().lower()
    matches = [row_id for row_id in ids if row_id.startswith(wanted)]
    return [wanted] if wanted in matches else matches


def column_types(model: type[BaseModel]) -> dict[str, str]:
    """Name -> kind of every column that a record declares."""
    return {name: column.kind for name, column in _columns(model).items()}


def published_columns(own: Sequence[str] = ()) -> dict[str, str]:
    """Name -> kind of every published column, in the order of `COLUMNS`, then those of a dataset's own, as texts."""
    types = column_types(Row) | column_types(PlanRow) | column_types(Outcome)
    return {name: types[name] for name in COLUMNS} | dict.fromkeys(own, "string")


def column_meanings() -> dict[str, str]:
    """Name -> meaning of every column of a published set and its provenance."""
    records = (PlanRow, Outcome, Row, Ending, SourceFacts, SetScores)
    return {name: str(model.model_fields[name].description) for model in records for name in _columns(model)}


def _columns(model: type[BaseModel]) -> dict[str, Column]:
    fields = model.model_fields.items()
    return {name: item for name, info in fields for item in info.metadata if isinstance(item, Column)}


@cache
def _published(model: type[BaseModel]) -> set[str]:
    return {name for name, column in _columns(model).items() if column.published}
