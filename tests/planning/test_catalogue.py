"""Every preset resolves to the published numbers, typed here once more from the method specification."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from command_line import Command

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.recipe import Filter
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.presets import presets

FOUR = ("cub", "aircraft", "cars", "pets")
FULL = ("cub", "aircraft", "cars", "flowers")
FINE = ("cub", "cars", "food101", "aircraft")
EPISODE = ("20way1shot",)
NOVEL = ("mini_imagenet", "tiered_imagenet")
DA_FUSION = ("flowers", "caltech101", "pascal", "coco")
TAILED = ("cub", "flowers")
FEW = ("5shot", "10shot")
POWERS = ("1shot", "2shot", "4shot", "8shot", "16shot")
TAILS = ("lt100", "lt20", "lt10")
SCRIPT_TAILS = ("lt100", "lt50", "lt20", "lt10")


def spread(method: str, builders: tuple[str, ...], protocols: tuple[str, ...], variant: str = "") -> list[str]:
    """The names of a family."""
    return [f"{method}@{b}_{p}{variant}" for b in builders for p in protocols]


# Names, recipe keys, keys of `config`.
Family = tuple[list[str], dict[str, Any], dict[str, Any]]
FIVE = {"per_image": 5}
SD14 = {"backbone.id": "CompVis/stable-diffusion-v1-4"}
AT_224 = {"concepts.resolution": 224}
DIFF_II = {
    "num_inference_steps": 25,
    "inversion_steps": 25,
    "guidance_scale": 7.5,
    "arc": "full",
    "split_convention": "code",
    "concepts.resolution": None,
}
DIFF_II_CODE = {**DIFF_II, "inversion_steps": 200}
DIFF_II_PAPER = {**DIFF_II, "split_convention": "paper"}
GENIE = {"num_inference_steps": 50, "guidance_scale": 7.5, "sampler": "dpm"}
FINE_PROMPT = {"prompt": "a photo of a {name}, a type of {metaclass}"}
FINE_GENIE = {**GENIE, **FINE_PROMPT, "sources": "others"}
TAIL_OF_GENIE = {"targets": "few", "per_class": 50}
CONFUSED = {"sources": "confused", "top_confused": 4}
LEVELS = {"levels": (0.5, 0.6, 0.7, 0.8, 0.9)}
NINETEEN = {"per_class": 19}
DIFF_MIX = {"num_inference_steps": 25, "guidance_scale": 7.5, "sampler": "dpm"}
MIX = {**DIFF_MIX, "gamma": 0.5, "soft_scaler": 1.0, "strengths": (0.5, 0.7, 0.9), "sources": "classes"}
MIX_FULL = {**MIX, "gamma": 0.8, "strengths": (0.7,)}
MIX_CODE = {**MIX, "soft_scaler": 0.9, "strengths": (0.3, 0.5, 0.7, 0.9)}
TAIL_OF_MIX = {"sources": "images", "targets": "even"}
MADE_BY_DA_FUSION = {"sampler": "plms", "num_inference_steps": 50, "guidance_scale": 7.5}
QUARTERS = {"strengths": (0.25, 0.5, 0.75, 1.0)}
SMALL = {**SD14, "backbone.height": 128, "backbone.width": 128, "per_image": 3}
MIDDLE = {**SD14, "backbone.height": 256, "backbone.width": 256, "per_image": 3}
INVERSION = {
    "guidance_scale": 2.0,
    "num_inference_steps": 100,
    "sampler": "plms",
    "interpolation": 0.1,
    "noise": 0.1,
    "embeddings.vectors": 5,
    "embeddings.steps": 3000,
    "embeddings.batch": 50,
    "embeddings.group": 100,
    "embeddings.by_class": False,
    "embeddings.lr": 0.03,
}
MEDICAL = ("pathmnist", "dermamnist", "bloodmnist")
ON_MEDICAL = {
    **INVERSION,
    "noise": 0.0,
    "embeddings.steps": 15000,
    "embeddings.group": 250,
    "embeddings.by_class": True,
}


def inversions(variant: str, **changes: Any) -> list[Family]:
    """Diffusion Inversion's two families: small pictures at 128 pixels, larger ones at 256."""
    wanted = {**INVERSION, **changes}
    sizes = ((("cifar10", "cifar100"), SMALL), (("stl10", "imagenette"), MIDDLE))
    return [(spread("diffusion_inversion", builders, ("full",), variant), size, wanted) for builders, size in sizes]


