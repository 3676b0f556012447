"""What a model's folder says without torch: JSON, the headers of safetensors weights, the words of a tokenizer.

Whatever is wrong with a file is a `Damage`, whose text names it and reads on in a sentence about the model.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from diffaug_datasets.core.models import PICKLES
from diffaug_datasets.core.weight_headers import TensorInfo, read_header

FLOATS = ("F64", "F32", "F16", "BF16")
MOST_JSON = 100_000_000
MOST_REASON = 250
NO_LIMIT = 1e20  # transformers writes a length above it where a tokenizer has none
# A table may be longer than its vocabulary (padded, or with rows for words of a fine-tune); half of it is none.
LEAST_SHARE = 0.9


def brief(error: Exception) -> str:
    """What a library said, as a part of a sentence: its first line, or the kind of the error where it said nothing."""
    first = " ".join(str(error).strip().split("\n")[0].split()).rstrip(".: ")
    return f"{first[:MOST_REASON]}..." if len(first) > MOST_REASON else first or type(error).__name__


class Damage(ValueError):
    """A file that is missing, garbled, cut short or does not fit the others."""


def read_object(folder: Path, name: str) -> Mapping[str, object]:
    """The JSON object in a file.

    Raises:
        Damage: it is missing, or holds something else.
    """
    path = folder / name
    try:
        if path.stat().st_size > MOST_JSON:
            raise Damage(f"{name} has {path.stat().st_size:,} bytes, expected a configuration")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise Damage(f"{name} is missing") from None
    except OSError as error:
        raise Damage(f"{name} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, Damage):
            raise
        state = "is empty" if not path.stat().st_size else "is no valid JSON"
        raise Damage(f"{name} {state}") from None
    if not isinstance(content, dict):
        raise Damage(f"{name} holds no JSON object")
    return content


def whole_number(config: Mapping[str, object], key: str, name: str, default: int | None = None) -> int:
    """A positive whole number of a configuration.

    Raises:
        Damage: it is something else, or missing where there is no default.
    """
    value = config.get(key, default)
    if type(value) is not int or not 1 <= value <= 2**31:
        raise Damage(f"{name} has {key} {value!r}, expected a whole number above 0")
    return value


def read_weights(folder: Path, stem: str) -> dict[str, TensorInfo] | None:
    """Name -> dtype and shape of all weights of `stem.safetensors` or its shards; None where none of these is here.

    Raises:
        Damage: a file is garbled or cut short, a shard is missing, or numbers are no floats; or only pickles are here.
    """
    whole = folder / f"{stem}.safetensors"
    files = [whole] if whole.is_file() else _shards(folder, stem)
    if not files:
        pickles = sorted(p.name for p in whole.parent.glob("*") if p.suffix in PICKLES)
        if pickles:
            where = Path(stem).parent / pickles[0]
            raise Damage(
                f"{where} is a pickle, which may run code and is never opened, and {stem}.safetensors is missing"
            )
        return None
    weights: dict[str, TensorInfo] = {}
    for path in files:
        name = path.relative_to(folder)
        try:
            entries = read_header(path)
        except ValueError as error:
            raise Damage(f"{name} {error}") from None
        except OSError as error:
            raise Damage(f"{name} cannot be read: {error.strerror}") from None
        parameters = {key: entry for key, entry in entries.items() if key.endswith((".weight", ".bias"))}
        whole_numbers = [key for key, entry in parameters.items() if entry.dtype not in FLOATS]
        if whole_numbers:
            held = f"{entries[whole_numbers[0]].dtype} numbers in {whole_numbers[0]}"
            raise Damage(f"{name} has {held}, expected floats: quantised weights are not read")
        weights |= entries
    if not weights:
        raise Damage(f"{files[0].relative_to(folder)} holds no weights")
    return weights


def _shards(folder: Path, stem: str) -> list[Path]:
    path = folder / f"{stem}.safetensors"
    shards = sorted(path.parent.glob(f"{path.stem}-*-of-*.safetensors"))
    counts = {int(m[1]) for p in shards if (m := re.search(r"-of-(\d+)\.safetensors$", p.name))}
    if shards and (len(counts) != 1 or counts != {len(shards)}):
        raise Damage(f"{stem} comes in {max(counts, default=0)} shards, of which {len(shards)} are here")
    return shards


def check_vocabulary(folder: Path, rows: int) -> None:
    """Whether a tokenizer folder holds words, as many as its text encoder has embedding rows.

    Raises:
        Damage: none, fewer than nine tenths of the rows, or more than there are rows.
    """
    name = f"{folder.name}/tokenizer_config.json"
    if (folder / "tokenizer_config.json").is_file():
        longest = read_object(folder.parent, name).get("model_max_length") or NO_LIMIT
        is_whole = type(longest) is int and longest >= 3
        if not is_whole and not (isinstance(longest, float) and longest >= NO_LIMIT):
            raise Damage(f"{name} has model_max_length {longest!r}, expected a whole number of 3 or more")
    vocabulary = _words(folder)
    if vocabulary is None:
        return
    name, words, highest = vocabulary
    if highest >= rows or words < LEAST_SHARE * rows:
        raise Damage(f"{name} has {words:,} words up to number {highest:,} for {rows:,} embeddings of its text encoder")


def _words(folder: Path) -> tuple[str, int, int] | None:
    """The file with the vocabulary, how many words it has, and the highest number of one; None where JSON has none."""
    where = folder.name
    if (folder / "tokenizer.json").is_file():
        name = f"{where}/tokenizer.json"
        content = read_object(folder.parent, name)
        model, added = content.get("model"), content.get("added_tokens") or []
        if not isinstance(added, list):
            raise Damage(f"{name} has added_tokens that are no list")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(vocabulary, list):  # a unigram model: a word and its weight, numbered in order
            vocabulary = {str(i): i for i in range(len(vocabulary))}
        numbers = _numbers(vocabulary, name)
        try:
            numbers |= {token["id"] for token in added}
        except (TypeError, KeyError):
            raise Damage(f"{name} has added_tokens without numbers") from None
        return name, len(numbers), max(numbers)
    if (folder / "vocab.json").is_file():
        name = f"{where}/vocab.json"
        if not (folder / "merges.txt").is_file():
            raise Damage(f"{where}/merges.txt is missing beside vocab.json")
        numbers = _numbers(read_object(folder.parent, name), name)
        try:
            merges = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError):
            raise Damage(f"{where}/merges.txt cannot be read as text") from None
        if not any(line.strip() and not line.startswith("#version") for line in merges):
            raise Damage(f"{where}/merges.txt is empty")
        if (folder / "added_tokens.json").is_file():
            numbers |= _numbers(
                read_object(folder.parent, f"{where}/added_tokens.json"), f"{where}/added_tokens.json", 0
            )
        return name, len(numbers), max(numbers)
    if (folder / "vocab.txt").is_file() or any(folder.glob("*.model")):
        return None
    raise Damage(f"{where}/ has no vocabulary: expected tokenizer.json, or vocab.json and merges.txt")


def _numbers(vocabulary: object, name: str, least: int = 1) -> set[int]:
    numbers: list[int] = list(vocabulary.values()) if isinstance(vocabulary, dict) else [-1]
    if len(numbers) < least or not all(type(n) is int and n >= 0 for n in numbers):
        raise Damage(f"{name} has no vocabulary of words and their numbers")
    return set(numbers)
