"""What a label could be called in a prompt, and which labels say nothing."""

import pytest

from diffaug_datasets.sources.names import code_like, split_word, suggest_phrases


@pytest.mark.parametrize(
    ("label", "phrase"),
    [
        ("golden_retriever", "golden retriever"),
        ("golden-retriever", "golden retriever"),
        ("GoldenRetriever", "golden retriever"),
        ("BMWCar", "BMW car"),
        ("Black-footed_Albatross", "Black-footed Albatross"),
        ("T-shirt", "T-shirt"),
        ("iPhone", "iPhone"),
        ("black.bear", "black bear"),
        ("n02099601-golden_retriever", "golden retriever"),
        ("n01440764", "tench"),
        ("Löwenzahn", "Löwenzahn"),
        ("A320", "A320"),
        ("  wide   name ", "wide name"),
    ],
)
def test_a_label_becomes_words(label: str, phrase: str) -> None:
    [suggested] = suggest_phrases([label]).values()
    assert (suggested.text, suggested.code) == (phrase, "")


def test_a_numbering_goes_where_all_labels_have_one_and_stays_where_it_is_a_name() -> None:
    numbered = suggest_phrases(["001.Black_footed_Albatross", "002.Laysan_Albatross"])
    assert [phrase.text for phrase in numbered.values()] == ["Black footed Albatross", "Laysan Albatross"]
    assert [phrase.text for phrase in suggest_phrases(["3-wheeler", "tractor"]).values()] == ["3-wheeler", "tractor"]


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("0", "a number"),
        ("12-3", "a number"),
        ("n99999999", "a WordNet id"),
        ("a", "a single letter"),
        ("9e107d9d372bb682", "a hash"),
        ("3f2504e0-4f89-11d3-9a0c-0305e82c3301", "a hash"),
        ("class_3", "a counted class"),
        ("Q1234567", "a catalogue number"),
    ],
)
def test_codes_are_known_and_stay(label: str, why: str) -> None:
    [suggested] = suggest_phrases([label]).values()
    assert (suggested.text, suggested.code) == (label, why)


@pytest.mark.parametrize("name", ["decade", "facade", "A320", "猫", "é b", "Boeing 747", "cat1", "feed"])
def test_names_are_no_codes(name: str) -> None:
    assert code_like(name) == ""


def test_two_labels_never_share_a_phrase() -> None:
    phrases = suggest_phrases(["red_fox", "red-fox", "owl", "n02277742", "ringlet butterfly"])
    texts = [phrase.text for phrase in phrases.values()]
    assert texts[:3] == ["red_fox", "red-fox", "owl"]
    assert len({text.casefold() for text in texts}) == 5


def test_letters_outside_english_are_marked() -> None:
    phrases = suggest_phrases(["Löwenzahn", "daisy"])
    assert [phrase.is_foreign for phrase in phrases.values()] == [True, False]


@pytest.mark.parametrize(
    ("name", "split"), [("Training", "train"), ("val2017", "val"), ("TestData", "test"), ("a", None)]
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_word(name) == split
