"""LoRA that a recipe adds into a model is what diffusers' own `load_lora_weights` and `fuse_lora` make of the file."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flow_tiny
import lora_files
import pytest
import sd_tiny
import torch
import unet_tiny
from diffusers import FluxPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.learning import ConceptConfig
from diffaug_datasets.core.models import BackboneSpec, find_backbone
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.concepts import train_concepts
from diffaug_datasets.models.latents import ConceptExample
from diffaug_datasets.models.model_folder import check_backbone

pytestmark = pytest.mark.xdist_group("lora")
LAYOUTS = ("diffusers-alpha", "diffusers-old", "kohya")
SLOW = [pytest.param(layout, marks=pytest.mark.full) for layout in ("diffusers", "diffusers-scripts")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_files.small(tmp_path_factory.mktemp("lora") / "sd")


@pytest.fixture(scope="module")
def files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One pair of trained adapters in every layout that holds U-Net and text encoder."""
    place, pipe = tmp_path_factory.mktemp("files"), sd_tiny.pipeline(folder)
    lora_files.trained(pipe.unet, lora_files.UNET, 1)
    lora_files.trained(pipe.text_encoder, lora_files.TEXT, 2)
    return {
        "diffusers": lora_files.in_diffusers(pipe, place / "plain", metadata=False),
        "diffusers-alpha": lora_files.in_diffusers(pipe, place / "alpha", metadata=True),
        "diffusers-scripts": lora_files.by_its_scripts(pipe, place / "scripts"),
        "diffusers-old": lora_files.as_before_peft(pipe, place / "old.safetensors"),
        "kohya": lora_files.in_kohya(pipe, place / "kohya.safetensors"),
    }


def same(ours: Any, reference: dict[str, Tensor], before: dict[str, Tensor]) -> float:
    """Largest difference of our weights from the reference's, once they are seen to differ from what was before."""
    found = dict(ours.state_dict())
    assert found.keys() == reference.keys()
    assert any(not torch.equal(found[key], before[key]) for key in found)
    return max(float((found[key].float() - reference[key].float()).abs().max()) for key in found)


@pytest.mark.parametrize("layout", [*LAYOUTS, *SLOW])
def test_a_file_is_added_as_diffusers_adds_it(folder: Path, files: dict[str, Path], layout: str) -> None:
    expected = lora_files.merged_by_diffusers(sd_tiny.pipeline(folder), [(files[layout], 0.7)])
    before = sd_tiny.pipeline(folder)
    spec = BackboneSpec.model_validate({"id": str(folder), "lora": {"file": str(files[layout]), "weight": 0.7}})
    assert check_backbone(spec) is not None
    backbone = Backbone.load(spec)
    assert same(backbone.network, expected["unet"], before.unet.state_dict()) < 2e-6
    if layout != "diffusers-old":
        assert same(backbone.text_encoder, expected["text_encoder"], before.text_encoder.state_dict()) < 2e-6


@pytest.mark.full
def test_several_files_add_up(folder: Path, files: dict[str, Path]) -> None:
    both = [(files["kohya"], 0.5), (files["diffusers-old"], -1.5)]
    expected = lora_files.merged_by_diffusers(sd_tiny.pipeline(folder), both)
    words = [{"file": str(path), "weight": weight} for path, weight in both]
    backbone = Backbone.load(BackboneSpec.model_validate({"id": str(folder), "lora": words}))
    assert same(backbone.network, expected["unet"], sd_tiny.pipeline(folder).unet.state_dict()) < 4e-6


def test_peft_scales_by_the_file_beside_it(folder: Path, tmp_path: Path) -> None:
    place, expected = lora_files.in_peft(sd_tiny.pipeline(folder).unet, tmp_path / "adapter", 3)
    backbone = Backbone.load(BackboneSpec.model_validate({"id": str(folder), "lora": str(place)}))
    assert same(backbone.network, expected, sd_tiny.pipeline(folder).unet.state_dict()) < 2e-6


def test_sdxl_in_the_names_of_its_original_code(tmp_path: Path) -> None:
    folder = unet_tiny.sdxl(tmp_path / "sdxl")
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    lora_files.trained(pipe.unet, ("to_q", "to_k", "to_v", "to_out.0", "ff.net.2"), 5)
    path = lora_files.kohya_of_sdxl(pipe.unet, tmp_path / "kohya.safetensors", layers=1)
    plain = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    before = {key: weight.clone() for key, weight in plain.unet.state_dict().items()}
    expected = lora_files.merged_by_diffusers(plain, [(path, 1.0)])["unet"]
    spec = BackboneSpec.model_validate({"id": str(folder), "lora": [str(path)]})
    assert check_backbone(spec) is not None
    assert same(Backbone.load(spec).network, expected, before) < 2e-6


