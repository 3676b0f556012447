"""One checkpoint in the original layout gives the networks of the folder that it was made from, bit for bit."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flow_tiny
import original_checkpoints
import pytest
import sd_tiny
import torch
import unet_tiny
from diffusers import FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from hub.clients import loopback_hub
from huggingface_hub import HfApi
from lora_files import small
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.models import BackboneSpec, find_backbone
from diffaug_datasets.core.weight_headers import TensorInfo
from diffaug_datasets.families.parts.original_names import flux_names, renamed_header
from diffaug_datasets.families.parts.weight_overrides import from_single_file
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.model_folder import check_backbone

pytestmark = pytest.mark.xdist_group("single_file")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("single") / "sd")


@pytest.fixture(scope="module")
def configs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder without its weights."""
    return original_checkpoints.without_weights(folder, tmp_path_factory.mktemp("configs") / "sd")


@pytest.fixture(scope="module")
def checkpoint(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return original_checkpoints.stable_diffusion(folder, tmp_path_factory.mktemp("one") / "one.safetensors")


def networks(backbone: Backbone) -> list[dict[str, Tensor]]:
    encoders = [encoder for _, encoder in backbone.text.encoders]
    return [dict(network.state_dict()) for network in (backbone.network, backbone.vae, *encoders)]


def check_equal(folder: Path, configs: Path, path: Path | str, **words: Any) -> None:
    """Facts at plan and all weights are those of the folder."""
    spec = BackboneSpec.model_validate({"id": str(configs), "single_file": str(path), **words})
    plain = BackboneSpec.model_validate({"id": str(folder), **words})
    assert check_backbone(spec) == check_backbone(plain)
    both = (networks(Backbone.load(one)) for one in (spec, plain))
    for found, expected in zip(*both, strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)


def test_stable_diffusion(folder: Path, configs: Path, checkpoint: Path) -> None:
    check_equal(folder, configs, checkpoint)


@pytest.mark.full
def test_four_levels_and_the_text_encoder_of_open_clip(tmp_path: Path) -> None:
    folder = sd_tiny.build(tmp_path / "sd2")
    path = original_checkpoints.stable_diffusion(folder, tmp_path / "two.safetensors", is_open_clip=True)
    check_equal(folder, original_checkpoints.without_weights(folder, tmp_path / "configs"), path)


def test_stable_diffusion_xl(tmp_path: Path) -> None:
    folder = unet_tiny.sdxl(tmp_path / "sdxl")
    path = original_checkpoints.stable_diffusion_xl(folder, tmp_path / "xl.safetensors")
    check_equal(folder, original_checkpoints.without_weights(folder, tmp_path / "configs"), path)


@pytest.mark.full
@pytest.mark.parametrize(
    ("make", "original"),
    [
        (flow_tiny.sd3, original_checkpoints.stable_diffusion_3),
        (flow_tiny.qwen_image, dict),
        (flow_tiny.flux2_klein, original_checkpoints.flux_2),
        (flow_tiny.z_image, original_checkpoints.z_image),
        (flow_tiny.sana, original_checkpoints.sana),
    ],
)
def test_a_transformer_alone(make: Callable[[], Any], original: Callable[[Any], Any], tmp_path: Path) -> None:
    folder = flow_tiny.build(tmp_path / "whole", make)
    save_file(original(original_checkpoints.weights(folder, "transformer")), tmp_path / "one.safetensors")
    rest = original_checkpoints.without_weights(folder, tmp_path / "rest", "transformer")
    check_equal(folder, rest, tmp_path / "one.safetensors", height=32, width=32)


@pytest.mark.full
def test_a_block_of_flux_at_its_real_width(tmp_path: Path) -> None:
    """diffusers splits the fused projections at 3072 columns, so a small one cannot be read."""
    model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True).to(torch.bfloat16)
    model.save_config(tmp_path / "transformer")
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    save_file(original_checkpoints.flux(model.state_dict()), tmp_path / "one.safetensors")
    spec = BackboneSpec(id=str(tmp_path), single_file=str(tmp_path / "one.safetensors"))
    found = from_single_file(FluxTransformer2DModel, tmp_path, "transformer", spec, torch.bfloat16)
    assert found is not None
    read, expected = found.state_dict(), model.state_dict()
    assert read.keys() == expected.keys() and all(torch.equal(read[key], expected[key]) for key in expected)


