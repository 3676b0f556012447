"""YAML that means what it looks like, or one sentence with the line."""

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from diffaug_datasets.core.files import dump_yaml, load_yaml

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
