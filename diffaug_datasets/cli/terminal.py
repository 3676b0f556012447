"""The one place where the command line prints. A stranger's text drives no terminal, an address tells no password."""

import typer

from diffaug_datasets.core.printable import printable, without_secrets


def say(text: str = "") -> None:
    """One line, or several."""
    typer.echo(printable(without_secrets(text)))


def note(text: str) -> None:
    """The same on standard error, beside what a verb prints."""
    typer.echo(printable(without_secrets(text)), err=True)
