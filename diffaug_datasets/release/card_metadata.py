"""The YAML head of a card: what the Hub and `load_dataset` read. Our configs are replaced, everything else is kept.

What to cite: the papers of the methods, by arXiv id; facts only, as the papers' own pages state them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from datasets import DatasetInfo, Features, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.method import Method, discover_methods
from diffaug_datasets.core.recipe import SHOTS
from diffaug_datasets.release.contents import Contents
from diffaug_datasets.release.layout import PROVENANCE, SYNTHETIC, Release
from diffaug_datasets.release.provenance import provenance_features
from diffaug_datasets.run.shards import features


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


SIZES = (("n<1K", 1_000), ("1K<n<10K", 10_000), ("10K<n<100K", 100_000), ("100K<n<1M", 1_000_000))
TAGS = ("synthetic", "data-augmentation", "diffusion", "diffaug-datasets")
SETTLED = ("annotations_creators", "task_categories", "source_datasets", "tags")


def merged_head(old: Mapping[str, Any], contents: Contents, ours: Mapping[str, str]) -> dict[str, Any]:
    """The head with this release in it. `ours`: config -> licence of the sections that we wrote before.

    A licence that a person changed stays; lists are joined; exactly one config is the default.
    """
    head = dict(old)
    _check_entries(head)
    configs = _joined_entries(head.get("configs"), _configs(contents.release))
    _check_formats(configs, contents.release)
    infos = _joined_entries(head.get("dataset_info"), _infos(contents))
    licence = _licence(head, contents, ours)
    lists = {key: _union(head.get(key), value) for key, value in _lists(contents).items()}
    return {**head, **licence, **lists, "size_categories": [_size(infos)], "configs": configs, "dataset_info": infos}


def _check_entries(head: Mapping[str, Any]) -> None:
    """Raises PublishError where a person left lists that are no lists of mappings."""
    for key in ("configs", "dataset_info"):
        found = head.get(key) or []
        if not all(isinstance(entry, dict) for entry in (found if isinstance(found, list) else [found])):
            raise PublishError(f"README.md: {key} of its head is no list of mappings; put it right and publish again.")


def _licence(head: Mapping[str, Any], contents: Contents, ours: Mapping[str, str]) -> dict[str, Any]:
    before, after = _words(ours), _words({**ours, contents.release.name: contents.facts.licence_id})
    if head.get("license") not in (None, before):
        return {}
    link = {"license_name": contents.facts.name, "license_link": contents.facts.licence_url}
    return {"license": after, **(link if after == "other" and contents.facts.licence_url else {})}


def _words(licences: Mapping[str, str]) -> str | list[str] | None:
    found = sorted(set(licences.values()))
    return found[0] if len(found) == 1 else found or None


def _lists(contents: Contents) -> dict[str, list[str]]:
    facts, method = contents.facts, discover_methods().get(contents.release.method)
    named = [method.SLUG, *([f"arxiv:{method.PAPER}"] if method.PAPER else [])] if method else []
    return {
        "annotations_creators": ["machine-generated"],
        "task_categories": ["image-classification"],
        "source_datasets": [facts.hub_id or facts.name],
        "tags": [*TAGS, *named],
    }


def _union(old: Any, new: list[str]) -> list[Any]:
    found = old if isinstance(old, list) else [old] if old else []
    return [*found, *(item for item in new if item not in found)]


def _joined_entries(old: Any, new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries by config name: ours replace their namesakes in place, new ones follow; one default at most."""
    entries = [dict(entry) for entry in (old if isinstance(old, list) else [old] if old else [])]
    names = [entry.get("config_name") for entry in entries]
    has_default = any(entry.get("default") for entry in entries)
    for entry in new:
        place = names.index(entry["config_name"]) if entry["config_name"] in names else None
        default = entries[place].get("default") if place is not None else entry.get("default") and not has_default
        made = {key: value for key, value in entry.items() if key != "default"} | ({"default": True} if default else {})
        if place is None:
            entries.append(made)
        else:
            entries[place] = made
    return entries


