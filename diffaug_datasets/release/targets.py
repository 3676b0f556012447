"""Where a release goes: a dataset repository of the Hub, or a folder behind any address that fsspec reaches.

Both look at what is there and send what is missing, so whatever breaks, the same command completes it. On the Hub bytes
go first, then the commit that flips the card; at an address each file goes under another name first, then its receipt,
and `run.json` comes last. A step on the Hub is tried again until it is done (`Retry`); what is in vain is said at once.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception, stop_after_attempt

from diffaug_datasets.core.errors import PublishError, one_line, shown
from diffaug_datasets.core.identity import __version__, canonical
from diffaug_datasets.release.card import dataset_card
from diffaug_datasets.release.contents import Contents, Item, PublishOptions
from diffaug_datasets.release.croissant import croissant
from diffaug_datasets.release.layout import CROISSANT, README, RUN_JSON, Release
from diffaug_datasets.release.repository import address_errors, http_error, inside, open_address, reason_of

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")
TRY_AGAIN = (408, 409, 412, 425, 429, 500, 502, 503, 504)  # HTTP status of answers that another try may change
LONGEST_BACKOFF, LONGEST_WAIT = 60.0, 3600.0  # seconds, of our own and where the server asks for it
ADVICE = {
    401: "log in with `hf auth login`, or set HF_TOKEN",
    403: "use a token that may write there",
    404: "check the name and the revision, and that your token may see it",
}
DATASET = "dataset"
ONE_COMMIT, UPLOAD_BATCH = 100, 25  # files
IN_GIT = 10_000_000  # bytes of a file that may lie in git itself
RECEIPT, PARTIAL = ".receipt.json", ".partial"
FLAT = {"s3", "s3a", "gs", "gcs", "az", "abfs"}  # no folders there; making one would make a missing bucket


@dataclass(frozen=True)
class Retry:
    """How often a step is tried, and who waits (seconds) in between.

    A step looks at the state first and changes only what is missing, so it may be repeated after any failure: also
    where the work was done and only the answer was lost.
    """

    tries: int = 8
    sleep: Callable[[float], None] = time.sleep

    def until_done(self, what: str, step: Callable[[], T]) -> T:
        """The result of a step that looks before it acts.

        Raises:
            PublishError: refused for good, or still failing after all tries; says what to do.
        """
        tries = Retrying(
            stop=stop_after_attempt(self.tries),
            retry=retry_if_exception(lambda error: _seconds_to_wait(error, 1) is not None),
            wait=_wait,
            sleep=self.sleep,
        )
        try:
            return tries(step)
        except RetryError as failure:
            error = failure.last_attempt.exception()
            answer = _answered(error) if error else None
            status = type(error).__name__ if answer is None else answer.response.status_code
            raise PublishError(
                f"{what}: still failing after {self.tries} tries (last answer: {status}); run the same command again, "
                "finished files are not sent twice."
            ) from None
        except Exception as error:
            raise _refusal(what, error) from None


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return (_seconds_to_wait(error, state.attempt_number) if error else None) or 0.0


def _seconds_to_wait(error: BaseException, number: int) -> float | None:
    """Seconds until another try after this one, counted from 1; None where there is no use in one."""
    backoff = min(LONGEST_BACKOFF, 2.0 ** (number - 1))
    if _is_offline(error):
        return None
    if (refused := _answered(error)) is None:
        return backoff if any(_is_transport(e) for e in _causes(error)) else None
    if refused.response.status_code not in TRY_AGAIN:
        return None
    asked = retry_after(refused.response.headers)
    return backoff if asked is None else asked


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait (RFC 9110 Retry-After, or `t` of RateLimit); at most an hour."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # a lazy module

    text = headers.get("Retry-After")
    if text is None:
        limit = parse_ratelimit_headers(headers)
        return min(LONGEST_WAIT, float(limit.reset_in_seconds)) if limit else None
    if text.strip().isdecimal():
        return min(LONGEST_WAIT, float(text))
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    zoned = until if until.tzinfo else until.replace(tzinfo=UTC)
    return min(LONGEST_WAIT, max(0.0, (zoned - datetime.now(UTC)).total_seconds()))


def _refusal(what: str, error: BaseException) -> BaseException:
    """The sentence of an error of the Hub, alone: a library's own words name signed addresses. Ours stays as it is."""
    if (refused := _answered(error)) is not None:
        status = refused.response.status_code
        reason = one_line(refused.response.headers.get("X-Error-Message") or "no reason given")
        advice = ADVICE.get(status, "put that right and run the same command again")
        return PublishError(f"{what}: refused with {status} ({reason}); {advice}.")
    if _is_offline(error):
        return PublishError(f"{what}: HF_HUB_OFFLINE is set, so the Hub is out of reach; unset it and run this again.")
    if isinstance(error, ValueError) and "metadata" in str(error):  # what huggingface_hub raises for a refused card
        reason = one_line(error, 300)
        return PublishError(f"{what}: the Hub does not accept the card ({reason}); put it right.")
    return error


