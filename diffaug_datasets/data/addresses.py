"""Files behind a folder or an fsspec address (file, memory, s3, ...), brought to this machine to be mapped.

An address may carry a password or a signature: it is printed as `shown` gives it and used as it is.
"""

import re
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.printable import LOCAL, shown, without_secrets
from diffaug_datasets.core.sources import check_key

CLIENTS = (("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError"), ("aiohttp", "ClientError"))


def place_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What fsspec raises for a place that does not do as asked: errors of the system, or of a store's client."""
    loaded = ((sys.modules.get(module), name) for module, name in CLIENTS)
    return (OSError, *more, *(getattr(module, name) for module, name in loaded if module is not None))


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


def opened(address: str) -> tuple[Any, str]:
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
    except place_errors(ValueError, ImportError) as error:
        raise PublishError(f"{shown(address)}: no place that fsspec reaches ({reason(error, address)}).") from None
    return files, str(root)


def inside(root: str, path: str) -> str:
    """Where a file lies below a root; the query of a web address stays behind it."""
    if root.startswith(("http://", "https://")):
        root, mark, query = root.partition("?")
        return f"{root.rstrip('/')}/{path}{mark}{query}"
    return f"{root.rstrip('/')}/{path}" if root else path


def reason(error: BaseException, address: str) -> str:
    """What a library says of a place, on one line, without the secrets of its address."""
    return " ".join(without_secrets(str(error), address).split())[:200] or type(error).__name__


@dataclass
class AddressFiles:
    """A folder, or whatever fsspec reaches; files that are not local are copied."""

    address: str = field(repr=False)

    def local(self, path: str) -> Path:
        """The file, or a copy of it.

        Raises:
            PublishError: it is not there.
        """
        if (root := local_path(self.address)) is not None:
            found = root / check_key(path)
            if not found.is_file():
                raise PublishError(f"{self.address}: {path} is not there; check the address, or publish it again.")
            return found
        try:
            return self._copy(check_key(path))
        except place_errors(ValueError, ImportError) as error:
            raise PublishError(
                f"{shown(self.address)}: {path} cannot be had ({reason(error, self.address)}); check the address and "
                "its credentials, or publish it again."
            ) from None

    def _copy(self, path: str) -> Path:
        """A copy for this process. A file that changed there gets another: the old one may be memory-mapped."""
        files, root = opened(self.address)
        place = inside(root, path)
        found = _copies() / str(files.ukey(place)) / Path(path).name
        if not found.is_file():
            found.parent.mkdir(parents=True, exist_ok=True)
            temporary = found.with_name(f".{found.name}.tmp")
            files.get_file(place, str(temporary))
            temporary.replace(found)
        return found


def _copies() -> Path:
    return Path(_folder().name)


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder that goes with this process."""
    return tempfile.TemporaryDirectory(prefix="diffaug-")
