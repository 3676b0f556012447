"""A CLIP tokenizer with a vocabulary of its own: known words are one token, everything else falls back to bytes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from tiny.captions import CaptionTable

MAX_LENGTH = 32
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_LAST = "</w>"
Word = tuple[str, ...]


def byte_symbols() -> list[str]:
    """A printable character for each byte 0..255, as the byte-level pre-tokenizer writes them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    codes = {b: b for b in printable} | {b: 256 + n for n, b in enumerate(others)}
    return [chr(codes[b]) for b in range(256)]


def vocabulary_words() -> list[str]:
    """The words that become single tokens: those of words.txt and of every training caption."""
    text = (Path(__file__).parent / "words.txt").read_text(encoding="utf-8")
    captions = " ".join(CaptionTable.build().texts)
    return sorted(set(f"{text} {captions}".replace(".", " ").replace("-", " ").lower().split()))


def _merged(word: Word, pair: tuple[str, str]) -> Word:
    """The word with each occurrence of the pair fused, from left to right."""
    result: list[str] = []
    for symbol in word:
        fuse = result and (result[-1], symbol) == pair
        result = [*result[:-1], result[-1] + symbol] if fuse else [*result, symbol]
    return tuple(result)


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent first, until every word is one symbol."""
    pieces: list[Word] = [(*word[:-1], word[-1] + _LAST) for word in words]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for word in pieces for pair in pairwise(word)):
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        pieces = [_merged(word, best) for word in pieces]
    return merges


def build() -> CLIPTokenizer:
    """The tokenizer: begin, end (also pad and unknown), bytes, bytes that end a word, merges."""
    symbols, merges = byte_symbols(), learn_merges(vocabulary_words())
    names = [BEGIN, END, *symbols, *(s + _LAST for s in symbols), *("".join(m) for m in merges)]
    vocab = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return CLIPTokenizer(vocab, merges, unk_token=END, bos_token=BEGIN, eos_token=END, pad_token=END,
                         model_max_length=MAX_LENGTH)  # fmt: skip
