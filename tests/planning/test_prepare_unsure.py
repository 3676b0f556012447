"""What the specification tags as second-hand or from memory is said on the method's page; typed here by hand from it.

Its tags on numbers of data sets, of classifiers and of results concern no value that a method uses.
"""

import json

import pytest
from command_line import Command

from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.planning.catalogue import presets

# Section 3.11: query and prompt, de-duplication, images per class [mem]. Section 3.12: ranges of alpha and lambda, w,
# the limit of steps, how many images per real image [2nd].
DEFAULTS = {
    "retrieval": {"query", "prompt", "duplicates"},
    "diffusion_inversion": {"interpolation", "noise", "guidance_scale", "embeddings.steps"},
    "diffusemix": {"prompt"},
    "datadream": {"sampler"},
}
# Section 3.5: the encoder is UniSiam's in the few-shot experiments, which transformers has not; elsewhere no code
# confirms it. Beside the tags: what guided He et al.'s GLIDE is no setting of Stable Diffusion; the base model of
# DA-Fusion's row in Diff-II's tables, Aircraft's split at 10 shots in Diff-II's scripts, and all numbers of Diffusion
# Inversion on EuroSAT are stated nowhere, nor how many images of a class it takes of MedMNIST, at which size.
INVERSION = {"embeddings.steps", "per_image"}
INVERTED = ("cifar10", "cifar100", "stl10", "imagenette")
POWERS = (1, 2, 4, 8, 16)
NOVEL = [f"{name}_imagenet_5way{shots}shot" for name in ("mini", "tiered") for shots in (1, 5)]
ON_EUROSAT = {"protocol", "backbone", "interpolation", "noise", "embeddings", "per_image"}
PRESETS = {
    "retrieval@imagenet_10pct": {"per_class", "query", "prompt"},
    **{
        f"genie_ada@{place}{variant}": {"encoder"}
        for place in ("imagenet_lt", *(f"{b}_20way1shot" for b in ("cub", "cars", "food101", "aircraft")), *NOVEL)
        for variant in ("", "_plain_features")
    },
    "diff_ii@aircraft_10shot_code": {"split_ratio"},
    **{f"diffusemix@{name}_full": {"prompt"} for name in ("cub", "aircraft", "cars", "flowers", "cifar100")},
    **{
        f"diffusion_inversion@{name}_full{variant}": INVERSION
        for name in INVERTED
        for variant in ("", "_noise_only", "_interpolation_only")
    },
    **{f"diffusion_inversion@{name}_full_code": {"per_image"} for name in INVERTED},
    **{f"diffusion_inversion@eurosat_{shots}shot": ON_EUROSAT for shots in POWERS},
    **{
        f"diffusion_inversion@{name}_250shot{variant}": {"protocol", "backbone", "noise", "embeddings.steps"}
        for name in ("pathmnist", "dermamnist", "bloodmnist")
        for variant in ("", "_alpha_05", "_alpha_0")
    },
    **{f"real_guidance@eurosat_{shots}shot": {"guidance_scale"} for shots in POWERS},
    **{f"da_fusion@{b}_{p}": {"backbone"} for b in ("cub", "aircraft", "cars", "pets") for p in ("5shot", "10shot")},
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
