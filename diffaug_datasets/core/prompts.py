"""Prompt text: templates that a class fills in, lists of them, and context suffixes such as "in the snow.".

A suffix list is shipped with the package, stands in a recipe, or is a `SuffixDocument`: a file with the captions of
real images that it was summed up from, so that anybody can follow where a suffix is from.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.files import read_text

MOST = 10  # suffixes of a document
CLIP = "clip"  # a list of prompts: the 80 templates of CLIP's zero-shot classifier
SENTENCES = "sentences"  # stands for a file of sentences that is the user's to make

PromptLists = tuple[str, ...] | dict[str, tuple[str, ...]]
"""Templates for every class, or by label the texts of each class."""


class Caption(BaseModel):
    """What the captioner said of one real image (sha256 of its bytes)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_id: str = Field(pattern=r"^[0-9a-f]{64}$")
    text: str


class Summary(BaseModel):
    """What made suffixes of captions, and how: `prompt` and `reply` are verbatim, null for clusters.

    `model`: the id that a chat service knows, or `id@revision` of a language model that ran here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["chat", "local", "clusters"]
    model: str
    prompt: str | None = None
    reply: str | None = None


class Dropped(BaseModel):
    """A suffix that was proposed and not taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    reason: str


class SuffixDocument(BaseModel):
    """A list of context suffixes for Diff-II's first stage, with everything that led to it."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal[1] = Field(default=1, alias="schema")
    builder: str
    protocol: str
    prefix: str = Field(description="what every caption begins with, such as `a photo of a bird`")
    captioner: str = Field(description="id@revision")
    captions: tuple[Caption, ...]
    summary: Summary
    tokens_checked: bool = Field(description="whether the backbone's tokenizer was at hand to check the lengths")
    suffixes: tuple[str, ...]
    dropped: tuple[Dropped, ...] = ()

    @field_validator("suffixes")
    @classmethod
    def _usable(cls, suffixes: tuple[str, ...]) -> tuple[str, ...]:
        if not suffixes:
            raise ValueError("expected at least one suffix")
        for suffix in suffixes:
            if suffix != " ".join(suffix.split()) or not suffix:
                raise ValueError(f"{suffix!r} is empty, or has line breaks or spaces at its ends")
        if len({suffix.casefold() for suffix in suffixes}) < len(suffixes):
            raise ValueError("a suffix stands there twice")
        return suffixes

    def to_json(self) -> str:
        """The file's text."""
        return self.model_dump_json(indent=1, by_alias=True) + "\n"


def fill(template: str, name: str, metaclass: str = "", label: str = "") -> str:
    """The template with `{name}`, `{metaclass}` and `{synonyms}` (of the label) filled in, spaces collapsed.

    >>> fill("a photo of a {name} {metaclass}", "lazuli bunting", "bird")
    'a photo of a lazuli bunting bird'
    >>> fill("a photo of a {synonyms}.", "tench", label="n01440764")
    'a photo of a tench, Tinca tinca.'
    """
    text = template.replace("{name}", name).replace("{metaclass}", metaclass)
    text = text.replace("{synonyms}", synonyms(label, name)) if "{synonyms}" in text else text
    return " ".join(text.split())


def synonyms(label: str, name: str) -> str:
    """All names of an ImageNet class, by its WordNet id or as the Hub's label lists them; else the one name."""
    return _imagenet_synonyms().get(label) or (label if ", " in label else name)


@cache
def clip_templates() -> tuple[str, ...]:
    """The 80 prompt templates for ImageNet that OpenAI published with CLIP; `{name}` is the class."""
    asset = files("diffaug_datasets") / "assets" / "clip_templates.json"
    return tuple(json.loads(asset.read_text(encoding="utf-8"))["templates"])


def texts_of(prompts: PromptLists | str, label: str) -> tuple[str, ...]:
    """The templates of a class.

    Raises:
        RecipeError: a list that is kept by class has none for it, or the name of a list is not known.
    """
    if isinstance(prompts, dict):
        if label not in prompts:
            known = ", ".join(list(prompts)[:3])
            raise RecipeError(f"config.prompts: has no texts for class {label!r} (it has {known}, ...); add some.")
        return prompts[label]
    if isinstance(prompts, str):
        if prompts == SENTENCES:
            raise RecipeError(
                "config.prompts: got 'sentences', expected the file that holds them; make it by `diffaug sentences "
                "RECIPE --out sentences.json`, then plan with `--set config.prompts=sentences.json`."
            )
        if prompts != CLIP:
            raise RecipeError(f"config.prompts: got {prompts!r}, expected {CLIP!r}, texts, or a file of them (.json).")
        return clip_templates()
    return prompts


def read_prompts(path: Path) -> PromptLists:
    """The list in a JSON file: an array of templates, or an object of label -> array of texts.

    Raises:
        RecipeError: it is not there, or holds anything else; says what.
    """
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"config.prompts: {path} cannot be read ({reason}); give a JSON file of texts.") from None
    by_class = found if isinstance(found, dict) else {"": found}
    for label, texts in by_class.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            where = f"of class {label!r} " if label else ""
            raise RecipeError(f"config.prompts: {path}: the texts {where}are no list of one or more texts; mend it.")
    lists = {label: tuple(texts) for label, texts in by_class.items()}
    return lists if isinstance(found, dict) else lists[""]


