"""What a bench adds to a published set: a marked section of the card, its tables, and `eval.yaml`.

The card's mark states the digests of the tables, so that `verify` knows them. What `publish` writes and what people
wrote stays as it is; a second bench takes the place of the first.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.files import dump_yaml, load_yaml
from diffaug_datasets.release.card import section_licences
from diffaug_datasets.release.card_metadata import card_text, parse_card
from diffaug_datasets.release.contents import Item, PublishOptions
from diffaug_datasets.release.layout import PROVENANCE, README, SYNTHETIC
from diffaug_datasets.release.publishing import open_target
from diffaug_datasets.release.repository import address_errors, reason_of
from diffaug_datasets.release.targets import AddressTarget, HubTarget, Retry, Target

FOLDER, EVAL = "bench", "eval.yaml"
FILE = re.compile(rf"{FOLDER}/\w[\w.-]*", re.ASCII)
SECTION = re.compile(r"<!-- diffaug-bench: begin(?P<files>[^>]*) -->\n.*?<!-- diffaug-bench: end -->", re.S)
STATED = re.compile(r"(?P<path>\S+)=(?P<sha256>[0-9a-f]{64})")
NOTE = "<!-- `diffaug bench publish` writes this part anew; what you write outside the marks stays. -->"


@dataclass(frozen=True)
class BenchFiles:
    """A bench as it goes out: the Markdown of its section, and its tables by their names in `bench/`."""

    section: str
    tables: Mapping[str, bytes]

    def merged(self, there: Mapping[str, str]) -> dict[str, bytes]:
        """Path -> bytes of all files, with this bench in what is `there`: the README and perhaps `eval.yaml`.

        Raises:
            PublishError: nothing was published there, or a file cannot be merged.
        """
        if README not in there or not section_licences(parse_card(there[README])[1]):
            raise PublishError("no set of `diffaug publish` is there (README.md names none); publish the run first.")
        files = {f"{FOLDER}/{name}": content for name, content in self.tables.items()}
        metadata, body = parse_card(there[README])
        digests = "".join(f" {path}={hashlib.sha256(content).hexdigest()}" for path, content in files.items())
        section = (
            f"<!-- diffaug-bench: begin{digests} -->\n{NOTE}\n\n{self.section.strip()}\n\n<!-- diffaug-bench: end -->"
        )
        if SECTION.search(body):
            body = SECTION.sub(lambda _: section, body, count=1)
        else:
            body = f"{body.rstrip()}\n\n{section}\n"
        tasks = configs_with_test(metadata)
        if tasks:
            files[EVAL] = eval_yaml(there.get(EVAL), str(metadata.get("pretty_name") or _title(body)), tasks).encode()
        return {**files, README: card_text(metadata, body).encode()}


@dataclass(frozen=True)
class BenchPublished:
    """Where a bench is now, and the files that were sent, or would be; `commit`: on the Hub, what then holds them."""

    target: str
    items: tuple[Item, ...]
    commit: str = ""


def stated_digests(card: str) -> dict[str, str]:
    """Path -> sha256 of the bench's tables that a card names; none where it has no bench."""
    section = SECTION.search(card)
    found = STATED.finditer(section["files"]) if section else ()
    return {match["path"]: match["sha256"] for match in found if FILE.fullmatch(match["path"])}


def configs_with_test(metadata: Mapping[str, object]) -> list[str]:
    """Configs of a card with a test split, those with synthetic or provenance rows alone left out."""
    configs = metadata.get("configs")
    found = []
    for config in configs if isinstance(configs, list) else []:
        name, files = str(config.get("config_name")), config.get("data_files")
        splits = [one.get("split") for one in files if isinstance(one, dict)] if isinstance(files, list) else []
        if "test" in splits and not name.endswith((SYNTHETIC, PROVENANCE)):
            found.append(name)
    return found


