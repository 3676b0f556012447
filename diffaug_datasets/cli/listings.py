"""Tables of what there is: real datasets and methods, read from their modules."""

import json
from collections.abc import Sequence
from inspect import cleandoc
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from diffaug_datasets.cli.screen import say, say_facts, say_json, say_table
from diffaug_datasets.core.family import family
from diffaug_datasets.core.method import Method, discover_methods, find_method, unsure_keys
from diffaug_datasets.data.presets import presets
from diffaug_datasets.data.real import builder_facts, discover_builders
from diffaug_datasets.publish.citations import bibtex

SHOWN = ("name", "slug", "version", "sources", "prompt", "start", "label", "filter", "needs", "cost", "parity")


def print_builders(as_json: bool) -> None:
    """Name, size, licence and where the images come from."""
    facts = [builder_facts(name) for name in discover_builders()]
    if as_json:
        say_json([{**vars(fact), "citation": fact.citation or None} for fact in facts])
        return
    rows = []
    for fact in facts:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in fact.official.items())
        source = "in the package" if fact.embedded else fact.hub_id or "your own folder"
        rows.append((fact.name, fact.title, counts or "any", source, fact.licence))
    say_table(("NAME", "DATASET", "IMAGES", "SOURCE", "LICENCE"), rows)


def print_methods(as_json: bool) -> None:
    """Name, paper and the first line of each method's page."""
    methods = [discover_methods()[name] for name in sorted(discover_methods())]
    if as_json:
        say_json([_facts(method) for method in methods])
        return
    rows = [(m.NAME, m.SLUG, m.TITLE, f"arXiv {m.PAPER}", _summary(m)) for m in methods]
    say_table(("NAME", "IN CONFIG NAMES", "TITLE", "PAPER", "WHAT IT DOES"), rows)


def print_method(name: str, as_json: bool) -> None:
    """Everything about one method: its steps, facts and parameters."""
    method = find_method(name)
    parameters = list(_parameters(method.Config))
    unsure = dict(unsure_keys(method))
    if as_json:
        text = cleandoc(method.__doc__ or "")
        say_json({**_facts(method), "text": text, "parameters": parameters, "unsure": unsure})
        return
    say(f"{method.TITLE} (arXiv {method.PAPER})")
    say()
    say(cleandoc(method.__doc__ or ""))
    say()
    facts = _facts(method)
    say_facts({key: str(facts[key]) for key in SHOWN})
    say()
    rows = [(p["key"], p["type"], p["default"], p["meaning"]) for p in parameters]
    say_table(("PARAMETER", "TYPE", "DEFAULT", "MEANING"), rows)
    if unsure:
        say()
        say_table(("NOT FROM THE PUBLICATION ITSELF", "WHAT WE HAVE"), list(unsure.items()))
    if known := [preset for preset in presets().values() if preset.method == name]:
        say()
        say_table(("PRESET", "SOURCE", "AT SECOND HAND"), [(p.name, p.source, ", ".join(p.unsure)) for p in known])
    say()
    say(bibtex(method.PAPER, method.TITLE))


def _summary(method: Method) -> str:
    first = cleandoc(method.__doc__ or "").split("\n\n")[0]
    text = " ".join(first.split()).partition(": ")[2]
    return text.split(" (")[0].rstrip(".")


def _facts(method: Method) -> dict[str, Any]:
    made_of = family(method)
    return {
        "name": method.NAME,
        "slug": method.SLUG,
        "version": method.VERSION,
        "title": method.TITLE,
        "paper": method.PAPER,
        "parity": method.PARITY,
        "sources": method.N_SOURCES,
        "prompt": made_of.prompt,
        "start": made_of.start,
        "label": made_of.label,
        "filter": made_of.filter,
        "needs": ", ".join(sorted(method.NEEDS)) or "nothing beside the backbone",
        "cost": f"{made_of.cost} network rows an image at the default settings, two a step with guidance",
    }


def _parameters(model: type[BaseModel], prefix: str = "") -> list[dict[str, str]]:
    """Every parameter with its type, default and meaning; those of a model inside under dotted names."""
    found = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _parameters(field.annotation, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "(required)" if default is PydanticUndefined else json.dumps(default)
        meaning = "; ".join(part for part in (field.description, _bounds(field.metadata)) if part)
        found.append({"key": prefix + name, "type": _type(field.annotation), "default": shown, "meaning": meaning})
    return found


def _bounds(metadata: Sequence[Any]) -> str:
    """`> 0, <= 1` of pydantic's constraints."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return ", ".join(f"{sign} {getattr(m, key)}" for m in metadata for key, sign in signs.items() if hasattr(m, key))


def _type(annotation: Any) -> str:
    """`float`, `dpm | ddim`, `str | list of str`: as one would write it in a recipe."""
    if isinstance(annotation, type) and not get_args(annotation):
        return "null" if annotation is type(None) else annotation.__name__
    inner = [item for item in get_args(annotation) if item is not Ellipsis]
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, inner))
    if get_origin(annotation) in (tuple, list):
        return f"list of {_type(inner[0])}"
    return " | ".join(_type(item) for item in inner)
