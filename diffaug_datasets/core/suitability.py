"""Whether a recipe's method suits its diffusion model: asked at plan, without torch, and again where it is loaded.

What the model is, its family says (`core.family.ModelFacts`); what the method needs, its facts and its `Requirements`.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import get_args

from pydantic import ValidationError

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.family import Family, ModelFacts, discover_families
from diffaug_datasets.core.learning import (
    ConceptConfig,
    EmbeddingConfig,
    LoraConfig,
    TextualInversionConfig,
    TokenConfig,
)
from diffaug_datasets.core.method import Method, Need, StepCount
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.numerics.timesteps import Labels, Timeline

LEARNED: Mapping[type, Need] = MappingProxyType(
    {
        ConceptConfig: "concepts",
        TextualInversionConfig: "concepts",
        TokenConfig: "concepts",
        LoraConfig: "lora",
        EmbeddingConfig: "image_embeddings",
    }
)
"""Settings of what is learned -> what is needed for it."""
NEEDED: Mapping[Need, str] = MappingProxyType(
    {
        "concepts": "learns tokens, which its text encoders do not take",
        "lora": "learns LoRA of a text encoder and a U-Net, which it has not",
        "inversions": "inverts images, which a model that was distilled does not bear",
        "image_embeddings": "learns a condition per image, which only a model of one text and no flow takes",
        "imagined": "moves latents by gradients through its samplers, which add noise of their own",
    }
)


def check_suits(recipe: Recipe, facts: ModelFacts) -> None:
    """Whether a recipe's method, sampler, steps and guidance suit a model.

    Raises:
        BackboneError: one sentence: what does not, and what to set instead.
    """
    check_needs(recipe, facts)
    check_samplers(recipe, facts)
    check_sampling(recipe, facts)
    check_steps(recipe, facts.timeline)


def check_steps(recipe: Recipe, timeline: Labels) -> None:
    """Whether a recipe's steps fit the schedule of its backbone.

    Raises:
        BackboneError: a sampler cannot take its steps, or a plan decided on labels that are not visited.
    """
    for count in recipe.method_config.requirements.steps:
        try:
            labels = timeline.labels(count.sampler, count.steps)
        except ValueError as error:
            raise BackboneError(
                f"backbone {recipe.backbone.id!r} was trained on {timeline.num_train_timesteps} timesteps "
                f"({error}): change config.{count.key}, or choose another model."
            ) from None
        if recipe.method_definition.USUAL_LABELS:
            is_usual = timeline.num_train_timesteps == 1000 and labels == _usual(count)
            if not is_usual:
                raise _unusual_labels(recipe, count, timeline)


def check_samplers(recipe: Recipe, facts: ModelFacts) -> None:
    """Whether a method has any sampler that gives the model's images.

    Raises:
        BackboneError: it has none; no setting helps.
    """
    own = {count.sampler for count in recipe.method_config.requirements.steps}
    field = type(recipe.method_config).model_fields.get("sampler")
    takes = set(get_args(field.annotation)) if field is not None else own
    gives = set(facts.samplers) | ({"ddim"} if field is None and facts.process == "flow" else set())
    if own and not takes & gives:
        raise BackboneError(
            f"backbone {recipe.backbone.id!r} ({facts.kind}) is sampled by {' or '.join(facts.samplers)} alone, but "
            f"{recipe.method} by {' or '.join(sorted(takes))}: use another model or method."
        )


def check_sampling(recipe: Recipe, facts: ModelFacts) -> None:
    """Whether a recipe samples a model in a way that it bears.

    Raises:
        BackboneError: PLMS on a schedule without eps, another process's sampler, or what a distilled model cannot do.
    """
    counts = recipe.method_config.requirements.steps
    if facts.is_zero_snr and any(count.sampler == "plms" for count in counts):
        raise BackboneError(
            f"backbone {recipe.backbone.id!r} has zero terminal SNR, where no eps is known, and plms extrapolates "
            "eps: set config.sampler to ddim or dpm."
        )
    wrong = list(dict.fromkeys(_wrong(recipe, facts)))
    if not wrong:
        return
    if facts.made_for:
        other = f"; {facts.otherwise}" if facts.otherwise else ""
        raise BackboneError(
            f"backbone {recipe.backbone.id!r} is made for {facts.made_for}, got {', '.join(wrong)}: set "
            f"{_advice(facts)}{other}."
        )
    raise BackboneError(
        f"backbone {recipe.backbone.id!r} ({facts.kind}) is sampled by {' or '.join(facts.samplers)}, got "
        f"{', '.join(wrong)}: set {_advice(facts)}."
    )


def _wrong(recipe: Recipe, facts: ModelFacts) -> Iterator[str]:
    """The settings that do not suit the model, as `key: value`."""
    config = recipe.method_config
    for count in config.requirements.steps:
        if facts.most_steps is not None and count.steps > facts.most_steps:
            yield f"config.{count.key}: {count.steps}"
    for count in config.requirements.steps:
        if hasattr(config, "sampler") and count.sampler not in facts.samplers:
            yield f"config.sampler: {count.sampler}"
    if facts.process == "flow" and getattr(config, "final", None) == "alpha_bar_0":
        yield "config.final: alpha_bar_0"
    scale = getattr(config, "guidance_scale", 1)
    if facts.guidance == "none" and scale != 1:
        yield f"config.guidance_scale: {scale:g}"
    least, most = (1 if facts.guidance == "embedded" else 0), facts.most_guidance
    if scale < least or (most is not None and scale > most):
        yield f"config.guidance_scale: {scale:g}"
    if getattr(config, "final", None) == "alpha_bar_0" and not {"ddim", "dpm", "plms"} & set(facts.samplers):
        yield "config.final: alpha_bar_0"
    negative: str = getattr(config, "negative_prompt", "")
    if facts.guidance == "embedded" and negative:
        yield f"config.negative_prompt: {negative!r}"


def _advice(facts: ModelFacts) -> str:
    steps = [f"num_inference_steps to 1 to {facts.most_steps}"] if facts.most_steps is not None else []
    scale = {"none": ["guidance_scale to 1"], "embedded": ["guidance_scale to 1 or more"], "cfg": []}[facts.guidance]
    scale += [f"guidance_scale to at most {facts.most_guidance:g}"] if facts.most_guidance is not None else []
    parts = [*steps, *scale]
    sampler = f"sampler to {' or '.join(facts.samplers)}"
    return f"{', '.join(parts)} and {sampler}" if parts else sampler


def lacks(method: Method, facts: ModelFacts) -> str | None:
    """Why a method at its default settings cannot use a model, as the end of `which ...`; None where it can."""
    family = discover_families().get(facts.family)
    try:
        config = method.Config()
    except ValidationError:  # a key without a default: of what the method needs beside a model
        config = None
    values = [getattr(config, key) for key in type(config).model_fields] if config else []
    needs = _needed_for(values, method)
    for need in NEEDED:
        if need in needs and not _has(need, facts, family):
            return NEEDED[need]
    if family and not family.TOKENS and any(isinstance(v, ConceptConfig) and v.rank == 0 for v in values):
        return "learns tokens alone, which its text encoders do not take"
    asked = config.requirements if config else None
    if asked and (asked.bottleneck or asked.controlnet is not None) and not facts.is_unet:
        return "goes through a U-Net, which it has not"
    if asked and asked.editor and not facts.edits:
        return "edits by instruction, which InstructPix2Pix alone does"
    return None


def check_needs(recipe: Recipe, facts: ModelFacts) -> None:
    """Whether a model has what a method learns on, or is steered through.

    Raises:
        BackboneError: it has not.
    """
    family, needs = discover_families().get(facts.family), _needs(recipe)
    asked = recipe.method_config.requirements
    if asked.any_inversion:
        needs.discard("inversions")
    lacking = [need for need in NEEDED if need in needs and not _has(need, facts, family)]
    if "concepts" in needs and family is not None and not family.TOKENS and not lacking:
        _check_words(recipe, facts)
    if lacking:
        raise BackboneError(
            f"backbone {recipe.backbone.id!r} ({facts.kind}) cannot be used with {recipe.method}, which "
            f"{NEEDED[lacking[0]]}: use Stable Diffusion 1.x or 2.x, or another method{_asked_for(recipe, lacking[0])}."
        )
    if (asked.controlnet is not None or asked.bottleneck) and not facts.is_unet:
        what = "bottleneck can take noise" if asked.bottleneck else "features a ControlNet can steer"
        raise BackboneError(
            f"backbone {recipe.backbone.id!r} ({facts.kind}) has no U-Net whose {what}: use a Stable Diffusion model, "
            "or another method."
        )


def _asked_for(recipe: Recipe, need: Need) -> str:
    """The key by which a person may ask for it all the same, where the method has one."""
    has_key = need == "inversions" and "on_distilled" in type(recipe.method_config).model_fields
    return ", or ask for it by config.on_distilled: true" if has_key else ""


def _check_words(recipe: Recipe, facts: ModelFacts) -> None:
    """Raises BackboneError where a recipe learns tokens alone, of a model that learns words by LoRA."""
    values = (getattr(recipe.method_config, key) for key in type(recipe.method_config).model_fields)
    for learned in values:
        if isinstance(learned, ConceptConfig) and learned.rank == 0:
            raise BackboneError(
                f"backbone {recipe.backbone.id!r} ({facts.kind}) takes no learned tokens, only LoRA under words, but "
                f"{recipe.method} learns tokens alone (rank 0): use Stable Diffusion 1.x or 2.x, or another method."
            )
        if isinstance(learned, ConceptConfig) and isinstance(learned.init, int):
            raise BackboneError(
                f"backbone {recipe.backbone.id!r} ({facts.kind}) takes no learned tokens, only LoRA under words, so "
                f"vocabulary id {learned.init} means nothing to it: set init to auto or to words."
            )


def _needs(recipe: Recipe) -> set[str]:
    """What these settings learn, and what the method always computes before."""
    values = [getattr(recipe.method_config, key) for key in type(recipe.method_config).model_fields]
    return _needed_for(values, recipe.method_definition)


def _needed_for(values: Iterable[object], method: Method) -> set[str]:
    learned = {LEARNED[type(value)] for value in values if type(value) in LEARNED}
    return learned | {need for need in method.NEEDS if need in ("inversions", "imagined")}


def _has(need: Need, facts: ModelFacts, family: Family | None) -> bool:
    if need == "concepts":
        return family is None or bool(family.TOKENS) or family.RARE_WORDS
    if need == "lora":
        return facts.is_unet and facts.parts == ("text",)
    if need == "image_embeddings":
        return facts.parts == ("text",) and facts.process == "vp"
    return facts.inverts if need == "inversions" else facts.is_deterministic


def _usual(count: StepCount) -> tuple[float, ...] | None:
    try:
        return Timeline().labels(count.sampler, count.steps)
    except (ValueError, KeyError):
        return None


def _unusual_labels(recipe: Recipe, count: StepCount, timeline: Labels) -> BackboneError:
    got = f"{timeline.num_train_timesteps} timesteps"
    if isinstance(timeline, Timeline):
        got += f", steps_offset {timeline.steps_offset}"
        got += f", timestep_spacing {timeline.spacing!r}" if timeline.spacing else ""
    return BackboneError(
        f"backbone {recipe.backbone.id!r} has a schedule of its own ({got}), but {recipe.method} with {count.sampler} "
        "decides on Stable Diffusion's labels (1000 timesteps, steps_offset 1, no timestep_spacing): choose another "
        "model, sampler or method."
    )
