"""The verbs of published sets: publish a run, check a set, make one of its rows or all of its images again.

And the one that turns embeddings which others released into safetensors.
"""

import re
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.filesize import decimal

from diffaug_datasets.cli.look import say_closeness, write_image
from diffaug_datasets.cli.screen import note, say, say_facts, say_json, telling
from diffaug_datasets.core.errors import PublishError, one_of
from diffaug_datasets.release.card import quoted
from diffaug_datasets.release.card_metadata import model_terms
from diffaug_datasets.release.checks import SAMPLE, UNKNOWN, Verification
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.layout import difference_of_form
from diffaug_datasets.release.measures import read_measures
from diffaug_datasets.release.publishing import GATES, UploadPreview, preview, publish
from diffaug_datasets.release.rebuild import Rebuilder, pixel_match, plan_again
from diffaug_datasets.release.repository import Repository
from diffaug_datasets.release.targets import Published
from diffaug_datasets.release.verify import verify
from diffaug_datasets.run.execute import generate
from diffaug_datasets.run.store import Run

FILE = "file://"
COLUMNS_OF_CARD = re.compile(r"^dataset_info:\n(?:[ -].*\n)+", re.M)


def options_of(
    file_format: str, where: tuple[bool, bool, str | None], rights: bool, recipe_only: bool, allow: list[str]
) -> PublishOptions:
    """The options of a command line; `where` is private, create_pr, revision."""
    if file_format not in ("arrow", "parquet"):
        raise PublishError(f"--format: got {file_format!r}, expected arrow or parquet.")
    if unknown := next((name for name in allow if name not in GATES), None):
        raise PublishError(f"--allow: got {unknown!r}, {one_of(unknown, GATES)}")
    private, create_pr, revision = where
    return PublishOptions(
        file_format="parquet" if file_format == "parquet" else "arrow",
        private=private,
        create_pr=create_pr,
        revision=revision,
        with_rights=rights,
        recipe_only=recipe_only,
        allow=tuple(allow),
    )


def run_publish(folder: str, target: str, options: PublishOptions, as_json: bool) -> None:
    """Publish and say where it is, and how others get at it."""
    run = Run.open(folder, whole=True)
    if stale := read_measures(run).note:
        note(stale)
    if sys.stderr is None or not sys.stderr.isatty():
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    with telling(f"gathering the files of {folder}", as_json) as tell:
        done = publish(run, target, options, tell=tell)
    if as_json:
        say_json(asdict(done))
        return
    say(f"published: {done.target}, {done.folder}")
    say(f"  {done.sent} files are new there" if done.sent else "  everything was there already, nothing was sent")
    if done.commit:
        say(f"  on {done.revision}, commit {done.commit[:12]}" + (f", tag {done.tag}" if done.tag else ""))
    say(f"  {_next_step(done, options)}")


def _next_step(done: Published, options: PublishOptions) -> str:
    """What comes after it: a merge, a build, or loading."""
    if options.create_pr:
        return f"open pull request {done.revision.rpartition('/')[2]} of {done.target}: merge it on the Hub"
    if options.recipe_only:
        return f"without pixels: diffaug build {shlex.quote(done.target)} --source YOUR-IMAGES makes them"
    named = f"{quoted(done.target)}, {quoted(done.folder.split('/')[1])}"
    if done.commit:
        branch = "" if done.revision == "main" else f", revision={quoted(done.revision)}"
        return f"load_dataset({named}{branch}) loads it"
    if done.target.startswith(FILE):
        return f"load_dataset({quoted(done.target.removeprefix(FILE))}, {quoted(done.folder.split('/')[1])}) loads it"
    return f"diffaug_datasets.load({named}) loads it"


def print_preview(folder: str, target: str, options: PublishOptions, as_json: bool) -> int:
    """Files, sizes, card and what the gates say; 1 where one says no."""
    run = Run.open(folder, whole=True)
    if stale := read_measures(run).note:
        note(stale)
    with telling(f"gathering the files of {folder}", as_json) as tell:
        upload = preview(run, target, options, tell=tell)
    if as_json:
        files = [{"path": item.path, "size": item.size, "sha256": item.sha256} for item in upload.contents.items]
        gates = [{"gate": r.gate, "passed": r.passed, "reason": r.reason} for r in upload.gates]
        facts = {"target": upload.target, "files": files, "size": upload.contents.size}
        say_json({**facts, "gates": gates, "card": upload.card})
    else:
        _say_preview(upload)
    return 0 if all(result.passed for result in upload.gates) else 1


