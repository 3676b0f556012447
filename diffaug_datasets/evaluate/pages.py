"""Templates to text: every value is escaped, an unknown name is an error."""

from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined

from diffaug_datasets.evaluate.row_card import percent, signed

THIN = "\u202f"


def render(template: str, **values: object) -> str:
    """The page of a template in `diffaug_datasets.cards`."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": count, "seconds": seconds, "rate": rate}
    environment.filters |= {"percent": percent, "signed": signed, "pyrepr": repr}
    return environment


def _source(name: str) -> str:
    return (files("diffaug_datasets.cards") / name).read_text(encoding="utf-8")


def count(number: int) -> str:
    """A whole number, thousands set apart: 12 345."""
    return f"{number:,}".replace(",", THIN)


def seconds(value: float) -> str:
    """A duration as one reads it: 0.84 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def rate(value: float) -> str:
    """A speed: 0.031, 1.2, 45."""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"
