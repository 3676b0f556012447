"""Verbs that few need, and hidden ones by which the package starts processes of its own; as light as `verbs`."""

from pathlib import Path
from typing import Annotated

import typer

from diffaug_datasets.cli.grouping import EXPERT
from diffaug_datasets.cli.options import (
    Device,
    FitsFrom,
    MixedStack,
    RunPlace,
    Source,
    Workers,
    local,
    places,
)
from diffaug_datasets.cli.verbs import app


@app.command(rich_help_panel=EXPERT, epilog="Example: diffaug captions mine.yaml --out suffixes.json")
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
    """Caption real images, to make context suffixes for diff_ii.

    Done once, before planning.
    """
    from diffaug_datasets.cli.make import make_suffixes
    from diffaug_datasets.planning.suffixes import CaptionOptions

    make_suffixes(recipe, out, source, CaptionOptions(captioner, summariser, endpoint, limit, device))


@app.command(rich_help_panel=EXPERT, epilog="Example: diffaug sentences mine.yaml --out sentences.json --per-class 20")
def sentences(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, a shipped recipe or a config name.")],
    out: Annotated[
        Path, typer.Option("--out", callback=local, help="The file to write; config.prompts takes its name.")
    ],
    model: Annotated[str, typer.Option(help="Word-to-sentence model: a Hub id or a folder.")] = (
        "mrm8488/t5-base-finetuned-common_gen"
    ),
    per_class: Annotated[int, typer.Option(min=1, help="Sentences of a class at most.")] = 200,
    prefix: Annotated[str, typer.Option(help="What every prompt begins with, such as 'a photo of '.")] = "",
    source: Source = None,
    device: Device = "cpu",
) -> None:
    """Turn class names into sentences, to prompt with.

    He et al.'s language enhancement, done once, before planning.
    """
    from diffaug_datasets.cli.make import make_sentences
    from diffaug_datasets.planning.sentences import SentenceOptions

    make_sentences(recipe, out, source, SentenceOptions(model, per_class, prefix, device))


@app.command(rich_help_panel=EXPERT, epilog="Example: diffaug fit runs/mine --workers 2")
def fit(
    run: RunPlace,
    workers: Workers = 0,
    device: Device = "auto",
    fits_from: FitsFrom = None,
    allow_mixed_stack: MixedStack = False,
    split_batches: Annotated[
        bool, typer.Option("--split-batches", help="Under accelerate launch: learn every concept fit together.")
    ] = False,
) -> None:
    """Make only what rows need first: concepts, inversions."""
    from diffaug_datasets.cli.make import run_fits
    from diffaug_datasets.run.worker import WorkerOptions

    options = WorkerOptions(
        device,
        allow_mixed_stack=allow_mixed_stack,
        fits_from=places(fits_from),
        split_batches=split_batches,
    )
    run_fits(run, workers, options)


@app.command(rich_help_panel=EXPERT, epilog="Example: diffaug convert learned_embeds.bin tokens/")
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A learned_embeds file: pickle or safetensors.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the safetensors go; made if missing.")],
    token: Annotated[str | None, typer.Option(metavar="NAME", help="The token's name, if not the file's own.")] = None,
) -> None:
    """Turn released learned_embeds files into safetensors.

    diffusers loads those. No code of a pickle is run.
    """
    from diffaug_datasets.cli.publish import convert_embeddings

    convert_embeddings(file, folder, token)


@app.command(hidden=True)
def worker(run: RunPlace, pipe: int, options: str) -> None:
    """Work for a `generate` with several workers, which starts this itself."""
    from diffaug_datasets.run.engines.local import work_for_parent

    work_for_parent(run, pipe, options)


@app.command(hidden=True)
def bench_worker(folder: Path, device: str, cache: str, parent: int) -> None:
    """Work for a `bench` with several workers, which starts this itself."""
    from diffaug_datasets.cli.judge import help_bench

    help_bench(folder, device, cache, parent)
