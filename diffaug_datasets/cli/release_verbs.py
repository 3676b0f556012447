"""The verbs of what is finished: withdraw an image, publish, make a row again, check."""

from pathlib import Path
from typing import Annotated

import typer

from diffaug_datasets.cli.arguments import (
    AsJson,
    Backbone,
    Config,
    Device,
    Revision,
    RowPrefix,
    RunFolder,
    Source,
    local,
)
from diffaug_datasets.cli.verbs import app
from diffaug_datasets.core.errors import RunError

__all__ = ["app"]


@app.command()
def withdraw(
    run: RunFolder,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="The sha256 of a real image, or its file.")],
    out: Annotated[
        Path | None, typer.Option("--run", callback=local, help="The new run folder; default: NAME-PLANID beside.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Take real images and the rows made from them out of a finished run, into a new one; nothing is generated."""
    from diffaug_datasets.cli.withdrawing import run_withdraw

    run_withdraw(run, images, out, json)


@app.command()
def publish(
    run: RunFolder,
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
    """Publish a finished run: shards, provenance, recipe, plan, card. Killed, the same command continues."""
    from diffaug_datasets.cli.publishing import options_of, print_preview, run_publish

    options = options_of(format, (private, create_pr, revision), i_have_rights, recipe_only, allow or [])
    if dry_run:
        raise typer.Exit(print_preview(run, target, options, json))
    run_publish(run, target, options, json)


@app.command()
def regen(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or a published set (org/name, s3://...).")],
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
    folder = Path(run)
    if "://" not in run and (folder.exists() or run.count("/") != 1) and not (folder / "data").is_dir():
        from diffaug_datasets.cli.inspecting import rebuild_row

        given = {"--config": config, "--revision": revision, "--source": source, "--backbone": backbone}
        if unused := next((name for name, value in given.items() if value is not None), None):
            raise RunError(f"{unused}: is for published sets; {run} is a run folder and has its own, so leave it out.")
        raise typer.Exit(rebuild_row(folder, row, out, device, json))
    from diffaug_datasets.cli.published import Where, rebuild_published

    raise typer.Exit(
        rebuild_published(Where(run, config, revision, source, _resolved(device), backbone), row, out, json)
    )


@app.command()
def verify(
    place: Annotated[str, typer.Argument(metavar="PLACE", help="A published set: org/name, a folder or s3://...")],
    sample: Annotated[int, typer.Option(min=0, help="Rows to make again.")] = 0,
    config: Config = None,
    revision: Revision = None,
    source: Source = None,
    backbone: Backbone = None,
    device: Device = "auto",
    json: AsJson = False,
) -> None:
    """Check a published set: every digest, plan, schema, labels, counts, and a sample of rows made again.

    Each check ends in ok (a row: bit-equal, or within tolerance on another stack), WRONG, or could not check (a model,
    a source or a version is not here). Exit code 0 where nothing is wrong, 1 where something is, 3 where nothing is and
    not one row of --sample could be checked.
    """
    from diffaug_datasets.cli.published import Where, run_verify

    where = Where(place, config, revision, source, _resolved(device) if sample else device, backbone)
    raise typer.Exit(run_verify(where, sample, json))


def _resolved(device: str) -> str:
    from diffaug_datasets.run.execute import resolve_device

    return resolve_device(device)
