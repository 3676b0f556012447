"""What was measured of the published images: means over kept rows; what nobody measured is absent."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

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


def quality(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Name -> value, rounded to 4 digits, of the rows of a provenance; see `TITLES`."""
    made = [row for row in rows if row["origin"] != "real" and row["status"] in SHOWN]
    judged = [row for row in made if row["judge_label"] is not None]
    found = {"judge_accuracy": [float(row["judge_label"] == row["label"]) for row in judged]}
    found |= {name: _known(made, name) for name in MEANS}
    found |= {f"{name}_max": [max(found[name])] for name in LARGEST if found[name]}
    found["inversion_psnr"] = _known([row for row in rows if row["origin"] == "real"], "inversion_psnr")
    return {name: round(fmean(found[name]), DIGITS) for name in TITLES if found.get(name)}


def _known(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]
