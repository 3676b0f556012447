"""YAML of recipes: JSON's kinds of values in YAML's spelling, and nothing that means other than it looks.

Only `true` and `false` are booleans and only decimal numbers are numbers, as in YAML 1.2: `no`, `5_000`, `010`, `12:30`
and `2024-01-01` are texts, which the key's own type then reads. A key that comes twice, aliases and merge keys (a few
lines that stand for gigabytes), tags, several documents and deep nesting are refused, with their line.
"""

import re
from typing import Any, ClassVar

import yaml

DEEPEST = 50
_READER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DECIMAL = r"(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
_FLOAT = rf"[-+]?(?:{_DECIMAL}|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))"
_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]{0,18})", "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
)


class _Loader(_READER):  # type: ignore[misc]
    """The safe loader with the scalars above."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what any version of YAML would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """A list that stands in two places is written twice."""
        return True


for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"(?:{_FLOAT})\Z"), list("-+0123456789."))


def load_yaml(text: str) -> Any:
    """The content of one document: mappings, lists, texts, numbers, booleans and None.

    Raises:
        ValueError: no YAML, or one of what is refused; one line without a full stop, with the line's number.
    """
    try:
        _check_structure(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506, a safe loader
    except (yaml.YAMLError, UnicodeError) as error:
        hint = "; indent with spaces, not tabs" if re.search(r"^ *\t", text, re.MULTILINE) else ""
        reason = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        raise ValueError(f"{reason[:300].rstrip('.')}{hint}") from None


def dump_yaml(content: Any) -> str:
    """The document of a JSON-like value, keys in their order; `load_yaml` gives the same value back."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _check_structure(text: str) -> None:
    """Refuse what `load_yaml` refuses before anything is built: flat over the parser's events, so depth is harmless."""
    mappings: list[dict[str, int] | None] = []  # of the open collections: a mapping's keys and their lines, or None
    at_key: list[bool] = []
    for event in yaml.parse(text, Loader=_READER):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {line} holds the alias *{event.anchor}; write out what it stands for")
        if isinstance(event, yaml.CollectionEndEvent):
            mappings.pop()
            at_key.pop()
        elif isinstance(event, yaml.NodeEvent):
            if (tag := getattr(event, "tag", None)) is not None:
                raise ValueError(f"line {line} holds the tag {tag!r}; a value needs none, a text quotes")
            if mappings and (keys := mappings[-1]) is not None:
                if at_key[-1]:
                    _check_key(event, keys, line)
                at_key[-1] = not at_key[-1]
            if isinstance(event, yaml.CollectionStartEvent):
                mappings.append({} if isinstance(event, yaml.MappingStartEvent) else None)
                at_key.append(True)
                if len(mappings) > DEEPEST:
                    raise ValueError(f"line {line} is nested more than {DEEPEST} levels deep")


def _check_key(event: Any, keys: dict[str, int], line: int) -> None:
    if not isinstance(event, yaml.ScalarEvent):
        raise ValueError(f"line {line} has a list or mapping for a key; keys are names")
    name = str(event.value)
    if name == "<<":
        raise ValueError(f"line {line} holds the merge key <<; write out what it stands for")
    if name in keys:
        raise ValueError(f"line {line} has the key {name!r}, which line {keys[name]} has too; keep one of them")
    keys[name] = line
