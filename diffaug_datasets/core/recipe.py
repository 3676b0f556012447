"""The recipe: what a person writes. Strict: an unknown key is an error that suggests the right one.

A recipe is open at one place, `config`, whose keys are its method's; they are checked against that method's `Config`.
"""

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from diffaug_datasets.core.errors import RecipeError, few
from diffaug_datasets.core.files import DEEPEST, dump_yaml, load_yaml, read_text, strange_character
from diffaug_datasets.core.licences import find_licence
from diffaug_datasets.core.method import Method, MethodConfig, discover_methods, find_method, local_keys
from diffaug_datasets.core.models import BackboneSpec, Place, absolute_places, model_name, placeless, starting_folder
from diffaug_datasets.core.profiles import Profile, with_image_format
from diffaug_datasets.core.protocols import SmallClass, parse_protocol
from diffaug_datasets.core.settings import Later, Settings

SHOTS = "shots"
CLASS_PROBABILITY = "class_probability"
CAPTION_PROBABILITY = "caption_probability"
CAPTION_MARGIN = "caption_margin"
CONFIDENCE_MARGIN = "confidence_margin"
LABEL_RANK = "label_rank"
MEASURED_BY = {  # a filter's column -> the key of `scores` that fills it
    "clip_score": "encoder",
    "clip_margin": "encoder",
    "source_similarity": "encoder",
    "judge_confidence": "judge",
    "judge_label": "judge",
    CLASS_PROBABILITY: "probability",
    CAPTION_PROBABILITY: "captions",
    CAPTION_MARGIN: "captions",
    CONFIDENCE_MARGIN: CONFIDENCE_MARGIN,
    LABEL_RANK: LABEL_RANK,
}
OPTIONAL_SCORES = (CONFIDENCE_MARGIN, LABEL_RANK)
"""What counts for the plan id where it is asked for; where it is not, a plan is what it is without these keys."""
TABLES = (".csv", ".tsv", ".txt", ".json", ".xlsx", ".xls", ".ods")
IMAGE_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
HUB_KEYS = ("source_config", "source_split", "image_column", "label_column")
PROSE = ("title", "citation", "homepage")
"""What is said of the real images and changes no byte of a shard: it counts for no plan id."""
STATED = ("name", "licence", *PROSE)
"""What only images of one's own need to be told; other datasets have it in their fact sheets."""
OWN_KEYS = ("name", "licence", "metaclass", "classes")
"""What counts for the plan id where it is set; where it is not, a plan is what it is without these keys."""

LONGEST_PHRASE = 200  # characters of what a prompt calls a class

OnBadImage = Literal["refuse", "skip"]

M = TypeVar("M", bound=BaseModel)


class Scores(BaseModel):
    """Models that look at finished images; null means that the columns stay null."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: Annotated[str | None, Place(packaged=("tiny",))] = Field(
        default=None, description="image-text encoder: `tiny`, a Hub id or a folder"
    )
    judge: Annotated[str | None, Place(packaged=("tiny", SHOTS))] = Field(
        default=None,
        description="image classifier over the same classes, or `shots`: the class whose real images the encoder finds "
        "nearest (Real-Filter)",
    )
    probability: bool = Field(
        default=False,
        description="measure class_probability too: the encoder's softmax over the class prompts, at the row's label",
    )
    captions: tuple[str, ...] | None = Field(
        default=None,
        description="two texts; measure caption_probability too: the encoder's softmax over them, at the first one; of "
        "more texts caption_margin too: the cosine to the first less the largest to another (ALIA's semantic filter)",
    )
    confidence_margin: bool = Field(
        default=False,
        description="measure confidence_margin too: the judge's confidence less its mean confidence, at the row's "
        "class, in that class's real images (ALIA's confidence filter)",
    )
    label_rank: bool = Field(
        default=False,
        description="measure label_rank too: the place of the row's label among the judge's classes, 1 = the likeliest "
        "(SaSPA keeps the first ten)",
    )

    @field_validator("captions")
    @classmethod
    def _different_texts(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (
            len(value) < 2 or not all(text.strip() for text in value) or len(set(value)) < len(value)
        ):
            raise ValueError("expected two different texts, or more")
        return value

    @model_validator(mode="after")
    def _judged_numbers_need_a_judge(self) -> "Scores":
        if self.judge is None and (asked := [key for key in OPTIONAL_SCORES if getattr(self, key)]):
            raise ValueError(f"{asked[0]} is what a judge says, so give a judge too")
        return self

    @model_validator(mode="after")
    def _texts_are_the_encoders(self) -> "Scores":
        if self.encoder is None and (self.probability or self.captions):
            key, texts = ("probability", "class prompts") if self.probability else ("captions", "texts")
            raise ValueError(f"{key} compares images with {texts}, so give an encoder too")
        return self

    @model_validator(mode="after")
    def _shots_are_encoded(self) -> "Scores":
        if self.judge == SHOTS and self.encoder is None:
            raise ValueError("judge: shots compares features, so give an encoder too")
        return self


class Filter(BaseModel):
    """One rule of the selection: rows are marked, never deleted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: Literal[
        "clip_score",
        "clip_margin",
        "judge_confidence",
        "source_similarity",
        "judge_label",
        "class_probability",
        "caption_probability",
        "caption_margin",
        "confidence_margin",
        "label_rank",
    ]
    minimum: float | None = Field(default=None, description="drop rows below; null rows are kept")
    maximum: float | None = Field(default=None, description="drop rows above")
    equals_label: bool = Field(default=False, description="drop rows whose value differs from their label")
    min_keep: int = Field(default=0, ge=0, description="rows that a class keeps at least, best first")
    lowest: float = Field(default=0, ge=0, lt=1, description="drop this share of all rows, the lowest (Diff-Mix: 0.1)")


