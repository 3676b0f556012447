"""Tables of real images: their digests, and the names and keys that are refused."""

import hashlib
import unicodedata
from dataclasses import replace

import pytest

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.sources import (
    Listed,
    Listing,
    Reader,
    Source,
    SourceTable,
    check_class_names,
    check_folder_names,
    check_key,
    listed_rows,
    pairs,
    prompt_phrases,
)


def source(n: int, label: int) -> Source:
    return Source(hashlib.sha256(str(n).encode()).hexdigest(), label, f"{label}/{n}.png")


def table(labels=(1, 0, 1), names=("a", "b", "c")) -> SourceTable:
    sources = tuple(source(n, label) for n, label in enumerate(labels))
    return SourceTable("cub", "train", names, tuple(n.upper() for n in names), "bird", sources, "abc")


def test_table_groups_every_class_in_order_and_keeps_an_empty_one():
    groups = table().by_class()
    assert list(groups) == [0, 1, 2]
    assert [s.key for s in groups[1]] == ["1/0.png", "1/2.png"]
    assert groups[2] == ()


def test_subset_keeps_the_asked_order_and_all_classes():
    chosen = table().subset([2, 0])
    assert [s.key for s in chosen.sources] == ["1/2.png", "1/0.png"]
    assert chosen.class_names == ("a", "b", "c")
    assert (len(chosen), chosen.labels) == (2, (1, 1))


def test_digest_ignores_revision_and_keys_and_nothing_else():
    base = table()
    renamed = replace(base, revision="other", sources=tuple(replace(s, key="moved") for s in base.sources))
    assert base.digest == renamed.digest
    others = [
        replace(base, builder="pets"),
        replace(base, split="test"),
        replace(base, metaclass=""),
        replace(base, class_names=("a", "b", "d")),
        replace(base, prompt_names=("A", "B", "D")),
        replace(base, sources=base.sources[::-1]),
        replace(base, sources=(replace(base.sources[0], label=0), *base.sources[1:])),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 8


def test_digest_is_golden():
    assert table().digest == "56696ebb321e6d3f9c44593dc36a5d82523fd958909a1cc7b395f6d0a469458c"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": (), "prompt_names": ()}, "cub: found no class; expected at least one."),
        ({"prompt_names": ("A",)}, "cub: got 1 prompt names, expected one for each of 3 classes."),
        ({"class_names": ("a", "a", "c")}, "cub: classes 'a' and 'a' share one name; rename or merge them."),
        ({"class_names": ("a", " ", "c")}, "cub: class 1 has the empty name ' '; give it one."),
        ({"sources": (Source("0" * 64, 3, "x.png"),)}, "cub: x.png has label 3, expected 0 to 2."),
    ],
)
def test_a_table_that_does_not_fit_together_is_refused(change, message):
    with pytest.raises(SourceError) as error:
        replace(table(), **change)
    assert str(error.value) == message


def test_names_that_are_one_unicode_text_are_refused_and_case_variants_are_not():
    check_class_names("x", ["Crane", "crane"])
    with pytest.raises(SourceError, match="share one name"):
        check_class_names("x", ["Café", unicodedata.normalize("NFD", "Café")])


@pytest.mark.parametrize("twins", [("Cat", "cat"), ("Café", unicodedata.normalize("NFD", "Café"))])
def test_folder_names_that_other_machines_merge_are_refused(twins):
    with pytest.raises(SourceError, match="differ only in case or Unicode form, which other machines cannot tell"):
        check_folder_names(["dog", *twins])


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "C:/x", "C:x", "a\\b", "a\0b", ""])
def test_keys_that_could_leave_the_folder_are_refused(key):
    with pytest.raises(SourceError, match="expected a '/'-separated path inside the dataset's folder"):
        check_key(key)


@pytest.mark.parametrize("key", ["a/b.jpg", "a..b/c.d.jpg", "quote'\"/ü.png", "...jpg"])
def test_odd_but_harmless_keys_pass(key):
    assert check_key(key) == key


def test_reader_refuses_bytes_that_changed():
    data = {"k": b"one"}
    good = SourceTable("x", "train", ("a",), ("a",), "", (Source(hashlib.sha256(b"one").hexdigest(), 0, "k.png"),))
    read = Reader({"train": good}, {"train": ("k",)}, data.__getitem__)
    assert read("train", 0) == b"one"
    data["k"] = b"two"
    with pytest.raises(SourceError) as error:
        read("train", 0)
    assert str(error.value) == "k.png: the image changed since it was listed; start again from a fresh plan."


def test_present_drops_classes_without_training_images_and_renumbers():
    listing = Listing(("a", "b", "c"), (Listed("x", 2), Listed("y", 0)), (Listed("z", 1), Listed("w", 2)))
    assert listing.present() == Listing(("a", "c"), (Listed("x", 1), Listed("y", 0)), (Listed("w", 1),))
    assert replace(listing, test=None).present().test is None


@pytest.mark.parametrize("label", [None, -1])
def test_rows_without_a_label_are_refused(label):
    assert listed_rows("train", [3, 0]) == (Listed("train/0000000", 3), Listed("train/0000001", 0))
    with pytest.raises(SourceError, match=f"test/1: got the label {label}, expected a class id"):
        listed_rows("test", [0, label])


def test_list_files_have_two_columns():
    assert pairs("1 a b.jpg\n\n2 c.jpg\r\n", "x") == [("1", "a b.jpg"), ("2", "c.jpg")]
    assert pairs("a b.jpg 1\n", "x", last=True) == [("a b.jpg", "1")]
    with pytest.raises(SourceError) as error:
        pairs("1 a\nlonely\n", "images.txt")
    assert str(error.value) == "images.txt, line 2: got 'lonely', expected two columns; restore the file."


def test_phrases_are_tidy_and_fall_back_to_the_label_when_they_clash_or_vanish():
    names = ["a_b", "a b", "x\ty\n", "_", 'it\'s "q"/ü']
    phrases = prompt_phrases(names, lambda name: name.replace("_", " "))
    assert phrases == ("a_b", "a b", "x y", "_", 'it\'s "q"/ü')
