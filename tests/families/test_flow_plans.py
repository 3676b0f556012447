"""What is known and what is refused of a transformer family at plan, without torch, each in one sentence."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flow_tiny
import pytest
from damaged_folders import fuzzed

from diffaug_datasets.core.errors import BackboneError, PlanError
from diffaug_datasets.core.family import ModelFacts, discover_families, guess_facts
from diffaug_datasets.core.method import PlanSpec, find_method
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.core.suitability import check_suits
from diffaug_datasets.models.model_folder import check_backbone

pytestmark = pytest.mark.xdist_group("flow_families")
FAMILIES = tuple(flow_tiny.MAKERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("plans")
    schnell: Callable[[], Any] = lambda: flow_tiny.flux(distilled=False)  # noqa: E731
    klein: Callable[[], Any] = lambda: flow_tiny.flux2_klein(distilled=True)  # noqa: E731
    makers = {**flow_tiny.MAKERS, "flux_schnell": schnell, "klein_distilled": klein}
    return {name: flow_tiny.build(place / name, make) for name, make in makers.items()}


def facts(folder: Path, **changes: object) -> ModelFacts:
    found = check_backbone(BackboneSpec.model_validate({"id": str(folder), "height": 32, "width": 32, **changes}))
    assert found is not None
    return found


def suits(folder: Path, method: str, **config: object) -> None:
    content = {"builder": "fashion", "method": method, "config": config, "backbone": {"id": str(folder)}}
    check_suits(Recipe.from_dict(content, folder=None), facts(folder))


LATENTS = dict.fromkeys(FAMILIES, (4, 8, 8)) | {"flux2_klein": (16, 4, 4)}
GUIDANCE = {"flux": "embedded", "flux_schnell": "none", "klein_distilled": "none"}


def test_facts_are_read_without_torch(folders: dict[str, Path]) -> None:
    told = {name: str(folder) for name, folder in folders.items()}
    script = (
        "import sys, json; sys.modules['torch'] = None\n"
        "from diffaug_datasets.core.models import BackboneSpec\n"
        "from diffaug_datasets.models.model_folder import check_backbone\n"
        "for name, folder in json.load(sys.stdin).items():\n"
        "    facts = check_backbone(BackboneSpec(id=folder, height=32, width=32))\n"
        "    print(json.dumps([name, facts.latent_shape, facts.guidance, facts.inverts]))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], input=json.dumps(told), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for line in run.stdout.splitlines():
        name, shape, guidance, inverts = json.loads(line)
        assert tuple(shape) == LATENTS.get(name, (4, 8, 8) if name != "klein_distilled" else (16, 4, 4))
        assert guidance == GUIDANCE.get(name, "cfg") and inverts == (name not in GUIDANCE)
    assert len(run.stdout.splitlines()) == len(folders)


CALM = {"num_inference_steps": 4, "guidance_scale": 1}
REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "distilled": ("flux", "diff_ii", {}, "cannot be used with diff_ii, which inverts images.*config.on_distilled"),
    "few steps": ("flux_schnell", "txt2img", {"guidance_scale": 1}, "a few steps.*num_inference_steps: 50.*1 to 8"),
    "guided": ("klein_distilled", "txt2img", {**CALM, "guidance_scale": 4}, "guidance_scale: 4.*guidance_scale to 1"),
    "negative": ("flux", "txt2img", {"negative_prompt": "blur"}, "negative_prompt: 'blur'"),
    "tokens alone": ("sd3", "ti_aug", {}, r"only LoRA under words, but ti_aug learns tokens alone \(rank 0\)"),
    "vocabulary": ("sd3", "diff_gen", {"concepts": {"init": 42}}, "vocabulary id 42 means nothing to it"),
    "plms": ("sd3", "real_guidance", {"sampler": "plms"}, "sampler: plms"),
    "level of label 0": ("sd3", "img2img", {"final": "alpha_bar_0"}, "config.final: alpha_bar_0"),
    "embeddings": ("flux2_klein", "diffusion_inversion", {}, "which only a model of one text and no flow takes"),
    "bottleneck": ("z_image", "dream_da", {}, "no U-Net whose bottleneck"),
    "fine-tuning": ("qwen_image", "datadream", {}, "learns LoRA of a text encoder and a U-Net, which it has not"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_model_does_not_bear_is_refused(folders: dict[str, Path], case: str) -> None:
    name, method, config, sentence = REFUSED[case]
    with pytest.raises(BackboneError, match=sentence) as error:
        suits(folders[name], method, **config)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", ["txt2img", "img2img", "genie", "diff_mix", "diff_ii"])
def test_what_a_model_bears_is_planned(folders: dict[str, Path], name: str, method: str) -> None:
    asked = {"on_distilled": True} if name == "flux" and method == "diff_ii" else {}
    suits(folders[name], method, **asked)


def test_names_tell_distilled_models_before_their_files_are_here() -> None:
    distilled = ("black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.2-klein-4B", "Tongyi-MAI/Z-Image-Turbo")
    assert all((found := guess_facts(name)) is not None and found.guidance == "none" for name in distilled)
    assert (dev := guess_facts("black-forest-labs/FLUX.1-dev")) is not None and dev.guidance == "embedded"
    assert (base := guess_facts("black-forest-labs/FLUX.2-klein-base-4B")) is not None and base.inverts
    assert guess_facts("Tongyi-MAI/Z-Image") is None


def test_a_ratio_in_snr_is_stable_diffusion_s_on_a_flow(folders: dict[str, Path]) -> None:
    listed = tuple(Source(f"{i:064x}", i % 2, f"{i}") for i in range(4))
    table = SourceTable("t", "train", ("a", "b"), ("a", "b"), "", listed)
    module = find_method("genie")

    def noised(name: str, ratio: float, ratio_in: str) -> int:
        cfg = module.Config(ratio=ratio, ratio_in=ratio_in)
        spec = PlanSpec(seed=0, backbone="b", per_class=1, timeline=facts(folders[name]).timeline)
        return int(json.loads(next(iter(module.plan(cfg, table, spec))).draw)["noised_at"])

    ratios = (0.5, 0.6, 0.7, 0.8, 0.9)
    assert [noised("sd3", r, "time") for r in ratios] == [500, 600, 700, 800, 900]
    assert [round(noised("sd3", r, "snr"), -1) for r in ratios] == [620, 700, 770, 840, 890]
    with pytest.raises(PlanError, match="snr is for a model on a rectified flow"):
        noised("pixart", 0.7, "snr")
    plain = Recipe.from_dict({"builder": "fashion", "method": "genie"}, folder=None)
    assert "ratio_in" not in json.dumps(plain.identity())


def _edited(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "wide": (
        "sd3",
        lambda f: _edited(f, "transformer/config.json", joint_attention_dim=64),
        "a T5 of width 32.*the 64",
    ),
    "channels": ("flux", lambda f: _edited(f, "transformer/config.json", in_channels=64), "takes 64 channels.*16"),
    "class": ("z_image", lambda f: _edited(f, "transformer/config.json", _class_name="Odd"), "a Odd in transformer"),
    "scheduler": ("sd3", lambda f: _edited(f, "scheduler/scheduler_config.json", use_beta_sigmas=True), "use_beta_sig"),
    "vocabulary": ("sana", lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer/ has no vocabulary"),
    "weights": ("pixart", lambda f: shutil.rmtree(f / "transformer"), "transformer/config.json is missing"),
    "cut": (
        "qwen_image",
        lambda f: (f / "transformer/diffusion_pytorch_model.safetensors").write_bytes(b"\x10"),
        "transformer/diffusion_pytorch_model.safetensors",
    ),
    "means": ("qwen_image", lambda f: _edited(f, "vae/config.json", latents_mean=[1, "x"]), "latents_mean.*4 numbers"),
    "layers": ("flux2_klein", lambda f: _edited(f, "text_encoder/config.json", num_hidden_layers=9), "of 9 layers"),
    "part": ("flux", lambda f: _edited(f, "model_index.json", helper=["diffusers", "Thing"]), "a part 'helper'"),
    "own code": ("sana", lambda f: _edited(f, "model_index.json", vae=["mine", "AutoencoderDC"]), "of its own"),
    "places": (
        "sd3",
        lambda f: _edited(f, "transformer/config.json", pos_embed_max_size=2),
        "knows places up to 16 px",
    ),
    "eps": (
        "pixart",
        lambda f: _edited(f, "scheduler/scheduler_config.json", prediction_type="v_prediction"),
        "a scheduler for v_prediction",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_one_sentence(folders: dict[str, Path], tmp_path: Path, case: str) -> None:
    name, damage, sentence = DAMAGE[case]
    copy = shutil.copytree(folders[name], tmp_path / name)
    damage(copy)
    with pytest.raises(BackboneError, match=sentence) as error:
        facts(copy)
    assert str(error.value).count("\n") == 0 and str(error.value).startswith("backbone ")


def test_every_family_s_targets_lie_in_its_network(folders: dict[str, Path]) -> None:
    for family in discover_families().values():
        if family.RARE_WORDS:
            assert family.LORA_PREFIX == "transformer" and family.SIZES and family.PURPOSE != "-"
            assert all(size.gigabytes > 2 for size in family.SIZES)


@pytest.mark.parametrize("name", FAMILIES)
def test_damaged_configurations_are_sentences(folders: dict[str, Path], name: str) -> None:
    spec = BackboneSpec(id=str(folders[name]), height=32, width=32)
    assert 0 < fuzzed(spec, 1, 20, load=False) < 20


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FAMILIES)
def test_many_damaged_configurations_are_sentences_or_work(folders: dict[str, Path], name: str) -> None:
    spec = BackboneSpec(id=str(folders[name]), height=32, width=32)
    assert fuzzed(spec, 2, 400, load=False) and fuzzed(spec, 3, 40, load=True)
