"""Tokenizers that hold words: transformers reads a folder without a vocabulary as one to which all texts are alike."""

from pathlib import Path
from typing import Any

PROBES = ("a photo of a bird", "the red house on a hill, 1984")


def read_tokenizer(kind: Any, folder: Path, rows: int | None = None) -> Any:
    """The tokenizer of a folder, once two texts differ in it; no code that lies in the folder is run.

    `kind`: transformers' class for it, or `AutoTokenizer`; `rows`: embeddings of the text encoder behind it, if known.

    Raises:
        ValueError: its vocabulary is missing or does not fit.
        Exception: of whichever kind this release of transformers reads a tokenizer with.
    """
    tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    first, second = (tokenizer(text, verbose=False).input_ids for text in PROBES)
    words = {*first, *second} - set(tokenizer.all_special_ids)  # among these is the one that unknown words get
    if first == second or len(words) < 2:
        raise ValueError(f"{folder.name}/ has no vocabulary: all texts are alike to its tokenizer")
    used = [*first, *second, *(i for i in tokenizer.all_special_ids if i is not None)]
    if rows is not None and max(used) >= rows:
        raise ValueError(f"{folder.name}/ gives number {max(used):,} for {rows:,} embeddings of its text encoder")
    return tokenizer


def check_ends(tokenizer: Any, folder: Path) -> None:
    """Raises ValueError where texts do not get CLIP's two different tokens around them."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = tokenizer(PROBES[0], verbose=False).input_ids
    if begin == end or (ids[0], ids[-1]) != (begin, end):
        raise ValueError(f"{folder.name}/ puts {ids[0]} and {ids[-1]} around a text, expected two tokens of its own")
