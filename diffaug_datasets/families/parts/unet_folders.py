"""The facts of pipelines of one U-Net, from their folders without torch: what Stable Diffusion's families share."""

from collections.abc import Mapping
from dataclasses import replace

from diffaug_datasets.core.family import VP_SAMPLERS, ModelFacts
from diffaug_datasets.core.model_files import whole_number
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.families.parts.diffusers_folders import (
    Header,
    check_network,
    check_shape,
    sides_of,
    size_in_pixels,
    widths_of,
)
from diffaug_datasets.numerics.timesteps import FEW_STEPS, SchedulerSettings, Unfit

UNET, VAE = "unet/config.json", "vae/config.json"
USUAL_SIDE = 64  # latents, where the U-Net does not state it: as diffusers' pipelines have it
EXTRA_INPUTS: tuple[str, ...] = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim")
EXTRA_INPUTS += ("encoder_hid_dim_type",)
PLAIN = "one that takes time and text alone"
MOST_CONSISTENT_GUIDANCE = 2.0  # of a consistency model that does not embed it


def facts_of(
    family: str,
    kind: str,
    settings: SchedulerSettings,
    spec: BackboneSpec,
    unet: Mapping[str, object] | None,
    vae: Mapping[str, object] | None,
    usual_side: int = USUAL_SIDE,
) -> ModelFacts:
    """The facts of a pipeline that is sampled as its scheduler's settings say; parts are None while they are to come.

    Raises:
        Unfit: the U-Net is told the guidance scale, and the scheduler is none of a consistency model.
    """
    facts = ModelFacts(
        family,
        kind,
        prediction=settings.prediction_type,
        timeline=settings.timeline,
        samplers=tuple(name for name in VP_SAMPLERS if not (settings.is_zero_snr and name == "plms")),
        is_unet=True,
        is_zero_snr=settings.is_zero_snr,
    )
    if unet is not None and vae is not None:
        factor = 2 ** (len(widths_of(vae, VAE, [64])) - 1)
        own = sides_of(unet, UNET) or (usual_side, usual_side)
        size = size_in_pixels(spec, own, factor, factor)
        channels = whole_number(vae, "latent_channels", VAE, 4)
        shape = (channels, size[0] // factor, size[1] // factor)
        facts = replace(facts, latent_shape=shape, height=size[0], width=size[1], multiple_of=factor)
    is_told_scale = unet is not None and unet.get("time_cond_proj_dim") is not None
    if settings.original_steps is not None:
        return consistent(facts, embeds_guidance=is_told_scale)
    if is_told_scale:
        got = "has a U-Net that takes the guidance scale (time_cond_proj_dim), as few-step models do"
        raise Unfit(got, "an ordinary one, or an LCMScheduler beside it")
    return turbo(facts, is_ancestral=settings.is_ancestral) if settings.is_few_step else facts


def turbo(facts: ModelFacts, *, is_ancestral: bool = False) -> ModelFacts:
    """The same of a model that was distilled to a few steps without guidance.

    `is_ancestral`: its scheduler draws noise after a step; `ddim` is then what it does without.
    """
    written_by = "EulerAncestralDiscreteScheduler" if is_ancestral else "EulerDiscreteScheduler"
    return replace(
        facts,
        guidance="none",
        samplers=("ancestral", "ddim") if is_ancestral else ("ddim",),
        most_steps=FEW_STEPS,
        made_for=f"a few steps without guidance, as Turbo models are (an {written_by} with timestep_spacing "
        "'trailing')",
        otherwise="of an ordinary model, write 'linspace' in its scheduler/scheduler_config.json",
    )


def consistent(facts: ModelFacts, *, embeds_guidance: bool) -> ModelFacts:
    """The same of a consistency model (LCM). `embeds_guidance`: its U-Net is told the scale, in one branch."""
    return replace(
        facts,
        guidance="embedded" if embeds_guidance else "cfg",
        most_guidance=None if embeds_guidance else MOST_CONSISTENT_GUIDANCE,
        samplers=("lcm",),
        most_steps=FEW_STEPS,
        inverts=False,
        is_deterministic=False,
        made_for="a few steps of a consistency model (an LCMScheduler)",
    )


def check_unet(unet: Mapping[str, object], header: Header, extra_inputs: Mapping[str, object] | None = None) -> None:
    """Whether a U-Net takes latents, time and text, and what `extra_inputs` says (key of its config -> value)."""
    check_network(unet, UNET, "UNet2DConditionModel")
    for key in EXTRA_INPUTS:
        wanted = (extra_inputs or {}).get(key)
        if unet.get(key) != wanted:
            if wanted is None:
                raise Unfit(f"has a U-Net with an extra input ({key})", PLAIN)
            raise Unfit(f"has a U-Net with {key} {unet.get(key)!r}", f"{wanted!r}")
    if unet.get("attention_type", "default") != "default":
        raise Unfit(f"has a U-Net with {unet['attention_type']!r} attention", PLAIN)
    if unet.get("time_cond_proj_dim") is not None:
        whole_number(unet, "time_cond_proj_dim", UNET)
    taken, given = (whole_number(unet, key, UNET, 4) for key in ("in_channels", "out_channels"))
    if given == 2 * taken:
        raise Unfit("has a U-Net that predicts a variance too", "one that predicts noise alone")
    sides_of(unet, UNET)
    widths = widths_of(unet, UNET, [320, 640, 1280, 1280])
    width = whole_number(unet, "cross_attention_dim", UNET)
    if header is None:
        return
    check_shape(header, "conv_in.weight", {0: widths[0], 1: taken}, "unet")
    check_shape(header, "conv_out.weight", {0: given, 1: widths[0]}, "unet")
    for key in header:
        if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            check_shape(header, key, {1: width}, "unet")


def check_together(unet: Mapping[str, object], vae: Mapping[str, object], text_width: int, *, is_editor: bool) -> None:
    """Whether the U-Net takes and gives the VAE's latents, and attends to texts of that width."""
    channels, latents = unet.get("in_channels", 4), whole_number(vae, "latent_channels", VAE, 4)
    if is_editor and channels != 2 * latents:
        raise Unfit(f"has a U-Net that takes {channels} channels", f"{2 * latents}: latents, and those of the image")
    if not is_editor and channels != latents:
        raise Unfit(f"has a U-Net that takes {channels} channels", f"the {latents} of its VAE's latents")
    if (given := unet.get("out_channels", 4)) != latents:
        raise Unfit(f"has a U-Net that gives {given} channels", f"the {latents} of its VAE's latents")
    if text_width != (wanted := unet["cross_attention_dim"]):
        raise Unfit(f"has a text encoder of width {text_width}", f"the {wanted} that its U-Net attends to")
