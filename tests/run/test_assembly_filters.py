"""Known answers: images with their true labels are kept, with shuffled labels they are not, by every kind of filter."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from small_runs import small_run

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.recipe import Filter, Recipe, Scores
from diffaug_datasets.run.assembly import ScoredRow, scored_rows, select_rows
from diffaug_datasets.run.batch import Made
from diffaug_datasets.run.scores import ImageScores, Scorer
from diffaug_datasets.run.shards import arrow_schema, made_row
from diffaug_datasets.run.worker import Worker

CLASS_RULE = (Scores(encoder="tiny", judge="shots"), Filter(column="judge_label", equals_label=True))
ORACLE = (Scores(judge="tiny"), Filter(column="judge_label", equals_label=True))
CLIP = (Scores(encoder="tiny"), Filter(column="clip_margin", minimum=0.0))
ZERO_SHOT = (Scores(encoder="tiny", probability=True), Filter(column="class_probability", minimum=0.1))
FILTERS = {"real_filter": CLASS_RULE, "oracle": ORACLE, "clip": CLIP, "zero_shot": ZERO_SHOT}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """Of a run of ten classes with five real images each."""
    config = {"num_inference_steps": 8, "guidance_scale": 4.0}
    changes = {"protocol": "5shot", "per_class": 4, "batch_size": 10, "config": config}
    return Worker(small_run(tmp_path_factory.mktemp("filters") / "run", "realgen", **changes))


@pytest.fixture(scope="module")
def made(worker: Worker) -> list[Made]:
    """Forty images, four a class, in eight steps."""
    return [one for i in range(0, 40, 10) for one in worker.job.make(worker.plan.rows[i : i + 10])[0]]


def batchwise(scorer: Scorer, made: list[Made]) -> list[ImageScores]:
    """The scores of forty images, batch by batch."""
    return [scores for i in range(0, len(made), 10) for scores in scorer.score(made[i : i + 10])]


def stored(worker: Worker, made: list[Made], scores: list[ImageScores], rule: Filter) -> list[ScoredRow]:
    """What a filter sees of these images once they lie in a shard."""
    rows = [made_row(one, score, "x", "png").columns() for one, score in zip(made, scores, strict=True)]
    table = pa.Table.from_pylist(rows, arrow_schema(worker.plan.header.class_names))
    return scored_rows([table], [rule])


def dropped(rows: Sequence[ScoredRow], filters: Sequence[Filter]) -> Mapping[str, str]:
    """Row id -> reason of every row that a filter drops."""
    return select_rows(rows, filters).dropped


def kept(worker: Worker, made: list[Made], kind: str, labels: list[int]) -> float:
    """The share that stays under these labels."""
    scores, rule = FILTERS[kind]
    relabelled = [
        replace(one, row=one.row.model_copy(update={"label": label}), measured={})
        for one, label in zip(made, labels, strict=True)
    ]
    found = batchwise(Scorer(scores, worker.plan, worker.context, 10), relabelled)
    rows = stored(worker, relabelled, found, rule)
    return 1 - len(dropped(rows, [rule])) / len(rows)


@pytest.mark.parametrize("kind", FILTERS)
def test_true_labels_are_kept_and_shuffled_ones_are_not(worker: Worker, made: list[Made], kind: str) -> None:
    labels = [one.row.label for one in made]
    assert kept(worker, made, kind, labels) >= 0.8
    shuffled = random.Random(0).sample(labels, len(labels))
    assert Counter(shuffled) == Counter(labels)
    assert kept(worker, made, kind, shuffled) <= 0.2


def test_the_zero_shot_probability_is_a_softmax_over_the_class_prompts(worker: Worker, made: list[Made]) -> None:
    """He et al. keep p > 1/C; the reference side is the encoder alone."""
    import torch

    from diffaug_datasets.models.encoders import Encoder

    encoder = Encoder.load("tiny")
    pictures = [Image.fromarray(one.pixels) for one in made[:10]]
    texts = encoder.text_features([f"a photo of a {name}" for name in worker.plan.header.prompt_names])
    cosines = encoder.image_features(pictures, batch_shape=10) @ texts.T
    weights = torch.exp(100 * (cosines - cosines.amax(1, keepdim=True)))
    expected = [float(row[one.row.label] / row.sum()) for row, one in zip(weights, made, strict=False)]
    found = Scorer(ZERO_SHOT[0], worker.plan, worker.context, 10).score(made[:10])
    assert [scores.probabilities["class_probability"] for scores in found] == pytest.approx(expected, abs=1e-5)
    assert min(expected) < 0.5 < max(expected)
    assert not any(one.probabilities for one in Scorer(CLIP[0], worker.plan, worker.context, 10).score(made[:2]))


def test_the_caption_probability_is_a_softmax_over_two_texts(worker: Worker, made: list[Made]) -> None:
    """Diff-Mix's code drops the lowest tenth; the reference side is the encoder alone."""
    import torch

    from diffaug_datasets.models.encoders import Encoder

    captions = ("a photo of a trouser", "a photo of a bag")
    encoder = Encoder.load("tiny")
    features = encoder.image_features([Image.fromarray(one.pixels) for one in made[:10]], batch_shape=10)
    yes, no = (features @ encoder.text_features(captions).T).T
    expected = (1 / (1 + torch.exp(100 * (no - yes)))).tolist()
    scorer = Scorer(Scores(encoder="tiny", probability=True, captions=captions), worker.plan, worker.context, 10)
    scores = scorer.score(made[:10])
    assert [one.probabilities["caption_probability"] for one in scores] == pytest.approx(expected, abs=1e-5)
    assert all({"class_probability", "caption_probability"} == set(one.probabilities) for one in scores)
    by_label = {one.row.label: p for one, p in zip(made, expected, strict=False)}
    assert by_label[1] > 0.9  # trousers
    rule = Filter(column="caption_probability", lowest=0.1)
    rows = stored(worker, made[:10], scores, rule)
    worst = rows[min(range(10), key=expected.__getitem__)]["row_id"]
    assert set(dropped(rows, [rule])) == {worst}


