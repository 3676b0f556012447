"""What a safetensors file says of its tensors, without reading them."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
BYTES |= {"U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1}
MOST_HEADER = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its dtype as the format writes it (`F32`) and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Name -> dtype and shape of every tensor.

    Raises:
        ValueError: the header is garbled, or does not describe the bytes behind it; says how, without the path.
        OSError: the file cannot be read.
    """
    header, behind = _object(path)
    header.pop("__metadata__", None)
    return _entries(header, behind)


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that stand in a header beside the tensors; raises as `read_header`."""
    found = _object(path)[0].get("__metadata__") or {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("has a garbled safetensors header")
    return found


def _object(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON of a header, and how many bytes stand behind it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MOST_HEADER, size - 8):
            raise ValueError("is empty" if size == 0 else "has no safetensors header, or is cut short")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("has a garbled safetensors header") from None
    if not isinstance(header, dict):
        raise ValueError("has a garbled safetensors header")
    return header, size - 8 - length


class _Described(TypedDict):
    """What the format writes of a tensor."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def _entries(header: Mapping[str, _Described], size: int) -> dict[str, TensorInfo]:
    entries: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int]] = []
    for name, tensor in header.items():
        try:
            dtype, shape, (begin, end) = tensor["dtype"], tuple(tensor["shape"]), tensor["data_offsets"]
            is_whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
            fits = is_whole and end - begin == math.prod(shape) * BYTES[dtype]
        except (TypeError, KeyError, ValueError):
            fits = False
        if not fits:
            raise ValueError(f"has a safetensors header that makes no sense of {name!r}")
        entries[name] = TensorInfo(dtype, shape)
        spans.append((begin, end))
    spans.sort()
    ends = [0, *(end for _, end in spans)]
    if [begin for begin, _ in spans] != ends[:-1]:
        raise ValueError("has a safetensors header whose tensors overlap or leave gaps")
    if ends[-1] != size:
        raise ValueError(
            f"holds {size:,} bytes of weights where its header says {ends[-1]:,}: it is cut short or grown"
        )
    return entries
