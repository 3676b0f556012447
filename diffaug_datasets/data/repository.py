"""Reading a published repository, wherever it lies: on the Hub, in a folder, or behind an fsspec address."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.printable import LOCAL, shown
from diffaug_datasets.core.sources import check_key
from diffaug_datasets.core.strict_yaml import load_yaml
from diffaug_datasets.core.temporary import FileDigest, sha256_file
from diffaug_datasets.core.texts import read_text
from diffaug_datasets.data.addresses import AddressFiles, local_path
from diffaug_datasets.data.release import PROVENANCE, SYNTHETIC, BesideFile, Release, read_release
from diffaug_datasets.run.assembly import RunFile

HEAD = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.S | re.M)
FOLDER = re.compile(r"(data/[\w.-]+/[0-9a-f]{16})/[^/]+", re.ASCII)
README, RUN_JSON = "README.md", "run.json"
LARGEST = {README: 1 << 24, "recipe.yaml": 1 << 24, RUN_JSON: 1 << 29, "plan.json": 1 << 29}


class Files(Protocol):
    """Where a repository's files come from."""

    def local(self, path: str) -> Path:
        """A file on this machine; raises PublishError if it is not there."""


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
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

        broken: Any = HfHubHTTPError.__mro__[1]  # whatever the HTTP library of this huggingface_hub raises
        revision = self._commit or self.revision
        try:
            local = hf_hub_download(
                self.name, check_key(path), repo_type="dataset", revision=revision, token=self.token
            )
        except RepositoryNotFoundError:
            raise PublishError(
                f"{self.name}: no such dataset on the Hub, or a private one; check the name, or run `hf auth login`."
            ) from None
        except (EntryNotFoundError, broken, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise PublishError(
                f"{self.name}: {path} cannot be had ({reason}); check the name, the revision and the network, and run "
                "`hf auth login` if it is private."
            ) from None
        found = Path(local)
        self._commit = self._commit or _snapshot(found, path)
        return found


def _snapshot(found: Path, path: str) -> str:
    """The commit that a cached file belongs to: its folder's name."""
    name = found.parents[path.count("/")].name
    return name if re.fullmatch(r"[0-9a-f]{40}", name) else ""


@dataclass
class Repository:
    """A published repository: its card names the configs, each config's `run.json` its files.

    `where`: its place as it may be printed.
    """

    where: str
    files: Files

    @classmethod
    def open(cls, where: str, revision: str | None = None, token: str | bool | None = None) -> "Repository":
        """`org/name`, a folder, or an address with `://`."""
        if (path := local_path(where)) is None or where.startswith(LOCAL) or path.is_dir():
            return cls(shown(where), AddressFiles(where))
        return cls(where, HubFiles(where, revision, token))

    @cached_property
    def configs(self) -> dict[str, list[str]]:
        """Config name -> the files that the card lists, the default first.

        Raises:
            PublishError: the card cannot be read or lists none.
        """
        path = self._small(README)
        try:
            head = HEAD.match(read_text(path))
            listed = (load_yaml(head[1]) if head else {}).get("configs") or []
            ordered = sorted(listed, key=lambda config: not config.get("default"))
            found = {str(config["config_name"]): _paths(config["data_files"]) for config in ordered}
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise PublishError(f"{self.where}: its README.md names no configs that can be read ({reason}).") from None
        if not found:
            raise PublishError(f"{self.where}: its README.md names no config; it was not published by diffaug.")
        return found

    def folder(self, config: str | None) -> str:
        """`data/<config>/<plan id>` of a config, or of the default one.

        Raises:
            PublishError: there is no such config; names those that are.
        """
        name = config or next(iter(self.configs))
        paths = self.configs.get(name) or self.configs.get(name + PROVENANCE) or []
        found = {match[1] for path in paths if (match := FOLDER.fullmatch(path))}
        if len(found) != 1:
            known = ", ".join(self.configs)
            raise PublishError(f"{self.where}: has no config {name!r} of a diffaug run; it has {known}.")
        return found.pop()

    def release(self, config: str | None) -> Release:
        """What `run.json` of a config says."""
        folder = self.folder(config)
        release = read_release(self._small(f"{folder}/{RUN_JSON}").read_bytes(), f"{self.where}, {folder}")
        if release.folder != folder:
            raise PublishError(f"{self.where}: {folder}/{RUN_JSON} speaks of {release.folder}; publish it again.")
        return release

    def checked(self, release: Release, name: str, check: bool = True) -> Path:
        """A file of a release on this machine; with `check`, only if its bytes have the digest of `run.json`.

        Raises:
            PublishError: it is missing, not named by the release, or has other bytes.
        """
        known: dict[str, RunFile | BesideFile] = {file.path: file for file in release.files}
        known |= {file.file: file for file in release.beside}
        if name not in known:
            raise PublishError(f"{self.where}: {release.folder} has no {name}.")
        path, stated = self._small(f"{release.folder}/{name}"), known[name]
        if check and (path.stat().st_size != stated.size or sha256_file(path) != stated.sha256):
            raise PublishError(
                f"{self.where}: {release.folder}/{name} has other bytes than run.json states; do not use it."
            )
        return path

    def _small(self, path: str) -> Path:
        """A file on this machine; what is read whole may not be larger than such a file ever is."""
        found, most = self.files.local(path), LARGEST.get(path.rpartition("/")[2])
        if most is not None and (size := found.stat().st_size) > most:
            raise PublishError(
                f"{self.where}: {path} has {size:,} bytes, expected at most {most:,} of such a file; do not use it."
            )
        return found

    def beside(self, release: Release, start: str) -> tuple[FileDigest, ...]:
        """The files of a release whose names begin so (`fits/`)."""
        return tuple(file for file in release.beside if file.file.startswith(start))


def _paths(data_files: Any) -> list[str]:
    found = []
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        path = entry["path"] if isinstance(entry, dict) else entry
        found += [str(item) for item in (path if isinstance(path, list) else [path])]
    return found


def ending(config: str | None, release: Release) -> str:
    """`_synthetic`, `_provenance` or '' of a config name."""
    found = (config or release.name).removeprefix(release.name)
    return found if found in (SYNTHETIC, PROVENANCE) else ""
