"""Backbone against diffusers' own pieces, and the promise that a row never depends on what stands beside it."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import sd_tiny
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.numerics.sampling import ddim_sample
from diffaug_datasets.numerics.schedule import ddim_timesteps

PROMPTS = ["a photo of a bird", "bird", "", "photo of 3 birds on a twig"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pipe(sd_folder: Path) -> StableDiffusionPipeline:
    return sd_tiny.pipeline(sd_folder)


def reference_prompt(pipe: StableDiffusionPipeline, text: str) -> Tensor:
    states: Tensor = pipe.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)[0]
    return states[0]


def test_prompt_is_what_diffusers_encodes(backbone: Backbone, pipe: StableDiffusionPipeline) -> None:
    for text in PROMPTS:
        assert torch.equal(backbone.prompt(text), reference_prompt(pipe, text))
    assert backbone.prompts(PROMPTS).shape == (4, sd_tiny.LENGTH, sd_tiny.WIDTH)
    assert not torch.allclose(backbone.prompt("bird"), backbone.prompt(""))


def test_prompt_is_encoded_once(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    first = backbone.prompts(["bird", "bird", "photo"])
    monkeypatch.setattr(backbone.text, "encode", None)
    assert torch.equal(backbone.prompts(["bird", "bird", "photo"]), first)


def test_a_long_prompt_is_cut_as_by_diffusers_and_warned_of_once(
    backbone: Backbone, pipe: StableDiffusionPipeline
) -> None:
    long = "a photo of " * 20
    with pytest.warns(UserWarning, match=r"has 62 tokens, 24 are read; this and longer prompts lose their end"):
        assert torch.equal(backbone.prompt(long), reference_prompt(pipe, long))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone.prompt(long + "bird")


def test_eps_is_the_networks_answer(backbone: Backbone, pipe: StableDiffusionPipeline) -> None:
    xt, cond = normal(4, 4, 8, 8), backbone.prompts(PROMPTS)
    with torch.no_grad():
        whole = pipe.unet(xt, 481, encoder_hidden_states=cond).sample
        mixed = pipe.unet(xt, torch.tensor([1, 41, 481, 961]), encoder_hidden_states=cond).sample
    assert torch.equal(backbone.eps(xt, 481, cond), whole)
    assert torch.equal(backbone.eps(xt, [1, 41, 481, 961], cond), mixed)
    assert (backbone.calls, backbone.rows_evaluated) == (2, 8)
    assert not backbone.eps(xt, 481, cond).requires_grad


def test_eps_of_a_v_prediction_is_diffusers_own_conversion(v_folder: Path) -> None:
    backbone = Backbone.load(BackboneSpec(id=str(v_folder)))
    assert backbone.prediction_type == "v_prediction"
    xt, cond, t = normal(2, 4, 8, 8), backbone.prompts(["bird", "photo"]), [41, 961]
    pipe = sd_tiny.pipeline(v_folder)
    with torch.no_grad():
        v = pipe.unet(xt, torch.tensor(t), encoder_hidden_states=cond).sample
    alpha_bar = pipe.scheduler.alphas_cumprod[t].double()[:, None, None, None]
    expected = alpha_bar.sqrt() * v + (1 - alpha_bar).sqrt() * xt
    torch.testing.assert_close(backbone.eps(xt, t, cond).double(), expected, rtol=1e-6, atol=1e-6)


def test_eps_of_an_x0_prediction(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    xt, cond = normal(2, 4, 8, 8), backbone.prompts(["bird", "photo"])
    x0 = backbone.eps(xt, 481, cond)
    monkeypatch.setattr(backbone, "prediction_type", "sample")
    level = backbone.schedule.level(481)
    torch.testing.assert_close(backbone.eps(xt, 481, cond), (xt - level**0.5 * x0) / (1 - level) ** 0.5)


def test_guided_eps_is_one_call_of_twice_the_rows(backbone: Backbone, pipe: StableDiffusionPipeline) -> None:
    xt, cond, uncond = normal(4, 4, 8, 8), backbone.prompts(PROMPTS), backbone.prompts([""] * 4)
    scale = torch.tensor([7.5, 2.0, 0.0, 3.0])
    eps = backbone.guided_eps(xt, 481, cond, uncond, scale)
    assert (backbone.calls, backbone.rows_evaluated) == (1, 8)
    with torch.no_grad():
        both = pipe.unet(torch.cat([xt, xt]), 481, encoder_hidden_states=torch.cat([uncond, cond])).sample
    low, high = both.chunk(2)
    torch.testing.assert_close(eps, low + scale[:, None, None, None] * (high - low), rtol=1e-5, atol=1e-6)


def test_rows_without_guidance_cost_one_branch_and_never_see_their_neighbours_scale(backbone: Backbone) -> None:
    xt, cond, uncond = normal(3, 4, 8, 8), backbone.prompts(PROMPTS[:3]), backbone.prompts([""] * 3)
    plain = backbone.guided_eps(xt, 481, cond, uncond, torch.ones(3))
    assert (backbone.calls, backbone.rows_evaluated) == (1, 3)
    mixed = backbone.guided_eps(xt, 481, cond, uncond, torch.tensor([1.0, 7.5, 1.0]))
    guided = backbone.guided_eps(xt, 481, cond, uncond, torch.tensor([2.0, 7.5, 7.5]))
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])
    assert torch.equal(mixed[1], guided[1])


def test_whole_trajectory_is_diffusers_own(backbone: Backbone, pipe: StableDiffusionPipeline) -> None:
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    noise, prompts = normal(2, 4, 8, 8), ["a photo of a bird", "photo"]
    expected = pipe(prompts, latents=noise, num_inference_steps=25, guidance_scale=7.5, output_type="latent").images
    cond, uncond, scale = backbone.prompts(prompts), backbone.prompts([""] * 2), torch.full((2,), 7.5)
    found = ddim_sample(
        lambda xt, t, step: backbone.guided_eps(xt, t, cond, uncond, scale),
        noise,
        backbone.schedule,
        ddim_timesteps(backbone.schedule, 25),
        [0, 0],
    )
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_encode_is_the_scaled_mode(backbone: Backbone, pipe: StableDiffusionPipeline) -> None:
    images = normal(3, 3, 64, 64).tanh()
    with torch.no_grad():
        expected = pipe.vae.encode(images).latent_dist.mode() * pipe.vae.config.scaling_factor
    assert torch.equal(backbone.encode(images), expected)
    assert backbone.latent_shape == tuple(expected.shape[1:]) == (4, 8, 8)


def test_decode_is_diffusers_own_rounded(backbone: Backbone, pipe: StableDiffusionPipeline) -> None:
    z = normal(2, 4, 8, 8)
    with torch.no_grad():
        raw = pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample
    expected = pipe.image_processor.postprocess(raw, output_type="pil")
    found = backbone.decode(z)
    assert (found.dtype, found.shape) == (torch.uint8, (2, 64, 64, 3))
    assert np.array_equal(found.numpy(), np.stack([np.array(image) for image in expected]))


def test_decode_float_keeps_what_is_not_finite_and_decode_refuses_it(backbone: Backbone) -> None:
    z = normal(2, 4, 8, 8)
    z[1] = float("nan")
    images = backbone.decode_float(z)
    assert torch.isfinite(images[0]).all()
    assert images[1].isnan().any()
    with pytest.raises(ValueError, match="values that are not finite; check rows"):
        backbone.decode(z)


@pytest.mark.parametrize("b", [4, 5])
@pytest.mark.parametrize("fill", [3.0, float("nan")])
def test_a_row_never_depends_on_what_stands_beside_it(backbone: Backbone, b: int, fill: float) -> None:
    """At its own place. At another place some kernels give other last bits (MKL's COMPATIBLE ones at b = 5)."""
    xt, cond, uncond = normal(b, 4, 8, 8), backbone.prompts([*PROMPTS, "bird"][:b]), backbone.prompts([""] * b)
    images, scale, t = normal(b, 3, 64, 64).tanh(), torch.linspace(2, 7.5, b), [1, 41, 481, 961, 721][:b]

    def everything(kept: int | None, where: int = 0) -> list[Tensor]:
        """All results; of the rows that are not kept the inputs are others. `where`: bytes off an aligned address."""

        def take(tensor: Tensor) -> Tensor:
            moved = torch.empty(tensor.numel() + where)[where:].view(tensor.shape).copy_(tensor)
            moved[[i for i in range(b) if kept not in (None, i)]] += fill
            return moved

        results = [backbone.eps(take(xt), t, take(cond)), backbone.guided_eps(take(xt), 481, take(cond), uncond, scale)]
        return [*results, backbone.encode(take(images)), backbone.decode_float(take(xt))]

    expected = everything(None)
    for row in range(b):
        found = everything(row, where=row)
        assert all(torch.equal(one[row], other[row]) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_runs_and_stays_near(sd_folder: Path, backbone: Backbone, dtype: str) -> None:
    half = Backbone.load(BackboneSpec(id=str(sd_folder), dtype=dtype))  # type: ignore[arg-type]
    xt, cond = normal(2, 4, 8, 8), backbone.prompts(["bird", "photo"])
    assert torch.equal(half.prompts(["bird", "photo"]), cond)
    eps = half.eps(xt.to(half.dtype), 481, cond)
    assert eps.dtype == torch.float32
    torch.testing.assert_close(eps, backbone.eps(xt, 481, cond), rtol=0.05, atol=0.05)
    assert half.encode(normal(1, 3, 64, 64).tanh()).dtype == torch.float32
    assert half.decode(normal(1, 4, 8, 8)).dtype == torch.uint8


def test_size_can_be_another_and_must_fit(sd_folder: Path) -> None:
    wide = Backbone.load(BackboneSpec(id=str(sd_folder), height=64, width=96))
    assert wide.latent_shape == (4, 8, 12)
    assert wide.preprocess(Image.new("RGB", (10, 20)), "bicubic").shape == (3, 64, 96)
    with pytest.raises(BackboneError, match=r"got 60 x 64 pixels, expected multiples of 8"):
        Backbone.load(BackboneSpec(id=str(sd_folder), height=60))


def test_facts_and_nothing_global_changes(sd_folder: Path) -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    facts = Backbone.load(BackboneSpec(id=str(sd_folder), dtype="bfloat16")).facts
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert facts.name == f"epsilon@{facts.revision[:12]}"
    assert (facts.dtype, facts.prediction_type, facts.height) == ("bfloat16", "epsilon", 64)
    assert not facts.safety_checker


@pytest.mark.parametrize("resize", ["lanczos", "bilinear", "bicubic"])
def test_preprocess_stretches_with_the_filter(backbone: Backbone, resize: str) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    image = Image.fromarray(levels)
    expected = np.array(image.resize((64, 64), getattr(Image.Resampling, resize.upper())))
    found = backbone.preprocess(image, resize)  # type: ignore[arg-type]
    assert np.array_equal(((found.permute(1, 2, 0) + 1) * 127.5).round().numpy(), expected)
    assert (float(found.min()) >= -1, float(found.max()) <= 1) == (True, True)


def test_preprocess_crops_the_middle(backbone: Backbone) -> None:
    image = Image.new("RGBA", (192, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (64, 0, 128, 64))
    found = backbone.preprocess(image, "crop")
    assert found.shape == (3, 64, 64)
    assert torch.equal(found[:, 32, 2:-2], torch.tensor([-1.0, -1.0, 1.0])[:, None].expand(3, 60))