class Recipe(Settings):
    """Everything that decides an augmented dataset, and where the real images are.

    Strict: an unknown key or a value that cannot be is a `RecipeError`. `from_dict` and `from_yaml` read one, `to_yaml`
    writes it. The keys that count for the id of a plan are those of `identity`.

    >>> from diffaug_datasets import Recipe
    >>> recipe = Recipe.from_dict({"builder": "fashion", "protocol": "5shot", "method": "genie", "per_class": 2})
    >>> recipe.per_class, recipe.batch_size, recipe.backbone.id
    (2, 8, 'tiny')
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal[1] = Field(default=1, alias="schema", description="version of this file's form")
    builder: str = Field(description="the real dataset: see `diffaug builders`")
    protocol: str = Field(
        default="full", description="full, 5shot, 10shot, 5way1shot, lt100, 10pct; _seed1 for another trial"
    )
    source: Annotated[str | None, Place(counts=False, bare=True, files=IMAGE_TABLES)] = Field(
        default=None, description="Hub id, image folder, table of paths and labels, or the dataset's own folder"
    )
    source_config: str | None = Field(default=None, min_length=1, description="of a Hub source: the config")
    source_split: str | None = Field(
        default=None, min_length=1, description="of a Hub source: the split to train from; default: the builder's"
    )
    image_column: str | None = Field(
        default=None, min_length=1, description="of a Hub source or a table: the column of images"
    )
    label_column: str | None = Field(
        default=None, min_length=1, description="of a Hub source or a table: the column of classes"
    )
    partial: bool = Field(
        default=False,
        description="accept other than the official counts; leave out classes without images, and links",
    )
    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
        max_length=60,
        description="of your own images: what config names begin with",
    )
    title: str | None = Field(
        default=None, min_length=1, max_length=200, description="of your own images, for people; changes no plan"
    )
    licence: str | None = Field(
        default=None, description="of your own images, as the Hub calls it (cc-by-4.0): what you state when you publish"
    )
    citation: str | None = Field(
        default=None, max_length=10_000, description="of your own images, BibTeX or a line; changes no plan"
    )
    homepage: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s<>\"'`]+$",
        max_length=500,
        description="of your own images, an address; changes no plan",
    )
    metaclass: str | None = Field(
        default=None, max_length=60, description="what all classes are (bird), for {metaclass} in prompts"
    )
    classes: dict[str, str] = Field(
        default_factory=dict, description="label: what prompts call it; labels that are not named keep their own phrase"
    )
    without: tuple[str, ...] = Field(default=(), description="sha256 of real images that nothing is drawn from")
    withdrawn: tuple[str, ...] = Field(
        default=(), description="sha256 of real images whose rows go after drawing; `diffaug withdraw` fills it in"
    )
    method: str = Field(description="see `diffaug methods`")
    on_small_class: SmallClass = Field(
        default="warn", description="a class with too few images for the protocol: warn, error, or duplicate images"
    )
    on_bad_image: OnBadImage = Field(
        default="refuse", description="images that cannot be decoded: refuse (all are named), or skip them"
    )
    config: dict[str, object] = Field(
        default_factory=dict, validate_default=True, description="the method's own parameters"
    )
    per_image: float = Field(default=5.0, gt=0, le=10_000, description="synthetic images per real one")
    per_class: int | None = Field(
        default=None, ge=1, le=100_000, description="synthetic images per class, instead of per_image"
    )
    confusion: Annotated[str | None, Place(counts=False, files=TABLES)] = Field(
        default=None, description="confusion matrix (.csv, .json) or classifier id"
    )
    targets: Literal["all", "many", "medium", "few"] = Field(
        default="all", description="classes that get images, by their number of real ones (above 100, 20 to 100, below)"
    )
    backbone: Annotated[BackboneSpec, Place(packaged=("tiny",))] = Field(
        default_factory=lambda: BackboneSpec(id="tiny")
    )
    profile: Annotated[Profile, Later()] = Field(
        default=Profile(), description="exact, fast or turbo, and switches for small cards: see the guide on profiles"
    )
    scores: Scores = Scores()
    filters: tuple[Filter, ...] = ()
    seed: int = Field(default=0, ge=0, lt=2**63, description="every random choice follows from it")
    shard_rows: int = Field(
        default=256, ge=1, le=100_000, description="rows per shard, the unit of work; fewer if large"
    )
    batch_size: int = Field(default=8, ge=1, le=1024, description="rows the network sees at once")
    threads: int = Field(default=1, ge=1, le=1024, description="CPU threads per worker; part of the bits")
    attempts: int = Field(default=3, ge=1, le=10, description="tries of a row before it counts as failed")
    failure_budget: float = Field(default=0.01, ge=0, le=1, description="share of failed rows that is accepted")
    image_format: Literal["png", "webp"] = "png"
    include_test: bool = Field(default=True, description="carry the real test split along")

    @model_validator(mode="before")
    @classmethod
    def _plain_and_placed(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, Mapping):
            return value
        _check_values(value)
        value = with_image_format(value)
        folder = starting_folder(info)
        return dict(value) if folder is None else with_absolute_places(value, folder)

    @field_validator("backbone", mode="before")
    @classmethod
    def _short_backbone(cls, value: object) -> object:
        return {"id": value} if isinstance(value, str) else value

    @field_validator("protocol")
    @classmethod
    def _known_protocol(cls, value: str) -> str:
        parse_protocol(value)
        return value

    @field_validator("licence")
    @classmethod
    def _known_licence(cls, value: str | None) -> str | None:
        return None if value is None else find_licence(value).id

    @field_validator("title", "metaclass")
    @classmethod
    def _one_line(cls, value: str | None) -> str | None:
        return None if value is None else " ".join(value.split())

    @field_validator("classes")
    @classmethod
    def _distinct_phrases(cls, value: dict[str, str]) -> dict[str, str]:
        phrases: dict[str, str] = {}
        for label, text in value.items():
            phrase = " ".join(text.split())
            if not phrase or len(phrase) > LONGEST_PHRASE:
                raise ValueError(
                    f"the phrase of {label!r} has {len(phrase)} characters, expected 1 to {LONGEST_PHRASE}"
                )
            if (other := phrases.setdefault(phrase, label)) != label:
                raise ValueError(
                    f"{other!r} and {label!r} are both called {phrase!r}, so prompts cannot tell them apart"
                )
        return {label: phrase for phrase, label in phrases.items()}

    @field_validator("withdrawn")
    @classmethod
    def _in_order(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(value)))

    @field_validator("config")
    @classmethod
    def _known_config(cls, value: dict[str, object], info: ValidationInfo) -> dict[str, object]:
        if "method" in info.data:
            method = find_method(info.data["method"])
            if sentence := _keys_of_others(method, value):
                raise RecipeError(sentence)
            checked(method.Config, value, starting_folder(info), where="config.")
        return value

    @model_validator(mode="after")
    def _filtered_numbers_are_measured(self) -> "Recipe":
        for rule in self.filters:
            key = MEASURED_BY[rule.column]
            if not getattr(self.scores, key):
                raise ValueError(f"filters: {rule.column} is not measured; set scores.{key}")
            if rule.column == CAPTION_MARGIN and len(self.scores.captions or ()) < 3:
                raise ValueError("filters: caption_margin is measured of three texts or more in scores.captions")
        return self

    @property
    def method_definition(self) -> Method:
        """The facts and functions of the method that `method` names."""
        return find_method(self.method)

    @property
    def method_config(self) -> MethodConfig:
        """The method's `Config`, with every default filled in."""
        return self.method_definition.Config.model_validate(self.config)

    @property
    def planned_config(self) -> MethodConfig:
        """The method's `Config` as plans see it: an encoder in a folder goes by its name and digest."""
        config = self.method_config
        encoder = config.requirements.encoder
        return config if encoder is None else config.model_copy(update={"encoder": model_name(encoder)})

    def identity(self) -> dict[str, object]:
        """What counts for the plan id, all defaults filled in: not where images and weights lie, which have digests.

        Nor what is only said of the images (`PROSE`), so that a title may change after the images were made.
        """
        unset = {key for key in OWN_KEYS if not getattr(self, key)}
        content = self.model_dump(mode="json", by_alias=True, exclude={*local_keys(type(self)), *PROSE, *unset})
        scores = {k: v for k, v in content["scores"].items() if v or k not in OPTIONAL_SCORES}
        weights = self.backbone.model_dump(mode="json", exclude={"id", "revision"})
        config = self.planned_config.model_dump(mode="json", exclude=local_keys(self.method_definition.Config))
        return content | {"config": placeless(config), "scores": placeless(scores), "backbone": placeless(weights)}

    def to_yaml(self) -> str:
        """The recipe as a file, in the order of its fields."""
        return dump_yaml(self.model_dump(mode="json", by_alias=True))

    @classmethod
    def from_dict(cls, content: Mapping[str, object], folder: Path | None = Path()) -> "Recipe":
        """A checked recipe. `folder`: where its relative places start; None: they are names, whatever lies there.

        Raises:
            RecipeError: one sentence that names the key, what it got and what is allowed.
        """
        return checked(cls, content, folder)

    @classmethod
    def from_yaml(cls, path: Path | str, folder: Path | None = Path()) -> "Recipe":
        """The recipe in a file; a relative place (`source`, `backbone`, a pool, ...) starts at the file's own folder.

        `folder`: another one, seen from there; None for a published recipe, whose places are names.
        """
        path = Path(path)
        return cls.from_dict(read_mapping(path), None if folder is None else path.parent / folder)


