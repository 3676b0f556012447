"""Files behind a folder or an fsspec address (file, memory, s3, ...), brought to this machine to be mapped."""

import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.sources import check_key

CLIENTS = (("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError"), ("aiohttp", "ClientError"))


def place_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What fsspec raises for a place that does not do as asked: errors of the system, or of a store's client."""
    loaded = ((sys.modules.get(module), name) for module, name in CLIENTS)
    return (OSError, *more, *(getattr(module, name) for module, name in loaded if module is not None))


@dataclass
class AddressFiles:
    """A folder, or whatever fsspec reaches; files that are not local are copied."""

    address: str

    def local(self, path: str) -> Path:
        """The file, or a copy of it.

        Raises:
            PublishError: it is not there.
        """
        if "://" not in self.address or self.address.startswith("file://"):
            found = Path(self.address.removeprefix("file://")) / check_key(path)
            if not found.is_file():
                raise PublishError(f"{self.address}: {path} is not there; check the address, or publish it again.")
            return found
        try:
            return self._copy(check_key(path))
        except place_errors(ValueError, ImportError) as error:
            reason = " ".join(str(error).split())[:200]
            raise PublishError(
                f"{self.address}: {path} cannot be had ({reason}); check the address and its credentials, or publish "
                "it again."
            ) from None

    def _copy(self, path: str) -> Path:
        """A copy for this process. A file that changed there gets another: the old one may be memory-mapped."""
        import fsspec

        files, root = fsspec.core.url_to_fs(self.address)
        place = f"{str(root).rstrip('/')}/{path}"
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