def _answered(error: BaseException) -> "HfHubHTTPError | None":
    """The error that holds the server's answer; None where the last thing that happened was that none came."""
    from huggingface_hub.errors import HfHubHTTPError

    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return cause
        if _is_transport(cause):
            return None
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, then what it came of, back to the first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_transport(error: BaseException) -> bool:
    """A connection that broke, or hf_xet's word for the same, which comes as a plain error of Python."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    return isinstance(error, (http_error(), LocalEntryNotFoundError, ConnectionError, TimeoutError))


def _is_offline(error: BaseException) -> bool:
    """Whether a person told huggingface_hub to stay off the network."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    return any(isinstance(cause, OfflineModeIsEnabled) for cause in _causes(error))


@dataclass(frozen=True)
class Published:
    """Where a release is now. `commit`: the one that holds all of it; `tag`: under which it stays loadable."""

    target: str
    folder: str
    revision: str
    commit: str = ""
    tag: str = ""
    sent: int = 0


class Target(Protocol):
    """Where a release goes."""

    @property
    def shown(self) -> str:
        """Its name as it may be printed and published; what readers load it from."""

    def readme(self) -> str | None:
        """The README as it stands there; None where there is none. Reads only.

        Raises:
            PublishError: the place cannot be reached or read.
        """

    def tag(self, release: Release) -> str | None:
        """What keeps this plan loadable there once another one takes its place; None where nothing does."""

    def upload(self, contents: Contents) -> Published:
        """Send what is not there yet; an upload that died before is completed, a finished one changes nothing.

        Raises:
            PublishError: the place refuses or cannot be reached, or a file there is not what was sent; nothing half is
                visible then, and the same command continues.
        """


def shared_files(there: Mapping[str, str], contents: Contents, target: str, tag: str | None) -> dict[str, str]:
    """The two files that all configs share, README and croissant.json, merged with what is there.

    Raises:
        PublishError: what is there cannot be read, or cannot be merged.
    """
    return {
        README: dataset_card(there.get(README), contents, target, tag),
        CROISSANT: croissant(there.get(CROISSANT), contents, target),
    }


@dataclass(frozen=True)
class HubState:
    """The head of a branch: its commit, digests of the files that matter to us, and the two that all configs share."""

    commit: str
    digests: Mapping[str, str]
    shared: Mapping[str, str]


