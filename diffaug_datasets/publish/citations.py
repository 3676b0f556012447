"""What to cite: the papers of the methods, by arXiv id; facts only, as the papers' own pages state them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from diffaug_datasets.core.method import Method
from diffaug_datasets.core.recipe import SHOTS


@dataclass(frozen=True)
class Paper:
    """A paper of a method."""

    key: str
    title: str
    authors: str
    year: int


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


SAMPLERS = {"ddim": "2010.02502", "dpm": "2211.01095", "plms": "2202.09778"}
REAL_FILTER = "2210.07574"


def papers_used(method: Method | None, recipe: Mapping[str, Any], backbone: str) -> list[str]:
    """arXiv ids of everything that made or judged a set's images: the method first, then what it is built from."""
    config, scores = recipe.get("config") or {}, recipe.get("scores") or {}
    needs = method.NEEDS if method else frozenset[str]()
    sampler = "ddim" if "inversions" in needs else str(config.get("sampler"))
    encoders = f"{config.get('encoder')} {scores.get('encoder')}".lower()
    used = {
        method.PAPER if method else "": True,
        "2208.01618": "concepts" in needs,
        "2106.09685": "concepts" in needs and bool((config.get("concepts") or {}).get("rank")),
        SAMPLERS.get(sampler, ""): True,
        "2207.12598": config.get("guidance_scale") not in (None, 1, 1.0),
        "2112.10752": "stable-diffusion" in backbone and "-xl-" not in backbone,
        "2307.01952": "stable-diffusion-xl" in backbone,
        "2103.00020": "clip" in encoders,
        REAL_FILTER: scores.get("judge") == SHOTS,
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
