"""The headings below which `diffaug --help` lists the verbs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from typer.core import TyperCommand, TyperGroup

MAKE, LOOK, EVALUATE, PUBLISH, EXPERT = GROUPS = ("Make", "Look", "Evaluate", "Publish", "Expert")


class HelpText(Protocol):
    """What a help page is written with; of click, whichever typer brings along."""

    width: int

    def section(self, name: str) -> AbstractContextManager[None]:
        """Write a heading; what is written inside is indented."""

    def write_dl(self, rows: Sequence[tuple[str, str]]) -> None:
        """Write terms and their definitions in two columns."""


class GroupedVerbs(TyperGroup):
    """Lists the verbs below the headings of GROUPS, as plain text."""

    def format_commands(self, ctx: object, formatter: HelpText) -> None:  # noqa: ARG002
        """One section per group, its verbs in the order of this file."""
        verbs = [verb for verb in self.commands.values() if isinstance(verb, TyperCommand) and not verb.hidden]
        longest = max(len(verb.name or "") for verb in verbs)
        for group in GROUPS:
            with formatter.section(group):
                formatter.write_dl(
                    [
                        (f"{verb.name:<{longest}}", verb.get_short_help_str(formatter.width - 6 - longest))
                        for verb in verbs
                        if verb.rich_help_panel == group
                    ]
                )