def foreign_keys(method: Method, config: Mapping[str, object]) -> dict[str, list[str]]:
    """Keys of a `config` that the method does not have and others do -> the names of those, in alphabetical order."""
    others = {other.NAME: other.Config.model_fields for other in discover_methods().values()}
    owners = {key: sorted(name for name, keys in others.items() if key in keys) for key in config}
    return {key: names for key, names in owners.items() if names and key not in method.Config.model_fields}


def _keys_of_others(method: Method, config: Mapping[str, object]) -> str:
    """One sentence where a recipe was given another method and kept the keys of the old one; '' where not."""
    if not (foreign := foreign_keys(method, config)):
        return ""
    keys = ", ".join(foreign)
    them, are = ("them", "are") if len(foreign) > 1 else ("it", "is")
    meant = [name for name in next(iter(foreign.values())) if all(name in names for names in foreign.values())]
    whose = few(meant, 4) if meant else "other methods"
    back = f", or set method: {meant[0]}" if len(meant) == 1 else ""
    return (
        f"config: {keys} {are} of {whose}, not of {method.NAME}; take {them} out{back} (`diffaug methods "
        f"{method.NAME}` explains the keys that it has)."
    )


def with_absolute_places(content: Mapping[str, object], folder: Path) -> dict[str, object]:
    """Keys of a recipe with every place among them absolute; those of `config` are known by the `method` beside it."""
    made = absolute_places(Recipe, content, folder)
    method = discover_methods().get(str(content.get("method")))
    if method and isinstance(made.get("config"), Mapping):
        made["config"] = absolute_places(method.Config, made["config"], folder)
    return made


