"""Features of sources: each is encoded once, in batches that follow from the plan alone."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL.Image import Image
from small_runs import small_run

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.recipe import SHOTS, Scores
from diffaug_datasets.run.batch import Made
from diffaug_datasets.run.scores import Scorer
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Worker

SHAPE = 3
Make = Callable[[], tuple[Scorer, list[int]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Twenty rows of twenty images."""
    return small_run(tmp_path_factory.mktemp("sources") / "run", "genie")


def scorer_of(run: Run, scores: Scores) -> tuple[Scorer, list[int]]:
    """A new process's scorer, and how many images each call of its encoder was given."""
    worker = Worker(run)
    scorer, calls = Scorer(scores, worker.plan, worker.context, SHAPE), []
    encoder = scorer.encoder
    encode = encoder.image_features

    def counted(images: Any, **options: Any) -> torch.Tensor:
        images = list(images)
        calls.append(len(images))
        return encode(images, **options)

    encoder.image_features = counted  # type: ignore[method-assign]
    return scorer, calls


def test_a_batchs_new_sources_are_encoded_together_and_once(run: Run) -> None:
    used = list(dict.fromkeys(source for row in run.plan.rows for source in row.source_ids))
    scorer, calls = scorer_of(run, Scores(encoder="tiny"))
    for source in used * 2:
        scorer.source_features(source)
    assert calls == [SHAPE] * (len(used) // SHAPE) + [len(used) % SHAPE] * bool(len(used) % SHAPE)


def test_real_images_that_no_row_names_are_encoded_for_the_class_rule_alone(run: Run) -> None:
    scorer, calls = scorer_of(run, Scores(encoder="tiny", judge=SHOTS))
    assert scorer.class_means.shape[0] == 10
    batches = math.ceil(len({row.source_ids[0] for row in run.plan.real}) / SHAPE)
    assert len(calls) == 1 + batches  # one more tells how long features are


def test_the_class_rule_looks_at_the_features_that_the_scores_look_at(run: Run) -> None:
    scorer, calls = scorer_of(run, Scores(encoder="tiny", judge=SHOTS))
    _ = scorer.class_means, calls.clear()
    picture = torch.zeros(8, 8, 3, dtype=torch.uint8).numpy()
    row = run.plan.rows[0].model_copy(update={"source_ids": ()})
    assert scorer.score([Made(row, picture, {}, 0, SHAPE, 0)])[0].judge_label is not None
    assert calls == [SHAPE]  # the planned batch, once


def test_features_depend_neither_on_what_was_asked_before_nor_on_a_bad_neighbour(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = list(dict.fromkeys(source for row in run.plan.rows for source in row.source_ids))
    first, _ = scorer_of(run, Scores(encoder="tiny"))
    expected = {source: first.source_features(source) for source in used}
    other, _ = scorer_of(run, Scores(encoder="tiny"))
    read, bad = other.ctx.source, used[1]

    def source(wanted: str) -> Image:
        if wanted == bad:
            raise SourceError(f"source {wanted[:12]}: its bytes have changed")
        return read(wanted)

    monkeypatch.setattr(other.ctx, "source", source)
    for source in (s for s in used[::-1] if s != bad):
        assert torch.equal(other.source_features(source), expected[source])
    with pytest.raises(SourceError, match=bad[:12]):
        other.source_features(bad)