def with_suffix(prompt: str, suffix: str) -> str:
    """Prompt and context suffix, one space between (Diff-II, stage one of two-stage denoising)."""
    return f"{prompt} {suffix}" if suffix else prompt


@cache
def shipped_suffixes() -> dict[str, tuple[str, ...]]:
    """List name -> context suffixes: Diff-II appendix A.5.1 and the embedded default's own."""
    assets = files("diffaug_datasets") / "assets"
    lists = json.loads((assets / "diffii_suffixes.json").read_text(encoding="utf-8"))
    tiny = json.loads((assets / "tiny" / "suffixes.json").read_text(encoding="utf-8"))
    lists["fashion"] = [entry["text"] for entry in tiny["suffixes"]]
    return {name: tuple(entries) for name, entries in lists.items() if isinstance(entries, list)}


def suffixes_for(builder: str, protocol: str) -> tuple[str, ...]:
    """The shipped list for a dataset and protocol; a list of the dataset serves its other protocols; else none.

    Diff-II's lists are named `flower_lt_if100`, `pet_5shot`: a builder's plural and `lt100` are translated.
    """
    name, form = builder.removesuffix("s"), protocol.split("_seed")[0]
    wanted = f"{name}_lt_if{form[2:]}" if form.startswith("lt") else f"{name}_{form}"
    lists = shipped_suffixes()
    near = [key for key in (wanted, builder, *lists) if key in lists and key.startswith((name, builder))]
    return lists[near[0]] if near else ()


def suffix_list(name: str) -> tuple[str, ...]:
    """The shipped list of that name.

    Raises:
        RecipeError: there is none.
    """
    lists = shipped_suffixes()
    if name not in lists:
        raise RecipeError(f"config.suffixes: got {name!r}, expected a list of texts or one of {', '.join(lists)}.")
    return lists[name]


def read_suffixes(path: Path) -> SuffixDocument:
    """The document in a file.

    Raises:
        RecipeError: it is not there, or no valid document of this schema; says which field.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"config.suffixes: {path} cannot be read ({reason}); `diffaug captions` makes one.") from None
    try:
        return SuffixDocument.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RecipeError(
            f"config.suffixes: {path} is no list of suffixes ({where}: {first['msg']}); `diffaug captions` makes one."
        ) from None


def caption_prefix(metaclass: str) -> str:
    """`a photo of a bird`, `a photo of an aircraft`, `a photo of` where there is no metaclass."""
    article = "an" if metaclass[:1].lower() in ("a", "e", "i", "o", "u") else "a"
    return f"a photo of {article} {metaclass}" if metaclass else "a photo of"


def after_prefix(text: str, prefix: str) -> str:
    """What follows the prefix, without list marks and quotes, ending in a full stop; `` if nothing follows.

    A text that does not begin with the prefix counts as a suffix whole.
    """
    bare = re.sub(r"^\s*(?:[-*\u2022]+|\(?\d+[.)])\s+", "", " ".join(text.split())).strip("\"'` ")
    rest = bare[len(prefix) :] if bare.casefold().startswith(prefix.casefold()) else bare
    rest = rest.strip(" .,;:\"'")
    return f"{rest}." if rest else ""


def accepted(
    proposed: Sequence[str], names: Sequence[str], is_too_long: Callable[[str], bool] | None, most: int = MOST
) -> tuple[tuple[str, ...], tuple[Dropped, ...]]:
    """The first `most` proposals that may stand, and the others with the reason.

    A suffix is said once, names no class (`names`), and fits the text encoder behind the longest class prompt
    (`is_too_long`; None where that cannot be known here).
    """
    taken: list[str] = []
    dropped: list[Dropped] = []
    for text in proposed:
        reason = _objection(text, taken, names, is_too_long) or ("one too many" if len(taken) >= most else "")
        if reason:
            dropped.append(Dropped(text=text, reason=reason))
        else:
            taken.append(text)
    return tuple(taken), tuple(dropped)


def _objection(text: str, taken: Sequence[str], names: Sequence[str], is_too_long: Callable[[str], bool] | None) -> str:
    """Why a proposal may not stand; '' if it may."""
    if not text.strip(" ."):
        return "empty"
    if text.casefold() in {one.casefold() for one in taken}:
        return "said before"
    named = next((name for name in names if re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE)), None)
    if named:
        return f"names the class {named!r}"
    return "too long for the text encoder" if is_too_long and is_too_long(text) else ""


@cache
def _imagenet_synonyms() -> dict[str, str]:
    table = files("diffaug_datasets.builders") / "names" / "imagenet.json"
    return {wnid: names for wnid, names, _ in json.loads(table.read_text(encoding="utf-8"))}
