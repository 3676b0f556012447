"""The README of a repository: YAML head, what people wrote, and one marked section a config, which is ours."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.publish.contents import Contents
from diffaug_datasets.publish.head import merged_head
from diffaug_datasets.publish.section import section

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
