"""To the Hub: bytes first, then the commit that flips the card. Each step looks first and adds what is missing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.publish.card import dataset_card
from diffaug_datasets.publish.contents import RUN_JSON, Contents, Item
from diffaug_datasets.publish.croissant import croissant
from diffaug_datasets.publish.options import PublishOptions
from diffaug_datasets.publish.patience import Patience

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

ONE_COMMIT, UPLOAD_BATCH = 100, 25
README, CROISSANT = "README.md", "croissant.json"
DATASET = "dataset"
T = TypeVar("T")


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
