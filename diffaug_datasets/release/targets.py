"""A finished run to the Hub (`org/name`) or to any fsspec address: check, then send; or say what would be sent.

Doing a step on the Hub until it is done, whatever the network does.

A step looks at the state first and changes only what is missing, so it may be repeated after any failure: also where
the work was done and only the answer was lost.

To the Hub: bytes first, then the commit that flips the card. Each step looks first and adds what is missing.

To any fsspec address (file, memory, s3, ...): each file under another name first, its receipt, `run.json` last.
"""

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.identity import canonical
from diffaug_datasets.core.printable import shown
from diffaug_datasets.release.card import dataset_card
from diffaug_datasets.release.contents import RUN_JSON, Contents, Item, PublishOptions, contents, stating
from diffaug_datasets.release.croissant import croissant
from diffaug_datasets.release.gates import Verdict, leak_check, refuse, verdicts
from diffaug_datasets.release.read import inside, opened, place_errors, reason
from diffaug_datasets.run.store import Run

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

T = TypeVar("T")
AGAIN = (408, 409, 412, 425, 429, 500, 502, 503, 504)
LONGEST, HOUR = 60.0, 3600.0
REFUSED = {
    401: "log in with `hf auth login`, or set HF_TOKEN",
    403: "use a token that may write there",
    404: "check the name and the revision, and that your token may see it",
}


@dataclass(frozen=True)
class Patience:
    """How often a step is tried, and who waits (seconds) in between."""

    tries: int = 8
    sleep: Callable[[float], None] = time.sleep

    def until_done(self, what: str, step: Callable[[], T]) -> T:
        """The result of a step that looks before it acts.

        Raises:
            PublishError: refused for good, or still failing after all tries; says what to do.
        """
        for number in range(self.tries):
            try:
                return step()
            except Exception as error:
                wait = _wait(error, number)
                if wait is None:
                    raise _said(what, error) from None
                if number + 1 == self.tries:
                    raise _said(what, error, self.tries) from None
                self.sleep(wait)
        raise AssertionError("unreachable")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _wait(error: BaseException, number: int) -> float | None:
    """Seconds until another try; None where there is no use in one."""
    if _is_offline(error):
        return None
    answer = _answer(error)
    if answer is not None:
        if answer.status_code not in AGAIN:
            return None
        asked = retry_after(answer.headers)
        return asked if asked is not None else _backoff(number)
    return _backoff(number) if any(_is_transport(e) for e in _chain(error)) else None


def _answer(error: BaseException) -> Any:
    """The answer of the server, None where the last thing that happened was that none came."""
    for found in _chain(error):
        answer = getattr(found, "response", None)
        if answer is not None or _is_transport(found):
            return answer
    return None


def _backoff(number: int) -> float:
    return min(LONGEST, 2.0**number)


def _is_transport(error: BaseException) -> bool:
    """A connection that broke, or hf_xet's word for the same, which comes as a plain error of Python."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    family = HfHubHTTPError.__mro__[1]  # of the HTTP library that this huggingface_hub uses
    return isinstance(error, (family, LocalEntryNotFoundError, ConnectionError, TimeoutError))


def _is_offline(error: BaseException) -> bool:
    """Whether a person told huggingface_hub to stay off the network."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    return any(isinstance(found, OfflineModeIsEnabled) for found in _chain(error))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait (RFC 9110 Retry-After, or `t` of RateLimit); at most an hour."""
    text = headers.get("Retry-After")
    if text is None:
        found = re.search(r"\bt=(\d+)", headers.get("RateLimit") or "")
        return min(HOUR, float(found[1])) if found else None
    if text.strip().isdecimal():
        return min(HOUR, float(text))
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    zoned = until if until.tzinfo else until.replace(tzinfo=UTC)
    return min(HOUR, max(0.0, (zoned - datetime.now(UTC)).total_seconds()))


def _said(what: str, error: BaseException, tries: int = 0) -> BaseException:
    """The sentence of an error of the Hub, alone: a library's own words name signed addresses. Ours stays as it is."""
    answer = _answer(error)
    if answer is None and not tries:
        return _refused(what, error)
    status = f"{answer.status_code}" if answer is not None else type(error).__name__
    if tries:
        return PublishError(
            f"{what}: still failing after {tries} tries (last answer: {status}); run the same command again, "
            "finished files are not sent twice."
        )
    way = REFUSED.get(answer.status_code, "put that right and run the same command again")
    return PublishError(f"{what}: refused with {status} ({_reason(answer)}); {way}.")


