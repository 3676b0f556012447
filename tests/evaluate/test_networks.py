"""Networks that learn from images: what they are shown, step by step, what they learn, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tables import FEATURES, Sets, pictures, table
from torch.optim.optimizer import register_optimizer_step_post_hook

from diffaug_datasets.core.errors import BackboneError, RecipeError
from diffaug_datasets.evaluate import draws as drawing
from diffaug_datasets.evaluate import networks
from diffaug_datasets.evaluate.bench import bench
from diffaug_datasets.evaluate.draws import Images, Labelled, images_of
from diffaug_datasets.evaluate.networks import Lesson, described, learn, schedule_of, train, weighted_loss
from diffaug_datasets.evaluate.suite import Bench, Mixing, Network
from diffaug_datasets.evaluate.training_sets import TrainingSet
from diffaug_datasets.evaluate.views import Blended
from diffaug_datasets.models.encoders import Encoder, image_processor
from diffaug_datasets.models.image_networks import Preparation, load_network, preparation_of
from diffaug_datasets.train.mixing import MixedDataset, MixedStream

SIDE = 16
CONFIGS = {
    "vit": transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=SIDE, patch_size=8
    ),
    "resnet": transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "convnext": transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "dinov2": transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=8, mlp_ratio=1
    ),
}
PLAIN = Preparation(SIDE, SIDE)
SQUARE = {"height": SIDE, "width": SIDE}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": SQUARE,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


def spec(**changes: object) -> Network:
    small = {"kind": "scratch", "model": "small_resnet", "steps": 20, "batch_size": 8, "learning_rate": 0.05}
    return Network.model_validate({**small, "image_size": SIDE, "augmentation": "none", **changes})


def of_tables(real: int = 8, made: int = 0, seed: int = 0, apart: int = 90) -> tuple[Images, Images | None]:
    first = images_of(table(pictures(real, seed, apart=apart)), 2)
    return first, images_of(table(pictures(made, seed + 50, apart=apart)), 2) if made else None


def line(real: int = 8, made: int = 0, **keys: object) -> TrainingSet:
    first, second = of_tables(real, made)
    return TrainingSet("a", first, float(real), second, **{"mixing": Mixing(rule="class"), **keys})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder of every kind of network, with random weights."""
    made = {}
    for name, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        made[name] = str(folder)
    return made


@pytest.fixture(scope="module")
def test_images() -> Images:
    return images_of(table(pictures(60, 9)), 2)