@pytest.mark.full
def test_flux_in_the_names_of_its_original_code(tmp_path: Path) -> None:
    folder = flow_tiny.build(tmp_path / "flux", flow_tiny.flux)
    generator, made = torch.Generator().manual_seed(0), {}
    pipe = FluxPipeline.from_pretrained(folder, local_files_only=True)
    width = pipe.transformer.inner_dim
    sides = {"img_attn_qkv": 3, "img_attn_proj": 1, "txt_attn_qkv": 3, "img_mlp_0": 4, "txt_mod_lin": 6}
    for name, times in sides.items():
        key = f"lora_unet_double_blocks_0_{name}"
        made[f"{key}.lora_down.weight"] = torch.randn(2, width, generator=generator)
        made[f"{key}.lora_up.weight"] = torch.randn(times * width, 2, generator=generator)
        made[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(made, tmp_path / "flux.safetensors")
    before = {key: weight.clone() for key, weight in pipe.transformer.state_dict().items()}
    expected = lora_files.merged_by_diffusers(pipe, [(tmp_path / "flux.safetensors", 1.0)])["transformer"]
    words = {"id": str(folder), "lora": str(tmp_path / "flux.safetensors"), "height": 32, "width": 32}
    spec = BackboneSpec.model_validate(words)
    assert check_backbone(spec) is not None
    assert same(Backbone.load(spec).network, expected, before) < 2e-6


def test_it_counts_for_the_plan_by_digest_scale_and_order(folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    a, b = str(files["kohya"]), str(files["diffusers"])
    moved = str(shutil.copy(a, tmp_path / "elsewhere.safetensors"))
    words: list[Any] = [[], a, {"file": a, "weight": 0.5}, b, [a, b], [b, a]]
    names = [find_backbone(BackboneSpec.model_validate({"id": str(folder), "lora": word})).name for word in words]
    assert len(set(names)) == len(words) and len({name.partition("+")[0] for name in names}) == 1
    assert find_backbone(BackboneSpec.model_validate({"id": str(folder), "lora": moved})).name == names[1]


def of(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path, Path], Path]:
    return lambda path, target: lora_files.damaged(path, target, change)


def named(old: str, new: str) -> Callable[[Path, Path], Path]:
    return of(lambda tensors: {key.replace(old, new): tensor for key, tensor in tensors.items()})


def first_as(key: str) -> Callable[[Path, Path], Path]:
    return of(lambda tensors: {**tensors, key: tensors[min(tensors)].clone()})


def ranked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor[:2] if "lora_A" in key else tensor for key, tensor in tensors.items()}


def wide(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: t.repeat(1, 2) if "attn2.to_k.lora_A" in key else t for key, t in tensors.items()}


def cut(path: Path, target: Path) -> Path:
    target.write_bytes(path.read_bytes()[:-9])
    return target


def in_words(text: bytes) -> Callable[[Path, Path], Path]:
    def write(_: Path, target: Path) -> Path:
        target.write_bytes(text)
        return target

    return write


