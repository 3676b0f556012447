"""Who says what images show: which candidate is taken, how it does on real images, where its verdicts stand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import small_run

from diffaug_datasets.core.images import decode_image
from diffaug_datasets.models.encoders import Encoder
from diffaug_datasets.run import oracle
from diffaug_datasets.run.assembly import finished
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.scores import measured_rows
from diffaug_datasets.run.shown import Shown
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Worker, WorkerOptions

ENCODED = {"encoder": "tiny", "judge": None}


def shown_of(folder: Path, **changes: Any) -> tuple[Run, Shown]:
    run = small_run(folder, "txt2img", **changes)
    execute(run, WorkerOptions(), workers=1)
    done = finished(run)
    assert done is not None and done.shown is not None
    return run, done.shown


def made_features(run: Run, encoder: Encoder) -> dict[str, np.ndarray]:
    """Row id -> features of its image, outside of the engine's path."""
    rows = [row for shard in run.plan.shards() for row in run.table(shard).to_pylist()]
    images = [decode_image(row["image"]["bytes"]) for row in rows]
    features = encoder.image_features(images, batch_shape=3).numpy()
    return dict(zip([row["row_id"] for row in rows], features, strict=True))


def test_the_recipes_judge_is_taken_from_its_column(tmp_path: Path) -> None:
    run, shown = shown_of(tmp_path / "run")
    assert shown.oracle is not None
    assert (shown.oracle.kind, shown.oracle.column) == ("judge", "judge_label")
    assert shown.oracle.real.of == "training" and sum(shown.oracle.real.images) == 20
    rows = [row for shard in run.plan.shards() for row in run.table(shard).to_pylist()]
    assert sum(one.shown for one in shown.classes) == sum(row["label"] == row["judge_label"] for row in rows)
    assert measured_rows(run) == {}


def test_an_encoder_with_texts_is_taken_by_its_margin(tmp_path: Path) -> None:
    run, shown = shown_of(tmp_path / "run", scores=ENCODED)
    assert shown.oracle is not None
    assert (shown.oracle.kind, shown.oracle.column) == ("zero-shot", "clip_margin")
    encoder = Encoder.load("tiny")
    texts = encoder.text_features([f"a photo of a {name}" for name in run.plan.header.prompt_names]).numpy()
    labels = {row.row_id: row.label for row in run.plan.rows}
    seen = {row_id: int((texts @ vector).argmax()) for row_id, vector in made_features(run, encoder).items()}
    assert sum(one.shown for one in shown.classes) == sum(seen[row_id] == labels[row_id] for row_id in seen)


def test_an_encoder_without_texts_learns_from_the_real_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written anew here: class means of the real images, each real image against the mean of the others."""
    monkeypatch.setattr(oracle.Oracles, "_zero_shot", lambda self: None)
    run, shown = shown_of(tmp_path / "run", scores=ENCODED)
    assert shown.oracle is not None
    assert (shown.oracle.kind, shown.oracle.column) == ("shots", "seen_label")
    encoder = Encoder.load("tiny")
    real = [row for shard in run.plan.real_shards() for row in run.table(shard).to_pylist()]
    vectors = encoder.image_features([decode_image(row["image"]["bytes"]) for row in real], batch_shape=3).numpy()
    labels = np.array([row["label"] for row in real])

    def nearest(vector: np.ndarray, left_out: int | None = None) -> int:
        others = [i for i in range(len(real)) if i != left_out]
        means = [vectors[[i for i in others if labels[i] == label]].mean(0) for label in range(10)]
        return int(np.argmax([mean @ vector / np.linalg.norm(mean) for mean in means]))

    right = sum(nearest(vectors[i], i) == labels[i] for i in range(len(real)))
    assert (sum(shown.oracle.real.right), sum(shown.oracle.real.images)) == (right, len(real))
    seen = {row_id: nearest(vector) for row_id, vector in made_features(run, encoder).items()}
    assert {row_id: scores.seen_label for row_id, scores in measured_rows(run).items()} == seen
    planned = {row.row_id: row.label for row in run.plan.rows}
    assert sum(one.shown for one in shown.classes) == sum(seen[row_id] == planned[row_id] for row_id in seen)


def test_an_image_alone_in_its_class_cannot_be_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle.Oracles, "_zero_shot", lambda self: None)
    _, shown = shown_of(tmp_path / "run", scores=ENCODED, protocol="1shot")
    assert shown.oracle is not None and not any(shown.oracle.real.images)
    assert "not tried on real images" in list(shown.lines())[1]


def test_an_oracle_that_is_mostly_wrong_is_not_listened_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle.Oracle, "is_poor", property(lambda self: True))
    _, shown = shown_of(tmp_path / "run", scores=ENCODED)
    assert shown.value is None
    assert "is right on no more than " in shown.headline() and "real training images" in shown.headline()


def test_without_an_encoder_nothing_is_claimed(tmp_path: Path) -> None:
    run, shown = shown_of(tmp_path / "run", scores={"encoder": None, "judge": None})
    assert shown.headline() == (
        "shows its class: not known, for the recipe names no encoder; scores.encoder (a CLIP model of the Hub, or its "
        "folder) gives the number"
    )
    assert measured_rows(run) == {}


def test_with_test_images_it_is_tried_on_those_and_says_what_it_sees(tmp_path: Path) -> None:
    run, shown = shown_of(tmp_path / "run", scores=ENCODED, include_test=True, per_class=1)
    assert shown.oracle is not None
    assert (shown.oracle.column, shown.oracle.real.of, sum(shown.oracle.real.images)) == ("seen_label", "test", 1000)
    rows = measured_rows(run)
    assert all(scores.seen_label is not None and scores.test_similarity is not None for scores in rows.values())
    Worker(run).measure_quality()  # done already, so that nothing is looked at twice
    assert measured_rows(run) == rows