def episodes(protocol: str, count: int) -> list[Family]:
    """GeNIe's experiment on novel ImageNet classes: every image of another class is a source once."""
    plain, each = {**GENIE, "sources": "others"}, {"per_class": count}
    ada = {**plain, **LEVELS, "encoder": "openai/clip-vit-base-patch32"}
    names = {
        "genie": {**plain, "ratio": 0.8, "prompt": "a photo of a {name}"},
        "genie_code": {**plain, "ratio": 0.8, "prompt": "a photo of a {synonyms}."},
        "genie_ada": {**ada, "normalise": True},
        "genie_ada_plain_features": {**ada, "normalise": False},
        "img2img_light": {**GENIE, "strength": 0.3},
        "img2img_heavy": {**GENIE, "strength": 0.7},
        "img2img_txt2img_code": {**GENIE, "strength": 0.8},
        "txt2img": GENIE,
    }
    found: list[Family] = []
    for name, config in names.items():
        method = next(known for known in ("genie_ada", "genie", "img2img", "txt2img") if name.startswith(known))
        found.append((spread(method, NOVEL, (protocol,), name.removeprefix(method)), each, config))
    sweep = [
        (spread("genie", NOVEL[:1], (protocol,), f"_r{r}"), each, {**plain, "ratio": r / 100}) for r in (50, 60, 70, 90)
    ]
    return [*found, *sweep]


def burg() -> list[Family]:
    """What retrieval is compared with: reconstructions, as many images as it brings."""
    guided, plain = ({"guidance_scale": scale, "num_inference_steps": 50} for scale in (7.5, 1.0))
    tuned = {**guided, "interpolation": 0.0, "noise": 0.0, "unconditional": "empty"}
    tuned |= {f"embeddings.{k}": v for k, v in {"start": "prompt", "steps": 3000, "batch": 8, "lr": 0.001}.items()}
    config: dict[str, dict[str, Any]] = {
        "txt2img_unguided": {**plain, "prompt": ""},
        "txt2img_class_prompt": {**guided, "prompt": "A photo of {name}."},
        "txt2img_clip_prompts": {**guided, "prompts": "clip"},
        "txt2img_language": {**guided, "prompts": "sentences"},
        "img2img_boomerang": {**plain, "strength": 0.5, "prompt": "", "sources": "each", "encode": "sample"},
        "diff_gen_textual_inversion": {**guided, "concepts.rank": 0},
        "diff_gen_tuned_unet": {**guided, "concepts.lr_embedding": 0.0, "concepts.init": "{name}", "concepts.rank": 10},
        "diff_gen_tuned_unet_conditioning": {**guided, "concepts.init": "{name}", "concepts.lr_embedding": 5e-5},
        "diffusion_inversion_tuned_conditioning": {**tuned, "embeddings.clusters": 1},
        "diffusion_inversion_tuned_clusters": {**tuned, "embeddings.clusters": 5},
    }
    found: list[Family] = []
    for name, keys in config.items():
        method = next(m for m in ("txt2img", "img2img", "diff_gen", "diffusion_inversion") if name.startswith(m))
        count = {"per_image": 3} if method == "img2img" else {"per_class": 390}
        size = {"backbone.height": 512, "backbone.width": 512}
        found.append(([f"{method}@imagenet_10pct{name.removeprefix(method)}"], {**count, **size}, keys))
    return found


