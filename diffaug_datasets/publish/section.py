"""The part of a card that speaks of one config: every word and number follows from the run and its release."""

import html
import inspect
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined

from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.plan import PlanHeader
from diffaug_datasets.core.rows import Outcome, PlanRow, published_columns
from diffaug_datasets.core.withdrawal import learned_with
from diffaug_datasets.data.release import Release
from diffaug_datasets.publish.citations import bibtex
from diffaug_datasets.publish.contents import SHEET, Contents
from diffaug_datasets.publish.licences import model_terms
from diffaug_datasets.publish.provenance import STATUS
from diffaug_datasets.publish.quality import TITLES
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.withdrawal import fits_by_image

TEMPLATE = "dataset.md.jinja"
CODE = {"image": "the encoded image", "plan_id": "sha256 of the plan that the row was made under"}
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
            tag=tag,
            method=method,
            steps=inspect.getdoc(method) or "",
            terms=model_terms(header.backbone),
            models=models(header),
            columns=column_texts(),
            status=STATUS,
            quality=[(TITLES[name], value) for name, value in release.quality.items() if name in TITLES],
            splits=splits(release),
            learned=_learned(contents.run),
            sheet=f"{release.folder}/{SHEET}" if any(f.file == SHEET for f in release.beside) else None,
            protocol=str(header.recipe["protocol"]),
            papers=[bibtex(method.PAPER, method.TITLE)] if method and method.PAPER else [],
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


def models(header: PlanHeader) -> dict[str, str]:
    """What each model did -> its name."""
    scores = header.recipe.get("scores") or {}
    own = {"method's encoder": (header.recipe.get("config") or {}).get("encoder")}
    named = {"images": header.backbone, "scores": scores.get("encoder"), "judge": scores.get("judge"), **own}
    return {use: str(name) for use, name in named.items() if name}


def column_texts() -> dict[str, tuple[str, str]]:
    """Column -> type and meaning."""
    meaning = {name: field.description or "" for m in (PlanRow, Outcome) for name, field in m.model_fields.items()}
    return {name: (kind, {**meaning, **CODE}[name]) for name, kind in published_columns().items()}


def markdown(text: object) -> str:
    """Text that nothing in a Markdown page takes for markup."""
    return html.escape(" ".join(str(text).split())).translate(MARKDOWN)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"md": markdown, "fenced": fenced}
    return environment


def fenced(text: str) -> str:
    """Text inside a code fence, which it cannot close."""
    return text.replace("```", "'''").rstrip()


def _source(name: str) -> str:
    return (files("diffaug_datasets.cards") / name).read_text(encoding="utf-8")
