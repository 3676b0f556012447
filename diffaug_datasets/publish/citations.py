"""What to cite: the papers of the methods, by arXiv id; facts only, as the papers' own pages state them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


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
        "2210.07574": Paper(
            "he2022synthetic",
            "Is synthetic data from generative models ready for image recognition?",
            "He, Ruifei and others",
            2022,
        ),
    }
)


def bibtex(arxiv_id: str, title: str) -> str:
    """The entry of a paper; `title` is the method's, for a paper that is not in the table."""
    paper = PAPERS.get(arxiv_id) or Paper(f"arxiv{arxiv_id.replace('.', '_')}", title, "", 2000 + int(arxiv_id[:2]))
    author = f"  author = {{{paper.authors}}},\n" if paper.authors else ""
    return (
        f"@article{{{paper.key},\n  title = {{{paper.title}}},\n{author}"
        f"  journal = {{arXiv:{arxiv_id}}},\n  year = {{{paper.year}}}\n}}"
    )
