"""A JSON file that is one mapping of long lists, such as COCO's annotations, read item by item.

Memory is that of the longest item and one piece of the file, whatever the file's length.
"""

import json
from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from typing import Any, BinaryIO

from diffaug_datasets.core.errors import SourceError

PIECE = 1 << 20  # characters that are read at once
LONGEST = 1 << 26  # characters of one item
SPACES = " \t\n\r"


def items_of(opened: BinaryIO, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The key of a list and each of its items that is a mapping, in the file's order; all else is passed over.

    `name`: what the file is called in messages. The file is closed at the end.

    Raises:
        SourceError: the file is not JSON in UTF-8, not a mapping, or has an item of more than LONGEST characters.
    """
    try:
        with TextIOWrapper(opened, encoding="utf-8-sig") as file:
            yield from _Reader(file, name).mapping()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{name}: not a readable JSON file ({error}); restore the file.") from None


class _Reader:
    """What is read of the file and not yet used: `text` from `place` on."""

    def __init__(self, file: TextIOWrapper, name: str) -> None:
        self.file, self.name, self.text, self.place = file, name, "", 0
        self.decoder = json.JSONDecoder()

    def mapping(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        self._expect("{")
        if self._next() == "}":
            return
        while True:
            key = self._value()
            self._expect(":")
            if self._next() == "[":
                yield from ((str(key), item) for item in self._list() if isinstance(item, dict))
            else:
                self._value()
            if self._next() == "}":
                return
            self._expect(",")

    def _list(self) -> Iterator[object]:
        self._expect("[")
        while self._next() != "]":
            yield self._value()
            if self._next() != "]":
                self._expect(",")
        self._expect("]")

    def _value(self) -> object:
        """The value that begins here; a number counts as whole once something follows it."""
        self._next()
        while True:
            start = self.place
            try:
                value, end = self.decoder.raw_decode(self.text, start)
            except RecursionError:
                raise self._fault("its items are nested too deep") from None
            except json.JSONDecodeError as error:
                if not self._more():
                    raise self._fault(str(error)) from None
                continue
            if end < len(self.text):
                self.place = end
                return value
            if not self._more():
                self.place = end - start
                return value

    def _next(self) -> str:
        """The character that comes next, after spaces; it is not used up."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in SPACES:
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if not self._more():
                raise self._fault("the file ends early")

    def _expect(self, character: str) -> None:
        if (found := self._next()) != character:
            raise self._fault(f"got {found!r}, expected {character!r}")
        self.place += 1

    def _more(self) -> bool:
        """Read another piece; False at the end of the file."""
        if len(self.text) - self.place > LONGEST:
            raise self._fault(f"an item has more than {LONGEST:,} characters")
        piece = self.file.read(PIECE)
        self.text, self.place = self.text[self.place :] + piece, 0
        return bool(piece)

    def _fault(self, reason: str) -> SourceError:
        return SourceError(f"{self.name}: not a JSON file of lists ({reason}); restore the file.")
