"""What a model family is: a module that says which models it drives, looks at their folders, and loads them.

A new family is one new file in `families/`, or a module that an entry point of the group `diffaug_datasets.families`
names; `discover_families` reads each into a `Family`. `check` is asked at plan, without torch, and answers with
`ModelFacts`: all that planning, methods and samplers may rest on. What `load` gives is a
`families.parts.driven.DrivenModel`, which the engine wraps in its `Backbone`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType, ModuleType
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.numerics.levels import Prediction
from diffaug_datasets.numerics.timesteps import Labels, Timeline

ENTRY_POINTS = "diffaug_datasets.families"

ProcessKind = Literal["vp", "flow"]
"""Variance-preserving, x = sqrt(ab) x0 + sqrt(1 - ab) eps, or a rectified flow, x = (1 - s) x0 + s eps."""
GuidanceKind = Literal["cfg", "embedded", "none"]
"""Two branches of the network (classifier-free), a number that one branch is told, or no guidance at all."""
Sampler = Literal["dpm", "ddim", "plms", "euler", "lcm", "ancestral"]

Solver = Literal["dpm", "ddim", "euler", "lcm", "ancestral"]
"""The same without PLMS, whose labels are one more than its steps."""

VP_SAMPLERS: tuple[Sampler, ...] = ("dpm", "ddim", "plms")
FLOW_SAMPLERS: tuple[Sampler, ...] = ("euler", "dpm", "ddim")
"""On a flow 'ddim' is Euler's method, for recipes and methods that know no other name."""


@dataclass(frozen=True)
class ModelFacts:
    """What is known of one model from its folder alone. `folder` files that are still to come leave None.

    `family`: the module's NAME; `kind`: the pipeline's class. `prediction`: what its network says. `timeline`: its T
    and, by sampler and number of steps, the labels that are visited. `latent_shape`: (c, h, w) of one latent at
    `height` x `width` pixels, which are multiples of `multiple_of`.
    `guidance`: how it is guided; `samplers`: those that give its images; `most_steps`, `most_guidance`: of a
    few-step model, that bears no more.
    `made_for`: why it is bound to these, as the end of "is made for ..."; `otherwise`: how an ordinary model that only
    looks like one is told apart.
    `inverts`: whether images can be turned into the noise that gives them (Diff-II). `is_deterministic`: whether its
    samplers draw no noise after the first. `edits`: whether it only edits as
    a text instructs. `is_unet`: whether a ControlNet or a bottleneck can be had. `parts`: the tensors of a condition.
    """

    family: str
    kind: str
    prediction: Prediction = "epsilon"
    timeline: Labels = field(default_factory=Timeline)
    process: ProcessKind = "vp"
    guidance: GuidanceKind = "cfg"
    samplers: tuple[Sampler, ...] = VP_SAMPLERS
    most_steps: int | None = None
    most_guidance: float | None = None
    made_for: str = ""
    otherwise: str = ""
    latent_shape: tuple[int, int, int] | None = None
    height: int | None = None
    width: int | None = None
    multiple_of: int = 8
    inverts: bool = True
    is_deterministic: bool = True
    edits: bool = False
    is_unet: bool = False
    is_zero_snr: bool = False
    parts: tuple[str, ...] = ("text",)


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Defaults:
    """How a family is sampled where nothing else is known: for documentation and advice; no plan rests on it.

    `spacing`: of labels, as its own scheduler has it. `side`: pixels that it was trained at.
    """

    sampler: Sampler
    steps: int
    guidance: float
    spacing: str
    dtype: Literal["float32", "float16", "bfloat16"]
    side: int
    multiple_of: int = 8


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Size:
    """A published model: its Hub id, and billions of weights of the denoising network and of everything else."""

    id: str
    network: float
    beside: float

    @property
    def gigabytes(self) -> float:
        """Of all weights at two bytes each; what is computed comes on top."""
        return 2 * (self.network + self.beside)


CheckFunction = Callable[[Path, BackboneSpec, bool], ModelFacts]
"""(folder, spec, whether what is missing is not still to come) -> its facts.

Raises `core.model_files.Damage` for a file that is missing or garbled, `numerics.timesteps.Unfit` for a model that is
whole and cannot be driven; both read on in one sentence about the model."""
LoadFunction = Callable[[Path, BackboneSpec, Any], Any]
"""(folder, spec, device) -> a `DrivenModel`, frozen and in eval mode; raises whatever its libraries raise."""
GuessFunction = Callable[[str], ModelFacts | None]
"""What a Hub id says before any file of it is here; None where it says nothing."""


