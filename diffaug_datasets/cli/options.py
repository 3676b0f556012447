"""The options and arguments that several verbs share, with what is said of them and the check of what is typed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from diffaug_datasets.core.errors import RunError

Given = TypeVar("Given", Path, list[Path], None)
PlaceGiven = TypeVar("PlaceGiven", str, list[str], None)


def device_name(device: str) -> str:
    """The name as it is; RunError where no device is called so."""
    if device in ("auto", "cpu", "cuda") or (device.startswith("cuda:") and device[5:].isdecimal()):
        return device
    raise RunError(f"--device: got {device!r}, expected auto, cpu, cuda or cuda:N.")


def local(param: typer.CallbackParam, value: Given) -> Given:
    """A folder or file, or several; RunError where an address such as s3:// is given."""
    from diffaug_datasets.run.store import on_this_machine

    for place in value if isinstance(value, list | tuple) else [value]:
        if place is not None:
            on_this_machine(place, param.opts[-1] if param.param_type_name == "option" else str(param.metavar))
    return value


def places(given: list[str] | None) -> tuple[Path, ...]:
    """Folders and addresses as a worker's options hold them."""
    return tuple(map(Path, given or ()))


def reachable(param: typer.CallbackParam, value: PlaceGiven) -> PlaceGiven:
    """A folder, or an address that a run may be kept at; RunError where another one is given."""
    from diffaug_datasets.run.place import address_of, scheme_of
    from diffaug_datasets.run.store import on_this_machine

    for place in value if isinstance(value, list) else [value]:
        if place is not None:
            name = param.opts[-1] if param.param_type_name == "option" else str(param.metavar)
            address_of(place) if scheme_of(place) else on_this_machine(place, name)
    return value


def hub_name(name: str) -> str:
    """org/name, or nothing; RunError where no repository is called so."""
    if name:
        from diffaug_datasets.run.live_card import check_name

        check_name(name)
    return name


def print_version(wanted: bool) -> None:
    if wanted:
        from diffaug_datasets.core.identity import __version__

        typer.echo(f"diffaug {__version__}")
        raise typer.Exit


def was_typed(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def model_here(name: str | None) -> str | None:
    """A diffusion model as a person names it in the current folder: a folder's absolute path, or the id as it is."""
    from diffaug_datasets.planning.suggest import backbone_id

    return backbone_id(name)


def check_sets(sets: Sequence[str]) -> None:
    """Refuse a place that is no folder here, no address and no name of the Hub, before anything is loaded.

    Raises:
        PublishError: says what is expected.
    """
    from diffaug_datasets.release.repository import check_hub_name

    for where in sets:
        if "://" not in where and not Path(where).is_dir():
            check_hub_name(where)


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunPlace = Annotated[
    str,
    typer.Argument(
        metavar="RUN", callback=reachable, help="A run folder that `diffaug plan` made, or s3://bucket/run."
    ),
]
NewRun = Annotated[Path | None, typer.Option("--run", callback=local, help="Run folder; default: runs/NAME-PLANID.")]
NewPlace = Annotated[
    str | None,
    typer.Option("--run", callback=reachable, help="Run folder, or s3://bucket/run; default: runs/NAME-PLANID."),
]
Device = Annotated[str, typer.Option(callback=device_name, help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that share the work; 0 = one per GPU, or one per core.")]
MixedStack = Annotated[bool, typer.Option("--allow-mixed-stack", help="Continue a run of another device or version.")]
FitsFrom = Annotated[
    list[str] | None,
    typer.Option(
        metavar="RUN",
        callback=reachable,
        help="Take over another run's equal fits, and its images if filters alone differ.",
    ),
]
Engine = Annotated[str, typer.Option(help="Who starts the workers: local (this machine), slurm or ray.")]
SlurmOption = Annotated[
    list[str] | None, typer.Option("--slurm", metavar="KEY=VALUE", help="An option of sbatch; repeatable.")
]
TimeLimit = Annotated[
    str | None, typer.Option("--time", metavar="H:M:S", help="With slurm: time limit; default: the partition's.")
]
Wait = Annotated[bool, typer.Option("--wait", help="With slurm: stay until the run is whole.")]
Gpus = Annotated[
    float | None,
    typer.Option("--gpus", help="With ray: GPUs of a worker, such as 0.5; default: 1 if there are any."),
]
Address = Annotated[
    str | None, typer.Option("--address", help="With ray: HOST:PORT of a cluster, or auto; default: this machine.")
]
Progress = Annotated[
    str,
    typer.Option(
        "--progress", metavar="ORG/NAME", callback=hub_name, help="Keep a card on the Hub that says how far it is."
    ),
]
RowPrefix = Annotated[str, typer.Argument(metavar="ROW", help="A row id, or its first digits.")]
Source = Annotated[str | None, typer.Option(help="Real images: a folder or a Hub id; default: the builder's own.")]
Backbone = Annotated[
    str | None,
    typer.Option(
        callback=model_here,
        help="A folder or Hub id that stands in for a model of the publisher, or a YAML file of keys of `backbone`; "
        "checked by digest.",
    ),
]
Config = Annotated[str | None, typer.Option(help="A config of a published set; default: its first.")]
Revision = Annotated[str | None, typer.Option(help="A tag, branch or commit of the Hub.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe key; repeatable.")]
Sets = Annotated[
    list[str], typer.Argument(metavar="SET...", help="Run folders, Hub datasets (org/name) or published addresses.")
]
Encoders = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder",
        help="Image encoder: tiny, efficientnet-lite0, a folder or a Hub id; repeatable; default: that of the set's "
        "scores, else tiny.",
    ),
]
WithReal = Annotated[
    str | None, typer.Option(help="Your copy of the real images (a folder or Hub id), where a set has none.")
]
TestSource = Annotated[
    str | None, typer.Option(help="The folder or Hub id of the other images that a bench tests on (`test:`).")
]
Version = Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; anywhere on the line.")]

# Of `bench`

BenchSets = Annotated[
    list[str],
    typer.Argument(
        metavar="BENCH|SET...",
        help="A bench file or suite; or run folders, published sets (org/name, s3://...), config names, recipes.",
    ),
]
BenchFolder = Annotated[
    Path, typer.Option("--out", callback=local, help="Folder of the table, of finished cells and of runs.")
]
Minutes = Annotated[
    float | None, typer.Option(min=0, help="Start nothing more after this time; the same command goes on.")
]
Draws = Annotated[
    str | None, typer.Option(help="Draws of config names and recipes: 5 (the first five), 0,2,7 or 10-19.")
]
ImagesPerClass = Annotated[
    int | None, typer.Option(min=1, help="Synthetic images: the first so many of every class, for every set.")
]
MoreReal = Annotated[
    list[float] | None,
    typer.Option(
        help="A line with so many more real images per class, or 0.2 for a fifth of all real images; repeatable."
    ),
]
Classifiers = Annotated[
    list[str] | None, typer.Option(help="class_mean, logistic, svm or scratch; repeatable; default: logistic.")
]
Rule = Annotated[
    str | None,
    typer.Option(
        help="What stands in for a real image: class, global, index, lt_inverse; or concatenate. Default: "
        "lt_inverse for a long tail, else class."
    ),
]
Probability = Annotated[
    float | None, typer.Option("-p", "--probability", help="Of a real image to be replaced; default: 0.5.")
]
ModelRepository = Annotated[
    str | None, typer.Option(help="With publish: a classifier's repository, which gets the result of --line.")
]
LineName = Annotated[str | None, typer.Option(help="With publish: what the classifier of --model learned.")]
