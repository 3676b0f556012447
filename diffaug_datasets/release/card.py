"""The README of a repository: YAML head, what people wrote, and one marked section a config, which is ours.

What somebody else needs to make the rows of a release again, and what of it nobody else has.

The part of a card that speaks of one config: every word and number follows from the run and its release.
"""

import html
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.models import PACKAGED, TINY
from diffaug_datasets.core.plan import PlanHeader, learned_with
from diffaug_datasets.core.recipe import SHOTS
from diffaug_datasets.core.rows import KINDS, column_meanings, published_columns
from diffaug_datasets.release.card_metadata import bibtex, merged_head, papers_used
from diffaug_datasets.release.contents import SHEET, Contents
from diffaug_datasets.release.layout import Release
from diffaug_datasets.release.provenance import (
    INVERTED,
    JUDGED,
    MODELS,
    STATUS,
    TITLES,
    model_terms,
)
from diffaug_datasets.run.assembly import REAL_MODES
from diffaug_datasets.run.reuse import fits_by_image
from diffaug_datasets.run.store import Run


@dataclass(frozen=True)
class Needs:
    """Models by the names that the plan records: a folder of the publisher goes by `name@digest`, without a slash.

    `backbone`, `encoder`, `scorers`: those that lie in folders of the publisher alone; '' or none where none does.
    `packaged`: the diffusion model is that of this package. `images`: rows start from real images that are not
    published here. `public`: where those are to be had is known.
    """

    backbone: str
    encoder: str
    scorers: tuple[str, ...]
    packaged: bool
    images: bool
    public: bool

    @property
    def anybody(self) -> bool:
        """Whether a stranger can make every row again."""
        return not (self.backbone or self.encoder or (self.images and not self.public))

    @property
    def options(self) -> str:
        """What `verify --sample` and `regen` are told besides."""
        given = {"--source YOUR_IMAGES": self.images, "--backbone MODEL_FOLDER": bool(self.backbone)}
        return "".join(f" {option}" for option, needed in given.items() if needed)


def needs(contents: Contents) -> Needs:
    """What the rows of a release rest on."""
    header, facts, release = contents.run.plan.header, contents.facts, contents.release
    scores, config = header.recipe.get("scores") or {}, header.recipe.get("config") or {}
    packaged = contents.run.recipe.backbone.id == TINY
    uses_backbone = any(row.backbone for row in contents.run.plan.rows)
    return Needs(
        backbone=header.backbone if uses_backbone and not packaged and _private(header.backbone) else "",
        encoder=_name(config.get("encoder")),
        scorers=tuple(dict.fromkeys(filter(None, (_name(scores.get(key)) for key in ("encoder", "judge"))))),
        packaged=packaged,
        images=not release.real and any(row.source_ids for row in contents.run.plan.rows),
        public=bool(facts.hub_id or facts.homepage),
    )


def _name(model: Any) -> str:
    return str(model) if model and model not in PACKAGED and _private(str(model)) else ""


def _private(model: str) -> bool:
    """A Hub id has a slash; a plan records a folder by its bare name and digest."""
    return "/" not in model


TEMPLATE = "dataset.md.jinja"
SHOTS_TEXT = "the mean features of each class's real images"
MARKDOWN = str.maketrans({c: f"&#{ord(c)};" for c in "|`[]*!\\"} | {"\n": " ", "\r": " "})


def section(contents: Contents, target: str, tag: str | None) -> str:
    """Markdown of one config; `target` is what readers load it from, `tag` what keeps this plan loadable."""
    release, header = contents.release, contents.run.plan.header
    method = discover_methods().get(release.method)
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            release=release,
            header=header,
            facts=contents.facts,
            target=target,
            needs=needs(contents),
            tag=tag,
            method=method,
            steps=inspect.getdoc(method) or "",
            terms=model_terms(header.backbone),
            models=models(header, release.package),
            settings=settings(contents),
            types={kind: stored.text for kind, stored in KINDS.items()},
            columns=column_texts(),
            beside={name: column_meanings()[name] for name in (*STATUS, *release.extra)},
            quality=[(TITLES[n], value, measurer(n, header)) for n, value in release.quality.items() if n in TITLES],
            splits=splits(release),
            learned=_learned(contents.run),
            sheet=f"{release.folder}/{SHEET}" if any(f.file == SHEET for f in release.beside) else None,
            protocol=str(header.recipe["protocol"]),
            papers=[
                bibtex(p, method.TITLE if method else "") for p in papers_used(method, header.recipe, header.backbone)
            ],
            real_modes=REAL_MODES,
            total={
                key: sum(getattr(c, key) for c in release.counts)
                for key in ("real", "planned", "written", "failed", "kept")
            },
        )
    )


def _learned(run: Run) -> str:
    """Kinds of fits that withdrawn images had a part in."""
    gone = run.plan.header.recipe.get("withdrawn", ())
    return ", ".join(dict.fromkeys(unit.kind for unit in learned_with(run.plan, gone, fits_by_image(run))))


def splits(release: Release) -> dict[str, dict[str, int]]:
    """Split -> rows of each origin that are published."""
    found: dict[str, dict[str, int]] = {}
    for file in release.files:
        rows = found.setdefault(file.split, {})
        rows[file.origin] = rows.get(file.origin, 0) + file.rows
    return found


