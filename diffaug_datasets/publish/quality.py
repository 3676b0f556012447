"""What was measured of the published images: means over the kept synthetic rows; what nobody measured is absent."""

from statistics import fmean
from typing import Any

from diffaug_datasets.run.assembly import Assembled
from diffaug_datasets.run.features import read_stream
from diffaug_datasets.run.store import Run

MEASURED = ("label", "judge_label", "judge_confidence", "clip_score", "clip_margin", "source_similarity")
TITLES = {
    "judge_accuracy": "share of images in which the judge sees their label",
    "judge_confidence": "mean probability that the judge gives what it sees",
    "clip_score": "mean cosine of image and prompt of its class",
    "clip_margin": "mean of that cosine minus the best other class's",
    "source_similarity": "mean of the largest cosine to a source image",
    "source_similarity_max": "the largest of those",
}
DIGITS = 4


def quality(run: Run, assembled: Assembled) -> dict[str, float]:
    """Name -> value, rounded to 4 digits; see `TITLES`."""
    rows: list[dict[str, Any]] = []
    for file in assembled.files:
        if file.origin != "real":
            rows += read_stream(str(run.folder / file.path)).select(MEASURED).to_pylist()
    return summary(rows)


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The same of rows that hold the columns `MEASURED`."""
    judged = [row for row in rows if row["judge_label"] is not None]
    found = {"judge_accuracy": [float(row["judge_label"] == row["label"]) for row in judged]}
    for column in MEASURED[2:]:
        found[column] = [row[column] for row in rows if row[column] is not None]
    means = {name: fmean(values) for name, values in found.items() if values}
    if found["source_similarity"]:
        means["source_similarity_max"] = max(found["source_similarity"])
    return {name: round(means[name], DIGITS) for name in TITLES if name in means}
