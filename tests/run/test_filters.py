"""Known answers: images with their true labels are kept, with shuffled labels they are not, by every kind of filter."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small_runs import small_run

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.recipe import Filter, Recipe, Scores
from diffaug_datasets.run.assembly import decide
from diffaug_datasets.run.batch import Made
from diffaug_datasets.run.scores import Scorer
from diffaug_datasets.run.worker import Worker

CLASS_RULE = (Scores(encoder="tiny", judge="shots"), Filter(column="judge_label", equals_label=True))
ORACLE = (Scores(judge="tiny"), Filter(column="judge_label", equals_label=True))
CLIP = (Scores(encoder="tiny"), Filter(column="clip_margin", minimum=0.0))
FILTERS = {"real_filter": CLASS_RULE, "oracle": ORACLE, "clip": CLIP}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """Of a run of ten classes with five real images each."""
    config = {"num_inference_steps": 8, "guidance_scale": 4.0}
    changes = {"protocol": "5shot", "per_class": 4, "batch_size": 10, "config": config}
    return Worker(small_run(tmp_path_factory.mktemp("filters") / "run", "realgen", **changes))


@pytest.fixture(scope="module")
def made(worker: Worker) -> list[Made]:
    """Forty images, four a class, in eight steps."""
    return [one for i in range(0, 40, 10) for one in worker._job.make(worker.plan.rows[i : i + 10])[0]]


def kept(worker: Worker, made: list[Made], kind: str, labels: list[int]) -> float:
    """The share that stays under these labels."""
    scores, rule = FILTERS[kind]
    relabelled = [
        Made(one.row.model_copy(update={"label": label}), one.pixels, {}, 0, 10)
        for one, label in zip(made, labels, strict=True)
    ]
    scored = Scorer(scores, worker.plan, worker._ctx, 10).score(relabelled)
    empty: dict[str, Any] = dict.fromkeys(("clip_score", "clip_margin", "judge_confidence", "judge_label"))
    rows = [
        {**empty, **columns, "row_id": one.row.row_id, "label": one.row.label}
        for one, columns in zip(relabelled, scored, strict=True)
    ]
    return 1 - len(decide(rows, [rule])) / len(rows)


@pytest.mark.parametrize("kind", FILTERS)
def test_true_labels_are_kept_and_shuffled_ones_are_not(worker: Worker, made: list[Made], kind: str) -> None:
    labels = [one.row.label for one in made]
    assert kept(worker, made, kind, labels) >= 0.8
    shuffled = random.Random(0).sample(labels, len(labels))
    assert Counter(shuffled) == Counter(labels)
    assert kept(worker, made, kind, shuffled) <= 0.2


def test_a_class_without_real_images_is_never_the_nearest(worker: Worker, made: list[Made]) -> None:
    scorer = Scorer(CLASS_RULE[0], worker.plan, worker._ctx, 10)
    scorer._shots[3] = float("nan")
    scored = scorer.score(made)
    assert 3 not in {columns["judge_label"] for columns in scored}
    assert all(0 < columns["judge_confidence"] <= 1 for columns in scored)


def test_the_class_rule_needs_an_encoder() -> None:
    with pytest.raises(RecipeError, match="judge: shots compares features, so give an encoder too"):
        Recipe.from_dict({"builder": "fashion", "method": "txt2img", "scores": {"judge": "shots"}})


def test_the_shipped_recipe_is_the_class_rule() -> None:
    import diffaug_datasets

    recipe = Recipe.from_yaml(Path(diffaug_datasets.__file__).parent / "recipes" / "real_filter.yaml")
    assert (recipe.method, recipe.scores) == ("txt2img", CLASS_RULE[0])
    assert [f.model_copy(update={"min_keep": 0}) for f in recipe.filters] == [CLASS_RULE[1]]