def _configs(release: Release) -> list[dict[str, Any]]:
    """The entries that `load_dataset` goes by; they name files, never a pattern."""
    configs = []
    for name, origins in ((release.name, None), (release.name + SYNTHETIC, ("generated", "retrieved"))):
        splits = []
        for split in ("train", "test"):
            paths = [
                f"{release.folder}/{f.path}" for f in release.split_files(split) if not origins or f.origin in origins
            ]
            splits += [{"split": split, "path": paths}] if paths else []
        configs += [{"config_name": name, "data_files": splits}] if splits else []
    rows = [{"split": "train", "path": [f"{release.folder}/provenance.{release.file_format}"]}]
    configs.append({"config_name": release.name + PROVENANCE, "data_files": rows})
    return [{**configs[0], "default": True}, *configs[1:]]


def _check_formats(configs: list[dict[str, Any]], release: Release) -> None:
    """`load_dataset` reads all configs of a repository with the reader that suits the first one's files."""
    for config in configs:
        files = config.get("data_files")
        for entry in files if isinstance(files, list) else []:
            paths = entry.get("path") if isinstance(entry, dict) else entry
            for path in paths if isinstance(paths, list) else [paths]:
                if not str(path).endswith(f".{release.file_format}"):
                    raise PublishError(
                        f"README.md: config {config.get('config_name')!r} has {path}, and this would add "
                        f"{release.file_format} files; `load_dataset` reads one format a repository, so use another "
                        "one or the same --format."
                    )


def _infos(contents: Contents) -> list[dict[str, Any]]:
    release = contents.release
    plain, rows = features(release.class_names), provenance_features(release.class_names, release.extra)
    entries = []
    for config in _configs(release):
        name = config["config_name"]
        if name.endswith(PROVENANCE):
            [item] = [i for i in contents.items if i.path == config["data_files"][0]["path"][0]]
            count = len(contents.run.plan.rows) + len(contents.run.plan.real)
            entries.append(_info(name, rows, {"train": (count, item.size)}, item.size))
        else:
            entries.append(_config_info(release, config, plain))
    return entries


def _config_info(release: Release, config: dict[str, Any], columns: Features) -> dict[str, Any]:
    files = {f"{release.folder}/{file.path}": file for file in release.files}
    sizes, download = {}, 0
    for entry in config["data_files"]:
        found = [files[path] for path in entry["path"]]
        sizes[entry["split"]] = (sum(f.rows for f in found), sum(f.num_bytes for f in found))
        download += sum(f.size for f in found)
    return _info(config["config_name"], columns, sizes, download)


def _info(name: str, columns: Features, sizes: Mapping[str, tuple[int, int]], download: int) -> dict[str, Any]:
    splits = SplitDict()
    for split, (rows, size) in sizes.items():
        splits.add(SplitInfo(split, num_bytes=size, num_examples=rows))
    total = sum(size for _, size in sizes.values())
    info = DatasetInfo(features=columns, splits=splits, download_size=download, dataset_size=total, config_name=name)
    data = DatasetCardData()
    DatasetInfosDict({name: info}).to_dataset_card_data(data)
    found: Any = data.get("dataset_info")
    return {"config_name": name, **(found[0] if isinstance(found, list) else found)}


def _size(infos: list[dict[str, Any]]) -> str:
    ours = [info for info in infos if not str(info.get("config_name", "")).endswith((SYNTHETIC, PROVENANCE))]
    splits = [split for info in ours if isinstance(found := info.get("splits"), list) for split in found]
    counts = [split.get("num_examples") for split in splits if isinstance(split, dict)]
    rows = sum(count for count in counts if isinstance(count, int))
    return next((word for word, limit in SIZES if rows < limit), "1M<n<10M")