def test_texts_are_compared_by_an_encoder_and_differ() -> None:
    for scores, told in (
        ({"probability": True}, "probability compares images with class prompts"),
        ({"captions": ["a bird", "no bird"]}, "captions compares images with texts"),
    ):
        with pytest.raises(RecipeError, match=f"{told}, so give an encoder too"):
            Recipe.from_dict({"builder": "fashion", "method": "txt2img", "scores": scores})
    for texts in (["a bird", "a bird"], ["a bird", " "]):
        with pytest.raises(RecipeError, match=r"scores\.captions: .*expected two different texts"):
            scores = {"encoder": "tiny", "captions": texts}
            Recipe.from_dict({"builder": "fashion", "method": "txt2img", "scores": scores})


@pytest.mark.parametrize(
    ("column", "key"),
    [
        ("clip_margin", "encoder"),
        ("judge_label", "judge"),
        ("class_probability", "probability"),
        ("caption_probability", "captions"),
    ],
)
def test_a_filter_on_what_nobody_measures_is_refused(column: str, key: str) -> None:
    filters = [{"column": column, "minimum": 0.1}]
    with pytest.raises(RecipeError, match=rf"{column} is not measured; set scores\.{key}\."):
        Recipe.from_dict({"builder": "fashion", "method": "txt2img", "filters": filters})


