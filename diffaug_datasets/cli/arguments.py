"""Arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from diffaug_datasets.core.errors import RunError


def _device(device: str) -> str:
    if device in ("auto", "cpu", "cuda") or (device.startswith("cuda:") and device[5:].isdecimal()):
        return device
    raise RunError(f"--device: got {device!r}, expected auto, cpu, cuda or cuda:N.")


def local(param: typer.CallbackParam, value: Any) -> Any:
    """A folder or file, or several; RunError where an address such as s3:// is given."""
    from diffaug_datasets.run.store import on_this_machine

    for place in value if isinstance(value, list | tuple) else [value]:
        if place is not None:
            on_this_machine(place, param.opts[-1] if param.param_type_name == "option" else str(param.metavar))
    return value


def _version(wanted: bool) -> None:
    if wanted:
        from diffaug_datasets import __version__

        typer.echo(f"diffaug {__version__}")
        raise typer.Exit


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", callback=local, help="A run folder that `diffaug plan` made.")
]
NewRun = Annotated[Path | None, typer.Option("--run", callback=local, help="Run folder; default: runs/NAME-PLANID.")]
Device = Annotated[str, typer.Option(callback=_device, help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that share the work; 0 = one a GPU, or one a core.")]
MixedStack = Annotated[bool, typer.Option("--allow-mixed-stack", help="Continue a run of another device or version.")]
FitsFrom = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="RUN",
        callback=local,
        help="Take over another run's equal fits, and its images if filters alone differ.",
    ),
]
RowPrefix = Annotated[str, typer.Argument(metavar="ROW", help="A row id, or its first digits.")]
Source = Annotated[str | None, typer.Option(help="Real images: a folder or a Hub id; default: the builder's own.")]
Backbone = Annotated[
    str | None, typer.Option(help="A folder or Hub id that stands in for a model of the publisher; checked by digest.")
]
Config = Annotated[str | None, typer.Option(help="A config of a published set; default: its first.")]
Revision = Annotated[str | None, typer.Option(help="A tag, branch or commit of the Hub.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe key; repeatable.")]
Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; anywhere on the line.")]
