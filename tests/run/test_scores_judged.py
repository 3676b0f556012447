"""What a judge and several texts say of images: ALIA's two filters and SaSPA's, against the networks alone."""

import numpy as np
import pytest
from PIL import Image
from small_runs import small_run

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.recipe import Recipe, Scores
from diffaug_datasets.models.encoders import Encoder, Judge
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare
from diffaug_datasets.run.batch import Made
from diffaug_datasets.run.scores import Scorer
from diffaug_datasets.run.worker import Worker

pytestmark = pytest.mark.xdist_group("alia")
TEXTS = ("a photo of a bag", "a photo of a trouser", "a photo of an object", "a painting")


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """Of a run of ten classes with two real images each."""
    changes = {"per_class": 1, "batch_size": 7, "config": {"num_inference_steps": 4}}
    return Worker(small_run(tmp_path_factory.mktemp("judged") / "run", "alia", **changes))


@pytest.fixture(scope="module")
def made(worker: Worker) -> list[Made]:
    """Seven images."""
    return worker.job.make(worker.plan.rows[:7])[0]


def test_the_confidence_is_held_against_that_in_real_images_of_the_class(worker: Worker, made: list[Made]) -> None:
    """The threshold is a mean over the class's own images, of the class's own probability; the top one is compared."""
    judge = Judge.load("tiny")
    classes = worker.plan.header.class_names
    columns = [judge.class_names.index(name) for name in classes]
    real = [row for row in worker.plan.real if row.split == "train"]
    alone = [judge.probabilities([worker.context.source(row.source_ids[0])], batch_shape=1)[0, columns] for row in real]
    scorer = Scorer(Scores(judge="tiny", confidence_margin=True), worker.plan, worker.context, 7)
    for one, scores in zip(made, scorer.score(made), strict=True):
        own = [float(p[one.row.label]) for row, p in zip(real, alone, strict=True) if row.label == one.row.label]
        assert len(own) == 2
        seen = judge.probabilities([Image.fromarray(one.pixels)], batch_shape=1)[0, columns]
        wanted = float(seen.max()) - sum(own) / 2
        assert scores.probabilities == {"confidence_margin": pytest.approx(wanted, abs=1e-5)}
        assert scores.judge_confidence == pytest.approx(float(seen.max()), abs=1e-5)


def test_a_class_without_real_images_has_no_threshold(worker: Worker, made: list[Made]) -> None:
    scorer = Scorer(Scores(encoder="tiny", judge="shots", confidence_margin=True), worker.plan, worker.context, 7)
    scorer._training = [row for row in scorer._training if row.label != made[0].row.label]  # one class less
    found = scorer.score(made)
    assert ["confidence_margin" in one.probabilities for one in found] == [
        one.row.label != made[0].row.label for one in made
    ]


def test_the_rank_of_the_label_counts_the_likelier_classes(worker: Worker, made: list[Made]) -> None:
    judge = Judge.load("tiny")
    columns = [judge.class_names.index(name) for name in worker.plan.header.class_names]
    scorer = Scorer(Scores(judge="tiny", label_rank=True), worker.plan, worker.context, 7)
    for label in (0, 8):
        rows = [one.row.model_copy(update={"label": label}) for one in made]
        relabelled = [Made(row, one.pixels, {}, 0, 7, one.place) for row, one in zip(rows, made, strict=True)]
        ranks = []
        for one in made:
            seen = np.array(judge.probabilities([Image.fromarray(one.pixels)], batch_shape=1)[0, columns])
            ranks.append(1 + int(np.argsort(np.argsort(-seen))[label]))
        assert [one.probabilities["label_rank"] for one in scorer.score(relabelled)] == ranks
        assert len(set(ranks)) > 1


def test_the_first_text_is_held_against_the_best_other(worker: Worker, made: list[Made]) -> None:
    encoder = Encoder.load("tiny")
    features = np.array(encoder.image_features([Image.fromarray(one.pixels) for one in made], batch_shape=7))
    cosines = features @ np.array(encoder.text_features(list(TEXTS))).T
    wanted = cosines[:, 0] - cosines[:, 1:].max(1)
    found = Scorer(Scores(encoder="tiny", captions=TEXTS), worker.plan, worker.context, 7).score(made)
    assert [one.probabilities["caption_margin"] for one in found] == pytest.approx(wanted.tolist(), abs=1e-5)
    shares = np.exp(100 * (cosines - cosines.max(1, keepdims=True)))
    first = (shares[:, 0] / shares.sum(1)).tolist()
    assert [one.probabilities["caption_probability"] for one in found] == pytest.approx(first, abs=1e-4)
    assert {value >= 0 for value in wanted} == {True, False}
    two = Scorer(Scores(encoder="tiny", captions=TEXTS[:2]), worker.plan, worker.context, 7).score(made)
    assert {tuple(one.probabilities) for one in two} == {("caption_probability",)}


def test_what_is_not_asked_for_leaves_plans_as_they_were() -> None:
    recipe = config_recipe("fashion_5shot_genie", per_class=1)
    assert not {"confidence_margin", "label_rank"} & set(recipe.identity()["scores"])  # type: ignore[call-overload]
    asked = recipe.model_copy(update={"scores": recipe.scores.model_copy(update={"label_rank": True})})
    assert prepare(asked).plan.id != prepare(recipe).plan.id


@pytest.mark.parametrize(
    ("scores", "filters", "told"),
    [
        ({"label_rank": True}, [], "label_rank is what a judge says, so give a judge too"),
        ({}, [{"column": "confidence_margin", "maximum": 0}], "not measured; set scores.confidence_margin"),
        (
            {"encoder": "tiny", "captions": ["a", "b"]},
            [{"column": "caption_margin", "minimum": 0}],
            "caption_margin is measured of three texts or more in scores.captions",
        ),
        ({"encoder": "tiny", "captions": ["a"]}, [], "expected two different texts, or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(scores: object, filters: object, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Recipe.from_dict({"builder": "fashion", "method": "txt2img", "scores": scores, "filters": filters})
