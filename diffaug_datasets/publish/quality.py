"""What was measured of the published images: means over kept rows; what nobody measured is absent."""

import pyarrow as pa
import pyarrow.compute as pc

from diffaug_datasets.publish.provenance import SHOWN

TITLES = {
    "judge_accuracy": "label accuracy: share of images in which the judge sees their label",
    "judge_confidence": "probability that the judge gives the class it sees, mean",
    "clip_score": "cosine of image and prompt of its class, mean",
    "clip_margin": "margin: that cosine minus the best other class's, mean",
    "source_similarity": "cosine to the nearest of the image's own sources, mean",
    "source_similarity_max": "the same, largest",
    "test_similarity": "cosine to the nearest test image, mean",
    "test_similarity_max": "the same, largest",
    "inversion_psnr": "PSNR in dB of real images, inverted and denoised again, mean",
}
JUDGED, INVERTED = ("judge_accuracy", "judge_confidence"), ("inversion_psnr",)
MEANS = ("judge_confidence", "clip_score", "clip_margin", "source_similarity", "test_similarity")
LARGEST = ("source_similarity", "test_similarity")
DIGITS = 4


COLUMNS = ("origin", "status", "label", "judge_label", *MEANS, "inversion_psnr")


def quality(table: pa.Table) -> dict[str, float]:
    """Name -> value, rounded to 4 digits, of a provenance (at least those of `COLUMNS` that it has); see `TITLES`."""
    real, counted = pc.field("origin") == "real", pc.field("status").isin(SHOWN)
    made = table.filter(~real & counted)
    judged = made.filter(~pc.field("judge_label").is_null())
    found = {"judge_accuracy": _mean(pc.equal(judged.column("label"), judged.column("judge_label")))}
    found |= {name: _mean(made.column(name)) for name in MEANS if name in table.column_names}
    found |= {f"{name}_max": pc.max(made.column(name)).as_py() for name in LARGEST if name in table.column_names}
    if "inversion_psnr" in table.column_names:
        found["inversion_psnr"] = _mean(table.filter(real).column("inversion_psnr"))
    return {name: round(value, DIGITS) for name in TITLES if (value := found.get(name)) is not None}


def _mean(column: pa.ChunkedArray) -> float | None:
    value: float | None = pc.mean(column.cast(pa.float64())).as_py()
    return value