def _refused(what: str, error: BaseException) -> BaseException:
    """`huggingface_hub` raises ValueError for metadata that the Hub does not accept."""
    if _is_offline(error):
        return PublishError(f"{what}: HF_HUB_OFFLINE is set, so the Hub is out of reach; unset it and run this again.")
    if isinstance(error, ValueError) and "metadata" in str(error):
        return PublishError(
            f"{what}: the Hub does not accept the card ({' '.join(str(error).split())[:300]}); put it right."
        )
    return error


def _reason(answer: Any) -> str:
    return " ".join(str(answer.headers.get("X-Error-Message") or "no reason given").split())[:200]


ONE_COMMIT, UPLOAD_BATCH = 100, 25
README, CROISSANT = "README.md", "croissant.json"
DATASET = "dataset"


@dataclass(frozen=True)
class Published:
    """Where a release is now. `commit`: the one that holds all of it; `tag`: under which it stays loadable."""

    target: str
    folder: str
    revision: str
    commit: str = ""
    tag: str = ""
    sent: int = 0


@dataclass(frozen=True)
class State:
    """The head of the branch: its commit, digests of what matters to us, and the two files that all configs share."""

    head: str
    files: Mapping[str, str]
    shared: Mapping[str, str]


@dataclass
class Push:
    """One release on its way to one repository."""

    api: "HfApi"
    name: str
    contents: Contents
    options: PublishOptions
    patience: Patience = field(default_factory=Patience)
    branch: str = "main"
    _operations: dict[str, "CommitOperationAdd"] = field(default_factory=dict)

    def run(self) -> Published:
        """Publish; a push that died before is completed, a finished one changes nothing.

        Raises:
            PublishError: the Hub refuses, or is not to be reached; the same command continues.
        """
        self._do(self._have_repo)
        self.branch = self._do(self._have_branch)
        self._do(self._upload)
        self._do(self._keep_older)
        commit = self._do(self._commit)
        release = self.contents.release
        tag = "" if self.options.create_pr else self._do(lambda: self._have_tag(commit, release.tag))
        return Published(self.name, release.folder, self.branch, commit, tag, len(self._operations))

    def preview(self) -> str | None:
        """The README as it stands on the Hub, read only; None where there is none."""
        return self._do(self._old_readme)

    def _do(self, step: Callable[[], T]) -> T:
        return self.patience.until_done(self.name, step)

    def _old_readme(self) -> str | None:
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            return self._state(self.options.revision or "main").shared.get(README)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None

    def _have_repo(self) -> None:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            found = self.api.repo_info(self.name, repo_type=DATASET)
        except RepositoryNotFoundError:
            found = None  # made below, so that what goes wrong there is not told as this
        if found is not None:
            self._check_private(bool(found.private))
            return
        self.api.create_repo(self.name, repo_type=DATASET, private=self.options.private)

    def _check_private(self, is_private: bool) -> None:
        if self.options.private and not is_private:
            raise PublishError(
                f"{self.name}: is there already, and public; make it private in its settings on the Hub, give another "
                "name, or leave --private out."
            )

    def _have_branch(self) -> str:
        """The branch to commit to: main, the one asked for, or that of our own pull request."""
        if self.options.create_pr:
            return self._have_request()
        wanted = self.options.revision or "main"
        refs = self.api.list_repo_refs(self.name, repo_type=DATASET)
        if wanted not in {ref.name for ref in refs.branches}:
            self.api.create_branch(self.name, branch=wanted, repo_type=DATASET)
        return wanted

    def _have_request(self) -> str:
        """The open pull request of this plan; one that was opened without an answer is found again."""
        title = f"Add {self.contents.release.tag}"
        for found in self.api.get_repo_discussions(self.name, repo_type=DATASET):
            if found.is_pull_request and found.title == title and found.status in ("open", "draft"):
                return f"refs/pr/{found.num}"
        made = self.api.create_pull_request(self.name, title=title, repo_type=DATASET)
        return f"refs/pr/{made.num}"

    def _state(self, branch: str) -> State:
        head = self.api.repo_info(self.name, repo_type=DATASET, revision=branch).sha or ""
        files = dict(self._tree(head))
        shared = {path: self._text(path, head) for path in (README, CROISSANT) if path in files}
        return State(head, files, shared)

    def _tree(self, head: str) -> Iterator[tuple[str, str]]:
        """Path and digest of the files at the root and of our config, which may not be there yet."""
        from huggingface_hub.errors import EntryNotFoundError

        yield from self._listed(None, head)
        try:
            yield from self._listed(self._plans, head)
        except EntryNotFoundError:
            return

    def _listed(self, folder: str | None, head: str) -> Iterator[tuple[str, str]]:
        from huggingface_hub import RepoFile

        deep = folder is not None
        for item in self.api.list_repo_tree(self.name, folder, recursive=deep, repo_type=DATASET, revision=head):
            if isinstance(item, RepoFile):
                yield item.path, item.lfs.sha256 if item.lfs else item.blob_id

    def _text(self, path: str, head: str) -> str:
        from pathlib import Path

        local = self.api.hf_hub_download(self.name, path, repo_type=DATASET, revision=head)
        try:
            return Path(local).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise PublishError(f"{self.name}: {path} is no UTF-8 text; put it right or remove it.") from None

    def _missing(self, state: State) -> list[Item]:
        return [i for i in self.contents.items if state.files.get(i.path) not in (i.sha256, self._blob_ids.get(i.path))]

    @cached_property
    def _blob_ids(self) -> Mapping[str, str]:
        """Of files that are small enough to lie in git itself."""
        return {item.path: item.blob_id for item in self.contents.items if item.size < 10_000_000}

    def _operation(self, item: Item) -> "CommitOperationAdd":
        """One object a file, so that what is uploaded is known to be."""
        from huggingface_hub import CommitOperationAdd

        if item.path not in self._operations:
            content = item.content if isinstance(item.content, bytes) else str(item.content)
            self._operations[item.path] = CommitOperationAdd(item.path, content)
        return self._operations[item.path]

    def _upload(self) -> None:
        """Send the bytes; nobody sees them before the commit. What cannot be merged is refused before anything goes."""
        state = self._state(self.branch)
        self._shared(state)
        waiting = iter([self._operation(item) for item in self._missing(state)])
        while batch := list(islice(waiting, UPLOAD_BATCH)):
            self.api.preupload_lfs_files(self.name, batch, repo_type=DATASET, revision=self.branch, free_memory=False)

    def _commit(self) -> str:
        """Commit what the head lacks; the card and `run.json` come last. Returns the commit that has everything."""
        while True:
            state = self._state(self.branch)
            missing, stale, shared = self._missing(state), self._stale(state), self._shared(state)
            if not missing and not stale and not shared:
                return state.head
            early = [item for item in missing if item.name != RUN_JSON]
            if len(missing) + len(shared) > ONE_COMMIT and early:
                self._send(state, early[:ONE_COMMIT], ())
            else:
                self._send(state, [*missing, *shared], stale)

    @property
    def _plans(self) -> str:
        """The folder of all plans of our config."""
        return self.contents.release.folder.rpartition("/")[0]

    def _stale(self, state: State) -> list[str]:
        """Files of our config that the card no longer lists: of older plans, which have a tag, or of another format."""
        ours = {item.path for item in self.contents.items}
        return [path for path in state.files if path.startswith(f"{self._plans}/") and path not in ours]

    def _keep_older(self) -> None:
        """Tag what is there of older plans before the next commit takes it off the branch."""
        state, name = self._state(self.branch), self.contents.release.name
        older = {path.split("/")[2] for path in self._stale(state)} - {self.contents.release.plan_id[:16]}
        for plan in sorted(older):
            self._have_tag(state.head, f"{name}-{plan}")

    def _shared(self, state: State) -> list[Item]:
        """README and croissant.json, merged with what the head has, where that changes them."""
        tag = "" if self.options.create_pr else self.contents.release.tag
        made = {
            README: dataset_card(state.shared.get(README), self.contents, self.name, tag),
            CROISSANT: croissant(state.shared.get(CROISSANT), self.contents, self.name),
        }
        return [Item.of(path, text.encode()) for path, text in made.items() if state.shared.get(path) != text]

    def _send(self, state: State, items: Sequence[Item], stale: Sequence[str]) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        shared = (README, CROISSANT)
        additions = [CommitOperationAdd(i.path, i.read()) if i.path in shared else self._operation(i) for i in items]
        deletions: list[CommitOperationDelete] = [CommitOperationDelete(path) for path in stale]
        release = self.contents.release
        self.api.create_commit(
            self.name,
            [*additions, *deletions],
            commit_message=f"{release.name}: plan {release.plan_id[:16]}",
            repo_type=DATASET,
            revision=self.branch,
            parent_commit=state.head,
        )

    def _have_tag(self, commit: str, tag: str) -> str:
        """The first commit of a plan keeps its tag."""
        refs = self.api.list_repo_refs(self.name, repo_type=DATASET)
        if tag not in {ref.name for ref in refs.tags}:
            self.api.create_tag(self.name, tag=tag, revision=commit, repo_type=DATASET)
        return tag


