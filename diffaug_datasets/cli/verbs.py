"""The verbs of the command line and their options; only typer is imported, so that `diffaug --help` answers at once.

What a verb does is in `make`, `look`, `judge` and `publish`, which are imported when it is called. Verbs that few
need, and those that the package calls itself by, are in `expert_verbs`.
"""

from pathlib import Path
from typing import Annotated

import typer

from diffaug_datasets.cli.grouping import EVALUATE, LOOK, MAKE, PUBLISH, GroupedVerbs
from diffaug_datasets.cli.options import (
    Address,
    AsJson,
    Backbone,
    BenchFolder,
    BenchSets,
    Classifiers,
    Config,
    Debug,
    Device,
    Draws,
    Encoders,
    Engine,
    FitsFrom,
    Gpus,
    ImagesPerClass,
    LineName,
    Minutes,
    MixedStack,
    ModelRepository,
    MoreReal,
    NewPlace,
    NewRun,
    Probability,
    Progress,
    Revision,
    RowPrefix,
    Rule,
    RunPlace,
    Set,
    Sets,
    SlurmOption,
    Source,
    TestSource,
    TimeLimit,
    Version,
    Wait,
    WithReal,
    Workers,
    local,
    places,
    reachable,
    was_typed,
)
from diffaug_datasets.core.errors import RunError

app = typer.Typer(
    cls=GroupedVerbs,
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


@app.command(rich_help_panel=MAKE, epilog="Example: diffaug demo --short")
def demo(
    run: Annotated[Path, typer.Option("--run", callback=local, help="Where the demo's runs go.")] = Path("runs"),
    short: Annotated[bool, typer.Option("--short", help="The same path with a few images of two methods.")] = False,
) -> None:
    """Plan, generate and report on embedded data; no network, no GPU. Finished work is used again."""
    from diffaug_datasets.cli.make import run_demo

    run_demo(run, short)


@app.command(rich_help_panel=MAKE, epilog="Example: diffaug new photos -o photos.yaml")
def new(
    place: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Your images: a folder, .zip, .tar, .csv, .parquet or a Hub id.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", callback=local, help="The recipe; default: NAME.yaml here.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Diffusion model: a folder or a Hub id.")] = None,
    changes: Set = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    json: AsJson = False,
) -> None:
    """Look at images of your own and write a recipe for them."""
    from diffaug_datasets.cli.new import make_recipe

    make_recipe(place, out, backbone, changes or [], force=force, yes=yes, as_json=json)


@app.command(rich_help_panel=MAKE, epilog="Example: diffaug cp fashion_5shot_genie mine.yaml")
def cp(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A config name or a shipped recipe.")] = None,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Default: NAME.yaml here; - prints the recipe.")
    ] = None,
) -> None:
    """Copy a recipe to a file of your own; alone, list what there is."""
    from diffaug_datasets.cli.make import copy_recipe, print_recipes

    copy_recipe(name, file) if name else print_recipes()


@app.command(rich_help_panel=MAKE, epilog="Example: diffaug plan mine.yaml --set per_class=2 --run runs/mine")
def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, a shipped recipe or a config name.")],
    run: NewPlace = None,
    source: Source = None,
    changes: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Price it, write nothing.")] = False,
    price: Annotated[bool, typer.Option("--price", help="The same from published counts, without the images.")] = False,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="8GB", help="Say whether a card of so much memory holds it.")
    ] = None,
    find_batch: Annotated[
        bool, typer.Option("--find-batch", help="Find batch_size by trying on this machine, and plan with it.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Draw every row of a dataset, price it, and write a run folder. Needs no torch and no GPU."""
    from diffaug_datasets.cli.make import make_plan, say_published_price

    if price:
        say_published_price(recipe, run, source, changes or [], as_json=json)
        return
    given = changes or []
    make_plan(recipe, run, source, given, dry_run=dry_run, as_json=json, memory=memory, tries_batches=find_batch)


@app.command(rich_help_panel=MAKE, epilog="Example: diffaug generate runs/mine --workers 2")
def generate(
    run: RunPlace,
    workers: Workers = 0,
    device: Device = "auto",
    fits_from: FitsFrom = None,
    allow_mixed_stack: MixedStack = False,
    engine: Engine = "local",
    slurm: SlurmOption = None,
    time: TimeLimit = None,
    wait: Wait = False,
    gpus: Gpus = None,
    address: Address = None,
    progress: Progress = "",
) -> None:
    """Make everything that a run still lacks, here or on a cluster.

    Killed, it goes on; shards that were not finished are begun anew. It also
    works under `accelerate launch -m` and under `srun`.
    """
    from diffaug_datasets.cli.clusters import engine_of
    from diffaug_datasets.cli.make import run_generate
    from diffaug_datasets.run.worker import WorkerOptions

    chosen = engine_of(engine, slurm=slurm or [], time=time, wait=wait, gpus=gpus, address=address)
    options = WorkerOptions(device, allow_mixed_stack=allow_mixed_stack, fits_from=places(fits_from), progress=progress)
    raise typer.Exit(run_generate(run, workers, options, chosen))


@app.command(rich_help_panel=MAKE, epilog="Example: diffaug run fashion_5shot_genie --set per_class=2")
def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe file, a shipped recipe, a config name, or a run.")
    ],
    run: NewPlace = None,
    source: Source = None,
    changes: Set = None,
    workers: Workers = 0,
    device: Device = "auto",
    fits_from: FitsFrom = None,
    allow_mixed_stack: MixedStack = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
    json: AsJson = False,
) -> None:
    """Plan, generate and report in one go; repeated, it goes on."""
    from diffaug_datasets.cli.run import RunOptions, run_all

    options = RunOptions(workers, device, places(fits_from), allow_mixed_stack, open_page, json)
    raise typer.Exit(run_all(recipe, run, source, changes or [], options))


