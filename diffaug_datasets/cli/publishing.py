"""The verb that publishes, and what it prints."""

import shlex
import sys
from pathlib import Path

from diffaug_datasets.cli.screen import note, say, say_facts, say_json
from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.publish.licences import model_terms
from diffaug_datasets.publish.options import PublishOptions
from diffaug_datasets.publish.publisher import Preview, preview, publish
from diffaug_datasets.publish.push import Published
from diffaug_datasets.publish.section import quoted
from diffaug_datasets.run.store import Run

GATES = ("licence", "model-licence", "local-model", "failed-rows", "rows", "test-leak")


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
    """Publish and say where it is, and how others get at it."""
    run = Run.open(folder)
    if sys.stderr is None or not sys.stderr.isatty():
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    done = publish(run, target, options)
    if as_json:
        say_json(done.__dict__)
        return
    say(f"published: {done.target}, {done.folder}")
    say(f"  {done.sent} files are new there" if done.sent else "  everything was there already, nothing was sent")
    if done.commit:
        say(f"  on {done.revision}, commit {done.commit[:12]}" + (f", tag {done.tag}" if done.tag else ""))
    say(f"  {_next(done, options)}")


def _next(done: Published, options: PublishOptions) -> str:
    """What comes after it: a merge, a build, or loading."""
    if options.create_pr:
        return f"open pull request {done.revision.rpartition('/')[2]} of {done.target}: merge it on the Hub"
    if options.recipe_only:
        return f"without pixels: diffaug build {shlex.quote(done.target)} --source YOUR-IMAGES makes them"
    named = f"{quoted(done.target)}, {quoted(done.folder.split('/')[1])}"
    if done.commit:
        branch = "" if done.revision == "main" else f", revision={quoted(done.revision)}"
        return f"load_dataset({named}{branch}) loads it"
    return f"diffaug_datasets.load({named}) loads it"


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
    say(found.card.rstrip())
    say()
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
    note(f"nothing was sent to {found.target} (--dry-run)")


def _size(size: int) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000  # type: ignore[assignment]
    return f"{size:.1f} GB"