DIFFUSEMIX = {
    "fractal_weight": 0.2,
    "guidance_scale": 4.0,
    "image_guidance_scale": 1.5,
    "num_inference_steps": 100,
    "editor": "instruct",
}
ON_PIX2PIX = {"backbone.id": "timbrooks/instruct-pix2pix", "backbone.height": 256, "backbone.width": 256}
STYLES = (
    "Autumn",
    "snowy",
    "watercolor art",
    "sunset",
    "rainbow",
    "aurora",
    "mosaic",
    "ukiyo-e",
    "a sketch with crayon",
)
SENTENCE = "A transformed version of image into {style}"
STYLED = ("cub", "aircraft", "cars", "flowers", "cifar100")
DATADREAM = {
    "guidance_scale": 2.0,
    "num_inference_steps": 50,
    "lora.rank": 16,
    "lora.epochs": 200,
    "lora.batch": 8,
    "lora.lr": 1e-4,
    "lora.warmup": 100,
    "lora.text_encoder": True,
}
DREAMT = ("imagenet", "aircraft", "cars", "flowers", "food101", "dtd", "caltech101")
DREAMT_AS = {
    "": "a {metaclass} photo of a {name}",
    "pets": "a pet photo of a {name}",
    "eurosat": "a satellite photo of a {name}",
}
GIF = {"epsilon": 0.8, "group": 2, "num_inference_steps": 50, "step": 0.1, "updates": 1, "sampler": "ddim"}