def _knows_no_name(_hub_id: str) -> None:
    return None


@checked_dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True))
class Family:
    """The facts and functions of a family, each under the name that its module gives it.

    `NAME`: in facts and documentation; `TITLE`: of its page. `CLASSES`: `_class_name` of a `model_index.json`.
    `LICENCE`: of the weights that are usually meant. `DEFAULTS`: see `Defaults`. `PARTS`: folder of a network -> stem
    of its weight files, the denoising network first. `OTHER_FILES`: patterns of what else is fetched. `LORA_PREFIX`:
    what diffusers' keys of LoRA on the denoising network begin with. `LORA_TARGETS`: ends of its module names that LoRA
    may lie beside. `TOKENS`: text encoders that take rows of new words; none = no learned tokens. `RARE_WORDS`: whether
    concepts are learned by LoRA alone, under words, where no text encoder takes tokens. `SIZES`: published models.
    `PURPOSE`: when to choose it, for the decision table. `check`, `load`, `guess`: see their types.
    `module`: where it was found. `page`: the module's docstring.
    """

    module: str
    page: str
    NAME: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    TITLE: str
    CLASSES: tuple[str, ...]
    LICENCE: str
    DEFAULTS: Defaults
    PARTS: Mapping[str, str]
    check: CheckFunction
    load: LoadFunction
    OTHER_FILES: tuple[str, ...] = ("tokenizer/*.json", "tokenizer/*.txt")
    LORA_PREFIX: str = "unet"
    LORA_TARGETS: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    TOKENS: tuple[str, ...] = ()
    RARE_WORDS: bool = False
    SIZES: tuple[Size, ...] = ()
    PURPOSE: str = "-"
    guess: GuessFunction = _knows_no_name

    @classmethod
    def of(cls, module: ModuleType) -> Family:
        """The family that a module is.

        Raises:
            BackboneError: a fact is missing or of another type.
        """
        known = set(cls.__dataclass_fields__) - {"module", "page"}
        stated = {name: value for name, value in vars(module).items() if name in known}
        try:
            return cls(module=module.__name__, page=inspect.getdoc(module) or "", **stated)
        except ValidationError as error:
            first = error.errors()[0]
            what = "is missing" if first["type"] == "missing" else first["msg"]
            raise BackboneError(f"family {module.__name__}: {first['loc'][0]} {what}.") from None


@cache
def discover_families() -> Mapping[str, Family]:
    """Name -> every shipped and plugged-in family.

    Raises:
        BackboneError: a module is no family, or two share a name or a class; none ever replaces another.
    """
    package = importlib.import_module("diffaug_datasets.families")
    names = [item.name for item in pkgutil.iter_modules(package.__path__) if not item.ispkg]
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    modules += [point.load() for point in entry_points(group=ENTRY_POINTS)]
    families = [Family.of(module) for module in modules]
    _check_unique("NAME", [(family.NAME, family.module) for family in families])
    _check_unique("class", [(kind, family.module) for family in families for kind in family.CLASSES])
    return MappingProxyType({family.NAME: family for family in families})


def _check_unique(fact: str, stated: Iterable[tuple[str, str]]) -> None:
    owners: dict[str, str] = {}
    for value, module in stated:
        if (owner := owners.setdefault(value, module)) is not module:
            raise BackboneError(f"families {owner} and {module} have the same {fact} {value!r}; uninstall one.")


def family_of(kind: object) -> Family | None:
    """The family that drives pipelines of a class; None where there is none."""
    return next((family for family in discover_families().values() if kind in family.CLASSES), None)


def guess_facts(hub_id: str) -> ModelFacts | None:
    """What a Hub id says of a model whose files are not here yet; None where it says nothing."""
    guesses = (family.guess(hub_id) for family in discover_families().values())
    return next((facts for facts in guesses if facts is not None), None)


def usual_facts(family: Family, hub_id: str) -> ModelFacts:
    """What is known of a published model by its id and its pipeline's class alone."""
    if (facts := family.guess(hub_id)) is not None:
        return facts
    with TemporaryDirectory() as folder:
        (Path(folder) / "model_index.json").write_text(json.dumps({"_class_name": family.CLASSES[0]}), encoding="utf-8")
        return family.check(Path(folder), BackboneSpec(id=hub_id), False)


def named(pattern: str, hub_id: str) -> bool:
    """Whether a Hub id holds a word, such as `sd-turbo`: for `guess`."""
    return re.search(rf"(?:^|[-_/]){pattern}(?:[-_/.]|$)", hub_id, re.IGNORECASE) is not None