def eval_yaml(old: str | None, title: str, configs: Sequence[str]) -> str:
    """`eval.yaml` of the Hub's benchmark datasets: one task per config, which is classifying its test images.

    Its key `evaluation_framework` has to be one of a list of the Hub's, in which no framework for image classification
    is (huggingface.js, packages/tasks/src/eval.ts, read 2026-11-26), so it is left out unless a person wrote it. What
    stands in `old` stays, tasks are joined by id.

    Raises:
        PublishError: `old` is no such file.
    """
    try:
        content = load_yaml(old) if old else {}
    except ValueError as error:
        raise PublishError(f"{EVAL}: cannot be read ({error}); put it right or remove it.") from None
    tasks = content.get("tasks", []) if isinstance(content, dict) else None
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise PublishError(f"{EVAL}: its tasks are no list of mappings; put it right or remove it.")
    known = {str(task.get("id")) for task in tasks}
    ours = [{"id": name, "config": name, "split": "test"} for name in configs if name not in known]
    head = {
        "name": title,
        "description": "Top-1 accuracy on the real test images, of classifiers trained on the real and the synthetic "
        "training images of a config.",
    }
    return dump_yaml({**head, **content, "tasks": [*tasks, *ours]})


def send_bench(files: BenchFiles, target: str, dry_run: bool = False, retry: Retry | None = None) -> BenchPublished:
    """Put a bench beside a published set, in one commit on the Hub; what is there already is not sent again.

    `dry_run`: only say what would go.

    Raises:
        PublishError: nothing was published there, a file cannot be merged, or the place refuses.
    """
    place = open_target(target, PublishOptions(), retry)
    return _to_hub(place, files, dry_run) if isinstance(place, HubTarget) else _to_address(place, files, dry_run)


def _to_hub(place: HubTarget, files: BenchFiles, dry_run: bool) -> BenchPublished:
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import RepositoryNotFoundError

    def step() -> BenchPublished:
        try:
            state = place.state("main", FOLDER)
        except RepositoryNotFoundError:
            state = None  # refused below, so that it is not told as the Hub's refusal
        if state is None:
            raise PublishError(f"{place.shown}: no such dataset on the Hub; publish the run first.")
        there = {path: place.text(path, state.commit) for path in (README, EVAL) if path in state.digests}
        items = [Item.of(path, data) for path, data in _merged(place, files, there).items()]
        missing = [item for item in items if state.digests.get(item.path) not in (item.sha256, item.blob_id)]
        if dry_run or not missing:
            return BenchPublished(place.shown, tuple(missing), state.commit)
        operations = [CommitOperationAdd(item.path, item.read()) for item in missing]
        done = place.api.create_commit(
            place.name,
            operations,
            commit_message="Bench: does the set help a classifier?",
            repo_type="dataset",
            parent_commit=state.commit,
        )
        return BenchPublished(place.shown, tuple(missing), str(done.oid))

    return place.retry.until_done(place.shown, step)


def _to_address(place: Target, files: BenchFiles, dry_run: bool) -> BenchPublished:
    """The card goes last, as it names the others."""
    if not isinstance(place, AddressTarget):
        raise PublishError(f"{place.shown}: a bench goes to the Hub or to an address.")
    there = {path: text for path in (README, EVAL) if (text := place.text(path)) is not None}
    items = tuple(Item.of(path, data) for path, data in _merged(place, files, there).items())
    if not dry_run:
        try:
            for item in items:
                place.write(item.path, item.read())
        except address_errors(NotImplementedError) as error:
            reason = reason_of(error, place.address)
            raise PublishError(f"{place.shown}: cannot be written ({reason}); run the same command again.") from None
    return BenchPublished(place.shown, items)


def _merged(place: Target, files: BenchFiles, there: Mapping[str, str]) -> dict[str, bytes]:
    try:
        return files.merged(there)
    except PublishError as error:
        raise PublishError(f"{place.shown}: {error}") from None


def _title(body: str) -> str:
    """The first heading of a card."""
    heading = re.search(r"(?m)^# (.+)$", body)
    return heading[1].strip() if heading else "image classification"
