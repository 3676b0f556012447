"""The verb that turns released embeddings into safetensors.

The verb that publishes, and what it prints.

Verbs that look at published sets: check one, make one of its rows again.
"""

import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from diffaug_datasets.cli.screen import note, say, say_facts, say_json
from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.release.card import quoted
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.layout import other_form
from diffaug_datasets.release.provenance import model_terms
from diffaug_datasets.release.read import Repository
from diffaug_datasets.release.remake import Rebuilder
from diffaug_datasets.release.targets import Preview, Published, preview, publish
from diffaug_datasets.release.verify import SAMPLE, UNKNOWN, Verification, verify
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


@dataclass(frozen=True)
class Where:
    """A config of a published set, and the real images and the model where it does not carry them."""

    place: str
    config: str | None
    revision: str | None
    source: str | None
    device: str
    backbone: str | None = None


def run_verify(where: Where, sample: int, as_json: bool) -> int:
    """Print every check; 1 where something is wrong, 3 where nothing is and the rows asked for could not be checked."""
    told = asdict(where)
    found = verify(told.pop("place"), sample=sample, **told, progress=None if as_json else _say_check)
    is_blind = any(check.name == SAMPLE and check.outcome == UNKNOWN for check in found.checks)
    if as_json:
        say_json({"passed": found.passed, "checks": [asdict(check) for check in found.checks]})
    return 1 if not found.passed else 3 if is_blind else 0


def _say_check(so_far: Verification) -> None:
    if not so_far.checks:
        say(f"{so_far.where}: {so_far.name}, plan {so_far.plan_id[:16]}")
        return
    check = so_far.checks[-1]
    say(f"  {check.name}: {check.outcome}{':' if check.outcome == UNKNOWN else ','} {check.told}")


def rebuild_published(where: Where, prefix: str, out: Path | None, as_json: bool) -> int:
    """Make one row again; the exit codes are those of `say_closeness`."""
    from diffaug_datasets.cli.look import say_closeness, write_image

    told = asdict(where)
    with Rebuilder.open(told.pop("place"), **told) as rebuilder:
        made, found = rebuilder.rebuild(rebuilder.row(prefix))
        if said := other_form(rebuilder.release):
            note(f"{rebuilder.repository.where}: {said}")
    if out is not None:
        write_image(out, made.data)
    return say_closeness(found, as_json)


def build_published(place: str, source: str | None, folder: Path | None, workers: int, device: str) -> int:
    """Make a published plan's images here and say how many are equal; 1 where some are not on the very same stack."""
    from diffaug_datasets.release.remake import match, planned_again
    from diffaug_datasets.run.execute import generate

    repository = Repository.open(place)
    release = repository.release(None)
    run = planned_again(repository, release, source, folder)
    say(f"{release.name}: {len(run.plan.rows)} images to have, plan {run.plan.id[:16]}")
    generate(run, workers=workers, device=device, progress=sys.stdout)
    found = match(repository, release, run)
    say(f"{release.name}: {found}")
    say(f"run folder: {run.folder}")
    return int(not found.is_good)


def convert_embeddings(file: Path, folder: Path, token: str | None = None) -> None:
    """Convert one file and say what came of it."""
    from diffaug_datasets.models.adapters import read_released

    released = read_released(file, token)
    written = released.write(folder)
    found = released.tokens or released.images
    vectors, width = next(iter(found.values())).shape
    kind = "token" if released.tokens else "image"
    count = f"{len(found)} {kind}{'' if len(found) == 1 else 's'}"
    say(f"{written[0]}: {count}, {vectors} vector{'' if vectors == 1 else 's'} of {width} numbers each")
    if released.tokens:
        if len(found) == 1:
            say(f"its token is {next(iter(found))}")
        single = written[0] if len(found) == 1 else written[1]
        say(f"in diffusers: pipe.load_textual_inversion({str(single)!r})")