@dataclass
class HubTarget:
    """A dataset repository of the Hub, `org/name`."""

    name: str
    options: PublishOptions
    retry: Retry = field(default_factory=Retry)

    @property
    def shown(self) -> str:
        """The name."""
        return self.name

    def tag(self, release: Release) -> str:
        """The tag that a plan gets; '' for a pull request, which has none before somebody merges it."""
        return "" if self.options.create_pr else release.tag

    def readme(self) -> str | None:
        """The README as it stands on the branch; None where there is none yet."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        def read() -> str | None:
            try:
                return self.state(self.options.revision or "main", None).shared.get(README)
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None

        return self.retry.until_done(self.name, read)

    def upload(self, contents: Contents) -> Published:
        """Bytes first, then the commit that flips the card, then the tag."""
        return HubUpload(self, contents).run()

    @cached_property
    def api(self) -> "HfApi":
        """The Hub's client."""
        from huggingface_hub import HfApi

        return HfApi(library_name="diffaug-datasets", library_version=__version__)

    def state(self, branch: str, folder: str | None) -> HubState:
        """What a branch has at its root and in a folder, which may not be there yet.

        Raises:
            PublishError: a shared file is no text.
        """
        commit = self.api.repo_info(self.name, repo_type=DATASET, revision=branch).sha or ""
        digests = dict(self._tree(commit, folder))
        shared = {path: self.text(path, commit) for path in (README, CROISSANT) if path in digests}
        return HubState(commit, digests, shared)

    def _tree(self, commit: str, folder: str | None) -> Iterator[tuple[str, str]]:
        """Path and digest of each file: sha256 of large ones, git's own (sha1) of others."""
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import EntryNotFoundError

        for place in (None, folder) if folder else (None,):
            try:
                for item in self.api.list_repo_tree(
                    self.name, place, recursive=place is not None, repo_type=DATASET, revision=commit
                ):
                    if isinstance(item, RepoFile):
                        yield item.path, item.lfs.sha256 if item.lfs else item.blob_id
            except EntryNotFoundError:
                if place is None:
                    raise

    def text(self, path: str, commit: str) -> str:
        """A text file of a commit.

        Raises:
            PublishError: it is no text.
        """
        local = self.api.hf_hub_download(self.name, path, repo_type=DATASET, revision=commit)
        try:
            return Path(local).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise PublishError(f"{self.name}: {path} is no UTF-8 text; put it right or remove it.") from None