BAD: list[tuple[Callable[[Path, Path], Path], str]] = [
    (named("down_blocks.0", "down_blocks.7"), r"unet\.down_blocks\.7\..*, for which this model's unet has no weight"),
    (named("unet.", ""), "ok"),
    (named("unet.down_blocks", "no_blocks"), r"holds no_blocks.*, for which no network of this model has a weight"),
    (named("unet.", "transformer."), r"holds transformer\..*, and this model has no transformer, only unet, vae"),
    (named("text_encoder.", "text_encoder_2."), r"this model has no text_encoder_2, only .*: it was made for another"),
    (of(ranked), r"has matrices of shapes \[2, .*\] and \[.*, 3.*\] for .*, expected one rank in both"),
    (of(wide), r"changes .*attn2\.to_k by 16 x 64 numbers, and this model's unet has 16 x 32 there"),
    (named("lora_B", "lora_B_gone"), r"lora_B_gone.*, which is none of a LoRA's"),
    (of(lambda t: {k: v for k, v in t.items() if "lora_B" not in k}), r"without its other half: it is damaged"),
    (first_as("unet.x.dora_scale"), r"holds DoRA \(unet\.x\.dora_scale\), expected plain LoRA"),
    (first_as("lora_unet_x.hada_w1_a"), r"holds LoHa"),
    (of(lambda _: {"lora_unet_mid.alpha": torch.ones(())}), r"holds no matrices, expected LoRA"),
    (cut, r"it is cut short or grown: download it again"),
    (in_words(b""), r"is empty: download it again"),
    (named("unet.", "base_model.model."), r"is in peft's layout, whose scale stands in adapter_config.json beside it"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_what_does_not_fit_is_one_sentence_at_plan(
    folder: Path, files: dict[str, Path], tmp_path: Path, case: int
) -> None:
    damage, sentence = BAD[case]
    place = damage(files["diffusers"], tmp_path / "bad.safetensors")
    spec = BackboneSpec.model_validate({"id": str(folder), "lora": str(place)})
    if sentence == "ok":
        assert check_backbone(spec) is not None
        return
    with pytest.raises(BackboneError, match=rf"^backbone\.lora: .*{sentence}") as caught:
        check_backbone(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("gone.safetensors", r"there is no file '.*gone\.safetensors'"),
        ("style.ckpt", r"'.*style\.ckpt' is a pickle, which may run code and is never opened"),
        ("EMPTY", r"holds no pytorch_lora_weights.safetensors or adapter_model.safetensors"),
        ("OTHER", r"of style\.safetensors say which by `name`"),
        ("not a name", r"'not a name' is neither a file nor a Hub id"),
    ],
)
def test_what_is_no_file_is_one_sentence(folder: Path, tmp_path: Path, given: str, sentence: str) -> None:
    (tmp_path / "other").mkdir()
    save_file({"x": torch.ones(1)}, tmp_path / "other" / "style.safetensors")
    (tmp_path / "style.ckpt").write_bytes(b"no weights")
    (tmp_path / "empty").mkdir()
    place = {"EMPTY": str(tmp_path / "empty"), "OTHER": str(tmp_path / "other")}.get(given, given)
    words = {"id": str(folder), "lora": place}
    with pytest.raises(BackboneError, match=sentence):
        find_backbone(BackboneSpec.model_validate(words, context={"folder": tmp_path})).name  # noqa: B018


def test_on_the_hub_it_is_pinned_by_commit(
    folder: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, other = "0123456789" * 4, "9" * 40
    snapshot = tmp_path / "models--org--style" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    shutil.copy(files["kohya"], snapshot / "style.safetensors")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def spec(file: str, name: str | None = "style.safetensors") -> BackboneSpec:
        lora = {"file": file, "weight": 0.7, **({"name": name} if name else {})}
        return BackboneSpec.model_validate({"id": str(folder), "lora": lora})

    names = [find_backbone(spec(f"org/style{end}")).name for end in ("", f"@{commit}", f"@{other}")]
    assert names[0] == names[1] != names[2]
    with pytest.raises(BackboneError, match=r"backbone.lora: 'org/style' is not pinned .*; name it as org/style@"):
        find_backbone(spec("org/style", None)).name  # noqa: B018
    expected = lora_files.merged_by_diffusers(sd_tiny.pipeline(folder), [(files["kohya"], 0.7)])["unet"]
    found = Backbone.load(spec("org/style"))
    assert same(found.network, expected, sd_tiny.pipeline(folder).unet.state_dict()) < 2e-6


def test_facts_are_read_without_torch(folder: Path, files: dict[str, Path]) -> None:
    script = (
        "import sys, json; sys.modules['torch'] = None\n"
        "from diffaug_datasets.core.models import BackboneSpec\n"
        "from diffaug_datasets.models.model_folder import check_backbone\n"
        "print(check_backbone(BackboneSpec.model_validate(json.load(sys.stdin))).family)\n"
    )
    told = json.dumps({"id": str(folder), "lora": str(files["kohya"])})
    run = subprocess.run([sys.executable, "-c", script], input=told, capture_output=True, text=True)
    assert run.stdout.strip() == "stable_diffusion", run.stderr


def test_the_files_are_what_they_should_be(files: dict[str, Path]) -> None:
    begin = {"diffusers": "text_encoder.", "diffusers-old": "unet.down_blocks", "kohya": "lora_te_"}
    assert all(min(load_file(files[layout])).startswith(start) for layout, start in begin.items())


def test_concepts_are_learned_on_top_and_leave_it(folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    words = {"id": str(folder), "lora": str(files["kohya"])}
    backbone = Backbone.load(BackboneSpec.model_validate(words))
    before = {key: weight.clone() for key, weight in backbone.network.state_dict().items()}
    picture = Image.new("RGB", (64, 64), (90, 120, 150))
    examples = [ConceptExample(lambda: picture, 0, "grey")]
    config = ConceptConfig(steps=1, batch=1, rank=2, lr_lora=1.0)
    concepts = train_concepts(backbone, examples, {0: "bird"}, config, workdir=tmp_path).concepts
    backbone.use_concepts(concepts)
    changed = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    a, b = (concepts.lora[f"unet.{changed}.lora_{side}.weight"] for side in "AB")
    expected = before[f"{changed}.weight"] + b @ a
    assert torch.equal(backbone.network.state_dict()[f"{changed}.weight"], expected) and float(b.abs().max()) > 0
    backbone.use_concepts(None)
    assert all(torch.equal(weight, before[key]) for key, weight in backbone.network.state_dict().items())
