"""A published repository and where its files come from: the Hub, a folder, or whatever else fsspec reaches.

The card names the configs, the `run.json` of each config names its files, and a digest is looked at before a file is
opened. An address may carry a password or a signature: it is used as it is, and printed as `shown` gives it.
"""

import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from diffaug_datasets.core.errors import LOCAL, PublishError, one_line, shown, without_secrets
from diffaug_datasets.core.files import FileDigest, mistyped_folder, read_text, sha256_file
from diffaug_datasets.core.sources import check_key
from diffaug_datasets.release.layout import (
    PROVENANCE,
    README,
    RUN_JSON,
    Release,
    read_release,
    split_card,
)
from diffaug_datasets.run.store import RUNS

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

RELEASE_FOLDER = re.compile(r"(data/[\w.-]+/[0-9a-f]{16})/[^/]+", re.ASCII)
MOST_BYTES = {README: 1 << 24, "recipe.yaml": 1 << 24, RUN_JSON: 1 << 29, "plan.json": 1 << 29}  # of what is read whole
STORE_ERRORS = (  # of clients that raise errors of their own for a store which refuses
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
)


class Files(Protocol):
    """Where a repository's files come from."""

    def local(self, path: str) -> Path:
        """A file on this machine; raises PublishError if it is not there."""


@dataclass
class Repository:
    """A published repository: its card names the configs, each config's `run.json` its files.

    `where`: its place as it may be printed.
    """

    where: str
    files: Files
    _known: tuple[Release, Mapping[str, tuple[int, str]]] | None = field(default=None, init=False, repr=False)

    @classmethod
    def open(cls, where: str, revision: str | None = None, token: str | bool | None = None) -> "Repository":
        """`org/name`, a folder, or an address with `://`.

        Raises:
            PublishError: it cannot be one of these, or looks like a folder here whose name was mistyped.
        """
        if (path := local_path(where)) is None or where.startswith(LOCAL) or path.is_dir():
            return cls(shown(where), AddressFiles(where))
        check_hub_name(where)
        return cls(where, HubFiles(where, revision, token))

    @cached_property
    def configs(self) -> Mapping[str, list[str]]:
        """Config name -> the files that the card lists, the default config first.

        Raises:
            PublishError: the card cannot be read or lists none.
        """
        try:
            metadata, _ = split_card(read_text(self._file(README)))
            listed = metadata.get("configs") or []
            if not isinstance(listed, list) or not all(isinstance(config, dict) for config in listed):
                raise TypeError("configs is no list of mappings")
            ordered = sorted(listed, key=lambda config: not config.get("default"))
            configs = {str(config["config_name"]): _listed_paths(config["data_files"]) for config in ordered}
        except (OSError, KeyError, TypeError, ValueError) as error:
            reason = one_line(error)
            raise PublishError(f"{self.where}: its README.md names no configs that can be read ({reason}).") from None
        if not configs:
            raise PublishError(f"{self.where}: its README.md names no config; it was not published by diffaug.")
        return configs

    def folder(self, config: str | None) -> str:
        """`data/<config>/<plan id>` of a config, or of the default one.

        Raises:
            PublishError: there is no such config; names those that are.
        """
        name = config or next(iter(self.configs))
        paths = self.configs.get(name) or self.configs.get(name + PROVENANCE) or []
        folders = {match[1] for path in paths if (match := RELEASE_FOLDER.fullmatch(path))}
        if len(folders) != 1:
            known = ", ".join(self.configs)
            raise PublishError(f"{self.where}: has no config {name!r} of a diffaug run; it has {known}.")
        return folders.pop()

    def release(self, config: str | None) -> Release:
        """What `run.json` of a config says.

        Raises:
            PublishError: there is no such config, or its `run.json` cannot be read or is that of another one.
        """
        folder = self.folder(config)
        release = read_release(self._file(f"{folder}/{RUN_JSON}").read_bytes(), f"{self.where}, {folder}")
        if release.folder != folder:
            raise PublishError(f"{self.where}: {folder}/{RUN_JSON} speaks of {release.folder}; publish it again.")
        return release

    def checked(self, release: Release, name: str, check: bool = True) -> Path:
        """A file of a release on this machine; with `check`, only if its bytes have the digest of `run.json`.

        Raises:
            PublishError: it is missing, not named by the release, or has other bytes.
        """
        digests = self._digests(release)
        if name not in digests:
            raise PublishError(f"{self.where}: {release.folder} has no {name}.")
        path = self._file(f"{release.folder}/{name}")
        size, sha256 = digests[name]
        if check and (path.stat().st_size != size or sha256_file(path) != sha256):  # a file of another size is not read
            raise PublishError(
                f"{self.where}: {release.folder}/{name} has other bytes than run.json states; do not use it."
            )
        return path

    def _digests(self, release: Release) -> Mapping[str, tuple[int, str]]:
        """Name -> size and sha256 of all files of a release; those of the last one are kept, for each is asked for."""
        if self._known is None or self._known[0] is not release:
            digests = {file.path: (file.size, file.sha256) for file in release.files}
            digests |= {file.file: (file.size, file.sha256) for file in release.beside}
            self._known = release, digests
        return self._known[1]

    def beside(self, release: Release, start: str) -> tuple[FileDigest, ...]:
        """The files of a release whose names begin so (`fits/`)."""
        return tuple(file for file in release.beside if file.file.startswith(start))

    def _file(self, path: str) -> Path:
        """A file on this machine; what is read whole may not be larger than such a file ever is."""
        local, most = self.files.local(path), MOST_BYTES.get(path.rpartition("/")[2])
        if most is not None and (size := local.stat().st_size) > most:
            raise PublishError(
                f"{self.where}: {path} has {size:,} bytes, expected at most {most:,} of such a file; do not use it."
            )
        return local