@pytest.fixture(scope="module")
def light_images() -> Images:
    """Whose classes are far from one another, so that even random features tell them apart."""
    return images_of(table(pictures(60, 9, apart=180)), 2)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("ViTImageProcessor", {"size": {"height": 20, "width": 20}, "image_mean": [0.4, 0.5, 0.6]}),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}),
        ("BitImageProcessor", {"size": {"shortest_edge": 24}, "crop_size": {"height": 20, "width": 20}, "resample": 2}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 28}, "crop_pct": 0.875}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ],
)
@pytest.mark.parametrize("size", [(28, 28), (40, 30), (33, 61)])
def test_an_image_arrives_as_the_models_processor_brings_it(kind, keys, size, tmp_path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind, **keys}))
    processor = image_processor(tmp_path, "x")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    expected = processor(images=[picture], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours = preparation_of(processor, None, "x")
    found = (ours(picture) / 255 - np.array(ours.mean)) / np.array(ours.deviation)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 0.012  # a grey level is .008 at the least deviation here


@pytest.mark.parametrize(
    ("kind", "model"),
    [(kind, model) for kind in ("head", "fine_tuned") for model in ("vit", "resnet", "convnext", "dinov2")]
    + [("scratch", "vit"), ("scratch", "resnet"), ("scratch", "small_resnet")],
)
def test_an_easy_problem_is_learned(kind, model, folders, light_images, tmp_path) -> None:
    keys = {"steps": 60, "learning_rate": 0.02, "optimizer": "adamw", "weight_decay": 0.0}
    one = TrainingSet("a", of_tables(16, apart=180)[0], 16.0)
    fitted = train(spec(kind=kind, model=folders.get(model, model), **keys), one, light_images, cache=tmp_path)
    assert (fitted.predicted == light_images.labelled.labels).mean() > 0.95
    assert (fitted.steps, fitted.batch_size, fitted.images, fitted.mass) == (60, 8, 16, 16)


def test_a_transformer_may_see_images_of_another_size(folders, test_images) -> None:
    few = test_images.select(range(4))
    for kind in ("fine_tuned", "scratch"):
        assert len(train(spec(kind=kind, model=folders["vit"], image_size=24, steps=2), line(), few).predicted) == 4


@pytest.mark.parametrize("model", ["resnet", "vit"])
@pytest.mark.parametrize("augmentation", ["none", "weak"])
def test_a_head_leaves_the_trunk_as_it_was(model, augmentation, folders, tmp_path) -> None:
    network = load_network(folders[model], "head", 2, seed=1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    one = spec(kind="head", model=folders[model], augmentation=augmentation)
    learn(network, Lesson(one, line(), network.preparation, 0), cache=tmp_path)
    changed = {key.split(".")[0] for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"head"}
    saved = transformers.AutoModel.from_pretrained(folders[model], use_safetensors=True, trust_remote_code=False)
    trunk = dict(network.trunk.base_model.state_dict())
    assert all(torch.equal(value, trunk[key]) for key, value in saved.state_dict().items() if key in trunk)


def test_the_head_is_new_even_where_the_folder_has_one_that_fits(tmp_path) -> None:
    config = CONFIGS["resnet"].__class__(**{**CONFIGS["resnet"].to_dict(), "num_labels": 2})
    model = transformers.ResNetForImageClassification(config)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    network = load_network(str(tmp_path), "head", 2, seed=0)
    heads = [load_network(str(tmp_path), "head", 2, seed=seed).head[1].weight for seed in (0, 1)]
    assert torch.equal(network.head[1].weight, heads[0]) and not torch.equal(heads[0], heads[1])
    assert not torch.equal(network.head[1].weight, model.classifier[1].weight)


def steps_of(work: Callable[[], object]) -> list[float]:
    """The learning rate of every step that any optimiser takes meanwhile."""
    rates: list[float] = []
    hook = register_optimizer_step_post_hook(lambda optimiser, *_: rates.append(optimiser.param_groups[0]["lr"]))
    try:
        work()
    finally:
        hook.remove()
    return rates


@pytest.mark.parametrize(
    "one",
    [line(8), line(8, 40), line(8, 40, mixing=Mixing(rule="concatenate")), line(3)],
    ids=["real", "p", "all", "few"],
)
def test_every_line_gets_the_same_steps(one, test_images) -> None:
    few = test_images.select(range(4))
    rates = steps_of(lambda: train(spec(steps=23, warm_up=0.2), one, few))
    assert len(rates) == 23
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=0.05)
    theirs = transformers.get_cosine_schedule_with_warmup(optimiser, 5, 23)
    expected = []
    for _ in range(23):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        theirs.step()
    assert rates == pytest.approx(expected, abs=1e-12)


def test_schedules_are_what_they_are_called() -> None:
    def rates(**keys: object) -> list[float]:
        optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule, found = schedule_of(spec(steps=200, learning_rate=1, **keys), optimiser), []
        for _ in range(200):
            found.append(schedule.get_last_lr()[0])
            optimiser.step()
            schedule.step()
        return found

    cosine = rates(schedule="cosine", warm_up=0.1)
    assert cosine[:20] == pytest.approx([i / 20 for i in range(20)])
    assert cosine[20:] == pytest.approx([0.5 * (1 + np.cos(np.pi * i / 180)) for i in range(180)])
    assert rates(schedule="constant", warm_up=0) == [1] * 200
    falling = rates(schedule="steps", warm_up=0.025)
    assert falling[5:160] == [1] * 155 and falling[160:180] == [0.01] * 20 and falling[180:] == [0.0001] * 20


def test_two_runs_give_the_same_whatever_the_threads() -> None:
    def weights(threads: int, seed: int) -> torch.Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(threads)  # what a worker did before does not count
        kept = []
        test = images_of(table(pictures(8, 9)), 2)
        original = networks._predictor
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(networks, "_predictor", lambda network, f: (kept.append(network), original(network, f))[1])
            train(spec(steps=6, augmentation="strong"), line(8, 16, baseline="cutmix"), test, seed=seed)
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
        return torch.cat([p.detach().flatten() for p in kept[0].parameters()])

    first, again, other = weights(1, 0), weights(2, 0), weights(1, 1)
    assert torch.equal(first, again) and not torch.equal(first, other)


def mixed_rows(real: int, made: int) -> datasets.Dataset:
    rows = table(pictures(real, 0), pictures(made, 1))
    extra = {
        "row_id": [str(i) for i in range(len(rows))],
        "is_synthetic": [origin != "real" for origin in rows["origin"]],
    }
    features = datasets.Features(
        {**FEATURES, "row_id": datasets.Value("string"), "is_synthetic": datasets.Value("bool")}
    )
    return datasets.Dataset.from_dict({**rows.to_dict(), **extra}).cast(features)


@pytest.mark.parametrize("rule", ["class", "global", "lt_inverse"])
def test_a_lesson_shows_what_a_mixed_stream_gives(rule) -> None:
    rows = mixed_rows(7, 12)
    stream = MixedStream(MixedDataset(rows, rule, 0.6, seed=5))
    theirs = [int(item["row_id"]) for _ in range(3) for item in stream]
    real, made = images_of(rows.select(range(7)), 2), images_of(rows.select(range(7, 19)), 2)
    one = TrainingSet("a", real, 7.0, made, Mixing(rule=rule, probability=0.6))
    lesson = Lesson(spec(batch_size=5), one, PLAIN, 5)
    ours = [drawn.place for step in range(5) for drawn in lesson.drawn(step)]
    assert ours[:21] == theirs and len(ours) == 25 and max(theirs) > 6


def test_concatenated_images_are_all_seen_once_an_epoch() -> None:
    lesson = Lesson(spec(batch_size=9), line(6, 12, mixing=Mixing(rule="concatenate", weight=0.25)), PLAIN, 0)
    drawn = [one for step in range(2) for one in lesson.drawn(step)]
    assert sorted(one.place for one in drawn) == list(range(18))
    assert {(one.place > 5, float(one.target.sum())) for one in drawn} == {(False, 1.0), (True, 0.25)}


def test_soft_labels_are_learned_unless_they_are_not_wanted() -> None:
    real, made = of_tables(2, 2)
    assert made is not None
    softened = Images(
        Labelled(made.labelled.labels, np.array([[0.7, 0.3], [0.2, 0.8]]), [(), ()]), made.keys, made.read
    )
    for wanted, expected in ((True, [0.7, 0.3]), (False, [1, 0])):
        mixing = Mixing(rule="concatenate", soft_labels=wanted)
        lesson = Lesson(spec(batch_size=4), TrainingSet("a", real, 2.0, softened, mixing), PLAIN, 0)
        assert next(one.target.tolist() for one in lesson.drawn(0) if one.place == 2) == expected


def test_the_loss_is_torchs_for_hard_soft_and_weighted_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 1, 1])
    one_hot = torch.eye(4)[labels]
    cross_entropy = torch.nn.functional.cross_entropy
    assert torch.allclose(weighted_loss(logits, one_hot), cross_entropy(logits, labels))
    soft = torch.rand(6, 4, generator=generator).softmax(1)
    assert torch.allclose(weighted_loss(logits, soft), cross_entropy(logits, soft))
    weights = torch.tensor([0.1, 2.0, 1.0, 0.9])
    assert torch.allclose(weighted_loss(logits, one_hot * weights), cross_entropy(logits, labels, weight=weights))
    twice = weighted_loss(torch.cat([logits, logits[:1]]), torch.cat([one_hot, one_hot[:1]]))
    heavier = weighted_loss(logits, one_hot * torch.tensor([2.0, 1, 1, 1, 1, 1])[:, None])
    assert torch.allclose(twice, heavier)


