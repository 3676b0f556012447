"""A long JSON file read item by item gives what a JSON reader gives of the whole, in little memory."""

import io
import json
import random
import tracemalloc

import pytest

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.sources import long_json
from diffaug_datasets.sources.long_json import items_of


def found(text: str) -> list[tuple[str, dict]]:
    return list(items_of(io.BytesIO(text.encode()), "a.json"))


def whole(text: str) -> list[tuple[str, dict]]:
    content = json.loads(text)
    lists = [(key, value) for key, value in content.items() if isinstance(value, list)]
    return [(key, item) for key, value in lists for item in value if isinstance(item, dict)]


@pytest.mark.parametrize("piece", [1, 2, 7, 64, 1 << 20])
def test_items_are_those_of_a_whole_read(piece, monkeypatch):
    monkeypatch.setattr(long_json, "PIECE", piece)
    rng = random.Random(piece)
    items = [{"id": i, "text": 'a "b" \\ ü' * rng.randrange(3), "of": [1.5e3, -2, {"x": []}]} for i in range(20)]
    content = {"info": {"n": 12}, "none": [], "year": 2017, "numbers": [1, 23, 456], "b": items, "c": items[:3], "z": 1}
    for indent in (None, 2):
        text = json.dumps(content, indent=indent, ensure_ascii=bool(indent))
        assert found(text) == whole(text)
    assert found("{}") == found(' {"a": 12} ') == []


def test_memory_is_bounded_by_an_item_and_a_piece(monkeypatch):
    monkeypatch.setattr(long_json, "PIECE", 1 << 12)
    text = json.dumps({"annotations": [{"area": i, "of": "x" * 200} for i in range(8000)]}).encode()
    tracemalloc.start()
    seen = sum(1 for _ in items_of(io.BytesIO(text), "a.json"))
    assert seen == 8000 and tracemalloc.get_traced_memory()[1] < len(text) / 10
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", "got '[', expected '{'"),
        ('{"a": [{"b": 1}', "the file ends early"),
        ('{"a": [{"b": 1} {"b": 2}]}', "got '{', expected ','"),
        ('{"a" [1]}', "got '[', expected ':'"),
        ('{"a": [{"b": }]}', "Expecting value"),
        ("", "the file ends early"),
        ('{"a": ' + "[" * 9000, "nested too deep|ends early"),
    ],
)
def test_what_is_no_such_file_is_refused(text, told):
    with pytest.raises(SourceError, match=r"a\.json: not a JSON file of lists \(") as error:
        found(text)
    assert any(part in str(error.value) for part in told.split("|"))


def test_a_file_that_is_no_text_and_an_endless_item_are_refused(monkeypatch):
    with pytest.raises(SourceError, match="not a readable JSON file"):
        list(items_of(io.BytesIO(b'{"a": ["\xff"]}'), "a.json"))
    monkeypatch.setattr(long_json, "PIECE", 64)
    monkeypatch.setattr(long_json, "LONGEST", 256)
    with pytest.raises(SourceError, match="an item has more than 256 characters"):
        found('{"a": [{"b": "' + "x" * 1000)
