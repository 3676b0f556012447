"""Tokenizers without words, as transformers opens them in silence."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from diffaug_datasets.families.parts.loaders import check_ends, read_tokenizer


def test_a_whole_one_is_read(sd_folder: Path) -> None:
    tokenizer = read_tokenizer(CLIPTokenizer, sd_folder / "tokenizer", rows=522)
    check_ends(tokenizer, sd_folder / "tokenizer")
    with pytest.raises(ValueError, match="tokenizer/ gives number 521 for 500 embeddings of its text encoder"):
        read_tokenizer(CLIPTokenizer, sd_folder / "tokenizer", rows=500)


@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",), ("vocab.json", "merges.txt")])
def test_texts_that_are_all_alike_are_refused(sd_folder: Path, tmp_path: Path, kept: tuple[str, ...]) -> None:
    """No files, settings alone, or a vocabulary of words that no text has."""
    for name in kept:
        shutil.copy(sd_folder / "tokenizer" / name, tmp_path)
    if "vocab.json" in kept:
        (tmp_path / "vocab.json").write_text(json.dumps({"ph": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}))
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match="has no vocabulary: all texts are alike to its tokenizer"):
        read_tokenizer(CLIPTokenizer, tmp_path)