@dataclass
class HubUpload:
    """One release on its way to one repository. Each step looks first and adds what is missing."""

    target: HubTarget
    contents: Contents
    branch: str = "main"
    _operations: dict[str, "CommitOperationAdd"] = field(default_factory=dict)

    def run(self) -> Published:
        """All steps, each until it is done."""
        release, target = self.contents.release, self.target
        self._do(self._have_repo)
        self.branch = self._do(self._have_request if target.options.create_pr else self._have_branch)
        self._do(self._send_bytes)
        self._do(self._tag_older_plans)
        commit = self._do(self._commit)
        tag = target.tag(release)
        if tag:
            self._do(lambda: self._have_tag(commit, tag))
        return Published(target.name, release.folder, self.branch, commit, tag, len(self._operations))

    def _do(self, step: Callable[[], T]) -> T:
        return self.target.retry.until_done(self.target.name, step)

    def _have_repo(self) -> None:
        from huggingface_hub.errors import RepositoryNotFoundError

        name, private = self.target.name, self.target.options.private
        try:
            repo = self.target.api.repo_info(name, repo_type=DATASET)
        except RepositoryNotFoundError:
            repo = None  # made below, so that what goes wrong there is not told as this
        if repo is None:
            self.target.api.create_repo(name, repo_type=DATASET, private=private)
        elif private and not repo.private:
            raise PublishError(
                f"{name}: is there already, and public; make it private in its settings on the Hub, give another name, "
                "or leave --private out."
            )

    def _have_branch(self) -> str:
        """The branch to commit to: main, or the one asked for."""
        wanted = self.target.options.revision or "main"
        refs = self.target.api.list_repo_refs(self.target.name, repo_type=DATASET)
        if wanted not in {ref.name for ref in refs.branches}:
            self.target.api.create_branch(self.target.name, branch=wanted, repo_type=DATASET)
        return wanted

    def _have_request(self) -> str:
        """The open pull request of this plan; one that was opened without an answer is found again."""
        title, name = f"Add {self.contents.release.tag}", self.target.name
        for request in self.target.api.get_repo_discussions(name, repo_type=DATASET):
            if request.is_pull_request and request.title == title and request.status in ("open", "draft"):
                return f"refs/pr/{request.num}"
        return f"refs/pr/{self.target.api.create_pull_request(name, title=title, repo_type=DATASET).num}"

    def _send_bytes(self) -> None:
        """Nobody sees them before the commit. What cannot be merged is refused before anything goes."""
        state = self._state()
        self._merged(state)
        waiting = iter([self._operation(item) for item in self._missing(state)])
        while batch := list(islice(waiting, UPLOAD_BATCH)):
            self.target.api.preupload_lfs_files(
                self.target.name, batch, repo_type=DATASET, revision=self.branch, free_memory=False
            )

    def _tag_older_plans(self) -> None:
        """Tag what is there of older plans before the next commit takes it off the branch."""
        state, name = self._state(), self.contents.release.name
        older = {path.split("/")[2] for path in self._stale(state)} - {self.contents.release.plan_id[:16]}
        for plan in sorted(older):
            self._have_tag(state.commit, f"{name}-{plan}")

    def _commit(self) -> str:
        """Commit what the head lacks; the card and `run.json` come last. Returns the commit that has everything."""
        while True:
            state = self._state()
            missing, stale, merged = self._missing(state), self._stale(state), self._merged(state)
            if not missing and not stale and not merged:
                return state.commit
            early = [item for item in missing if item.name != RUN_JSON]
            if len(missing) + len(merged) > ONE_COMMIT and early:
                self._create_commit(state, early[:ONE_COMMIT], (), ())
            else:
                self._create_commit(state, missing, merged, stale)

    def _create_commit(
        self, state: HubState, items: Sequence[Item], merged: Sequence[Item], stale: Sequence[str]
    ) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[CommitOperationAdd | CommitOperationDelete] = [self._operation(item) for item in items]
        operations += [CommitOperationAdd(item.path, item.read()) for item in merged]
        operations += [CommitOperationDelete(path) for path in stale]
        release = self.contents.release
        self.target.api.create_commit(
            self.target.name,
            operations,
            commit_message=f"{release.name}: plan {release.plan_id[:16]}",
            repo_type=DATASET,
            revision=self.branch,
            parent_commit=state.commit,
        )

    def _have_tag(self, commit: str, tag: str) -> None:
        """The first commit of a plan keeps its tag."""
        refs = self.target.api.list_repo_refs(self.target.name, repo_type=DATASET)
        if tag not in {ref.name for ref in refs.tags}:
            self.target.api.create_tag(self.target.name, tag=tag, revision=commit, repo_type=DATASET)

    @property
    def _config_folder(self) -> str:
        """The folder of all plans of our config."""
        return self.contents.release.folder.rpartition("/")[0]

    def _state(self) -> HubState:
        return self.target.state(self.branch, self._config_folder)

    def _missing(self, state: HubState) -> list[Item]:
        """Files that are not there, or there with other bytes."""
        there = state.digests
        return [item for item in self.contents.items if there.get(item.path) not in self._digests[item.path]]

    @cached_property
    def _digests(self) -> Mapping[str, tuple[str, ...]]:
        """By path, what the Hub may call a file's bytes: their sha256, or git's digest where git may hold them."""
        return {i.path: (i.sha256, i.blob_id) if i.size < IN_GIT else (i.sha256,) for i in self.contents.items}

    def _stale(self, state: HubState) -> list[str]:
        """Files of our config that the card no longer lists: of older plans, which have a tag, or of another format."""
        ours = {item.path for item in self.contents.items}
        return [path for path in state.digests if path.startswith(f"{self._config_folder}/") and path not in ours]

    def _merged(self, state: HubState) -> list[Item]:
        """The shared files with this release in them, where that changes what is there."""
        tag = self.target.tag(self.contents.release)
        texts = shared_files(state.shared, self.contents, self.target.name, tag)
        return [Item.of(path, text.encode()) for path, text in texts.items() if state.shared.get(path) != text]

    def _operation(self, item: Item) -> "CommitOperationAdd":
        """One object per file, so that what is uploaded is known to be."""
        from huggingface_hub import CommitOperationAdd

        if item.path not in self._operations:
            content = item.content if isinstance(item.content, bytes) else str(item.content)
            self._operations[item.path] = CommitOperationAdd(item.path, content)
        return self._operations[item.path]


