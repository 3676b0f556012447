"""The profiles of a loaded model: fast is exact within a grey level, turbo leaves out what it says, all say how."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from outside_calls import WAITING, calls_a_step

from diffaug_datasets.core.family import VP_SAMPLERS
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.profiles import Profile
from diffaug_datasets.models import kernels
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.deep_features import Reuse
from diffaug_datasets.models.denoising import Conditions, denoise, guided_towards
from diffaug_datasets.models.kernels import as_written, offload, put_to_work

STEPS = 6
ALIKE = (Conditions(["a bird"] * 3, [""] * 3, [7.5] * 3), [0, 0, 0])
MIXED = (Conditions(["a bird", "a photo", "a"], [""] * 3, [7.5, 1.0, 3.0], ["a house"] * 3, [3, 5, 0]), [0, 2, 3])
FAST = Profile(name="fast", compile="never")

pytestmark = pytest.mark.xdist_group("profiles")


def as_profile(folder: Path, profile: Profile) -> Backbone:
    made = Backbone.load(BackboneSpec(id=str(folder)))
    put_to_work(made, profile, 3)
    return made


@pytest.fixture(scope="module")
def fast(sd_folder: Path) -> Backbone:
    return as_profile(sd_folder, FAST)


@pytest.fixture
def turbo(sd_folder: Path) -> Iterator[Backbone]:
    yield as_profile(sd_folder, Profile(name="turbo", compile="never"))


@torch.inference_mode()
def drawn(model: Backbone, conditions: Conditions, starts: Sequence[int], sampler: Any = "ddim") -> torch.Tensor:
    noise = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    return model.decode(denoise(model, noise, conditions, sampler, STEPS, starts)).int()


@pytest.mark.parametrize("sampler", VP_SAMPLERS)
@pytest.mark.parametrize("batch", [ALIKE, MIXED], ids=["alike", "mixed"])
def test_fast_is_exact_within_one_grey_level(backbone: Backbone, fast: Backbone, sampler: str, batch: Any) -> None:
    exact, before = drawn(backbone, *batch, sampler), fast.rows_evaluated
    quick = drawn(fast, *batch, sampler)
    assert (exact - quick).abs().max() <= 1
    assert exact.float().std() > 5
    if batch is ALIKE:
        assert fast.rows_evaluated - before == backbone.rows_evaluated


def test_fast_speaks_v_too(v_folder: Path) -> None:
    exact = Backbone.load(BackboneSpec(id=str(v_folder)))
    wanted = drawn(exact, *MIXED)
    assert (drawn(as_profile(v_folder, FAST), *MIXED) - wanted).abs().max() <= 1


def test_a_second_run_is_bit_equal(fast: Backbone, sd_folder: Path) -> None:
    first = drawn(fast, *MIXED, "plms")
    assert torch.equal(first, drawn(fast, *MIXED, "plms"))
    assert torch.equal(first, drawn(as_profile(sd_folder, FAST), *MIXED, "plms"))


def test_fast_guides_between_conditions(backbone: Backbone, fast: Backbone) -> None:
    cond, mean = backbone.prompts(["a bird", "a"]), backbone.prompts(["", "photo"])
    xt = torch.randn(2, *fast.latent_shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        one, other = (guided_towards(model, cond, mean, [3.0, 1.0])(xt, 500, 0) for model in (backbone, fast))
    assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("starts", [[0, 0, 0], [0, 2, 3]], ids=["together", "apart"])
@pytest.mark.parametrize("sampler", VP_SAMPLERS)
def test_a_step_waits_for_nothing(fast: Backbone, sampler: Any, starts: list[int]) -> None:
    """What `scripts/count_calls.py` prints: at most 20 tensor calls beside the network, none that a host waits for."""
    noise = torch.ones(3, *fast.latent_shape)
    names = calls_a_step(lambda n: denoise(fast, noise, ALIKE[0], sampler, n, starts), (fast.unet,), 7, 9)
    assert 0 < sum(names.values()) <= 2 * 20
    assert not any(names[name] for name in WAITING)


def test_the_counter_sees_a_wait(backbone: Backbone) -> None:
    """In exact, guidance is looked up in a tensor at every step."""
    noise = torch.ones(3, *backbone.latent_shape)
    names = calls_a_step(lambda n: denoise(backbone, noise, ALIKE[0], "ddim", n, [0] * 3), (backbone.unet,), 7, 9)
    assert any(names[name] for name in WAITING)


@pytest.mark.parametrize("sampler", VP_SAMPLERS)
def test_turbo_at_interval_1_is_fast(fast: Backbone, sd_folder: Path, sampler: str) -> None:
    whole = as_profile(sd_folder, Profile(name="turbo", compile="never", interval=1))
    assert torch.equal(drawn(whole, *MIXED, sampler), drawn(fast, *MIXED, sampler))
    assert whole.rows_skipped == 0


def test_turbo_counts_what_it_leaves_out(turbo: Backbone, fast: Backbone) -> None:
    other = drawn(turbo, *ALIKE)
    assert (turbo.rows_evaluated, turbo.rows_skipped) == (2 * 3 * STEPS // 2, 2 * 3 * STEPS // 2)
    assert not torch.equal(other, drawn(fast, *ALIKE))


def test_guidance_in_a_part_of_the_steps(sd_folder: Path) -> None:
    some = as_profile(sd_folder, Profile(name="turbo", compile="never", interval=1, guided=(0.5, 1.0)))
    drawn(some, *ALIKE)
    assert some.rows_evaluated == 3 * STEPS // 2 + 2 * 3 * STEPS // 2


def test_kept_features_give_the_same_bits_at_the_same_state(sd_folder: Path) -> None:
    """The reference is diffusers' own U-Net: right after it, its outermost layers must say what it said."""
    unet = UNet2DConditionModel.from_pretrained(sd_folder / "unet", use_safetensors=True).eval()
    given = torch.Generator().manual_seed(2)
    x, text = torch.randn(2, 4, 8, 8, generator=given), torch.randn(2, 5, 32, generator=given)
    time = torch.tensor([300, 300])
    with torch.inference_mode():
        wanted = unet(x, time, encoder_hidden_states=text, return_dict=False)[0]
        reuse = Reuse(unet)
        assert torch.equal(reuse.whole(x, time, encoder_hidden_states=text, return_dict=False)[0], wanted)
        assert torch.equal(reuse.shallow(x, time, text), wanted)
        half = reuse.shallow(x[1:], time[1:], text[1:])
        assert torch.allclose(half, wanted[1:], atol=1e-5)
        assert not torch.equal(reuse.shallow(x + 0.1, time, text), wanted)