RECEIPT, PARTIAL = ".receipt.json", ".partial"
FLAT = {"s3", "s3a", "gs", "gcs", "az", "abfs"}  # no folders there; making one would make a missing bucket


@dataclass
class Place:
    """A folder behind an address such as `s3://bucket/birds`, `file:///data/birds` or `memory://birds`."""

    address: str = field(repr=False)

    def __post_init__(self) -> None:
        self.shown = shown(self.address)
        if self.address.partition("://")[0] == "hf":
            raise PublishError(f"{self.shown}: give a Hub dataset as org/name; it goes out in one commit then.")
        self.files, self.root = opened(self.address)

    def publish(self, contents: Contents) -> Published:
        """Send what is not there yet, check each file's size and receipt, then write `run.json`.

        Raises:
            PublishError: the place refuses, or a file is not what was sent.
        """
        try:
            sent = sum(self._send(item) for item in contents.items if item.name != RUN_JSON)
            shared = {README: dataset_card(self.text(README), contents, self.shown, None)}
            shared[CROISSANT] = croissant(self.text(CROISSANT), contents, self.shown)
            for path, text in shared.items():
                self._write(path, text.encode())
            last = contents.items[-1]
            self._write(last.path, last.read())
        except place_errors(NotImplementedError) as error:
            raise PublishError(
                f"{self.shown}: cannot be written ({reason(error, self.address)}); run the same command again, "
                "finished files stay."
            ) from None
        return Published(self.shown, contents.release.folder, "", sent=sent)

    def text(self, path: str) -> str | None:
        """A small file; None where it is not there.

        Raises:
            PublishError: the place cannot be reached.
        """
        place = self._at(path)
        try:
            return self.files.cat_file(place).decode() if self.files.exists(place) else None
        except UnicodeDecodeError:
            raise PublishError(f"{self.shown}: {path} is no UTF-8 text; put it right or remove it.") from None
        except place_errors() as error:
            raise PublishError(
                f"{self.shown}: cannot be read ({reason(error, self.address)}); check it and its credentials."
            ) from None

    def _at(self, path: str) -> str:
        return inside(self.root, path)

    def _send(self, item: Item) -> bool:
        """Whether the file had to be sent."""
        if self._is_there(item):
            return False
        place = self._at(item.path)
        self._have_folder(place)
        if isinstance(item.content, bytes):
            self.files.pipe_file(place + PARTIAL, item.content)
        else:
            self.files.put_file(str(item.content), place + PARTIAL)
        self._move(place + PARTIAL, place)
        self._check(item)
        self._write(item.path + RECEIPT, canonical({"sha256": item.sha256, "size": item.size}).encode())
        return True

    def _have_folder(self, place: str) -> None:
        if self.address.partition("://")[0] not in FLAT:
            self.files.makedirs(place.rpartition("/")[0], exist_ok=True)

    def _is_there(self, item: Item) -> bool:
        told = self.text(item.path + RECEIPT)
        try:
            receipt: Any = json.loads(told) if told else None
        except ValueError:
            return False
        same = receipt == {"sha256": item.sha256, "size": item.size}
        return same and self._size(item.path) == item.size

    def _size(self, path: str) -> int:
        place = self._at(path)
        return int(self.files.info(place)["size"]) if self.files.exists(place) else -1

    def _check(self, item: Item) -> None:
        if (size := self._size(item.path)) != item.size:
            raise PublishError(
                f"{self.shown}: {item.path} has {size} bytes there, sent were {item.size}; publish again."
            )

    def _write(self, path: str, data: bytes) -> None:
        place = self._at(path)
        self._have_folder(place)
        self.files.pipe_file(place + PARTIAL, data)
        self._move(place + PARTIAL, place)

    def _move(self, source: str, target: str) -> None:
        """Rename; where the name holds signs that the file system's own move takes for a pattern, copy and remove."""
        from fsspec.core import has_magic

        if not has_magic(source) or self.files.protocol == ("file", "local"):
            self.files.mv(source, target)
        else:
            self.files.cp_file(source, target)
            self.files.rm_file(source)


REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class Preview:
    """What a release would be: its files, what the gates say, and the README as it would stand."""

    target: str
    contents: Contents
    verdicts: tuple[Verdict, ...]
    card: str


def publish(
    run: Run, target: str, options: PublishOptions | None = None, patience: Patience | None = None
) -> Published:
    """Publish a finished run: shards, provenance, recipe, plan and card. What is there already is not sent again.

    Args:
        run: the finished run.
        target: `org/name` on the Hub, or any fsspec address such as `s3://bucket/name` or `file:///folder`.
        options: how it goes out; the default is Arrow shards with all that the licences allow.
        patience: how often a step on the Hub is tried, and how long is waited in between.

    Returns:
        Where it is, and how many files were sent.

    Raises:
        PublishError: not finished, gates say no (all are named), or the place does not take it; nothing half is
            visible then.

    >>> from pathlib import Path
    >>> from diffaug_datasets import generate, plan, publish
    >>> run = plan("fashion_5shot_txt2img", "runs/shirts", per_class=2, config={"num_inference_steps": 2})
    >>> done = generate(run, workers=1)
    >>> published = publish(run, Path("shelf/shirts").absolute().as_uri())
    >>> published.folder == f"data/fashion_5shot_txt2img/{run.plan.id[:16]}"
    True
    """
    options = options or PublishOptions()
    with _opened(run, target, options) as (found, said):
        refuse(said)
        if "://" in target:
            return Place(target).publish(found)
        return _push(target, found, options, patience).run()