@app.command(rich_help_panel=MAKE, epilog="Example: diffaug build fashion_5shot_genie")
def build(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A config name, or a published set to make again.")],
    source: Source = None,
    run: NewRun = None,
    workers: Workers = 0,
    device: Device = "auto",
) -> None:
    """Plan, generate and prepare a config as a `datasets` builder."""
    if "/" in name:
        from diffaug_datasets.cli.publish import build_published

        raise typer.Exit(build_published(name, source, run, workers, device))
    from diffaug_datasets.cli.make import run_build

    run_build(name, source, run, workers, device)


@app.command(rich_help_panel=LOOK, epilog="Example: diffaug builders")
def builders(json: AsJson = False) -> None:
    """List the real datasets that can be augmented."""
    from diffaug_datasets.cli.look import print_builders

    print_builders(json)


@app.command(rich_help_panel=LOOK, epilog="Example: diffaug methods genie")
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One method, with all its parameters.")] = None,
    json: AsJson = False,
) -> None:
    """List the augmentation methods, or explain one."""
    from diffaug_datasets.cli.look import print_method, print_methods

    print_method(name, json) if name else print_methods(json)


@app.command(rich_help_panel=LOOK, epilog="Example: diffaug families flux")
def families(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One family, with its published models.")] = None,
    json: AsJson = False,
) -> None:
    """List the model families that can be driven, or explain one."""
    from diffaug_datasets.cli.model_families import print_families, print_family

    print_family(name, json) if name else print_families(json)


@app.command(rich_help_panel=LOOK, epilog="Example: diffaug status runs/mine")
def status(
    run: RunPlace,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until it is finished.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="With --watch: seconds between two looks.")] = 5.0,
    json: AsJson = False,
) -> None:
    """Say how far a run is and who works on it; from any machine."""
    from diffaug_datasets.cli.look import print_status, watch_status

    watch_status(run, every, json) if watch else print_status(run, json)


@app.command(rich_help_panel=LOOK, epilog="Example: diffaug show runs/mine 0c4c76fb --out row.png")
def show(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE", callback=reachable, help="A run folder, s3://bucket/run, or a picture from anywhere."
        ),
    ],
    row: Annotated[
        str | None,
        typer.Argument(metavar="[ROW]", help="A row id or its first digits; of a picture, the run or set it is from."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", callback=local, help="Write the picture and its sources here.")
    ] = None,
) -> None:
    """Show everything about a row, or which row a picture is."""
    from diffaug_datasets.cli.look import show_picture, show_row

    if Path(run).is_file():
        show_picture(Path(run), row, out)
    elif row is None:
        raise RunError(f"show: got {run} alone, expected a run folder and a row id, or a picture that is there.")
    else:
        show_row(run, row, out)