def test_a_family_that_is_not_read_from_one_file_is_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    folder = flow_tiny.build(tmp_path / "pixart", flow_tiny.pixart)
    with pytest.raises(BackboneError, match=r"has a PixArtTransformer2DModel, which is not read from one file: give a"):
        check_backbone(BackboneSpec(id=str(folder), single_file=str(checkpoint), height=32, width=32))


def test_parts_that_it_lacks_come_from_the_folder(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    kept = {k: v for k, v in load_file(checkpoint).items() if k.startswith("model.")}
    save_file(kept, tmp_path / "unet.safetensors")
    rest = original_checkpoints.without_weights(folder, tmp_path / "rest", "unet")
    check_equal(folder, rest, tmp_path / "unet.safetensors")


def test_lora_is_added_to_it(folder: Path, configs: Path, checkpoint: Path, tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    matrices = {f"{name}.lora_down.weight": torch.ones(2, 32), f"{name}.lora_up.weight": torch.ones(32, 2)}
    save_file(matrices, tmp_path / "lora.safetensors")
    words = {"id": str(configs), "single_file": str(checkpoint), "lora": str(tmp_path / "lora.safetensors")}
    spec = BackboneSpec.model_validate(words)
    assert check_backbone(spec) is not None
    found = networks(Backbone.load(spec))[0]
    expected = networks(Backbone.load(BackboneSpec(id=str(folder))))[0]
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(found[key], expected[key] + 2)


def test_it_counts_for_the_plan_by_digest(configs: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({key: tensor + 1 for key, tensor in load_file(checkpoint).items()}, other)
    moved = shutil.copy(checkpoint, tmp_path / "moved.safetensors")
    names = [
        find_backbone(BackboneSpec(id=str(configs), **({"single_file": str(path)} if path else {}))).name
        for path in (None, checkpoint, other, moved)
    ]
    assert len(set(names)) == 3 and names[1] == names[3]


def test_on_the_hub_it_is_pinned_by_commit_and_fetched(
    folder: Path, configs: Path, checkpoint: Path, tmp_path: Path
) -> None:
    def spec(text: str) -> BackboneSpec:
        return BackboneSpec.model_validate({"id": str(configs), "single_file": text}, context={"folder": tmp_path})

    with loopback_hub(tmp_path) as hub:
        api = HfApi(token=hub.token)
        api.create_repo("org/dreamy", repo_type="model")
        for name in ("pruned/one.safetensors", "other.safetensors"):
            api.upload_file(path_or_fileobj=checkpoint, path_in_repo=name, repo_id="org/dreamy", repo_type="model")
        commit = api.repo_info("org/dreamy", repo_type="model").sha
        text = f"org/dreamy/pruned/one.safetensors@{commit}"
        pinned, other = find_backbone(spec(text)).name, find_backbone(spec(f"{text[:-40]}{'9' * 40}")).name
        assert pinned != other and pinned.startswith(f"{configs.name}@")
        assert check_backbone(spec(text)) == check_backbone(BackboneSpec(id=str(folder)))  # not here yet
        with pytest.raises(BackboneError, match=r"is not pinned .* `hf download org/dreamy pruned/one\.safetensors`"):
            find_backbone(spec(text[:-41])).name  # noqa: B018
        with pytest.raises(BackboneError, match=r"^backbone\.single_file: 'org/dreamy' holds no gone\.saf"):
            Backbone.load(spec(f"org/dreamy/gone.safetensors@{commit}"))
        with pytest.raises(BackboneError, match=rf"cannot be reached .* gone\.safetensors --revision {'9' * 40}`"):
            Backbone.load(spec(f"org/dreamy/gone.safetensors@{'9' * 40}"))
        check_equal(folder, configs, text)
        fetched = hub.log.copy()
        check_equal(folder, configs, text)
        assert hub.log == fetched
    with pytest.raises(BackboneError, match=r"cannot be reached"):  # the cache of other tests, which holds nothing
        Backbone.load(spec(text))


def test_a_file_of_that_name_here_comes_before_one_on_the_hub(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    shutil.copy(checkpoint, tmp_path / "org" / "name" / "one.safetensors")
    for name, expected in (("one", str(tmp_path / "org" / "name" / "one.safetensors")), ("two", None)):
        given = f"org/name/{name}.safetensors"
        spec = BackboneSpec.model_validate({"id": "tiny", "single_file": given}, context={"folder": tmp_path})
        assert spec.single_file == (expected or given)


def wide(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: torch.ones(v.shape[0], 48) if k.endswith("attn2.to_k.weight") else v for k, v in tensors.items()}


def of_flux(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.replace("input_blocks.", "double_blocks."): v for k, v in tensors.items()}


def lacking(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in tensors.items() if "middle_block.1" not in k}


def quantised(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.to(torch.int8) if k.endswith("out.2.weight") else v for k, v in tensors.items()}


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
BAD: list[tuple[Change, str]] = [
    (wide, r"cannot be loaded with the configurations of '.*' \(unet has .*attn2\.to_k\.weight of shape \[16, 48\]"),
    (of_flux, r"no weights that begin with model\.diffusion_model\.input_blocks\., as those of a UNet2DConditionModel"),
    (quantised, r"has I8 numbers in out\.2\.weight, expected floats"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD)
def test_what_does_not_fit_is_one_sentence_at_plan(
    configs: Path,
    checkpoint: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    sentence: str,
) -> None:
    save_file(change(load_file(checkpoint)), tmp_path / "bad.safetensors")
    with pytest.raises(BackboneError, match=rf"^backbone\.single_file: .*{sentence}") as caught:
        check_backbone(BackboneSpec(id=str(configs), single_file=str(tmp_path / "bad.safetensors")))
    assert "\n" not in str(caught.value)


def test_a_weight_that_is_missing_is_never_made_up(configs: Path, checkpoint: Path, tmp_path: Path) -> None:
    save_file(lacking(load_file(checkpoint)), tmp_path / "bad.safetensors")
    spec = BackboneSpec(id=str(configs), single_file=str(tmp_path / "bad.safetensors"))
    with pytest.raises(
        BackboneError, match=r"^backbone\.single_file: .* \(bad.safetensors lacks weights of unet\)"
    ) as caught:
        Backbone.load(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("gone.safetensors", None, r"there is no file '.*gone\.safetensors'"),
        ("model.ckpt", b"x", r"'.*model\.ckpt' is a pickle, which may run code and is never opened"),
        ("short.safetensors", b"x" * 20, r"has no safetensors header, or is cut short"),
        ("empty.safetensors", b"", r"is empty: download it again"),
    ],
)
def test_what_is_no_checkpoint_is_one_sentence(
    configs: Path, tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BackboneError, match=rf"^backbone\.single_file: .*{sentence}"):
        check_backbone(BackboneSpec(id=str(configs), single_file=str(tmp_path / name)))


def test_names_of_flux_are_those_of_diffusers() -> None:
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=True)
    original = original_checkpoints.flux(model.state_dict())
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    converted = convert_flux_transformer_checkpoint_to_diffusers(dict(original))
    assert {key: tuple(tensor.shape) for key, tensor in converted.items()} == expected
    header = {key: TensorInfo("F32", tuple(tensor.shape)) for key, tensor in original.items()}
    found = renamed_header(header, flux_names)
    assert {key: entry.shape for key, entry in found.items()} == {
        key: shape for key, shape in expected.items() if not re.search(r"norm_out|norm_(added_)?[qk]\.", key)
    }
