"""The row: what was planned, what came of it. One model gives the record, the Arrow schema and the published columns.

A field's `Column` says how it is stored; its description is the text of the card's column table.
"""

import struct
from collections.abc import Sequence
from typing import Annotated, Literal

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


class Column:
    """How a field is stored: an Arrow type name, `image` or `label`; published or plan only."""

    def __init__(self, dtype: str, published: bool = True) -> None:
        self.dtype = dtype
        self.published = published


def float32(value: float) -> float:
    """The nearest number that a float32 column holds.

    Raises:
        OverflowError: it is larger than any.
    """
    (stored,) = struct.unpack("<f", struct.pack("<f", value))
    return float(stored)


Float = Annotated[float, AfterValidator(float32)]
"""Rounded when the row is made, so that the plan, a shard and the provenance say the same number to the bit."""


class SoftLabel(BaseModel):
    """A sparse label distribution: `weight[i]` belongs to class id `class_[i]`."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    classes: tuple[int, ...] = Field(alias="class")
    weight: tuple[Float, ...]

    @classmethod
    def hard(cls, label: int) -> "SoftLabel":
        """All weight on one class."""
        return cls.mixed(((label, 1.0),))

    @classmethod
    def mixed(cls, weights: Sequence[tuple[int, float]]) -> "SoftLabel":
        """Weights by class id, in this order."""
        return cls.model_validate({"class": [c for c, _ in weights], "weight": [w for _, w in weights]})


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


class Outcome(BaseModel):
    """What came of a planned row: known only once its image exists."""

    model_config = ConfigDict(extra="forbid")

    measured: Text = Field(default="{}", description="what generation measured, canonical JSON")
    clip_score: OptionalFloat = Field(default=None, description="cosine of image and prompt of its class")
    clip_margin: OptionalFloat = Field(default=None, description="that cosine minus the best other class's")
    judge_confidence: OptionalFloat = Field(default=None, description="the judge's probability of `judge_label`")
    judge_label: OptionalInt = Field(default=None, description="the class a judge classifier sees")
    source_similarity: OptionalFloat = Field(default=None, description="largest cosine to a source image")
    attempt: Int = Field(default=0, description="0 = first try; seeds of later tries differ")
    batch_shape: Int = Field(default=0, description="rows in the batch that the network saw; 0 for real rows")
    width: Int = Field(description="pixels")
    height: Int = Field(description="pixels")
    image_format: Text = Field(description="png, webp, jpeg, ... as stored")
    pixel_sha256: Text = Field(description="sha256 over width, height and the decoded RGB bytes")


class FailedRow(BaseModel):
    """A planned row that has no image, and why."""

    model_config = ConfigDict(frozen=True)

    row_id: str
    reason: str
    attempts: int


def row_urn(plan_id: str, row_id: str) -> str:
    """`urn:diffaug:<first 16 digits of the plan id>:<row id>`: who a row is, wherever it goes.

    A row id alone repeats across plans: it does not depend on the dataset. The plan is the one that the image was made
    under (column `plan_id`): images that another plan takes over keep their bytes, and so their name.
    """
    return f"urn:diffaug:{plan_id[:16]}:{row_id}"


def column(model: type[BaseModel], field: str) -> Column:
    """The `Column` of a field of `PlanRow` or `Outcome`."""
    return next(item for item in model.model_fields[field].metadata if isinstance(item, Column))


def column_types(model: type[BaseModel]) -> dict[str, str]:
    """Name -> Arrow type name of every field of `PlanRow` or `Outcome`."""
    return {name: column(model, name).dtype for name in model.model_fields}


def published_columns() -> dict[str, str]:
    """Name -> Arrow type name of every published column, in the order of `COLUMNS`."""
    types = {"image": "image", "plan_id": "string"} | column_types(PlanRow) | column_types(Outcome)
    return {name: types[name] for name in COLUMNS}