def test_without_a_compiler_it_says_so(
    sd_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels.shutil, "which", lambda _: None)
    made = as_profile(sd_folder, Profile(name="fast", compile="always"))
    assert made.kernels == "float32, channels_last, eager (no C++ compiler)"
    assert "not compiled (no C++ compiler)" in caplog.text


@pytest.fixture
def on_a_card(sd_folder: Path) -> Backbone:
    """A model that takes itself for one on a GPU; nothing is computed with it."""
    made = Backbone.load(BackboneSpec(id=str(sd_folder)))
    made.device = torch.device("cuda")
    return made


def test_a_card_computes_in_nchw_where_nothing_is_compiled(on_a_card: Backbone, fast: Backbone) -> None:
    put_to_work(on_a_card, FAST, 3)
    assert on_a_card.kernels == "float32, eager"
    assert on_a_card.unet.conv_in.weight.is_contiguous()
    assert fast.kernels == "float32, channels_last, eager"
    assert not fast.unet.conv_in.weight.is_contiguous()


@pytest.mark.parametrize("name", ["fast", "turbo"])
def test_on_a_card_every_layer_is_compiled_but_one_that_turbo_listens_to(on_a_card: Backbone, name: Any) -> None:
    on_a_card.profile = Profile(name=name)
    chosen = set(kernels._blocks(on_a_card))
    convolutions = {m for net in (on_a_card.unet, on_a_card.vae.decoder) for m in net.modules() if is_wide(m)}
    inside = {module for block in chosen for module in block.modules()}
    listened = on_a_card.unet.up_blocks[-1].resnets[-1]
    outside = convolutions - inside
    edges = {m for net in (on_a_card.unet, on_a_card.vae.decoder) for m in (net.conv_in, net.conv_out)}
    assert outside == edges | ({m for m in listened.modules() if is_wide(m)} if name == "turbo" else set())
    assert all(sum(module in block.modules() for block in chosen) == 1 for module in inside)


def is_wide(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Conv2d)


def test_tiles_of_many_shapes_are_not_compiled(on_a_card: Backbone) -> None:
    on_a_card.profile = Profile(name="fast", vae_tiling=True)
    assert not set(kernels._blocks(on_a_card)) & set(on_a_card.vae.modules())


def test_training_calls_nothing_that_is_compiled(sd_folder: Path) -> None:
    made = as_profile(sd_folder, FAST)
    block = made.unet.mid_block.resnets[0]
    block._compiled_call_impl = compiled = unwanted
    with pytest.raises(KeyError), as_written(made):
        assert block._compiled_call_impl is None
        raise KeyError
    assert block._compiled_call_impl is compiled


def unwanted(*_: Any, **__: Any) -> None:
    raise AssertionError("a compiled block was called")


def test_what_is_not_compiled_is_not_tried(sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(kernels, "_lacking", lambda _: "")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: tried.append(type(module).__name__))
    monkeypatch.setattr(Backbone, "decode_float", unwanted)
    assert as_profile(sd_folder, Profile(name="fast", compile="always")).kernels.endswith("compiled")
    assert set(tried) == {"BasicTransformerBlock"}


def test_a_small_model_is_not_compiled_on_a_cpu(sd_folder: Path) -> None:
    assert "gain nothing by compiling" in as_profile(sd_folder, Profile(name="fast")).kernels


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_compiled_blocks_are_exact_within_one_grey_level(backbone: Backbone, sd_folder: Path) -> None:
    compiled = as_profile(sd_folder, Profile(name="fast", compile="always"))
    assert compiled.kernels == "float32, channels_last, compiled"
    first = drawn(compiled, *MIXED, "dpm")
    assert (first - drawn(backbone, *MIXED, "dpm")).abs().max() <= 1
    assert torch.equal(first, drawn(compiled, *MIXED, "dpm"))


@pytest.mark.parametrize("switch", ["vae_slicing", "vae_tiling", "offload"])
def test_switches_for_small_cards_keep_the_picture(backbone: Backbone, sd_folder: Path, switch: str) -> None:
    small = as_profile(sd_folder, Profile(**{switch: True}))
    assert (drawn(small, *ALIKE) - drawn(backbone, *ALIKE)).abs().max() <= 1
    assert small.vae.use_slicing == (switch == "vae_slicing")
    assert small.vae.use_tiling == (switch == "vae_tiling")
    assert small.kernels.endswith("not offloaded (the device is the computer's own)") == (switch == "offload")


def test_offloaded_networks_take_turns(backbone: Backbone, sd_folder: Path) -> None:
    made = Backbone.load(BackboneSpec(id=str(sd_folder)))
    offload(made, torch.device("cpu"))
    assert all(hasattr(network, "_hf_hook") for network in (made.text_encoder, made.unet, made.vae))
    assert torch.equal(drawn(made, *ALIKE), drawn(backbone, *ALIKE))
