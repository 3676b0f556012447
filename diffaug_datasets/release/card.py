"""The README of a repository: metadata, what people wrote, and one marked section per config, which is ours.

Every word and number of a section follows from the run and its release, also what somebody else needs to make the rows
again, and what of it nobody else has.
"""

import html
import json
import re
import shlex
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined

from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.models import ORACLE, PACKAGED, TINY, unpublished_weights
from diffaug_datasets.core.plan import PlanHeader, learned_with
from diffaug_datasets.core.recipe import SHOTS
from diffaug_datasets.core.rows import KINDS, column_meanings, published_columns
from diffaug_datasets.release.card_metadata import (
    MODELS,
    bibtex,
    card_text,
    merged_metadata,
    model_terms,
    papers_used,
    parse_card,
)
from diffaug_datasets.release.contents import SHEET, Contents, public_recipe
from diffaug_datasets.release.layout import Release
from diffaug_datasets.release.measures import MEASURES_FILE, TITLES, Measured, cells, read_measures
from diffaug_datasets.release.provenance import (
    INVERTED,
    JUDGED,
    QUALITY_TITLES,
    STATUS,
)
from diffaug_datasets.run.assembly import REAL_MODES
from diffaug_datasets.run.live_card import MARK
from diffaug_datasets.run.reuse import fits_by_image

TEMPLATE = "dataset.md.jinja"
SECTION = re.compile(
    r"<!-- diffaug: begin (?P<name>\S+) licence=(?P<licence>\S+) -->\n.*?<!-- diffaug: end (?P=name) -->", re.S
)
NOTE = "<!-- `diffaug publish` writes this part anew; what you write outside the marks stays. -->"
SHOTS_TEXT = "the mean features of each class's real images"
MARKDOWN = str.maketrans({c: f"&#{ord(c)};" for c in "|`[]*!\\"} | {"\n": " ", "\r": " "})


def dataset_card(old: str | None, contents: Contents, target: str, tag: str | None) -> str:
    """The README with this release in it: what people wrote stays, also in the metadata.

    `old`: the README that is there, which counts for none where it says how far a run was (see `run.live_card`);
    `target`: what readers load it from; `tag`: what keeps this plan loadable.

    Raises:
        PublishError: the old README's head cannot be read, or its configs hold files of another format.
    """
    is_there = old is not None and MARK not in old
    metadata, body = parse_card(old or "") if is_there else ({}, f"\n# {target.rstrip('/').split('/')[-1]}\n")
    name, licence = contents.release.name, contents.facts.licence_id
    licences = section_licences(body)
    metadata = merged_metadata(metadata, contents, licences)
    text = card_section(contents, target, tag).strip()
    section = f"<!-- diffaug: begin {name} licence={licence} -->\n{NOTE}\n\n{text}\n\n<!-- diffaug: end {name} -->"
    if name in licences:
        body = SECTION.sub(lambda there: section if there["name"] == name else there[0], body)
    else:
        body = f"{body.rstrip()}\n\n{section}\n" if body.strip() else f"\n{section}\n"
    return card_text(metadata, body)


def section_licences(body: str) -> dict[str, str]:
    """Config -> licence of every section of ours."""
    return {section["name"]: section["licence"] for section in SECTION.finditer(body)}


def card_section(contents: Contents, target: str, tag: str | None) -> str:
    """Markdown of one config; `target` is what readers load it from, `tag` what keeps this plan loadable."""
    release, header = contents.release, contents.run.plan.header
    method = discover_methods().get(release.method)
    withdrawn = learned_with(contents.run.plan, header.recipe.get("withdrawn", ()), fits_by_image(contents.run))
    papers = [bibtex(paper, method.TITLE if method else "") for paper in papers_used(method, header)]
    meanings = {**column_meanings(), **contents.facts.columns}
    counts = [count.model_dump(exclude={"name"}) for count in release.counts]
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
            steps=method.page if method else "",
            models=models(header, release.package),
            settings=settings(header),
            types={kind: stored.text for kind, stored in KINDS.items()},
            columns={name: (kind, meanings[name]) for name, kind in published_columns(release.columns).items()},
            beside={name: meanings[name] for name in (*STATUS, *release.extra)},
            measured=measured_tables(contents),
            quality=[
                (QUALITY_TITLES[name], value, measurer(name, header))
                for name, value in release.quality.items()
                if name in QUALITY_TITLES
            ],
            shown=list(release.shown.lines()) if release.shown else [],
            splits=splits(release),
            learned=", ".join(dict.fromkeys(unit.kind for unit in withdrawn)),
            measures_file=f"{release.folder}/{MEASURES_FILE}",
            sheet=f"{release.folder}/{SHEET}" if any(file.file == SHEET for file in release.beside) else None,
            protocol=str(header.recipe["protocol"]),
            papers=papers,
            real_modes=REAL_MODES,
            total={key: sum(count[key] for count in counts) for key in counts[0]},
        )
    )


@dataclass(frozen=True)
class MeasuredTable:
    """What one encoder measured of all images: title and cells of each number, and titles of what was withheld."""

    measured: Measured
    rows: tuple[tuple[str, str, str, str], ...]
    withheld: tuple[str, ...]


def measured_tables(contents: Contents) -> tuple[MeasuredTable, ...]:
    """A table for each encoder that measured the run as it goes out; none where nobody did."""
    tables = []
    for measured in kept.measured if (kept := read_measures(contents.run).file) else ():
        of_all = [(TITLES.get(one.name, one.name), one) for one in measured.measures if one.of is None]
        rows = tuple((title, *cells(one)) for title, one in of_all if one.value is not None)
        withheld = tuple(f"{title}: {one.withheld}" for title, one in of_all if one.value is None)
        tables.append(MeasuredTable(measured, rows, withheld))
    return tuple(tables)


