"""What names mean: which folder or value is a split, which label is a code, and what a prompt could call a class.

Suggestions are for people to look at. A label that is a code (a number, a WordNet id of an unknown class, a hash, one
letter) gets none: no model knows what it shows.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

TRAIN, VAL, TEST = "train", "val", "test"
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval", "evaluation", "holdout"), VAL),
    **dict.fromkeys(("test", "testing", "tst"), TEST),
}
FILLERS = ("set", "sets", "data", "dataset", "split", "images", "image", "imgs", "img", "photos", "pictures")
NAME_TABLE = "diffaug_datasets.builders"  # its folder `names` has the English names of WordNet ids

WORDNET_ID = re.compile(r"n\d{8}", re.ASCII)
_NUMBERED = re.compile(r"(?:n\d{8}|\d+)[\s._-]+(?=[^\W\d_])")
_HASH = re.compile(r"(?=[a-f-]*\d)(?=[\d-]*[a-f])[0-9a-f]{6,}(?:-[0-9a-f]{2,})*", re.IGNORECASE | re.ASCII)
_COUNTED = re.compile(r"(?:class|label|category|cls|id|folder|group|cluster|type)[\s._-]*\d+", re.IGNORECASE)
_CATALOGUED = re.compile(r"[a-z]{1,3}[\s._-]?\d{5,}", re.IGNORECASE | re.ASCII)
_CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass(frozen=True)
class Phrase:
    """What a prompt could call a class. `code`: why the label says nothing, then the text is the label itself.

    `origin`: where the words are from, if not from the label. `is_foreign`: letters outside English.
    """

    text: str
    origin: str = ""
    code: str = ""

    @property
    def is_foreign(self) -> bool:
        return not self.text.isascii()


def split_word(name: str) -> str | None:
    """`train`, `val` or `test` where a name says nothing else: "Training", "test_set", "val2017", "TrainData"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word for word in re.split(r"[\W_\d]+", spaced.casefold()) if word and word not in FILLERS]
    word = words[0] if len(words) == 1 else ""
    whole = next((word.removesuffix(end) for end in FILLERS if word.removesuffix(end) in SPLIT_WORDS), word)
    return SPLIT_WORDS.get(whole)


def code_like(text: str) -> str:
    """Why a text names nothing that a model could know, in a word or two; '' for a name."""
    plain = text.strip()
    kinds = {
        "a WordNet id": WORDNET_ID.fullmatch(plain),
        "a number": plain and not any(c.isalpha() for c in plain),
        "a single letter": len(plain) == 1 and plain.lower() != plain.upper(),
        "a hash": _HASH.fullmatch(plain),
        "a counted class": _COUNTED.fullmatch(plain),
        "a catalogue number": _CATALOGUED.fullmatch(plain),
    }
    return next((kind for kind, found in kinds.items() if found), "")


def suggest_phrases(labels: Iterable[str]) -> Mapping[str, Phrase]:
    """Label -> what a prompt could call it, each phrase once.

    Underscores, dots, hyphens between words and CamelCase become spaces; a numbering that all labels have goes; the
    WordNet ids of ImageNet's classes become their English names.

    >>> [phrase.text for phrase in suggest_phrases(["GoldenRetriever", "tabby_cat", "T-shirt", "n01440764"]).values()]
    ['golden retriever', 'tabby cat', 'T-shirt', 'tench']
    """
    labels = list(labels)
    is_numbered = len(labels) > 1 and all(_NUMBERED.match(label.strip()) for label in labels)
    phrases = {label: _suggested(label, is_numbered) for label in labels}
    taken: dict[str, list[str]] = {}
    for label, phrase in phrases.items():
        taken.setdefault(phrase.text.casefold(), []).append(label)
    for same in taken.values():
        if len(same) > 1:
            phrases |= {label: Phrase(label.strip(), "", code_like(label)) for label in same}
    return phrases


def _suggested(label: str, is_numbered: bool) -> Phrase:
    text = label.strip()
    if WORDNET_ID.fullmatch(text) and (known := wordnet_names().get(text)):
        return Phrase(known, f"WordNet {text}")
    if is_numbered or WORDNET_ID.match(text):
        text = _NUMBERED.sub("", text, count=1)
    if why := code_like(text):
        return Phrase(label.strip(), "", why)
    if re.search(r"[_\s]", text):
        return Phrase(" ".join(text.replace("_", " ").split()))
    parts = [part for part in re.split(r"[-.]", text) if part]
    if len(parts) > 1 and all(len(part) > 1 and part.isalpha() for part in parts):
        return Phrase(" ".join(parts))
    parts = _CAMEL.split(text)
    if len(parts) > 1 and all(len(part) > 1 for part in parts):
        return Phrase(" ".join(part if part.isupper() else part.lower() for part in parts))
    return Phrase(text)


@cache
def wordnet_names() -> Mapping[str, str]:
    """WordNet id -> the first English name of each ImageNet class, as the package's builders call it."""
    table = files(NAME_TABLE) / "names" / "imagenet.json"
    return {wnid: phrase for wnid, _, phrase in json.loads(table.read_text(encoding="utf-8"))}
