"""Text files of other systems are read or refused with a reason; YAML means what it looks like, or is one sentence."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from diffaug_datasets.core.files import decode_text, dump_yaml, load_yaml, read_text, strange_character

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


PLAIN = {
    "no": "no",
    "yes": "yes",
    "on": "on",
    "5_000": "5_000",
    "010": "010",
    "0x10": "0x10",
    "12:30:45": "12:30:45",
    "2024-01-01": "2024-01-01",
    "true": True,
    "False": False,
    "~": None,
    "": None,
    "-3": -3,
    "1e-5": 1e-5,
    "1.50": 1.5,
    "'1'": "1",
    "9" * 30: "9" * 30,
}


@pytest.mark.parametrize("text", PLAIN)
def test_only_what_looks_like_a_number_or_boolean_is_one(text: str) -> None:
    assert load_yaml(f"key: {text}") == {"key": PLAIN[text]}


REFUSED = {
    "a: 1\nb: 2\na: 3": "line 3 has the key 'a', which line 1 has too; keep one of them",
    "a:\n  b: 1\n  'b': 2": "line 3 has the key 'b', which line 2 has too",
    "- {x: 1}\n- {y: {z: 1, z: 2}}": "line 2 has the key 'z', which line 2 has too",
    "a: &a [1]\nb: *a": r"line 2 holds the alias \*a; write out what it stands for",
    "<<: {a: 1}": "line 1 holds the merge key <<",
    "a: !!python/object/apply:os.system ['true']": "line 1 holds the tag 'tag:yaml.org,2002:python/object",
    "a: !!timestamp 2024-01-01": "holds the tag",
    "[a]: 1": "line 1 has a list or mapping for a key; keys are names",
    "a: 1\n---\nb: 2": "expected a single document",
    "[" * 200_000: "line 1 is nested more than 50 levels deep",
    "a:\n\tb: 1": "indent with spaces, not tabs",
    "a: [": "did not find expected node content",
    'a: "\\ud800"': "invalid Unicode character",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_what_means_other_than_it_looks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[text]) as error:
        load_yaml(text)
    assert "\n" not in str(error.value)


def test_a_few_lines_that_stand_for_gigabytes_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ValueError, match="line 2 holds the alias"):
        load_yaml("\n".join(lines))


TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12) | st.sampled_from(
    [
        "no",
        "1e5",
        "1_000",
        "010",
        "~",
        "",
        "null",
        "2024-01-01",
        "12:30",
        "<<",
        "=",
        ".inf",
        "+.5",
        "0x1f",
        "- a",
        "a: b",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXTS.filter(lambda name: name != "<<"), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_what_is_written_is_read_back(value: Any) -> None:
    text = dump_yaml({"key": value})
    assert load_yaml(text) == {"key": value}
    assert yaml.safe_load(text) == {"key": value}, "other readers, of YAML 1.1, find the same"
