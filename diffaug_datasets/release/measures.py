"""`measures.json`: what `measure` found of a run, kept in its folder, shown in its report, published with its card.

Numbers hold for the rows they were taken of: the file names the plan and the rows that the selection kept, and whoever
reads it is told where these are others by now.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from diffaug_datasets.core.errors import PublishError, RunError, one_line
from diffaug_datasets.core.files import read_text, write_text
from diffaug_datasets.core.identity import digest
from diffaug_datasets.run.store import Run

MEASURES_FILE = "measures.json"
SELECTION_FILE = "selection.parquet"
MEASURES_SCHEMA = 1

# Name of a measure -> its title, and where better lies: up, down, or neither (compare it with the floor).
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "test_copies": "test images among the synthetic ones (0)",
        "near_test_copies": "look like test images (0)",
        "exact_copies": "exact copies of real images (0)",
        "frechet": "Frechet distance (down)",
        "kernel": "kernel distance (down)",
        "precision": "precision (up)",
        "recall": "recall (up)",
        "density": "density (up)",
        "coverage": "coverage (up)",
        "two_sample_accuracy": "linear classifier, synthetic or real (.5 = cannot tell)",
        "vendi": "Vendi score: effective number of images",
        "mean_pairwise_distance": "mean distance of pairs",
        "authenticity": "authenticity: farther from real than real from real (up)",
        "memorisation_ratio": "distance to the nearest real / of that to its nearest",
        "clip_score": "CLIP score (up)",
        "clip_margin": "CLIP margin to the next class (up)",
        "judge_agreement": "label accuracy by the judge (up)",
        "probe_agreement": "label accuracy by a probe of real test images (up)",
        "inversion_psnr": "PSNR in dB of real images inverted and denoised (up)",
    }
)


class Interval(NamedTuple):
    """A number and the ends of its 95 % confidence interval, or of what it ranged over in several draws."""

    value: float
    low: float
    high: float


class Measure(BaseModel):
    """One number of a set, or why there is none.

    `of`: a class, None for all. `n`: images that it is of. `floor`: mean, lowest and highest of what real images give
    at the same n. `interval`: the ends of the 95 % interval, where it is known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    of: str | None
    n: int
    value: float | None = Field(allow_inf_nan=False)
    interval: tuple[float, float] | None = None
    floor: Interval | None = None
    withheld: str = ""


class Measured(BaseModel):
    """All measures of a set by one encoder.

    `reference`: which real images they were compared with. `judge`: the classifier whose word `judge_agreement` counts.
    `warnings`: leaks, which make the numbers look better than they are; `notes`: what else is known of the models.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: str
    encoder: str
    judge: str
    synthetic: int
    reference: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    measures: tuple[Measure, ...]

    def get(self, name: str, of: str | None = None) -> Measure:
        """The measure of that name, of a class or of all.

        Raises:
            KeyError: there is none.
        """
        for measure in self.measures:
            if (measure.name, measure.of) == (name, of):
                return measure
        raise KeyError(name)


class MeasuresFile(BaseModel):
    """What was measured of a plan's rows, by each encoder in the order in which they were asked.

    `selection`: digest of the rows that were kept, see `selection_digest`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = MEASURES_SCHEMA
    plan_id: str
    selection: str
    measured: tuple[Measured, ...]

    def text(self) -> str:
        """The file as it is written."""
        return self.model_dump_json(indent=1) + "\n"

    def with_also(self, measured: Measured) -> "MeasuresFile":
        """The same with what one encoder found, in the place of what it found before.

        Its numbers of single classes stay where it was now asked for all images alone.
        """
        others = [one for one in self.measured if one.encoder != measured.encoder]
        before = next((one for one in self.measured if one.encoder == measured.encoder), measured)
        if all(one.of is None for one in measured.measures):
            of_classes = [one for one in before.measures if one.of is not None]
            measured = measured.model_copy(update={"measures": (*measured.measures, *of_classes)})
        return self.model_copy(update={"measured": (*others, measured)})


class KeptMeasures(NamedTuple):
    """The measures of a run, None where there are none that hold; `note`: why what lies there is not used."""

    file: MeasuresFile | None
    note: str


def cells(measure: Measure) -> tuple[str, str, str]:
    """Value, interval and floor as text; a withheld measure has its reason in the place of the floor."""
    if measure.value is None:
        return "withheld", "", measure.withheld
    interval, floor = measure.interval, measure.floor
    return (
        f"{measure.value:.4g}",
        f"{interval[0]:.3g} to {interval[1]:.3g}" if interval else "",
        f"{floor.value:.3g} ({floor.low:.3g} to {floor.high:.3g})" if floor else "",
    )


def read_measures(run: Run) -> KeptMeasures:
    """The measures in a run folder, if they are of its plan and of the rows that it keeps today."""
    path, place = run.fetched(MEASURES_FILE), f"{run.where}/{MEASURES_FILE}"
    again = f"it is left out; `diffaug measure {run.where}` writes it anew."
    try:
        kept = MeasuresFile.model_validate_json(read_text(path))
        selection = selection_digest(run.fetched(SELECTION_FILE))
    except FileNotFoundError:
        return KeptMeasures(None, "")
    except (OSError, ValueError, PublishError) as error:
        return KeptMeasures(None, f"{place}: cannot be read ({one_line(error)}); {again}")
    if reason := differs(kept, run.plan.id, selection):
        return KeptMeasures(None, f"{place}: {reason}; {again}")
    return KeptMeasures(kept, "")


def differs(kept: MeasuresFile, plan_id: str, selection: str) -> str:
    """Why measures are not those of a plan and the rows that it keeps; '' where they are."""
    if kept.schema_version > MEASURES_SCHEMA:
        return f"has schema {kept.schema_version}, this version reads up to {MEASURES_SCHEMA}"
    if kept.plan_id != plan_id:
        return f"belongs to plan {kept.plan_id[:16]}, and this is plan {plan_id[:16]}"
    if kept.selection != selection:
        return "belongs to another selection of this plan's rows"
    return ""


def keep_measures(run: Run, measured: Measured) -> Path:
    """Write what one encoder found into the run, beside what others have found of the same rows.

    Raises:
        RunError: the run cannot be written, or the selection cannot be read.
    """
    try:
        selection = selection_digest(run.fetched(SELECTION_FILE))
    except PublishError as error:
        raise RunError(str(error)) from None
    kept = read_measures(run).file or MeasuresFile(plan_id=run.plan.id, selection=selection, measured=())
    text = kept.with_also(measured.model_copy(update={"where": run.plan.header.name})).text()
    path = run.folder / MEASURES_FILE
    write_text(path, text)
    run.send(MEASURES_FILE)
    return path


def selection_digest(path: Path) -> str:
    """The digest (64 hex digits) of the ids of the rows that a `selection.parquet` keeps, in their order.

    Raises:
        FileNotFoundError: there is none.
        PublishError: it cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        table = pq.read_table(path, columns=["row_id", "keep"])
        return digest(table.filter(table.column("keep")).column("row_id").to_pylist())
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise PublishError(f"{path}: cannot be read ({one_line(error)}); assemble the run again.") from None