def _check_values(value: object, key: str = "", depth: int = 0) -> None:
    """Refuse what no file, digest or terminal takes: see the sentences. Raises RecipeError."""
    where = f"{key}: " if key else ""
    if depth > DEEPEST:
        raise RecipeError(f"{key[:60]}: is nested more than {DEEPEST} levels deep; a recipe is flatter.")
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise RecipeError(f"{where}keys must be text (got {name!r}); put it in quotes.")
            if strange := strange_character(name, allowed=""):
                raise RecipeError(f"{where}the key {name!r} holds {strange}; take it out.")
            _check_values(item, f"{key}.{name}" if key else name, depth + 1)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            _check_values(item, f"{key}.{place}", depth + 1)
    elif isinstance(value, str):
        if strange := strange_character(value):
            raise RecipeError(f"{where}got {value[:60]!r}, which holds {strange}; take it out.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{where}got {value}, expected a finite number.")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise RecipeError(f"{where}got a number of {value.bit_length()} bits, expected one of 63 at most.")


def read_mapping(path: Path, what: str = "recipe") -> dict[str, object]:
    """The keys of a YAML file; `what` it should be, for the message.

    Raises:
        RecipeError: the file cannot be read, or holds no mapping.
    """
    try:
        content = load_yaml(read_text(path))
    except FileNotFoundError:
        if near := _near(path):
            raise RecipeError(f"{path}: no such {what}; did you mean {near}?") from None
        hint = "; `diffaug cp` lists the shipped ones" if what == "recipe" else ""
        raise RecipeError(f"{path}: no such {what}{hint}.") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise RecipeError(f"{path}: not a readable YAML file ({reason}).") from None
    if content is None:
        raise RecipeError(f"{path}: the file is empty, expected a mapping of {what} keys.")
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: got {type(content).__name__}, expected a mapping of {what} keys.")
    return content