@app.command(rich_help_panel=LOOK, epilog="Example: diffaug report runs/mine --open")
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", callback=reachable, help="One or more run folders.")],
    out: Annotated[
        Path | None, typer.Option("--out", callback=local, help="The page; default: report.html in the first run.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write an HTML page over runs: pictures, scores, counts."""
    from diffaug_datasets.cli.look import make_report

    make_report(runs, out, open_page)


@app.command(rich_help_panel=LOOK, epilog="Example: diffaug export runs/mine photos --as imagefolder")
def export(
    place: Annotated[
        str, typer.Argument(metavar="RUN|SET", help="A finished run folder, org/name of the Hub, or an address.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", callback=local, help="A new folder for the files.")],
    form: Annotated[str, typer.Option("--as", help="imagefolder, webdataset, parquet or csv.")] = "imagefolder",
    synthetic_only: Annotated[bool, typer.Option("--synthetic-only", help="Leave the real images out.")] = False,
    config: Config = None,
    revision: Revision = None,
    with_real: WithReal = None,
    json: AsJson = False,
) -> None:
    """Write images as plain files that other programs read.

    Stopped, the same command goes on; repeated, it looks at every file again.
    """
    from diffaug_datasets.cli.export import run_export

    run_export(
        place, folder, form, config=config, revision=revision, synthetic_only=synthetic_only, with_real=with_real,
        as_json=json,
    )  # fmt: skip


@app.command(rich_help_panel=LOOK, epilog="Example: diffaug regen runs/mine 0c4c76fb")
def regen(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, or a published set; a folder, org/name, s3://...")],
    row: RowPrefix,
    out: Annotated[Path | None, typer.Option("--out", callback=local, help="Write the rebuilt image here.")] = None,
    config: Config = None,
    revision: Revision = None,
    source: Source = None,
    backbone: Backbone = None,
    device: Device = "auto",
    json: AsJson = False,
) -> None:
    """Rebuild one row and compare it with the stored image.

    On the stack that made it, it must be equal bit for bit; on another one the difference is measured and must stay
    within a tolerance. Exit code 0 where it does, 1 where it does not, 3 where there are no pixels to measure from.
    """
    if _is_run(run):
        from diffaug_datasets.cli.look import run_regen

        given = {"--config": config, "--revision": revision, "--source": source, "--backbone": backbone}
        if unused := next((name for name, value in given.items() if value is not None), None):
            raise RunError(f"{unused}: is for published sets; {run} is a run and has its own, so leave it out.")
        raise typer.Exit(run_regen(run, row, out, device, json))
    from diffaug_datasets.cli.publish import PublishedSet, rebuild_published
    from diffaug_datasets.run.execute import resolve_device

    published = PublishedSet(run, config, revision, source, resolve_device(device), backbone)
    raise typer.Exit(rebuild_published(published, row, out, json))


@app.command(rich_help_panel=LOOK, epilog="Example: diffaug doctor")
def doctor(json: AsJson = False) -> None:
    """Say what this machine can do: devices, memory, disk, models."""
    from diffaug_datasets.cli.look import print_doctor

    raise typer.Exit(print_doctor(json))


@app.command(rich_help_panel=EVALUATE, epilog="Example: diffaug measure runs/mine")
def measure(
    sets: Sets,
    encoder: Encoders = None,
    config: Config = None,
    with_real: WithReal = None,
    by_class: Annotated[bool, typer.Option("--by-class", help="Print the numbers of every class too.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", callback=local, help="A JSON file; default: measures.json of a run folder."),
    ] = None,
    device: Device = "cpu",
    json: AsJson = False,
) -> None:
    """Measure synthetic images beside real ones.

    Leaks first; then distances with their floor, diversity, copies, label accuracy.
    """
    from diffaug_datasets.cli.options import check_sets
    from diffaug_datasets.cli.screen import telling

    check_sets(sets)
    with telling("starting", json):
        from diffaug_datasets.cli.measuring import run_measure

    run_measure(
        sets,
        encoder or (),
        config=config,
        with_real=with_real,
        by_class=by_class,
        device=device,
        as_json=json,
        out=out,
    )


@app.command(rich_help_panel=EVALUATE, epilog="Example: diffaug bench runs/mine --out runs/bench")
def bench(
    context: typer.Context,
    sets: BenchSets,
    out: BenchFolder = Path("runs/bench"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Price it, write nothing.")] = False,
    minutes: Minutes = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
    draws: Draws = None,
    images_per_class: ImagesPerClass = None,
    changes: Set = None,
    more_real: MoreReal = None,
    encoder: Encoders = None,
    classifier: Classifiers = None,
    rule: Rule = None,
    probability: Probability = None,
    config: Config = None,
    with_real: WithReal = None,
    test_source: TestSource = None,
    device: Device = "cpu",
    model: ModelRepository = None,
    line: LineName = None,
    json: AsJson = False,
) -> None:
    """Train classifiers with and without a set: does it help?

    All at the same budget; gains are paired and printed with their intervals.

    Config names and recipes are planned and generated for every draw first. Killed, the same command goes on; several
    at once share the work. Exit code 3 where --minutes ended it.

    `bench table FOLDER` prints a finished one again, `bench report FOLDER` writes a page with figures and the pictures
    behind bad classes, `bench publish FOLDER TARGET` adds it to the card of a published set.
    """
    from diffaug_datasets.cli.bench_outputs import PLACES, OutputOptions, run_output

    if sets[0] in PLACES:
        typed = frozenset(name for name in context.params if was_typed(context, name)) - {"sets"}
        page = out if "out" in typed else None
        run_output(sets, OutputOptions(typed, page, dry_run, json, model, line, classifier or (), config))
        return
    if model or line:
        raise RunError("--model and --line: are for `bench publish`; leave them out.")
    from diffaug_datasets.cli.screen import telling

    with telling("starting", json):
        from diffaug_datasets.cli.judge import BenchOptions, benches_of, price_bench, run_bench

    given = BenchOptions(
        encoder or (), classifier or (), rule, probability, draws, images_per_class, more_real or (), changes or (),
        config, with_real, test_source,
    )  # fmt: skip
    code = 0
    for name, spec in benches_of(sets, given).items():
        folder = out / name.replace("@", "-") if name else out
        if dry_run:
            price_bench(spec, folder, device, json)
        else:
            code |= run_bench(spec, folder, device=device, workers=workers, minutes=minutes, as_json=json)
    raise typer.Exit(code)


@app.command(rich_help_panel=PUBLISH, epilog="Example: diffaug publish runs/mine org/name --dry-run")
def publish(
    run: RunPlace,
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="org/name on the Hub, or an address (s3://..., file://...).")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show files, card and licence verdict; send nothing.")
    ] = False,
    format: Annotated[str, typer.Option("--format", help="arrow or parquet.")] = "arrow",
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="As a pull request.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch; made if missing.")] = None,
    i_have_rights: Annotated[
        bool, typer.Option("--i-have-rights", help="You may publish what the licence forbids.")
    ] = False,
    recipe_only: Annotated[bool, typer.Option("--recipe-only", help="Everything but pixels.")] = False,
    allow: Annotated[list[str] | None, typer.Option(metavar="GATE", help="Overrule a gate; the card says so.")] = None,
    json: AsJson = False,
) -> None:
    """Publish a finished run: shards, provenance, recipe, plan, card.

    Killed, the same command continues.
    """
    from diffaug_datasets.cli.publish import options_of, print_preview, run_publish

    options = options_of(format, (private, create_pr, revision), i_have_rights, recipe_only, allow or [])
    if dry_run:
        raise typer.Exit(print_preview(run, target, options, json))
    run_publish(run, target, options, json)


