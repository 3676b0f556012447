"""Encoders and judges: shapes and names of every kind, and features that never depend on how many images arrive."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sd_tiny
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from diffaug_datasets.core.errors import BackboneError, RecipeError
from diffaug_datasets.models.encoders import Encoder, Judge
from diffaug_datasets.models.model_folder import check_model
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import check_models

SIDE = {"height": 16, "width": 16}
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SMALL, "image_size": 16, "patch_size": 8}
IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)) for i in range(5)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "clip"
    sd_tiny.write_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": sd_tiny.LENGTH}
    ends = {"bos_token_id": 520, "eos_token_id": 521, "pad_token_id": 521}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text | ends, vision_config=VISION, projection_dim=8)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SIDE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["dinov2", "vit"])
def vision(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / str(request.param)
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(**VISION)) if request.param == "dinov2" else ViTModel(ViTConfig(**VISION))
    model.save_pretrained(folder)
    ViTImageProcessorPil(size=SIDE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "resnet"
    names = {0: "cat", 1: "dog", 2: "T-shirt/top"}
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=names)
    ResNetForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size=SIDE).save_pretrained(folder)
    return folder


def test_clip_gives_projected_features_of_both_kinds(clip: Path) -> None:
    encoder = Encoder.load(str(clip))
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPImageProcessorPil.from_pretrained(clip)
    tokens = CLIPTokenizer.from_pretrained(clip)(["a photo", "bird"], padding=True, return_tensors="pt")
    with torch.no_grad():
        reference = model(**tokens, **processor(images=IMAGES, return_tensors="pt"))
    assert encoder.has_text
    assert encoder.name.startswith("clip@")
    torch.testing.assert_close(encoder.image_features(IMAGES, batch_shape=5), reference.image_embeds)
    torch.testing.assert_close(encoder.text_features(["a photo", "bird"]), reference.text_embeds)
    raw = encoder.image_features(IMAGES, batch_shape=5, normalise=False)
    torch.testing.assert_close(raw / raw.norm(dim=1, keepdim=True), reference.image_embeds)


def test_a_text_is_encoded_alone(clip: Path) -> None:
    encoder = Encoder.load(str(clip))
    together = encoder.text_features(["bird", "a photo of 3 birds", "bird"])
    assert torch.equal(together[0], Encoder.load(str(clip)).text_features(["bird"])[0])
    assert torch.equal(together[0], together[2])


def test_a_vision_model_gives_its_class_token(vision: Path) -> None:
    encoder = Encoder.load(str(vision))
    kind = Dinov2Model if vision.name == "dinov2" else ViTModel
    pixels = ViTImageProcessorPil.from_pretrained(vision)(images=IMAGES, return_tensors="pt")
    with torch.no_grad():
        token = kind.from_pretrained(vision).eval()(**pixels).last_hidden_state[:, 0]
    found = encoder.image_features(IMAGES, batch_shape=5, normalise=False)
    torch.testing.assert_close(found, token)
    with pytest.raises(BackboneError, match=r"sees images alone: name a CLIP model where texts are compared"):
        encoder.text_features(["bird"])


def test_a_convolution_net_gives_its_mean(classifier: Path) -> None:
    features = Encoder.load(str(classifier)).image_features(IMAGES)
    assert features.shape == (5, 16)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))


def test_features_never_depend_on_how_many_images_arrive(clip: Path, classifier: Path) -> None:
    encoder, judge = Encoder.load(str(clip)), Judge.load(str(classifier))
    features, probabilities = encoder.image_features(IMAGES, batch_shape=4), judge.probabilities(IMAGES, batch_shape=4)
    for part in (slice(0, 1), slice(1, 3), slice(2, 5)):
        assert torch.equal(encoder.image_features(IMAGES[part], batch_shape=4), features[part])
        assert torch.equal(judge.probabilities(IMAGES[part], batch_shape=4), probabilities[part])
    with pytest.raises(ValueError, match="got no image; give at least one"):
        encoder.image_features([])


def test_judge_names_its_classes_in_order(classifier: Path) -> None:
    judge = Judge.load(str(classifier))
    assert judge.class_names == ("cat", "dog", "T-shirt/top")
    probabilities = judge.probabilities([image.convert("L") for image in IMAGES])
    assert probabilities.shape == (5, 3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))


def test_a_judge_is_asked_by_name_or_else_by_number(classifier: Path) -> None:
    judge = Judge.load(str(classifier))
    assert judge.columns(["T-shirt/top", "cat"], "scores.judge") == [2, 0]
    assert judge.columns(["n01", "n02", "n03"], "scores.judge") == [0, 1, 2]
    for wanted in (["n01", "n02"], ["dog", "cat", "shirt"]):  # other classes, or the same ones in another order
        with pytest.raises(RecipeError, match=r"scores\.judge: .* knows 3 classes and no '(n01|shirt)', expected"):
            judge.columns(wanted, "scores.judge")


def test_refusals(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match=r"encoder 'no such' is neither a folder nor a Hub id: give one of"):
        Encoder.load("no such")
    with pytest.raises(BackboneError, match=r"judge 'org/none' cannot be reached \(.*\): run `hf download org/none`"):
        Judge.load("org/none")
    with pytest.raises(BackboneError, match=r"cannot be loaded \(.* weights are missing, such as .*\): expected"):
        Judge.load(str(clip))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(BackboneError, match=r"cannot be loaded \(.*\): expected a transformers folder") as caught:
        Encoder.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_model_that_sees_images_alone_is_refused_where_texts_are_compared(vision: Path, clip: Path) -> None:
    """By its files, before anything is loaded; so is the package's own of that kind."""
    check_model(str(vision), "encoder")
    check_model(str(clip), "encoder", texts=True)
    check_model("tiny", "encoder", texts=True)
    with pytest.raises(BackboneError, match=r"sees images alone: name a CLIP model where texts are compared\.$"):
        check_model(str(vision), "encoder", texts=True)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fashion_5shot_gif", {"config": {"encoder": "FOLDER"}}),
        ("fashion_5shot_retrieval", {"config": {"encoder": "FOLDER"}}),
        ("fashion_5shot_txt2img", {"scores": {"encoder": "FOLDER", "probability": True, "judge": None}}),
        ("fashion_5shot_retrieval", {"config": {"encoder": "FOLDER", "query": "image"}}),
    ],
)
def test_a_plan_is_refused_whose_encoder_has_no_texts(vision: Path, name: str, changes: dict[str, Any]) -> None:
    given = json.loads(json.dumps(changes).replace("FOLDER", str(vision)))
    recipe = config_recipe(name, **given)
    if given.get("config", {}).get("query") == "image":
        check_models(recipe)
        return
    with pytest.raises(BackboneError, match="sees images alone"):
        check_models(recipe)
