"""The verb that publishes, and what it prints."""

from pathlib import Path

import typer

from diffaug_datasets.cli.screen import say, say_facts, say_json
from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.publish.licences import model_terms
from diffaug_datasets.publish.options import PublishOptions
from diffaug_datasets.publish.publisher import Preview, preview, publish
from diffaug_datasets.run.store import Run

GATES = ("licence", "model-licence", "failed-rows", "rows", "test-leak")


def options_of(
    file_format: str, where: tuple[bool, bool, str | None], rights: bool, recipe_only: bool, allow: list[str]
) -> PublishOptions:
    """The options of a command line; `where` is private, create_pr, revision."""
    if file_format not in ("arrow", "parquet"):
        raise PublishError(f"--format: got {file_format!r}, expected arrow or parquet.")
    if unknown := next((name for name in allow if name not in GATES), None):
        raise PublishError(f"--allow: got {unknown!r}, expected one of {', '.join(GATES)}.")
    private, create_pr, revision = where
    return PublishOptions(
        "parquet" if file_format == "parquet" else "arrow",
        private,
        create_pr,
        revision,
        rights,
        recipe_only,
        tuple(allow),
    )


def run_publish(folder: Path, target: str, options: PublishOptions, as_json: bool) -> None:
    """Publish and say where it is."""
    done = publish(Run.open(folder), target, options)
    if as_json:
        say_json(done.__dict__)
        return
    say(f"published: {done.target}, {done.folder}")
    if done.commit:
        say(f"  on {done.revision}, commit {done.commit[:12]}" + (f", tag {done.tag}" if done.tag else ""))


def print_preview(folder: Path, target: str, options: PublishOptions, as_json: bool) -> int:
    """Files, sizes, card and verdicts; 1 where a gate says no."""
    found = preview(Run.open(folder), target, options)
    if as_json:
        say_json(_told(found))
    else:
        _say_preview(found)
    return 0 if all(verdict.passed for verdict in found.verdicts) else 1


def _told(found: Preview) -> dict[str, object]:
    files = [{"path": item.path, "size": item.size, "sha256": item.sha256} for item in found.contents.items]
    gates = [{"gate": v.gate, "passed": v.passed, "reason": v.reason} for v in found.verdicts]
    return {"target": found.target, "files": files, "size": found.contents.size, "gates": gates, "card": found.card}


def _say_preview(found: Preview) -> None:
    contents, header = found.contents, found.contents.run.plan.header
    for item in contents.items:
        say(f"{_size(item.size):>10}  {item.path}")
    facts = {
        "files": f"{len(contents.items)} and README.md, croissant.json; {_size(contents.size)}",
        "images": f"{contents.facts.title}, {contents.facts.licence}",
        "model": f"{header.backbone}, {model_terms(header.backbone).licence}",
    }
    say_facts({f"  {name}": text for name, text in facts.items()})
    for verdict in found.verdicts:
        word = "ok" if not verdict.reason else "allowed" if verdict.allowed else "REFUSED"
        say(f"  gate {verdict.gate}: {word}{f', {verdict.reason}' if verdict.reason else ''}")
    say()
    say(found.card.rstrip())
    typer.echo("nothing was sent (--dry-run)", err=True)


def _size(size: int) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000  # type: ignore[assignment]
    return f"{size:.1f} GB"