def _near(path: Path) -> Path | None:
    """The YAML file beside a place that is called most like it, whatever its suffix."""
    beside = {file.stem: file for suffix in ("*.yml", "*.yaml") for file in sorted(path.parent.glob(suffix))}
    near = difflib.get_close_matches(path.stem, beside, n=1)
    return beside[near[0]] if near else None


def checked(model: type[M], content: Mapping[str, object], folder: Path | None = None, where: str = "") -> M:
    """What plain values make of a strict model; relative places start at `folder`, keys are named after `where`.

    Raises:
        RecipeError: names the first key that cannot be, what it got and what is allowed.
    """
    try:
        return model.model_validate(dict(content), context={"folder": folder})
    except ValidationError as error:
        raise RecipeError(_sentence(model, error, where)) from None


def _sentence(model: type[BaseModel], error: ValidationError, where: str) -> str:
    faults = error.errors()
    first = next((e for e in faults if e["type"] == "extra_forbidden"), faults[0])
    key = where + ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        if model is Recipe and len(first["loc"]) == 1 and (owners := _owners(key)):
            return f"{key}: is a key of config, where the parameters of a method stand ({few(owners)}); move it there."
        return f"{key}: unknown key{_suggestion(model, first['loc'])}."
    if first["type"] == "missing":
        return f"{key}: missing; a recipe needs it."
    if first["type"] == "value_error" and isinstance(first["input"], dict):  # a rule over several keys names them
        rule = str(first["ctx"]["error"]).rstrip(".")
        return f"{key.rstrip('.')}: {rule}." if key else f"{rule}."
    return f"{key}: got {first['input']!r}, {first['msg'][0].lower()}{first['msg'][1:]}."


def _owners(key: str) -> list[str]:
    """The methods that have a parameter of that name."""
    return sorted(method.NAME for method in discover_methods().values() if key in method.Config.model_fields)


def _suggestion(model: type[BaseModel], place: tuple[int | str, ...]) -> str:
    for part in place[:-1]:
        inner = model.model_fields.get(str(part))
        if inner is None or not isinstance(inner.annotation, type) or not issubclass(inner.annotation, BaseModel):
            break
        model = inner.annotation
    allowed = [field.alias or name for name, field in model.model_fields.items()]
    near = difflib.get_close_matches(str(place[-1]), allowed, n=1)
    guess = f"; did you mean {near[0]!r}" if near else ""
    return f"{guess}; allowed are {', '.join(allowed)}"
