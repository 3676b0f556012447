"""Text files of other systems: byte-order marks, line ends, encodings, pipes, giants."""

import os
from pathlib import Path

import pytest

from diffaug_datasets.core.files import decode_text, read_text, strange_character

TEXT = "name: é\nn: 1\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_editors_save_is_read(encoding: str, end: str) -> None:
    assert decode_text(TEXT.replace("\n", end).encode(encoding)) == TEXT


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            "a: 1\nb: é".encode("cp1252"),
            r"line 2 holds the byte 0xe9, which is not UTF-8 \(Windows-1252, Latin-1\?\); sa",
        ),
        (
            "a: 1".encode("utf-16-le"),
            r"holds NUL bytes, so it is no text, or UTF-16 without a byte-order mark; save it",
        ),
        (b"\xff\xfea", "begins as UTF-16 and does not go on so; save it as UTF-8"),
        (b"\0" * 100, "holds NUL bytes"),
    ],
)
def test_what_is_no_utf_8_is_said(data: bytes, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        decode_text(data)


def test_giants_and_pipes_are_refused_at_once(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="has more than 10,000,000 bytes"):
        read_text(tmp_path / "sparse")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="is a pipe or a device; give a regular file"):
            read_text(tmp_path / "pipe")


def test_characters_that_no_text_holds() -> None:
    assert strange_character("ünï 日本 👩‍🌾\n\t") == ""
    assert strange_character("a\x1b[31m") == "the control character U+001B"
    assert strange_character("a\udcff") == "the lone surrogate (bytes that are not UTF-8) U+DCFF"
    assert strange_character("a\nb", allowed="") == "the control character U+000A"