def black_and_white(counts: tuple[int, int]) -> TrainingSet:
    """Class 0 is black and class 1 white, so that a label can be counted in the pixels."""
    shown = [Image.new("RGB", (SIDE, SIDE), (255 * label,) * 3) for label in (0, 1)]
    labels = [0] * counts[0] + [1] * counts[1]
    made = Images(Labelled.hard(labels, 2), tuple(map(str, range(len(labels)))), lambda i: shown[labels[i]])
    return TrainingSet("a", made, float(len(labels)))


def check_shares(lesson: Lesson) -> float:
    """The share of white, after its label was found to be as much in every image."""
    shares = []
    for step in range(lesson.spec.steps):
        pixels, targets = lesson.batch(step)
        np.testing.assert_allclose(targets[:, 1], pixels.mean((1, 2, 3)) / 255, atol=1e-5)
        shares.append(targets[:, 1].mean())
    return float(np.mean(shares))


@pytest.mark.parametrize("baseline", ["mixup", "cutmix", "cmo"])
def test_labels_are_shared_as_pixels_in_every_batch(baseline, monkeypatch) -> None:
    one = TrainingSet("a", black_and_white((27, 3)).real, 30.0, baseline=baseline)
    white = check_shares(Lesson(spec(steps=200, batch_size=15), one, PLAIN, 0))
    # CMO pastes on 97 % of the steps' half; a box covers .2 to .3 of an image; half of the pasted images are white.
    assert white == pytest.approx(0.1, abs=0.02) if baseline != "cmo" else 0.12 < white < 0.2
    right = networks.draw_blend

    class Wrong(Blended):
        """A label that goes by another lambda than the pixels."""

        def targets(self, own: np.ndarray, other: np.ndarray) -> np.ndarray:
            return Blended(self.share**2).targets(own, other)

    def wrong(*words: object) -> Blended:
        blended = right(*words)  # type: ignore[arg-type]
        return Wrong(blended.share, blended.box)

    monkeypatch.setattr(networks, "draw_blend", wrong)
    with pytest.raises(AssertionError):
        check_shares(Lesson(spec(steps=200, batch_size=15), one, PLAIN, 0))