TABLE: list[Family] = [
    (spread("diff_ii", FOUR, ("5shot",)), FIVE, {**DIFF_II, "split_ratio": 0.3}),
    (spread("diff_ii", FOUR, ("10shot",)), FIVE, {**DIFF_II, "split_ratio": 0.1}),
    (spread("diff_ii", TAILED, TAILS), FIVE, {**DIFF_II, "split_ratio": 1.0}),
    (spread("diff_ii", ("cars", "pets"), ("5shot",), "_code"), FIVE, {**DIFF_II_CODE, "split_ratio": 0.3}),
    (spread("diff_ii", ("cars", "pets"), ("10shot",), "_code"), FIVE, {**DIFF_II_CODE, "split_ratio": 0.1}),
    (spread("diff_ii", ("cub", "aircraft"), FEW, "_code"), FIVE, {**DIFF_II_CODE, "split_ratio": 1.0}),
    (["diff_ii@aircraft_5shot_one_stage"], FIVE, {**DIFF_II, "split_ratio": 0.0, "start": "circle"}),
    (["diff_ii@aircraft_5shot_no_interpolation"], FIVE, {**DIFF_II, "split_ratio": 0.3, "start": "noise"}),
    (["diff_ii@aircraft_5shot_noise_one_stage"], FIVE, {**DIFF_II, "split_ratio": 0.0, "start": "noise"}),
    (
        spread("diff_ii", FOUR, ("5shot",), "_fixed_strength"),
        FIVE,
        {**DIFF_II, "split_ratio": 0.3, "arc": "short", "interpolation_strength": 0.5},
    ),
    (
        spread("txt2img", FOUR, FEW, "_real_filter"),
        {
            "per_image": 20,
            "scores.encoder": "openai/clip-vit-base-patch32",
            "scores.judge": "shots",
            "filters": (Filter(column="judge_label", equals_label=True, min_keep=50),),
        },
        {"num_inference_steps": 50},
    ),
    (spread("diff_ii", FOUR, ("5shot",), "_paper_split"), FIVE, {**DIFF_II_PAPER, "split_ratio": 0.3}),
    (spread("diff_ii", FOUR, ("10shot",), "_paper_split"), FIVE, {**DIFF_II_PAPER, "split_ratio": 0.1}),
    (spread("diff_ii", TAILED, TAILS, "_paper_split"), FIVE, {**DIFF_II_PAPER, "split_ratio": 1.0}),
    (["genie@imagenet_lt"], TAIL_OF_GENIE, {**GENIE, **CONFUSED, "ratio": 0.8, "prompt": "a photo of a {name}"}),
    (spread("genie", FINE, EPISODE), NINETEEN, {**FINE_GENIE, "ratio": 0.7}),
    *[(spread("genie", FINE, EPISODE, f"_r{r}"), NINETEEN, {**FINE_GENIE, "ratio": r / 100}) for r in (50, 60, 80, 90)],
    (
        ["genie_ada@imagenet_lt"],
        TAIL_OF_GENIE,
        {**GENIE, **CONFUSED, **LEVELS, "encoder": "openai/clip-vit-base-patch32", "normalise": True},
    ),
    (
        ["genie_ada@imagenet_lt_plain_features"],
        TAIL_OF_GENIE,
        {**GENIE, **CONFUSED, **LEVELS, "encoder": "openai/clip-vit-base-patch32", "normalise": False},
    ),
    (
        spread("genie_ada", FINE, EPISODE),
        NINETEEN,
        {**FINE_GENIE, **LEVELS, "encoder": "facebook/dinov2-giant", "normalise": True},
    ),
    (
        spread("genie_ada", FINE, EPISODE, "_plain_features"),
        NINETEEN,
        {**FINE_GENIE, **LEVELS, "encoder": "facebook/dinov2-giant", "normalise": False},
    ),
    *[family for protocol, count in (("5way1shot", 4), ("5way5shot", 20)) for family in episodes(protocol, count)],
    *[
        ([f"img2img@imagenet_lt_{variant}"], TAIL_OF_GENIE, {**GENIE, "strength": strength})
        for variant, strength in (("light", 0.3), ("heavy", 0.7))
    ],
    *[
        (spread("img2img", FINE, EPISODE, variant), NINETEEN, {**GENIE, **FINE_PROMPT, "strength": strength})
        for variant, strength in (("_light", 0.3), ("_heavy", 0.7))
    ],
    (["txt2img@imagenet_lt"], TAIL_OF_GENIE, GENIE),
    (spread("txt2img", FINE, EPISODE), NINETEEN, {**GENIE, **FINE_PROMPT}),
    (spread("diff_mix", FOUR, FEW), FIVE, {**MIX, "concepts.resolution": None}),
    (spread("diff_mix", FOUR, FEW, "_code"), FIVE, {**MIX_CODE, **AT_224}),
    (spread("diff_mix", FULL, ("full",)), FIVE, MIX_FULL),
    (
        spread("diff_mix", FULL, ("full",), "_code"),
        FIVE,
        {**MIX_FULL, **AT_224, "soft_scaler": 0.9, "strengths": (0.8,)},
    ),
    (spread("diff_mix", TAILED, TAILS), FIVE, {**MIX, **TAIL_OF_MIX, "concepts.class_balanced": True}),
    (
        spread("diff_mix", ("cub",), SCRIPT_TAILS, "_code"),
        FIVE,
        {**MIX_CODE, **TAIL_OF_MIX, **AT_224, "soft_scaler": 1.0},
    ),
    (spread("diff_mix", ("flowers",), SCRIPT_TAILS, "_code"), FIVE, {**MIX_CODE, **TAIL_OF_MIX, **AT_224}),
    (spread("real_mix", FOUR, FEW), FIVE, MIX),
    (spread("real_mix", FOUR, FEW, "_code"), FIVE, MIX_CODE),
    (spread("real_mix", TAILED, TAILS), FIVE, {**MIX, **TAIL_OF_MIX}),
    (spread("real_mix", ("cub",), SCRIPT_TAILS, "_code"), FIVE, {**MIX_CODE, **TAIL_OF_MIX, "soft_scaler": 1.0}),
    (spread("real_mix", ("flowers",), SCRIPT_TAILS, "_code"), FIVE, {**MIX_CODE, **TAIL_OF_MIX}),
    (spread("real_gen", TAILED, TAILS), FIVE, {**DIFF_MIX, "targets": "even"}),
    (spread("diff_gen", FOUR, FEW), FIVE, {**DIFF_MIX, "concepts.resolution": None}),
    (spread("diff_gen", FOUR, FEW, "_code"), FIVE, {**DIFF_MIX, **AT_224}),
    (spread("diff_aug", FOUR, FEW), FIVE, {**DIFF_MIX, "strengths": (1.0,), "concepts.resolution": None}),
    (spread("diff_aug", FOUR, FEW, "_code"), FIVE, {**DIFF_MIX, "strengths": (0.8,), **AT_224}),
    (spread("real_guidance", FOUR, FEW), FIVE, {**DIFF_MIX, "strength": 0.1}),
    (
        spread("real_guidance", DA_FUSION, POWERS, "_da_fusion"),
        {**SD14, "per_image": 10},
        {**MADE_BY_DA_FUSION, "strength": 0.5, "prompt": "a photo"},
    ),
    *[
        (
            [f"real_guidance@eurosat_{shots}shot"],
            {"per_class": 800},
            {
                "strength": t / 100,
                "num_inference_steps": 100,
                "guidance_scale": 3.0,
                "prompt": "a centered satellite photo of {name}",
            },
        )
        for shots, t in ((16, 15), (8, 20), (4, 35), (2, 40), (1, 50))
    ],
    (spread("da_fusion", DA_FUSION, POWERS), {**SD14, "per_image": 10}, {**MADE_BY_DA_FUSION, **QUARTERS}),
    (spread("da_fusion", FOUR, FEW), FIVE, {**MADE_BY_DA_FUSION, **QUARTERS}),
    *inversions(""),
    *inversions("_noise_only", interpolation=0.0),
    *inversions("_interpolation_only", noise=0.0),
    (["diffusion_inversion@stl10_full_code"], MIDDLE | FIVE, {**INVERSION, "embeddings.steps": 6000}),
    (
        ["diffusion_inversion@cifar10_full_code"],
        SMALL | FIVE,
        {**INVERSION, "noise": 0.0, "num_inference_steps": 200, "embeddings.steps": 4000, "embeddings.group": 1000},
    ),
    (spread("diffusion_inversion", ("eurosat",), POWERS[:1]), SMALL, INVERSION),
    (spread("diffusion_inversion", ("eurosat",), POWERS[1:]), SMALL, {**INVERSION, "embeddings.by_class": True}),
    *(
        (
            spread("diffusion_inversion", MEDICAL, ("250shot",), name),
            SMALL | FIVE,
            {**ON_MEDICAL, "interpolation": alpha},
        )
        for name, alpha in (("", 0.1), ("_alpha_05", 0.05), ("_alpha_0", 0.0))
    ),
    *burg(),
    (["retrieval@imagenet_10pct"], {"per_class": 390}, {"query": "text", "prompt": "A photo of {name}"}),
    (
        spread("diffusemix", STYLED, ("full",)),
        {**ON_PIX2PIX, "per_image": 9},
        {**DIFFUSEMIX, "flips": True, "blend_width": 0, "styles": STYLES, "prompt": SENTENCE},
    ),
    (
        spread("diffusemix", STYLED, ("full",), "_code"),
        {**ON_PIX2PIX, "per_image": 2},
        {**DIFFUSEMIX, "flips": False, "blend_width": 20, "prompt": "{style}", "styles": ("sunset", "Autumn")},
    ),
    (
        spread("diffusemix", ("cub", "aircraft"), FEW, "_unidiffda"),
        {**ON_PIX2PIX, "per_image": 5},
        {**DIFFUSEMIX, "flips": False, "blend_width": 20, "styles": ("autumn", *STYLES[1:]), "prompt": SENTENCE},
    ),
    *(
        (
            spread("datadream", (builder,) if builder else DREAMT, ("16shot",), suffix),
            {"per_class": 500},
            {**DATADREAM, "scope": scope, "prompt": prompt},
        )
        for builder, prompt in DREAMT_AS.items()
        for suffix, scope in (("", "class"), ("_dataset", "dataset"))
    ),
    (
        spread("gif", ("cifar100", "cars"), ("full",)),
        {**SD14, "per_image": 5},
        {**GIF, "guidance_scale": 50.0, "strength": 0.9},
    ),
    (
        spread("gif", ("caltech101",), ("full",)),
        {**SD14, "per_image": 5},
        {**GIF, "guidance_scale": 5.0, "strength": 0.9, "epsilon": 4.0},
    ),
    (
        spread("gif", ("dtd",), ("full",)),
        {**SD14, "per_image": 5},
        {**GIF, "guidance_scale": 50.0, "strength": 0.5},
    ),
    (
        spread("gif", ("flowers",), ("full",)),
        {**SD14, "per_image": 5},
        {**GIF, "guidance_scale": 8.0, "strength": 0.5},
    ),
    (
        spread("gif", ("pets",), ("full",)),
        {**SD14, "per_image": 10},
        {**GIF, "guidance_scale": 50.0, "strength": 0.7},
    ),
    (
        ["dream_da@pets_full_code"],
        {"per_image": 30},
        {
            "prompts": ("A photo of a {name}.",),
            "num_inference_steps": 100,
            "strength": 0.8,
            "eta": 1.0,
            "guidance_scale": 7.5,
            "perturbation": 3.0,
            "encode": "sample",
        },
    ),
    (
        ["dream_da@pets_full_lora"],
        {"per_image": 30},
        {
            "prompts": ("A photo of a {name}.",),
            "num_inference_steps": 100,
            "strength": 0.8,
            "eta": 1.0,
            "guidance_scale": 7.5,
            "perturbation": 3.0,
            "encode": "sample",
            "scope": "class",
            "lora.rank": 4,
            "lora.epochs": 100,
            "lora.batch": 16,
            "lora.lr": 1e-4,
            "lora.lr_schedule": "constant",
            "lora.text_encoder": False,
        },
    ),
    (
        ["alia@cub_full_code"],
        {"per_image": 14},
        {
            "suffixes": (
                *("flying", "interacting with flowers", "in the water", "on a branch", "on rocks"),
                *("perched on a birdfeeder", "perched on a fence"),
            ),
            "strength": 0.6,
            "sampler": "plms",
            "num_inference_steps": 50,
            "guidance_scale": 7.5,
            "encode": "sample",
        },
    ),
    (
        ["alia@waterbirds_full_code"],
        {"per_image": 14, "backbone.id": "timbrooks/instruct-pix2pix"},
        {
            "editor": "instruct",
            "prompt": "put the {name}",
            "suffixes": (
                "in a bamboo forest with a green background",
                "flying over the water with a city skyline in the background",
                "perched on a car window with a car visible behind",
                "standing in the snow in a forest",
                "standing on a tree stump in the woods",
                "swimming in a lake with mountains in the background",
                "standing on the beach looking up",
            ),
            "guidance_scale": 5.0,
            "image_guidance_scale": 1.2,
            "num_inference_steps": 100,
        },
    ),
    (
        ["txt2img@eurosat_full_language"],
        {
            "per_class": 2000,
            "scores.encoder": "openai/clip-vit-base-patch32",
            "scores.probability": True,
            "filters": (Filter(column="class_probability", minimum=0.1, min_keep=800),),
        },
        {"prompts": "sentences", "num_inference_steps": 100, "guidance_scale": 3.0},
    ),
    (
        ["saspa@aircraft_full_code"],
        {"per_image": 2},
        {
            "sampler": "ddim",
            "num_inference_steps": 30,
            "guidance_scale": 7.5,
            "low": 120,
            "high": 200,
            "conditioning_scale": 0.75,
            "painted": 0.5,
        },
    ),
    (
        ["saspa@cub_full_code"],
        {"per_image": 2, "backbone.id": "stabilityai/sdxl-turbo"},
        {
            "sampler": "ddim",
            "num_inference_steps": 2,
            "guidance_scale": 1.0,
            "low": 120,
            "high": 200,
            "conditioning_scale": 0.75,
            "painted": 0.0,
        },
    ),
    (
        ["saspa@cars_full_code"],
        {"per_image": 2, "backbone.id": "Salesforce/blipdiffusion-controlnet"},
        {
            "subject": "blip_diffusion",
            "subject_name": "car",
            "sampler": "plms",
            "num_inference_steps": 50,
            "guidance_scale": 7.5,
            "low": 120,
            "high": 200,
            "conditioning_scale": 1.0,
            "painted": 0.0,
        },
    ),
]