@app.command(rich_help_panel=PUBLISH, epilog="Example: diffaug verify org/name --sample 3")
def verify(
    place: Annotated[
        str, typer.Argument(metavar="RUN|SET", help="A finished run, or a published set: a folder, org/name, s3://...")
    ],
    sample: Annotated[int, typer.Option(min=0, help="Rows to make again.")] = 0,
    config: Config = None,
    revision: Revision = None,
    source: Source = None,
    backbone: Backbone = None,
    device: Device = "auto",
    json: AsJson = False,
) -> None:
    """Check a published set or a finished run, byte by byte.

    With --sample, rows are made again too.

    Each check ends in ok (a row: bit-equal, or within tolerance on another stack), WRONG, or could not check (a model,
    a source or a version is not here). Exit code 0 where nothing is wrong, 1 where something is, 3 where nothing is and
    not one row of --sample could be checked.
    """
    from diffaug_datasets.cli.publish import PublishedSet, run_verify

    published = PublishedSet(place, config, revision, source, device, backbone)
    raise typer.Exit(run_verify(published, sample, json))


@app.command(rich_help_panel=PUBLISH, epilog="Example: diffaug withdraw runs/mine photos/cat/7.jpg")
def withdraw(
    run: RunPlace,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="The sha256 of a real image, or its file.")],
    out: Annotated[
        Path | None, typer.Option("--run", callback=local, help="The new run folder; default: NAME-PLANID beside.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Take real images out of a run, and the rows made from them.

    What stays becomes a run of its own; nothing is generated.
    """
    from diffaug_datasets.cli.make import run_withdraw

    run_withdraw(run, images, out, json)


def _is_run(place: str) -> bool:
    """Whether a run is meant; of a name that nothing is behind, too, unless it may be one of the Hub."""
    if "://" in place:
        from diffaug_datasets.release.places import is_run

        return is_run(place)
    folder = Path(place)
    return (folder.exists() or place.count("/") != 1) and not (folder / "data").is_dir()