def _say_preview(upload: UploadPreview) -> None:
    contents, header = upload.contents, upload.contents.run.plan.header
    say(COLUMNS_OF_CARD.sub(_shortened, upload.card, count=1).rstrip())
    say()
    for item in contents.items:
        say(f"{decimal(item.size):>10}  {item.path}")
    facts = {
        "files": f"{len(contents.items)} and README.md, croissant.json; {decimal(contents.size)}",
        "images": f"{contents.facts.title}, {contents.facts.licence}",
        "model": f"{header.backbone}, {model_terms(header.backbone).licence}",
    }
    say_facts({f"  {name}": text for name, text in facts.items()})
    for result in upload.gates:
        word = "ok" if not result.reason else "allowed" if result.allowed else "REFUSED"
        say(f"  gate {result.gate}: {word}{f', {result.reason}' if result.reason else ''}")
    note(f"nothing was sent to {upload.target} (--dry-run)")


def _shortened(columns: re.Match[str]) -> str:
    """What a person need not read: the columns of every config, for the Hub's viewer."""
    return f"dataset_info: ({columns[0].count(chr(10)) - 1:,} lines on columns and sizes; --json has the whole card)\n"


@dataclass(frozen=True)
class PublishedSet:
    """A config of the set published at a place, and one's own real images and model where it does not carry them.

    `device`: where its rows are made again.
    """

    place: str
    config: str | None
    revision: str | None
    source: str | None
    device: str
    backbone: str | None


def run_verify(published: PublishedSet, sample: int, as_json: bool) -> int:
    """Print every check; 1 where something is wrong, 3 where nothing is and the rows asked for could not be checked."""
    options = asdict(published)
    verified = verify(options.pop("place"), sample=sample, **options, progress=None if as_json else _say_check)
    is_blind = any(check.name == SAMPLE and check.outcome == UNKNOWN for check in verified.checks)
    if as_json:
        say_json({"passed": verified.passed, "checks": [asdict(check) for check in verified.checks]})
    return 1 if not verified.passed else 3 if is_blind else 0


def _say_check(so_far: Verification) -> None:
    if not so_far.checks:
        say(f"{so_far.where}: {so_far.name}, plan {so_far.plan_id[:16]}")
        return
    check = so_far.checks[-1]
    say(f"  {check.name}: {check.outcome}{':' if check.outcome == UNKNOWN else ','} {check.told}")


def rebuild_published(published: PublishedSet, prefix: str, out: Path | None, as_json: bool) -> int:
    """Make one row again; the exit codes are those of `say_closeness`."""
    options = asdict(published)
    with Rebuilder.open(options.pop("place"), **options) as rebuilder:
        made, measured = rebuilder.rebuild(rebuilder.row(prefix))
        if difference := difference_of_form(rebuilder.release):
            note(f"{rebuilder.repository.where}: {difference}")
    if out is not None:
        write_image(out, made.data)
    return say_closeness(measured, as_json)


def build_published(place: str, source: str | None, folder: Path | None, workers: int, device: str) -> int:
    """Make a published plan's images here and say how many are equal; 1 where some are not on the very same stack."""
    repository = Repository.open(place)
    release = repository.release(None)
    run = plan_again(repository, release, source, folder)
    say(f"{release.name}: {len(run.plan.rows)} images to have, plan {run.plan.id[:16]}")
    generate(run, workers=workers, device=device, progress=sys.stdout)
    match = pixel_match(repository, release, run)
    say(f"{release.name}: {match}")
    say(f"run folder: {run.folder}")
    return int(not match.is_good)


def convert_embeddings(file: Path, folder: Path, token: str | None = None) -> None:
    """Convert one file and say what came of it."""
    from diffaug_datasets.models.released import read_released

    released = read_released(file, token)
    written = released.write(folder)
    embeddings = released.tokens or released.images
    vectors, width = next(iter(embeddings.values())).shape
    kind = "token" if released.tokens else "image"
    count = f"{len(embeddings)} {kind}{'' if len(embeddings) == 1 else 's'}"
    say(f"{written[0]}: {count}, {vectors} vector{'' if vectors == 1 else 's'} of {width} numbers each")
    if released.tokens:
        if len(embeddings) == 1:
            say(f"its token is {next(iter(embeddings))}")
        single = written[0] if len(embeddings) == 1 else written[1]
        say(f"in diffusers: pipe.load_textual_inversion({str(single)!r})")