CODE, SAMPLE, EACH = "_code", {"encode": "sample"}, {"sources": "each"}
LABEL_0 = {"final": "alpha_bar_0"}  # as DPM-Solver++ of diffusers 0.19.0 (GeNIe) and 0.25.1 (Diff-Mix) ends
ALSO: list[tuple[list[str], dict[str, Any]]] = [  # what the authors' programs do beside their settings
    ([name for m in ("diff_mix", "diff_aug") for name in spread(m, FOUR, FEW, CODE)], SAMPLE | LABEL_0),
    (spread("diff_mix", FULL, ("full",), CODE) + spread("diff_mix", TAILED, SCRIPT_TAILS, CODE), SAMPLE | LABEL_0),
    (spread("real_mix", FOUR, FEW, CODE) + spread("real_mix", TAILED, SCRIPT_TAILS, CODE), SAMPLE | LABEL_0),
    (spread("diff_gen", FOUR, FEW, CODE) + spread("genie", NOVEL, ("5way1shot", "5way5shot"), CODE), LABEL_0),
    (["alia@cub_full_code", "dream_da@pets_full_code"], SAMPLE),
    (spread("gif", ("cifar100", "caltech101", "cars", "dtd", "flowers", "pets"), ("full",)), SAMPLE),
    (spread("da_fusion", DA_FUSION, POWERS), SAMPLE | EACH),
    (spread("real_guidance", FOUR, FEW, "_da_fusion"), SAMPLE | EACH),
    (spread("real_guidance", DA_FUSION, POWERS, "_da_fusion"), SAMPLE | EACH),
    *[(spread("img2img", NOVEL, ("5way1shot", "5way5shot"), v), EACH) for v in ("_light", "_heavy")],
    (spread("img2img", NOVEL, ("5way1shot", "5way5shot"), "_txt2img_code"), EACH | LABEL_0),
    (
        spread("diffusion_inversion", ("cifar10", "cifar100", "stl10", "imagenette"), ("full",), CODE)
        + [n for v in ("", "_alpha_05", "_alpha_0") for n in spread("diffusion_inversion", MEDICAL, ("250shot",), v)],
        {"embeddings.start": "group", "embeddings.order": "fixed"},
    ),
]