@dataclass
class AddressTarget:
    """A folder behind an address such as `s3://bucket/birds`, `file:///data/birds` or `memory://birds`."""

    address: str = field(repr=False)

    def __post_init__(self) -> None:
        if self.address.partition("://")[0] == "hf":
            raise PublishError(f"{self.shown}: give a Hub dataset as org/name; it goes out in one commit then.")
        self.files, self.root = open_address(self.address)

    @property
    def shown(self) -> str:
        """The address without user, password and query."""
        return shown(self.address)

    def tag(self, release: Release) -> None:
        """Nothing: another plan of the config lies beside this one, and its card names it no longer."""

    def readme(self) -> str | None:
        """The README that lies there."""
        return self.text(README)

    def upload(self, contents: Contents) -> Published:
        """Send what is not there yet, check each file's size and receipt, then write `run.json`."""
        try:
            sent = sum(self._send(item) for item in contents.items if item.name != RUN_JSON)
            there = {path: text for path in (README, CROISSANT) if (text := self.text(path)) is not None}
            for path, text in shared_files(there, contents, self.shown, None).items():
                self.write(path, text.encode())
            run_json = contents.items[-1]
            self.write(run_json.path, run_json.read())
        except address_errors(NotImplementedError) as error:
            raise PublishError(
                f"{self.shown}: cannot be written ({reason_of(error, self.address)}); run the same command again, "
                "finished files stay."
            ) from None
        return Published(self.shown, contents.release.folder, "", sent=sent)

    def text(self, path: str) -> str | None:
        """A small file; None where it is not there."""
        place = inside(self.root, path)
        try:
            return self.files.cat_file(place).decode() if self.files.exists(place) else None
        except UnicodeDecodeError:
            raise PublishError(f"{self.shown}: {path} is no UTF-8 text; put it right or remove it.") from None
        except address_errors() as error:
            raise PublishError(
                f"{self.shown}: cannot be read ({reason_of(error, self.address)}); check it and its credentials."
            ) from None

    def _send(self, item: Item) -> bool:
        """Whether the file had to be sent: it was not there, has another size, or its receipt says something else."""
        receipt, there = {"sha256": item.sha256, "size": item.size}, None
        with suppress(ValueError):  # a receipt that cannot be read is none
            there = json.loads(self.text(item.path + RECEIPT) or "null")
        if there == receipt and self._size(item.path) == item.size:
            return False
        self.write(item.path, item.content)
        if (size := self._size(item.path)) != item.size:
            raise PublishError(
                f"{self.shown}: {item.path} has {size} bytes there, sent were {item.size}; publish again."
            )
        self.write(item.path + RECEIPT, canonical(receipt).encode())
        return True

    def _size(self, path: str) -> int:
        """Bytes; -1 where the file is not there."""
        place = inside(self.root, path)
        return int(self.files.info(place)["size"]) if self.files.exists(place) else -1

    def write(self, path: str, content: Path | bytes) -> None:
        """Write under another name, then rename; copy and remove where the file system takes the name for a pattern."""
        from fsspec.core import has_magic

        place = inside(self.root, path)
        if self.address.partition("://")[0] not in FLAT:
            self.files.makedirs(place.rpartition("/")[0], exist_ok=True)
        partial = place + PARTIAL
        if isinstance(content, bytes):
            self.files.pipe_file(partial, content)
        else:
            self.files.put_file(str(content), partial)
        if not has_magic(partial) or self.files.protocol == ("file", "local"):
            self.files.mv(partial, place)
        else:
            self.files.cp_file(partial, place)
            self.files.rm_file(partial)
