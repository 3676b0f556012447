"""A BLIP-Diffusion pipeline with a random Q-Former, and what it makes of a picture, by transformers and diffusers.

Imports nothing of ours. The weights are those of diffusers' own `Blip2QFormerModel`, whose forward pass does not run
beside transformers 5; what it computes is put together from public classes: CLIP's vision model (its layers, with
queries, keys and values in one matrix there), BLIP-2's `Blip2QFormerModel`, and `ContextCLIPTextModel` as CLIP's text
model with vectors among its embeddings. `BlipDiffusionControlNetPipeline` says how they follow each other.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, PNDMScheduler, StableDiffusionPipeline
from diffusers.pipelines.deprecated.blip_diffusion.blip_image_processing import BlipImageProcessor
from diffusers.pipelines.deprecated.blip_diffusion.modeling_blip2 import Blip2QFormerModel as DiffusersQFormer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "bird", "the", "red", "house", "on", "hill")
WORDS += (",", "1984", "clothing", "shoe")
VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION |= {"patch_size": 8, "image_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-6}
QFORMER = {"vocab_size": 24, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
QFORMER |= {"intermediate_size": 64, "max_position_embeddings": 16, "encoder_hidden_size": 16}
QFORMER |= {"cross_attention_frequency": 2}
QUERIES = 4
PNDM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PNDM |= {"set_alpha_to_one": False, "skip_prk_steps": True}


def build(folder: Path, packaged: Path, controlnet: Path) -> Path:
    """Write it as diffusers does and return the folder; `packaged`: a whole Stable Diffusion pipeline."""
    shutil.copytree(packaged, folder, ignore=shutil.ignore_patterns("scheduler"))
    shutil.copytree(controlnet, folder / "controlnet")
    PNDMScheduler(**PNDM).save_pretrained(folder / "scheduler")
    (folder / "qformer").mkdir()
    (folder / "qformer" / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    config = Blip2Config(vision_config=VISION, qformer_config=QFORMER, num_query_tokens=QUERIES)
    config.tokenizer = str(folder / "qformer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = DiffusersQFormer(config)
        for name, weight in network.named_parameters():
            scale = 1.0 if name == "query_tokens" or "embedding" in name else 0.3
            torch.nn.init.normal_(weight, std=scale)
    config.tokenizer = None
    network.save_pretrained(folder / "qformer")
    text = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    text["architectures"] = ["ContextCLIPTextModel"]
    (folder / "text_encoder" / "config.json").write_text(json.dumps(text), encoding="utf-8")
    weights = load_file(folder / "text_encoder" / "model.safetensors")
    prefixed = {f"text_model.{name}": weight for name, weight in weights.items()}
    save_file(prefixed, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index |= {"_class_name": "BlipDiffusionControlNetPipeline", "scheduler": ["diffusers", "PNDMScheduler"]}
    index |= {"text_encoder": ["blip_diffusion", "ContextCLIPTextModel"], "ctx_begin_pos": 2}
    index |= {"qformer": ["blip_diffusion", "Blip2QFormerModel"], "controlnet": ["diffusers", "ControlNetModel"]}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


class Published:
    """What the pipeline makes, step by step; `packaged` has the same U-Net, VAE and text encoder."""

    def __init__(self, folder: Path, packaged: Path) -> None:
        self.pipe: Any = StableDiffusionPipeline.from_pretrained(packaged, safety_checker=None, local_files_only=True)
        self.controlnet: Any = ControlNetModel.from_pretrained(folder / "controlnet", local_files_only=True)
        self.weights = load_file(folder / "qformer" / "model.safetensors")
        self.words = BertTokenizer.from_pretrained(folder / "qformer")

    @torch.no_grad()
    def seen(self, image: Image.Image) -> Tensor:
        """All tokens of the picture after the last normalisation."""
        side = VISION["image_size"]
        processor = BlipImageProcessor(size={"height": side, "width": side})
        pixels = processor.preprocess(image, return_tensors="pt")["pixel_values"]
        model, own = CLIPVisionModel(CLIPVisionConfig(**VISION, projection_dim=8)).eval(), {}
        for name, weight in self.weights.items():
            if name.startswith("visual_encoder."):
                rest = name.removeprefix("visual_encoder.").replace("pre_layernorm", "pre_layrnorm")
                if ".qkv." in rest:
                    for part, rows in zip("qkv", weight.chunk(3), strict=True):
                        own[rest.replace("qkv", f"{part}_proj")] = rows
                else:
                    own[rest.replace("self_attn.projection", "self_attn.out_proj")] = weight
        own["embeddings.class_embedding"] = own["embeddings.class_embedding"].flatten()
        own["embeddings.position_embedding.weight"] = own.pop("embeddings.position_embedding")[0]
        prefix = "" if hasattr(model, "embeddings") else "vision_model."
        lacking = model.load_state_dict({f"{prefix}{name}": weight for name, weight in own.items()}, strict=False)
        assert not lacking.unexpected_keys
        assert all("position_ids" in name for name in lacking.missing_keys)
        inner = model if hasattr(model, "embeddings") else model.vision_model
        tokens: Tensor = inner.post_layernorm(model(pixels).last_hidden_state)
        return tokens

    @torch.no_grad()
    def vectors(self, image: Image.Image, word: str) -> Tensor:
        """The subject [1 q d]."""
        config = Blip2QFormerConfig(**QFORMER, use_qformer_text_input=True)
        model, weights = Blip2QFormerModel(config).eval(), self.weights
        own = {name: weight for name, weight in weights.items() if name.startswith("encoder.")}
        own |= {f"layernorm.{side}": weights[f"embeddings.LayerNorm.{side}"] for side in ("weight", "bias")}
        model.load_state_dict(own)
        ids = self.words([word], return_tensors="pt").input_ids
        text = torch.nn.functional.embedding(ids, weights["embeddings.word_embeddings.weight"])
        text = text + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        both = torch.cat([weights["query_tokens"], text], dim=1)
        states = model(both, query_length=QUERIES, encoder_hidden_states=self.seen(image)).last_hidden_state
        x = states[:, :QUERIES]
        norm = torch.nn.LayerNorm(x.shape[-1], eps=1e-12)
        norm.load_state_dict({side: weights[f"proj_layer.LayerNorm.{side}"] for side in ("weight", "bias")})
        wide = norm(x) @ weights["proj_layer.dense1.weight"].T + weights["proj_layer.dense1.bias"]
        wide = wide * torch.sigmoid(1.702 * wide)
        made: Tensor = wide @ weights["proj_layer.dense2.weight"].T + weights["proj_layer.dense2.bias"] + x
        return made

    @torch.no_grad()
    def condition(self, vectors: Tensor, word: str, sentence: str) -> Tensor:
        """Hidden states [1 s d] of the repeated prompt with the vectors at place 2."""
        encoder, tokenizer = self.pipe.text_encoder, self.pipe.tokenizer
        room = encoder.config.max_position_embeddings - QUERIES
        text = ", ".join([f"a {word} {sentence}"] * 20)
        ids = tokenizer([text], padding="max_length", truncation=True, max_length=room, return_tensors="pt").input_ids
        words = encoder.get_input_embeddings()(ids)
        mixed = torch.cat([words[:, :2], vectors, words[:, 2:]], dim=1)
        table = encoder.get_input_embeddings()
        encoder.set_input_embeddings(_Given(mixed))
        try:
            states: Tensor = encoder(torch.zeros(mixed.shape[:2], dtype=torch.long)).last_hidden_state
        finally:
            encoder.set_input_embeddings(table)
        return states

    @torch.no_grad()
    def latents(self, cond: Tensor, negative: str, edges: Tensor, noise: Tensor, n: int, scale: float) -> Tensor:
        """[1 c h w], by the loop of the pipeline: PNDM, the ControlNet's residuals in full."""
        uncond, _ = self.pipe.encode_prompt(negative, "cpu", 1, do_classifier_free_guidance=False)
        scheduler, text = PNDMScheduler(**PNDM), torch.cat([uncond, cond])
        scheduler.set_timesteps(n)
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            both = torch.cat([x] * 2)
            down, middle = self.controlnet(
                both, t, encoder_hidden_states=text, controlnet_cond=torch.cat([edges] * 2), return_dict=False
            )
            low, high = self.pipe.unet(
                both,
                t,
                encoder_hidden_states=text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample.chunk(2)
            x = scheduler.step(low + scale * (high - low), t, x).prev_sample
        return x


class _Given(torch.nn.Module):
    """Stands in the place of a table of embeddings and always gives the same ones."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings, self.weight = embeddings, embeddings

    def forward(self, _ids: Tensor) -> Tensor:
        return self.embeddings
