"""To any fsspec address (file, memory, s3, ...): each file under another name first, its receipt, `run.json` last."""

import json
from dataclasses import dataclass, field
from typing import Any

from diffaug_datasets.core.canonical import canonical
from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.printable import shown
from diffaug_datasets.data.addresses import inside, opened, place_errors, reason
from diffaug_datasets.publish.card import dataset_card
from diffaug_datasets.publish.contents import RUN_JSON, Contents, Item
from diffaug_datasets.publish.croissant import croissant
from diffaug_datasets.publish.push import CROISSANT, README, Published

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
