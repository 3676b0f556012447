"""What the demo's images do to a classifier on frozen features, against numbers measured with scikit-learn alone."""

from pathlib import Path

import pytest

from diffaug_datasets.evaluate.bench import bench
from diffaug_datasets.evaluate.runs import Doing
from diffaug_datasets.evaluate.suite import Bench
from diffaug_datasets.models.encoders import Encoder

WITHIN = 0.003  # other processors move single pixels


@pytest.mark.full
def test_the_demo_helps_as_scikit_learn_alone_says(tmp_path: Path) -> None:
    """Eight images per class beside fifty real ones, logistic regression, C 1, every image counts 1."""
    spec = Bench.from_dict(
        {
            "sets": ["fashion_5shot_txt2img"],
            "draws": 1,
            "changes": {"per_class": 8},
            "controls": ["real"],
            "mixing": {"rule": "concatenate", "same_mass": False},
        }
    )
    doing = Doing(runs=tmp_path / "none")
    answer = bench(spec, [Encoder.load("tiny")], tmp_path / "bench", cache=tmp_path / "cache", doing=doing)
    accuracy = {result.receipt.cell.line: result.receipt.accuracy for result in answer.results}
    assert accuracy == {"real": pytest.approx(0.831, abs=WITHIN), "txt2img": pytest.approx(0.861, abs=WITHIN)}
