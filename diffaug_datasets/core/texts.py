"""Text files as other systems and programs save them, read whole and within bounds; and characters no text may hold."""

import codecs
import stat
import unicodedata
from pathlib import Path

MOST_BYTES = 10_000_000
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # other text reads backwards after them
_STRANGE = {  # by Unicode category
    "Cc": "control character",
    "Cs": "lone surrogate (bytes that are not UTF-8)",
    "Zl": "line separator",
    "Zp": "paragraph separator",
}
_MARKS = (  # the longer ones first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a file: UTF-8, or what its byte-order mark says; line ends as `\\n`.

    Raises:
        OSError: it is not there or cannot be read.
        ValueError: a pipe or device, more than `most` bytes, or no such text; one sentence without the path.
    """
    kind = path.stat().st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise ValueError("is a pipe or a device; give a regular file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"has more than {most:,} bytes; it is not such a file, or must be made smaller")
    return decode_text(data)


def decode_text(data: bytes) -> str:
    """The text of a file's bytes: UTF-8, or UTF-8, UTF-16 or UTF-32 with a byte-order mark; line ends as `\\n`.

    Raises:
        ValueError: other bytes; names the line and what it probably is.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data:
        raise ValueError("holds NUL bytes, so it is no text, or UTF-16 without a byte-order mark; save it as UTF-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise ValueError(f"begins as {encoding.upper()} and does not go on so; save it as UTF-8") from None
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line} holds the byte 0x{data[error.start]:02x}, which is not UTF-8 (Windows-1252, Latin-1?); "
            "save it as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def strange_character(text: str, allowed: str = "\t\n\r") -> str:
    """The first character of a text that no terminal, file or Hub takes, as words, or ''.

    Control characters but for those allowed, separators of lines and paragraphs, marks that turn the direction of
    writing, and lone surrogates: what is left of bytes that are not UTF-8.
    """
    for character in text:
        word = "mark of direction" if character in TURNING else _STRANGE.get(unicodedata.category(character), "")
        if word and character not in allowed:
            return f"the {word} U+{ord(character):04X}"
    return ""