def models(header: PlanHeader, package: str) -> list[tuple[str, str, str]]:
    """What each model did, its name with a link where it is on the Hub, and its licence."""
    scores, config = header.recipe.get("scores") or {}, header.recipe.get("config") or {}
    looked = {"scores": scores.get("encoder"), "judge": scores.get("judge"), "method's encoder": config.get("encoder")}
    terms, (name, _, revision) = model_terms(header.backbone), header.backbone.partition("@")
    licence = f"[{terms.licence}]({terms.url})" if terms.url else terms.licence
    found = [("images", f"{_linked(name)}{f', revision {markdown(revision)}' if revision else ''}", licence)]
    for use, model in looked.items():
        if model == "tiny":
            found.append((use, f"packaged with diffaug-datasets {package}", "apache-2.0"))
        elif model:
            found.append((use, SHOTS_TEXT if model == SHOTS else markdown(model), "see its own card"))
    return found


def _linked(model: str) -> str:
    """A model that the table of licences knows by its Hub id is linked; any other may be a folder's name."""
    return f"[{model}](https://huggingface.co/{model})" if model in MODELS and "/" in model else markdown(model)


def measurer(name: str, header: PlanHeader) -> str:
    """Which model a quality was measured with."""
    scores = header.recipe.get("scores") or {}
    told = header.backbone if name in INVERTED else scores.get("judge" if name in JUDGED else "encoder")
    packaged = "packaged judge" if name in JUDGED else "packaged encoder"
    return {"tiny": packaged, SHOTS: SHOTS_TEXT}.get(str(told), str(told))


def settings(contents: Contents) -> str:
    """What the method was told, as YAML: the part of the recipe that decides how an image looks."""
    recipe = contents.run.plan.header.recipe
    amount = "per_class" if recipe.get("per_class") else "per_image"
    keys = ("method", "config", amount, "targets", "filters", "seed", "backbone")
    shown = {key: recipe[key] for key in keys if recipe.get(key) not in (None, [], ())}
    text: str = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100)
    return text


def column_texts() -> dict[str, tuple[str, str]]:
    """Column -> type and meaning."""
    meanings = column_meanings()
    return {name: (kind, meanings[name]) for name, kind in published_columns().items()}


def markdown(text: object) -> str:
    """Text that nothing in a Markdown page takes for markup."""
    return html.escape(" ".join(str(text).split()), quote=False).translate(MARKDOWN)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"md": markdown, "fenced": fenced, "quoted": quoted, "sh": shlex.quote}
    return environment


def quoted(text: str) -> str:
    """The text as a string of Python."""
    return json.dumps(text, ensure_ascii=False)


def fenced(text: str) -> str:
    """Text inside a code fence, which it cannot close."""
    return text.replace("```", "'''").rstrip()


def _source(name: str) -> str:
    return (files("diffaug_datasets.cards") / name).read_text(encoding="utf-8")


HEAD = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.S | re.M)
MARKED = re.compile(
    r"<!-- diffaug: begin (?P<name>\S+) licence=(?P<licence>\S+) -->\n.*?<!-- diffaug: end (?P=name) -->", re.S
)
NOTE = "<!-- `diffaug publish` writes this part anew; what you write outside the marks stays. -->"


@dataclass(frozen=True)
class Card:
    """A README taken apart."""

    head: dict[str, Any]
    body: str

    @classmethod
    def parse(cls, text: str) -> "Card":
        """Raises PublishError where the head is no YAML mapping."""
        found = HEAD.match(text)
        try:
            head = yaml.safe_load(found[1]) if found else {}
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:300]
            raise PublishError(f"README.md: its YAML head cannot be read ({reason}).") from None
        if not isinstance(head or {}, dict):
            raise PublishError("README.md: its YAML head is no mapping; put it right and publish again.")
        return cls(head or {}, text[found.end() :] if found else text)

    def text(self) -> str:
        """The README."""
        head = yaml.safe_dump(self.head, sort_keys=False, allow_unicode=True, width=120)
        return f"---\n{head}---\n{self.body}"

    def licences(self) -> Iterator[tuple[str, str]]:
        """(config, licence) of every section of ours."""
        for found in MARKED.finditer(self.body):
            yield found["name"], found["licence"]


def dataset_card(old: str | None, contents: Contents, target: str, tag: str | None) -> str:
    """The README with this release in it: what people wrote stays, also in the head.

    Raises:
        PublishError: the old README's head cannot be read, or its configs hold files of another format.
    """
    card = Card.parse(old) if old is not None else Card({}, f"\n# {target.rstrip('/').split('/')[-1]}\n")
    name = contents.release.name
    ours = dict(card.licences())
    head = merged_head(card.head, contents, ours)
    text = section(contents, target, tag).strip()
    licence = contents.facts.licence_id
    block = f"<!-- diffaug: begin {name} licence={licence} -->\n{NOTE}\n\n{text}\n\n<!-- diffaug: end {name} -->"
    if name in ours:
        body = MARKED.sub(lambda found: block if found["name"] == name else found[0], card.body)
    else:
        body = f"{card.body.rstrip()}\n\n{block}\n" if card.body.strip() else f"\n{block}\n"
    return Card(head, body).text()
