"""The verbs and their options; typer alone is imported here, so that `diffaug --help` answers at once."""

from pathlib import Path
from typing import Annotated

import typer

from diffaug_datasets.cli.arguments import (
    AsJson,
    Debug,
    Device,
    FitsFrom,
    MixedStack,
    NewRun,
    RowPrefix,
    RunFolder,
    Set,
    Source,
    Version,
    Workers,
    local,
)

app = typer.Typer(
    help="Reproducible, diffusion-augmented datasets for image classification.",
    epilog="A run goes plan, generate, report; `diffaug demo` shows all three on embedded data.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(version: Version = False, debug: Debug = False) -> None:
    """Options of every verb."""


@app.command()
def demo(
    run: Annotated[Path, typer.Option("--run", callback=local, help="Where the demo's runs go.")] = Path("runs"),
    short: Annotated[bool, typer.Option("--short", help="The same path with a few images of two methods.")] = False,
) -> None:
    """Plan, generate and report on embedded data; no network, no GPU. Finished work is used again."""
    from diffaug_datasets.cli.demo import run_demo

    run_demo(run, short)


@app.command()
def doctor(json: AsJson = False) -> None:
    """Say what this machine can do: versions, devices, memory, disk, models."""
    from diffaug_datasets.cli.doctor import print_doctor

    raise typer.Exit(print_doctor(json))


@app.command()
def builders(json: AsJson = False) -> None:
    """List the real datasets that can be augmented."""
    from diffaug_datasets.cli.listings import print_builders

    print_builders(json)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One method, with all its parameters.")] = None,
    json: AsJson = False,
) -> None:
    """List the augmentation methods, or explain one."""
    from diffaug_datasets.cli.listings import print_method, print_methods

    print_method(name, json) if name else print_methods(json)


@app.command()
def cp(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A config name or a shipped recipe.")] = None,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Default: NAME.yaml here.")] = None,
) -> None:
    """Copy a recipe to a file of your own; without a name, list the shipped ones."""
    from diffaug_datasets.cli.planning import copy_recipe, print_recipes

    copy_recipe(name, file) if name else print_recipes()


@app.command()
def captions(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, a shipped recipe or a config name.")],
    out: Annotated[
        Path, typer.Option("--out", callback=local, help="The file to write; config.suffixes takes its name.")
    ],
    captioner: Annotated[str, typer.Option(help="Image captioner: a Hub id or a folder.")] = (
        "Salesforce/blip-image-captioning-large"
    ),
    summariser: Annotated[
        str,
        typer.Option(
            help="clusters (no model), a folder with a language model, local:ID for one of the Hub that runs here, or "
            "the id of a chat model."
        ),
    ] = "clusters",
    endpoint: Annotated[
        str | None, typer.Option(help="URL of an OpenAI-like chat service; default: the Hub's.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Images that are captioned at most.")] = 200,
    source: Source = None,
    device: Device = "cpu",
) -> None:
    """Caption real images and sum the captions up as context suffixes for diff_ii; done once, before planning."""
    from diffaug_datasets.cli.wording import make_suffixes
    from diffaug_datasets.data.captions import Wording

    make_suffixes(recipe, out, source, Wording(captioner, summariser, endpoint, limit, device))


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, a shipped recipe or a config name.")],
    run: NewRun = None,
    source: Source = None,
    changes: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Price it, write nothing.")] = False,
    json: AsJson = False,
) -> None:
    """Draw every row of a dataset, price it, and write a run folder. Needs no torch and no GPU."""
    from diffaug_datasets.cli.planning import make_plan

    make_plan(recipe, run, source, changes or [], dry_run=dry_run, as_json=json)


@app.command()
def fit(
    run: RunFolder,
    workers: Workers = 0,
    device: Device = "auto",
    fits_from: FitsFrom = None,
    allow_mixed_stack: MixedStack = False,
    split_batches: Annotated[
        bool, typer.Option("--split-batches", help="Under accelerate launch: learn every concept fit together.")
    ] = False,
) -> None:
    """Make only what rows need first: concepts, inversions."""
    from diffaug_datasets.cli.running import run_fits
    from diffaug_datasets.run.worker import WorkerOptions

    others = tuple(fits_from or ())
    run_fits(run, workers, WorkerOptions(device, 0, True, allow_mixed_stack, others, split_batches))


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A learned_embeds file: pickle or safetensors.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the safetensors go; made if missing.")],
    token: Annotated[str | None, typer.Option(metavar="NAME", help="The token's name, if not the file's own.")] = None,
) -> None:
    """Turn released learned_embeds files into safetensors that diffusers loads. Runs no code of a pickle."""
    from diffaug_datasets.cli.converting import convert_embeddings

    convert_embeddings(file, folder, token)


@app.command()
def generate(
    run: RunFolder,
    workers: Workers = 0,
    device: Device = "auto",
    fits_from: FitsFrom = None,
    allow_mixed_stack: MixedStack = False,
) -> None:
    """Make everything that a run still lacks. Killed, it goes on where it was; also under `accelerate launch -m`."""
    from diffaug_datasets.cli.running import run_generate
    from diffaug_datasets.run.worker import WorkerOptions

    options = WorkerOptions(device, allow_mixed_stack=allow_mixed_stack, fits_from=tuple(fits_from or ()))
    raise typer.Exit(run_generate(run, workers, options))


@app.command()
def status(run: RunFolder, json: AsJson = False) -> None:
    """Say how far a run is; works while others work on it."""
    from diffaug_datasets.cli.inspecting import print_status

    print_status(run, json)


@app.command()
def show(
    run: RunFolder,
    row: RowPrefix,
    out: Annotated[
        Path | None, typer.Option("--out", callback=local, help="Write the picture and its sources here.")
    ] = None,
) -> None:
    """Show everything about one row: draws, prompts, scores, sources."""
    from diffaug_datasets.cli.inspecting import show_row

    show_row(run, row, out)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", callback=local, help="One or more run folders.")],
    out: Annotated[
        Path | None, typer.Option("--out", callback=local, help="The page; default: report.html in the first run.")
    ] = None,
) -> None:
    """Write an HTML page over runs: pictures, scores, counts."""
    from diffaug_datasets.cli.inspecting import make_report

    make_report(runs, out)


@app.command()
def build(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A config name, or a published set to make again.")],
    source: Source = None,
    run: NewRun = None,
    workers: Workers = 0,
    device: Device = "auto",
) -> None:
    """Plan, generate and prepare a config as a `datasets` builder, in one go."""
    if "/" in name:
        from diffaug_datasets.cli.published import build_published

        raise typer.Exit(build_published(name, source, run, workers, device))
    from diffaug_datasets.cli.running import run_build

    run_build(name, source, run, workers, device)


@app.command(hidden=True)
def worker(run: RunFolder, pipe: int, options: str) -> None:
    """Work for a `generate` with several workers, which starts this itself."""
    from diffaug_datasets.run.engines.local import work_for_parent

    work_for_parent(run, pipe, options)