def test_rare_classes_count_more_late_in_the_training() -> None:
    one = TrainingSet("a", black_and_white((9, 1)).real, 10.0, baseline="drw")
    lesson = Lesson(spec(steps=200, batch_size=10), one, PLAIN, 0)
    assert lesson.batch(159)[1].sum(0).tolist() == pytest.approx([9, 1])
    weights = [(1 - 0.9999) / (1 - 0.9999**n) for n in (9, 1)]
    expected = [9 * 2 * weights[0] / sum(weights), 2 * weights[1] / sum(weights)]
    assert lesson.batch(160)[1].sum(0).tolist() == pytest.approx(expected, rel=1e-5)


def test_val_decides_where_it_is_asked_and_test_images_come_last(test_images) -> None:
    real, val = of_tables(8)[0], images_of(table(pictures(20, 3)), 2)
    upside_down = Images(Labelled.hard((1 - val.labelled.labels).tolist(), 2), val.keys, val.read)
    order: list[str] = []

    def watched(images: Images, name: str) -> Images:
        return Images(images.labelled, images.keys, lambda i: (order.append(name), images.read(i))[1])

    def accuracy(**keys: object) -> float:
        chosen = spec(steps=30, warm_up=0.8, **keys)
        held_out = watched(upside_down, "val")
        fitted = train(chosen, TrainingSet("a", real, 8.0), watched(test_images, "test"), held_out)
        return float((fitted.predicted == test_images.labelled.labels).mean())

    assert accuracy() > 0.95 and "val" not in order
    order.clear()
    assert accuracy(select="val") < 0.95  # the look that is worst on true labels is best on those turned upside down
    assert order.index("test") > len(order) - 1 - order[::-1].index("val")


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ({"select": "val"}, RecipeError, "select: got val and no validation image"),
        ({"learning_rate": 1e30, "warm_up": 0}, RecipeError, r"learning_rate: got 1e\+30, and the loss of step \d+ is"),
        ({"model": "no/../where"}, BackboneError, "neither a folder nor a Hub id"),
        (
            {"model": "resnet", "image_size": None},
            BackboneError,
            "does not say how large its images are; set image_size",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(keys, error, words, folders, test_images) -> None:
    keys = {**keys, "model": folders.get(keys.get("model"), keys.get("model", "small_resnet"))}
    with pytest.raises(error, match=words):
        train(spec(**keys), line(), test_images)


def test_a_network_is_named_by_its_kind_where_it_needs_no_weights() -> None:
    from_scratch = Bench.from_dict({"sets": ["a"], "classifiers": ["scratch"]}).classifiers[0]
    assert isinstance(from_scratch, Network) and (from_scratch.model, from_scratch.steps) == ("small_resnet", 400)
    with pytest.raises(RecipeError, match="head needs weights to begin with, and small_resnet has none; name a model"):
        Bench.from_dict({"sets": ["a"], "classifiers": ["head"]})


def test_a_folder_of_pickles_is_not_read(folders, tmp_path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((Path(folders["resnet"]) / name).read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_network(str(tmp_path), "fine_tuned", 2, 0)


def test_a_folder_that_lacks_weights_is_refused(folders, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((Path(folders["resnet"]) / name).read_text())
    weights = load_file(Path(folders["resnet"]) / "model.safetensors")
    weights.pop(next(key for key in sorted(weights) if "encoder" in key))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match="1 weights are missing"):
        load_network(str(tmp_path), "fine_tuned", 2, 0)


def test_a_setting_says_everything_that_may_differ() -> None:
    others = {
        "kind": "fine_tuned", "steps": 21, "batch_size": 9, "learning_rate": 0.1, "optimizer": "adam", "momentum": 0.8,
        "weight_decay": 0.1, "warm_up": 0.3, "schedule": "steps", "label_smoothing": 0.1, "augmentation": "weak",
        "image_size": 20, "select": "val",
    }  # fmt: skip
    assert set(others) == set(Network.model_fields) - {"model", "epochs"}  # the encoder's column; become steps
    said = {described(spec(model="x", **{key: value}), Mixing()) for key, value in others.items()}
    said |= {described(spec(), mixing) for mixing in (Mixing(), Mixing(rule="global"), Mixing(probability=0.1))}
    said |= {described(spec(), mixing) for mixing in (Mixing(weight=2), Mixing(soft_labels=False))}
    assert len(said) == len(others) + 5


def test_cells_of_networks_are_made_once(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(drawing, "load", Sets(a=(table(pictures(6, 0), pictures(8, 1)), table(pictures(20, 9)))))
    network = {"kind": "scratch", "model": "small_resnet", "steps": 4, "batch_size": 4, "learning_rate": 0.01}
    asked = Bench.from_dict({"sets": ["a"], "classifiers": ["class_mean", network], "controls": ["duplicate"]})
    answer = bench(asked, [Encoder.load("tiny")], tmp_path / "bench", cache=tmp_path / "cache")
    receipts = [result.receipt for result in answer.results if result.receipt.cell.classifier == "scratch"]
    assert {receipt.cell.line for receipt in receipts} == {"real", "duplicate", "txt2img"}
    assert {(receipt.steps, receipt.batch_size, receipt.cell.encoder) for receipt in receipts} == {
        (4, 4, "small_resnet")
    }
    monkeypatch.setattr(networks, "train", lambda *_, **__: pytest.fail("a finished cell was made again"))
    again = bench(asked, [Encoder.load("tiny")], tmp_path / "bench", cache=tmp_path / "cache")
    assert [r.receipt for r in again.results] == [r.receipt for r in answer.results]
