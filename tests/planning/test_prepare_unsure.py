"""What the specification tags as second-hand or from memory is said on the method's page; typed here by hand from it.

Its tags on numbers of data sets, of classifiers and of results concern no value that a method uses.
"""

import json

import pytest
from command_line import Command

from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.planning.presets import presets

# Section 3.11: query and prompt, de-duplication, images per class [mem]. Section 3.12: ranges of alpha and lambda, w,
# the limit of steps, how many images per real image [2nd].
DEFAULTS = {
    "retrieval": {"query", "prompt", "duplicates"},
    "diffusion_inversion": {"interpolation", "noise", "guidance_scale", "embeddings.steps"},
    "diffusemix": {"prompt"},
    "datadream": {"sampler"},
}
# Section 3.5: the encoder is UniSiam's in the few-shot experiments, which transformers has not; elsewhere no code
# confirms it. Beside the tags: what guided He et al.'s GLIDE is no setting of Stable Diffusion; Real-Filter's rule has
# no code; all numbers of Diffusion Inversion on EuroSAT are stated nowhere, nor how many images of a class it takes of
# MedMNIST. Diff-Mix's paper was not at hand (section 15.1), so its sets, and its strengths for long tails, are hearsay,
# and so are DiffuseMix's sets and sentence.
POWERS = (1, 2, 4, 8, 16)
FOUR = [f"{b}_{p}" for b in ("cub", "aircraft", "cars", "pets") for p in ("5shot", "10shot")]
NOVEL = [f"{name}_imagenet_5way{shots}shot" for name in ("mini", "tiered") for shots in (1, 5)]
LEARNED = {f"config.embeddings.{key}" for key in ("vectors", "steps", "batch", "group", "lr")}
SIZE = {"backbone.height", "backbone.width"}
ON_EUROSAT = {
    *("setting", "per_image", "backbone.id", "config.interpolation", "config.noise", "config.num_inference_steps"),
    *SIZE,
    *LEARNED,
}
# Section 3.11: of what retrieval is compared with, only the names are known.
BURG = {"setting", "per_class", "config.guidance_scale", "config.num_inference_steps"}
TUNED = {f"config.embeddings.{key}" for key in ("start", "clusters", "steps", "batch", "lr")} | {
    *("backbone.height", "backbone.width", "config.interpolation", "config.noise", "config.unconditional")
}
PRESETS = {
    "retrieval@imagenet_10pct": {"setting", "per_class", "config.query", "config.prompt"},
    **{
        f"genie_ada@{place}{variant}": {"config.encoder"}
        for place in ("imagenet_lt", *(f"{b}_20way1shot" for b in ("cub", "cars", "food101", "aircraft")), *NOVEL)
        for variant in ("", "_plain_features")
    },
    **{f"txt2img@imagenet_10pct_{name}": BURG | {"config.prompt"} for name in ("unguided", "class_prompt")},
    **{f"txt2img@imagenet_10pct_{name}": BURG | {"config.prompts"} for name in ("clip_prompts", "language")},
    "img2img@imagenet_10pct_boomerang": (BURG - {"per_class"})
    | {"per_image", "config.strength", "config.prompt", "config.sources", "config.encode"},
    "diff_gen@imagenet_10pct_textual_inversion": BURG | {"config.concepts.rank"},
    "diff_gen@imagenet_10pct_tuned_unet": BURG | {"config.concepts.lr_embedding", "config.concepts.init"},
    "diff_gen@imagenet_10pct_tuned_unet_conditioning": BURG | {"config.concepts.init"},
    **{f"diffusion_inversion@imagenet_10pct_{name}": BURG | TUNED for name in ("tuned_conditioning", "tuned_clusters")},
    **{
        f"diffusemix@{b}_full{variant}": {"setting", *more}
        for b in ("cub", "aircraft", "cars", "flowers", "cifar100")
        for variant, more in (("", ("config.prompt",)), ("_code", ()))
    },
    **{
        f"diffusion_inversion@{name}_full{variant}": {"config.embeddings.steps", "per_image", *more, *varied}
        for name, more in (("cifar10", ()), ("cifar100", ()), ("stl10", ()), ("imagenette", SIZE))
        for variant, varied in (
            ("", ()),
            ("_noise_only", ("config.interpolation",)),
            ("_interpolation_only", ("config.noise",)),
        )
    },
    "diffusion_inversion@eurosat_1shot": ON_EUROSAT,
    **{f"diffusion_inversion@eurosat_{shots}shot": {*ON_EUROSAT, "config.embeddings.by_class"} for shots in POWERS[1:]},
    **{
        f"diffusion_inversion@{name}_250shot{variant}": {"setting", "config.embeddings.group"}
        for name in ("pathmnist", "dermamnist", "bloodmnist")
        for variant in ("", "_alpha_05", "_alpha_0")
    },
    "dream_da@pets_full_lora": {"config.scope"},
    "txt2img@eurosat_full_language": {"config.guidance_scale", "scores.encoder"},
    **{f"real_guidance@eurosat_{shots}shot": {"config.guidance_scale"} for shots in POWERS},
    **{f"txt2img@{place}_real_filter": {"per_image", "scores.encoder", "scores.judge", "filters"} for place in FOUR},
    **{f"diff_ii@{p}_fixed_strength": {"setting", "config.interpolation_strength"} for p in FOUR if "_5" in p},
    **{f"diff_gen@{place}": {"setting"} for place in FOUR},
    **{f"diff_mix@{b}_full": {"setting"} for b in ("cub", "aircraft", "cars", "flowers")},
    **{
        f"{method}@{b}_{tail}": {"config.strengths"}
        for method in ("diff_mix", "real_mix")
        for b in ("cub", "flowers")
        for tail in ("lt100", "lt20", "lt10")
    },
}


def test_defaults_that_are_not_from_the_publication() -> None:
    assert {name: set(m.UNSURE) for name, m in discover_methods().items() if m.UNSURE} == DEFAULTS


def test_presets_that_are_not_from_the_publication() -> None:
    assert {name: set(preset.unsure) for name, preset in presets().items() if preset.unsure} == PRESETS


@pytest.mark.parametrize("method", DEFAULTS)
def test_the_page_says_so(diffaug: Command, method: str) -> None:
    page = diffaug("methods", method).out
    told = page.partition("NOT FROM THE PUBLICATION ITSELF")[2].partition("\n\n")[0]
    assert {line.split()[0] for line in told.splitlines()[1:]} == DEFAULTS[method]
    assert told.count("at second hand") + told.count("from memory") == len(DEFAULTS[method])
    table = page.partition("AT SECOND HAND")[2].splitlines()
    for name, keys in PRESETS.items():
        if name.startswith(f"{method}@"):
            [line] = [line for line in table if line.startswith(f"{name} ")]
            assert all(key in line for key in keys), line
    parameters = {item["key"] for item in json.loads(diffaug("methods", method, "--json").out)["parameters"]}
    assert all(any(known == key or known.startswith(f"{key}.") for known in parameters) for key in DEFAULTS[method])


def test_other_pages_have_no_such_table(diffaug: Command) -> None:
    assert "NOT FROM THE PUBLICATION" not in diffaug("methods", "genie").out