def preview(run: Run, target: str, options: PublishOptions | None = None, patience: Patience | None = None) -> Preview:
    """What `publish` would do; reads, but sends nothing."""
    options = options or PublishOptions()
    with _opened(run, target, options) as (found, said):
        remote = "://" not in target
        old = _push(target, found, options, patience).preview() if remote else Place(target).text(README)
        card = dataset_card(old, found, shown(target), found.release.tag if remote else None)
        return Preview(shown(target), found, said, card)


@contextmanager
def _opened(run: Run, target: str, options: PublishOptions) -> Iterator[tuple[Contents, tuple[Verdict, ...]]]:
    """What goes out, which says what the gates found, and their verdicts."""
    if "://" not in target and not REPO.fullmatch(target):
        raise PublishError(
            f"got the target {target!r}, expected org/name for the Hub or an address such as file:///folder or s3://bucket."
        )
    if "://" in target and (options.create_pr or options.revision or options.private):
        raise PublishError(
            f"{shown(target)}: --private, --create-pr and --revision are for the Hub alone; leave them out."
        )
    if options.create_pr and options.revision:
        raise PublishError("--create-pr opens a branch of its own; leave --revision out.")
    with tempfile.TemporaryDirectory(prefix="diffaug-") as stage:
        found = contents(run, options, Path(stage))
        said = verdicts(found, options)
        yield (
            stating(found, overrides=tuple(sorted(v.gate for v in said if v.reason)), leak_check=leak_check(run)),
            said,
        )


def _push(target: str, found: Contents, options: PublishOptions, patience: Patience | None) -> Push:
    from huggingface_hub import HfApi

    api = HfApi(library_name="diffaug-datasets", library_version=found.release.package)
    return Push(api, target, found, options, patience or Patience())