def also(name: str) -> dict[str, Any]:
    """What is laid over a preset."""
    return {key: value for names, config in ALSO if name in names for key, value in config.items()}


def value_at(thing: Any, path: str) -> Any:
    """`a.b` of an object."""
    for part in path.split("."):
        thing = getattr(thing, part)
    return thing


def paths(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`a.b` of every value inside."""
    for key, value in content.items():
        yield from paths(value, f"{prefix}{key}.") if isinstance(value, Mapping) else (prefix + key,)


@pytest.mark.parametrize("family", TABLE, ids=lambda family: family[0][0])
def test_presets_carry_the_published_numbers(family: Family) -> None:
    names, of_recipe, of_config = family
    for name in names:
        recipe = config_recipe(name)
        assert {key: value_at(recipe, key) for key in of_recipe} == of_recipe, name
        wanted = of_config | also(name)
        assert {key: value_at(recipe.method_config, key) for key in wanted} == wanted, name


@pytest.mark.parametrize("family", TABLE, ids=lambda family: family[0][0])
def test_every_value_that_a_preset_sets_is_typed_here(family: Family) -> None:
    names, of_recipe, of_config = family
    typed = {*of_recipe, *(f"config.{key}" for key in of_config)}
    for name in names:
        assert set(paths(presets()[name].changes)) <= typed | {f"config.{key}" for key in also(name)}, name


def test_no_preset_is_missing_in_the_table() -> None:
    typed = [name for names, _, _ in TABLE for name in names]
    assert sorted(typed) == sorted(presets())


def test_a_preset_takes_changes_as_a_config_name_does() -> None:
    recipe = config_recipe("diff_ii@cub_5shot_code", config={"split_ratio": 0.5}, per_image=2)
    assert (recipe.config["split_ratio"], recipe.config["inversion_steps"], recipe.per_image) == (0.5, 200, 2)


def test_unknown_presets_name_those_of_the_method() -> None:
    with pytest.raises(RecipeError, match="'genie@cub_2shot': no such preset; expected genie@imagenet_lt, "):
        config_recipe("genie@cub_2shot")
    with pytest.raises(RecipeError, match="'geni@cub': no such preset; expected one of alia, da_fusion, "):
        config_recipe("geni@cub")


def test_the_page_says_what_is_at_second_hand(diffaug: Command) -> None:
    page = diffaug("methods", "retrieval").out
    assert "retrieval@imagenet_10pct" in page and "setting, per_class, config.query, config.prompt" in page
    assert "reconstruction: no code was released" in page and "@article{burg2023retrieval" in page


def test_a_preset_is_copied_and_planned(diffaug: Command, tmp_path: Any) -> None:
    file = tmp_path / "mine.yaml"
    assert diffaug("cp", "diff_mix@cub_5shot_code", file).code == 0
    assert "soft_scaler: 0.9" in file.read_text()
