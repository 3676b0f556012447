"""A set made with LoRA of its publisher names no place, and is checked with a file that says where the LoRA lies."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.models import BackboneSpec, find_backbone, unpublished_weights
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.release.contents import local_models, public_recipe
from diffaug_datasets.release.rebuild import standing_in


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    matrices = {f"{module}.lora_down.weight": torch.ones(1, 64), f"{module}.lora_up.weight": torch.ones(64, 1)}
    save_file(matrices, tmp_path / "style.safetensors")
    lora = [{"file": "style.safetensors", "weight": 0.5}, "org/name@" + "0" * 40]
    content = {"builder": "fashion", "method": "txt2img", "backbone": {"id": "tiny", "lora": lora}}
    return Recipe.from_dict(content, folder=tmp_path)


def test_the_published_recipe_names_the_file_by_its_digest(recipe: Recipe, tmp_path: Path) -> None:
    published = public_recipe(recipe)
    assert published.identity() == recipe.identity()
    assert str(tmp_path) not in published.to_yaml() and "style.safetensors@" in published.to_yaml()
    assert local_models(recipe) == ["backbone.lora.0"]
    assert unpublished_weights(published.backbone) == ["lora.0"]


def test_a_file_of_keys_says_where_it_lies(recipe: Recipe, tmp_path: Path) -> None:
    published = public_recipe(recipe).backbone
    keys = tmp_path / "mine.yaml"
    keys.write_text("lora:\n- {file: style.safetensors, weight: 0.5}\n- org/name@" + "0" * 40 + "\n", "utf-8")
    assert find_backbone(standing_in(published, str(keys))).name == find_backbone(recipe.backbone).name
    assert standing_in(published, "org/other") == BackboneSpec(id="org/other", lora=published.lora)


def test_another_file_is_one_sentence(recipe: Recipe, tmp_path: Path) -> None:
    keys = tmp_path / "mine.yaml"
    keys.write_text("lora: 3\n", "utf-8")
    sentence = r"^--backbone .*mine\.yaml: lora\.0: .*; expected keys of a recipe's backbone\.$"
    with pytest.raises(PublishError, match=sentence):
        standing_in(public_recipe(recipe).backbone, str(keys))
