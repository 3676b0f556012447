"""Tiny random pipelines of the transformer families, from diffusers' and transformers' own classes, saved to folders.

Images of 32 px, a VAE of factor 4, transformers of one or two blocks. Tokenizers are real ones over a small alphabet,
made here. Imports nothing of ours, so that it can stand on the reference side of a comparison.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel

SIDE = 32
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 ,.'-:;!?\n"
MERGES = ("p h", "ph o", "pho t", "phot o</w>", "o f</w>", "b i", "r d</w>", "bi rd</w>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)


def clip_tokenizer() -> Any:
    """CLIP's byte-level alphabet, a few merges, two special tokens; 24 tokens at most."""
    from transformers import CLIPTokenizer

    start, end = "<|startoftext|>", "<|endoftext|>"
    letters = sorted(ByteLevel.alphabet())
    merged = ["".join(pair.split()) for pair in MERGES]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *merged, start, end]
    pairs = [tuple(pair.split()) for pair in MERGES]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=pairs, model_max_length=24)


def t5_tokenizer() -> Any:
    """A unigram model over letters, as T5 has it: pad 0, end 1, unknown 2."""
    from transformers import T5TokenizerFast

    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((letter, -3.0) for letter in LETTERS.strip()),
    ]
    return T5TokenizerFast(vocab=pieces, extra_ids=0)


def qwen_tokenizer() -> Any:
    """Qwen's byte-level BPE without merges, with a chat template."""
    from transformers import Qwen2TokenizerFast

    words = ["<|endoftext|>", *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2TokenizerFast(vocab={word: i for i, word in enumerate(words)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    return tokenizer


def gemma_tokenizer() -> Any:
    """Gemma's BPE with byte fallback, without merges."""
    from transformers import GemmaTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    words = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS.replace(" ", "")]
    return GemmaTokenizerFast(vocab={word: i for i, word in enumerate(dict.fromkeys(words))}, merges=[])


def _clip(tokenizer: Any, *, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _spread(CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config))


def _t5(tokenizer: Any) -> Any:
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4}
    return _spread(T5EncoderModel(T5Config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", **sizes)), 0.3)


def _qwen3(tokenizer: Any, layers: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    return _spread(Qwen3ForCausalLM(config))


def _qwen25_vl(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]},
        "rope_theta": 1000000.0,
    }
    seen = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=seen)
    return _spread(Qwen2_5_VLForConditionalGeneration(config))


def _gemma2(tokenizer: Any) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return _spread(Gemma2Model(config))


def _spread(model: Any, deviation: float = 1.0) -> Any:
    """A fresh text encoder's embeddings are so small that all prompts look alike."""
    model.get_input_embeddings().weight.data.normal_(0, deviation)
    return model


def _vae(channels: int, scale: float, shift: float | None) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def sd3() -> Any:
    """Two CLIPs and T5; `shift` 3, as published."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    first, second, third = clip_tokenizer(), clip_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 4,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        _vae(4, 1.5305, 0.0609),
        _clip(first, projected=True),
        first,
        _clip(second, projected=True),
        second,
        _t5(third),
        third,
    )


def flux(*, distilled: bool = True) -> Any:
    """CLIP and T5; `distilled`: as FLUX.1-dev, which takes the guidance scale as an input, else as FLUX.1-schnell."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    first, second = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=distilled,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0 if distilled else 1.0, use_dynamic_shifting=distilled)
    vae = _vae(4, 0.3611, 0.1159)
    return FluxPipeline(scheduler, vae, _clip(first, projected=False), first, _t5(second), second, transformer)


def flux2_klein(*, distilled: bool = False) -> Any:
    """Qwen3, whose layers 9, 18 and 27 are read; latents normalised by the running statistics of the VAE."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )

    tokenizer = qwen_tokenizer()
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=SIDE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    vae.bn.running_mean.normal_(0, 0.3)
    vae.bn.running_var.uniform_(0.2, 0.6)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return Flux2KleinPipeline(scheduler, vae, _qwen3(tokenizer, 28), tokenizer, transformer, is_distilled=distilled)


def z_image() -> Any:
    """Qwen3, whose last but one layer is read, at the text's own length."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    tokenizer = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 32, 32],
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    for pad in (transformer.x_pad_token, transformer.cap_pad_token):  # made empty, not drawn
        pad.data.normal_(0, 0.1)
    return ZImagePipeline(scheduler, _vae(4, 0.3611, 0.1159), _qwen3(tokenizer, 2), tokenizer, transformer)


def sana() -> Any:
    """Gemma 2 with a mask, a deep-compression autoencoder, and a flow that DPM-Solver++ follows."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    tokenizer = gemma_tokenizer()
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=SIDE // 4,
    )
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        scaling_factor=0.41407,
    )
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, beta_schedule="linear"
    )
    return SanaPipeline(tokenizer, _gemma2(tokenizer), vae, transformer, scheduler)


def pixart() -> Any:
    """T5 with a mask, eps with a learned variance, and DDPM's linear betas, as PixArt-Sigma."""
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    tokenizer = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        caption_channels=32,
        sample_size=SIDE // 4,
        use_additional_conditions=False,
    )
    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02)
    return PixArtSigmaPipeline(tokenizer, _t5(tokenizer), _vae(4, 0.13025, None), transformer, scheduler)


def qwen_image() -> Any:
    """Qwen2.5-VL under a prompt template, a VAE of videos of one frame, guidance that keeps the norm."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    tokenizer = qwen_tokenizer()
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[-0.7, 0.4, 0.1, -0.2],
        latents_std=[0.5, 0.4, 0.7, 0.6],
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    )
    return QwenImagePipeline(scheduler, vae, _qwen25_vl(tokenizer), tokenizer, transformer)


MAKERS: dict[str, Callable[[], Any]] = {
    "sd3": sd3,
    "flux": flux,
    "flux2_klein": flux2_klein,
    "z_image": z_image,
    "sana": sana,
    "pixart": pixart,
    "qwen_image": qwen_image,
}


def _attentive(pipeline: Any) -> None:
    """Random attention looks everywhere alike and sees little of a text; this one is choosy and listens."""
    for name, weight in pipeline.transformer.named_parameters():
        if ".norm_" in name and name.endswith(("q.weight", "k.weight")):
            weight.data.mul_(4)
        elif name.startswith(("context_embedder", "txt_in")) and name.endswith("weight"):
            weight.data.mul_(8)


def build(folder: Path, make: Callable[[], Any], seed: int = 0) -> Path:
    """Write a pipeline of random weights into a folder and return it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = make()
        _attentive(pipeline)
        pipeline.save_pretrained(folder)
    return folder