def splits(release: Release) -> dict[str, dict[str, int]]:
    """Split -> rows of each origin that are published."""
    rows: dict[str, dict[str, int]] = {}
    for file in release.files:
        of_split = rows.setdefault(file.split, {})
        of_split[file.origin] = of_split.get(file.origin, 0) + file.rows
    return rows


def models(header: PlanHeader, package: str) -> list[tuple[str, str, str]]:
    """What each model did, its name with a link where it is on the Hub, and its licence."""
    scores, config = header.recipe.get("scores") or {}, header.recipe.get("config") or {}
    terms, (name, _, revision) = model_terms(header.backbone), header.backbone.partition("@")
    licence = f"[{terms.licence}]({terms.url})" if terms.url else terms.licence
    # one that the table of licences knows by its Hub id is linked; any other may be a folder's name
    linked = f"[{name}](https://huggingface.co/{name})" if name in MODELS and "/" in name else markdown(name)
    lines = [("images", f"{linked}{f', revision {markdown(revision)}' if revision else ''}", licence)]
    if steered := config.get("controlnet"):
        lines.append(("edges, a ControlNet", markdown(steered), "see its own card"))
    looked = {"scores": scores.get("encoder"), "judge": scores.get("judge"), "method's encoder": config.get("encoder")}
    for use, model in looked.items():
        if model == TINY:
            lines.append((use, f"packaged with diffaug-datasets {package}", "apache-2.0"))
        elif model == ORACLE:
            lines.append((use, f"{ORACLE}, of the extra `oracle` of diffaug-datasets {package}", "apache-2.0"))
        elif model:
            lines.append((use, SHOTS_TEXT if model == SHOTS else markdown(model), "see its own card"))
    return lines


def measurer(name: str, header: PlanHeader) -> str:
    """Which model a quality was measured with."""
    scores = header.recipe.get("scores") or {}
    model = header.backbone if name in INVERTED else scores.get("judge" if name in JUDGED else "encoder")
    packaged = "packaged judge" if name in JUDGED else "packaged encoder"
    return {TINY: packaged, SHOTS: SHOTS_TEXT}.get(str(model), str(model))


def settings(header: PlanHeader) -> str:
    """What the method was told, as YAML: the part of the recipe that decides how an image looks."""
    recipe = header.recipe
    amount = "per_class" if recipe.get("per_class") else "per_image"
    keys = ("method", "config", amount, "targets", "filters", "seed", "backbone")
    shown = {key: recipe[key] for key in keys if recipe.get(key) not in (None, [], ())}
    text: str = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100)
    return text


@dataclass(frozen=True)
class Needs:
    """Models by the names that the plan records: a folder of the publisher goes by `name@digest`, without a slash.

    `backbone`, `encoder`, `controlnet`, `scorers`: those that lie in folders of the publisher alone; '' or none where
    none does.
    `packaged`: the diffusion model is that of this package. `images`: rows start from real images that are not
    published here. `public`: where those are to be had is known.
    """

    backbone: str
    encoder: str
    controlnet: str
    scorers: tuple[str, ...]
    packaged: bool
    images: bool
    public: bool
    weights: tuple[str, ...] = ()

    @property
    def anybody(self) -> bool:
        """Whether a stranger can make every row again."""
        return not (self.backbone or self.encoder or self.controlnet or (self.images and not self.public))

    @property
    def options(self) -> str:
        """What `verify --sample` and `regen` are told besides."""
        given = {
            "--source YOUR_IMAGES": self.images,
            "--backbone MODEL_FOLDER": bool(self.backbone and not self.weights),
        }
        given["--backbone KEYS.yaml"] = bool(self.weights)
        return "".join(f" {option}" for option, needed in given.items() if needed)


def needs(contents: Contents) -> Needs:
    """What the rows of a release rest on."""
    header, facts, release = contents.run.plan.header, contents.facts, contents.release
    scores, config = header.recipe.get("scores") or {}, header.recipe.get("config") or {}
    weights = tuple(unpublished_weights(public_recipe(contents.run.recipe).backbone))
    packaged = contents.run.recipe.backbone.id == TINY and not weights
    uses_backbone = any(row.backbone for row in contents.run.plan.rows)
    return Needs(
        backbone=header.backbone if uses_backbone and not packaged and (weights or "/" not in header.backbone) else "",
        weights=weights if uses_backbone else (),
        encoder=_unpublished(config.get("encoder")),
        controlnet=_unpublished(config.get("controlnet")),
        scorers=tuple(dict.fromkeys(filter(None, (_unpublished(scores.get(key)) for key in ("encoder", "judge"))))),
        packaged=packaged,
        images=not release.real and any(row.source_ids for row in contents.run.plan.rows),
        public=bool(facts.hub_id or facts.homepage),
    )


def _unpublished(model: str | None) -> str:
    """The name of a model of the publisher's own; '' for one of the package or the Hub, whose id has a slash."""
    return model if model and model not in PACKAGED and "/" not in model else ""


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(lambda name: (files("diffaug_datasets.cards") / name).read_text(encoding="utf-8")),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"md": markdown, "fenced": fenced, "quoted": quoted, "sh": shlex.quote}
    return environment


def markdown(text: object) -> str:
    """Text that nothing in a Markdown page takes for markup."""
    return html.escape(" ".join(str(text).split()), quote=False).translate(MARKDOWN)


def quoted(text: str) -> str:
    """The text as a string of Python."""
    return json.dumps(text, ensure_ascii=False)


def fenced(text: str) -> str:
    """Text inside a code fence, which it cannot close."""
    return text.replace("```", "'''").rstrip()
