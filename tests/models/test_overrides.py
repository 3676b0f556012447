"""A model with another autoencoder, or other keys in its scheduler's file, is the model whose folder says so."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sd_tiny
import torch

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.models import BackboneSpec, find_backbone
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.denoising import timesteps
from diffaug_datasets.models.model_folder import check_backbone

TRAILING = {"timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder with other weights, in a folder of its own."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("other") / "vae-ft"
    sd_tiny.vae().save_pretrained(folder)
    return folder


def identity(**backbone: Any) -> dict[str, Any]:
    content = {"builder": "fashion", "protocol": "2shot", "method": "txt2img", "backbone": backbone}
    found: Any = Recipe.from_dict(content).identity()["backbone"]
    return dict(found)


def test_at_their_defaults_they_are_in_no_dump(sd_folder: Path) -> None:
    assert identity(id="tiny").keys() == {"variant", "dtype", "height", "width"}
    assert "+" not in find_backbone(BackboneSpec(id=str(sd_folder))).name


def test_both_count_for_the_plan_and_name_no_place(sd_folder: Path, other: Path) -> None:
    said = identity(id=str(sd_folder), vae=str(other), scheduler=TRAILING)
    assert said["scheduler"] == TRAILING and said["vae"].startswith("vae-ft@") and "/" not in said["vae"]
    specs = [{}, {"vae": str(other)}, {"scheduler": TRAILING}, {"vae": str(other), "scheduler": TRAILING}]
    names = [find_backbone(BackboneSpec(id=str(sd_folder), **words)).name for words in specs]
    assert len(set(names)) == 4 and len({name.partition("+")[0] for name in names}) == 1


def test_another_vae_is_used_and_the_rest_stays(sd_folder: Path, other: Path, tmp_path: Path) -> None:
    by_hand = shutil.copytree(sd_folder, tmp_path / "by-hand")
    shutil.rmtree(by_hand / "vae")
    shutil.copytree(other, by_hand / "vae")
    plain, expected = Backbone.load(BackboneSpec(id=str(sd_folder))), Backbone.load(BackboneSpec(id=str(by_hand)))
    found = Backbone.load(BackboneSpec(id=str(sd_folder), vae=str(other)))
    image, xt = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64), torch.ones(1, 4, 8, 8)
    assert torch.equal(found.encode(image), expected.encode(image))
    assert not torch.equal(found.encode(image), plain.encode(image))
    cond = plain.prompts(["bird"])
    assert torch.equal(found.prompts(["bird"]), cond) and torch.equal(found.eps(xt, 41, cond), plain.eps(xt, 41, cond))


def test_keys_of_the_scheduler_are_changed(sd_folder: Path) -> None:
    spec = BackboneSpec(id=str(sd_folder), scheduler=TRAILING)
    facts, backbone = check_backbone(spec), Backbone.load(spec)
    assert facts is not None and facts.timeline.labels("ddim", 4) == (999, 749, 499, 249)
    assert timesteps(backbone, "ddim", 4) == (999, 749, 499, 249)
    kept = json.loads((sd_folder / "scheduler" / "scheduler_config.json").read_text())
    assert "timestep_spacing" not in kept


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"scheduler": {"clip_sample": True}}, r"has a scheduler with clip_sample True, which no sampler"),
        ({"scheduler": {"shift": 3.0}}, r"has an unknown key 'shift' in its scheduler"),
        ({"vae": "nowhere"}, r"vae 'nowhere' is neither a folder nor a Hub id: give one of these"),
        ({"vae": "EMPTY"}, r"backbone.vae: '.*' holds no config.json, expected the folder of an"),
        ({"vae": "WIDE"}, r"has a U-Net that takes 4 channels, expected the 16 of its VAE's latents"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    sd_folder: Path, other: Path, tmp_path: Path, words: dict[str, Any], sentence: str
) -> None:
    if words.get("vae") == "EMPTY":
        words = {"vae": str(tmp_path)}
    if words.get("vae") == "WIDE":
        wide = shutil.copytree(other, tmp_path / "wide")
        config = json.loads((wide / "config.json").read_text())
        (wide / "config.json").write_text(json.dumps({**config, "latent_channels": 16}))
        (wide / "diffusion_pytorch_model.safetensors").unlink()
        torch.manual_seed(0)
        type(sd_tiny.vae()).from_config({**config, "latent_channels": 16}).save_pretrained(wide)
        words = {"vae": str(wide)}
    with pytest.raises(BackboneError, match=sentence) as caught:
        check_backbone(BackboneSpec(id=str(sd_folder), **words))
    assert "\n" not in str(caught.value)