def test_a_row_that_min_keep_alone_keeps_is_flagged() -> None:
    rows = [{"row_id": f"{i}", "label": i // 3, "clip_margin": i / 10 - 0.35} for i in range(6)]
    rule = Filter(column="clip_margin", minimum=0.0, min_keep=2)
    selection = select_rows(rows, [rule])
    assert set(selection.dropped) == {"0", "3"}
    assert set(selection.spared) == {"1", "2"}
    assert selection.reason("1") == selection.reason("0") == '{"column":"clip_margin","min_keep":2,"minimum":0.0}'
    assert selection.reason("5") is None
    again = select_rows(rows, [rule, Filter(column="clip_margin", minimum=-0.2)])
    assert "1" in again.dropped and set(again.spared) == {"2"}  # a later rule may still drop it


BEST_FIRST = {
    "above": (Filter(column="source_similarity", maximum=0.9, min_keep=1), "source_similarity", (0.99, 0.91, 0.95)),
    "below": (Filter(column="clip_score", minimum=0.3, min_keep=1), "clip_score", (0.1, 0.29, 0.2)),
    "outside": (Filter(column="clip_score", minimum=0.3, maximum=0.4, min_keep=1), "clip_score", (0.1, 0.41, 0.2)),
    "lowest": (Filter(column="clip_score", lowest=0.999, min_keep=1), "clip_score", (-0.3, -0.1, -0.2)),
    "label": (Filter(column="judge_label", equals_label=True, min_keep=1), "judge_confidence", (0.9, 0.4, 0.8)),
}


@pytest.mark.parametrize("case", BEST_FIRST)
def test_min_keep_saves_the_row_that_came_nearest_to_passing(case: str) -> None:
    """The middle row of each; a wrong class of a higher number is no better one."""
    rule, column, values = BEST_FIRST[case]
    rows = [
        {"row_id": f"{i}", "label": 0, "judge_label": 9 - i, "clip_score": 0.0, column: value}
        for i, value in enumerate(values)
    ]
    if case == "lowest":
        rows.append({**rows[0], "row_id": "3", "label": 1, "clip_score": 1.0})
    assert "1" not in dropped(rows, [rule]) and {"0", "2"} <= dropped(rows, [rule]).keys()


def test_a_class_without_real_images_is_never_the_nearest(worker: Worker, made: list[Made]) -> None:
    scorer = Scorer(CLASS_RULE[0], worker.plan, worker.context, 10)
    scorer.class_means[3] = float("nan")
    scores = batchwise(scorer, made)
    assert 3 not in {one.judge_label for one in scores}
    assert all(one.judge_confidence and 0 < one.judge_confidence <= 1 for one in scores)


def test_a_share_of_the_lowest_is_dropped() -> None:
    """Diff-Mix's filter; ties go by row id, rows without a score stay and do not count."""
    scores = [0.3, 0.1, None, 0.2, 0.1, 0.5, 0.4, 0.9, 0.8, 0.7, 0.6]
    rows = [{"row_id": f"{i:02d}", "label": i % 2, "clip_score": score} for i, score in enumerate(scores)]
    for share, lost in ((0.1, {"01"}), (0.29, {"01", "04"}), (0.3, {"01", "04", "03"})):
        assert dropped(rows, [Filter(column="clip_score", lowest=share)]).keys() == lost
    spared = dropped(rows, [Filter(column="clip_score", lowest=0.5, min_keep=4)])
    assert spared.keys() == {"00", "01", "04"}
    after = [Filter(column="clip_score", minimum=0.15), Filter(column="clip_score", lowest=0.25)]
    assert dropped(rows, after).keys() == {"01", "04", "03", "00"}
    assert '"lowest":0.25' in dropped(rows, after)["03"]


def test_the_class_rule_needs_an_encoder() -> None:
    with pytest.raises(RecipeError, match="judge: shots compares features, so give an encoder too"):
        Recipe.from_dict({"builder": "fashion", "method": "txt2img", "scores": {"judge": "shots"}})


SHIPPED = {
    "real_filter": ("txt2img", *CLASS_RULE),
    "clip_filter": ("txt2img", *ZERO_SHOT),
    "caption_filter": (
        "real_mix",
        Scores(encoder="tiny", captions=("a photo with a garment on it", "a photo without a garment on it")),
        Filter(column="caption_probability", lowest=0.1),
    ),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_recipes_are_the_rules_of_the_papers(name: str) -> None:
    import diffaug_datasets

    recipe = Recipe.from_yaml(Path(diffaug_datasets.__file__).parent / "recipes" / f"{name}.yaml")
    rules = [rule.model_copy(update={"min_keep": 0}) for rule in recipe.filters]
    assert (recipe.method, recipe.scores, *rules) == SHIPPED[name]