def _listed_paths(data_files: object) -> list[str]:
    """The paths of a config's `data_files`: one, a list, or entries of a split with one path or a list of them."""
    paths: list[str] = []
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        path = entry["path"] if isinstance(entry, dict) else entry
        paths += map(str, path if isinstance(path, list) else [path])
    return paths


@dataclass
class HubFiles:
    """A dataset of the Hub at one commit; what was read once is there without a network."""

    name: str
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    _commit: str = field(default="", init=False)

    def local(self, path: str) -> Path:
        """The downloaded file; all files are of the commit of the first one.

        Raises:
            PublishError: not on the Hub, or never read while there was a network.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

        try:
            local = Path(
                hf_hub_download(
                    self.name,
                    check_key(path),
                    repo_type="dataset",
                    revision=self._commit or self.revision,
                    token=self.token,
                )
            )
        except RepositoryNotFoundError:
            raise PublishError(
                f"{self.name}: no such dataset on the Hub, or a private one; check the name, or run `hf auth login`."
            ) from None
        except (EntryNotFoundError, http_error(), OSError, ValueError) as error:
            reason = one_line(error)
            raise PublishError(
                f"{self.name}: {path} cannot be had ({reason}); check the name, the revision and the network, and run "
                "`hf auth login` if it is private."
            ) from None
        snapshot = local.parents[path.count("/")].name  # a cached file lies in a folder that is named after its commit
        if not self._commit and re.fullmatch(r"[0-9a-f]{40}", snapshot):
            self._commit = snapshot
        return local


def http_error() -> type[Exception]:
    """Whatever the HTTP library raises that this version of huggingface_hub rests on (httpx and its successors)."""
    from huggingface_hub.errors import HfHubHTTPError

    family: type[Exception] = HfHubHTTPError.__mro__[1]
    return family


@dataclass
class AddressFiles:
    """A folder, or whatever fsspec reaches; files that are not local are copied."""

    address: str = field(repr=False)

    def local(self, path: str) -> Path:
        """The file, or a copy of it for this process.

        A file that changed there gets another copy: the old one may be memory-mapped.

        Raises:
            PublishError: it is not there.
        """
        if (root := local_path(self.address)) is not None:
            local = root / check_key(path)
            if not local.is_file():
                raise PublishError(f"{self.address}: {path} is not there; check the address, or publish it again.")
            return local
        check_key(path)
        try:
            files, remote_root = open_address(self.address)
            remote = inside(remote_root, path)
            copy = Path(_copies().name) / str(files.ukey(remote)) / Path(path).name
            if not copy.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                unfinished = copy.with_name(f".{copy.name}.tmp")
                files.get_file(remote, str(unfinished))
                unfinished.replace(copy)
            return copy
        except address_errors(ValueError, ImportError) as error:
            raise PublishError(
                f"{shown(self.address)}: {path} cannot be had ({reason_of(error, self.address)}); check the address "
                "and its credentials, or publish it again."
            ) from None


@cache
def _copies() -> "tempfile.TemporaryDirectory[str]":
    """The folder of copied files, which goes with this process."""
    return tempfile.TemporaryDirectory(prefix="diffaug-")


def check_hub_name(where: str) -> None:
    """Refuse, before the Hub is asked, what is no name there, or looks like a folder here that was mistyped.

    Raises:
        PublishError: says what is expected.
    """
    meant = mistyped_folder(where)
    if meant or where.count("/") != 1 or Path(where).exists() or where.startswith(f"{RUNS}/"):
        hint = f"; did you mean {meant}?" if meant else "."
        raise PublishError(
            f"{where}: no such folder, expected a run folder, a published set (org/name on the Hub) or an address{hint}"
        )


def local_path(address: str) -> Path | None:
    """The path that a folder or an address of this machine means, sign for sign; None for what lies elsewhere.

    Raises:
        PublishError: the name is no UTF-8, as Arrow and `datasets` want it.
    """
    try:
        address.encode()
    except UnicodeEncodeError:
        raise PublishError(
            f"{address}: its name is no UTF-8 text, and Arrow opens no such path; rename the folder."
        ) from None
    if "://" in address and not address.startswith(LOCAL):
        return None
    return Path(address.partition("://")[2] if address.startswith(LOCAL) else address).expanduser()


def open_address(address: str) -> "tuple[AbstractFileSystem, str]":
    """The file system of an address, and the address's root in it.

    Raises:
        PublishError: fsspec reaches no such place, or the address chains file systems (`::`).
    """
    import fsspec

    if (path := local_path(address)) is not None:
        return fsspec.filesystem("file"), str(path.absolute())
    if "::" in re.sub(r"//\[[^]/]*\]", "", address):  # but for a host that is a number of IPv6
        raise PublishError(
            f"{shown(address)}: in an address, :: puts one file system into another, and such a place cannot be used; "
            "give a name without it."
        )
    try:
        files, root = fsspec.core.url_to_fs(address)
    except address_errors(ValueError, ImportError) as error:
        raise PublishError(f"{shown(address)}: no place that fsspec reaches ({reason_of(error, address)}).") from None
    return files, str(root)


def inside(root: str, path: str) -> str:
    """Where a file lies below a root; the query of a web address stays behind it."""
    if root.startswith(("http://", "https://")):
        root, mark, query = root.partition("?")
        return f"{root.rstrip('/')}/{path}{mark}{query}"
    return f"{root.rstrip('/')}/{path}" if root else path


def address_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What fsspec raises for a place that does not do as asked: errors of the system, or of a store's client."""
    loaded = ((sys.modules.get(module), name) for module, name in STORE_ERRORS)
    return (OSError, *more, *(getattr(module, name) for module, name in loaded if module is not None))


def reason_of(error: BaseException, address: str) -> str:
    """What a library says of a place, on one line, without the secrets of its address."""
    return one_line(without_secrets(str(error), address)) or type(error).__name__
