"""Canonical JSON and its digests: the identity of everything, and the source of every random choice.

A choice is a digest of what it is for, so nothing depends on order, workers or where a run was resumed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

__version__ = "0.1.0"  # of this package: part of what a run and a release record

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

Same = Callable[[str, Any, Any], bool]  # a key, an old and a new value: whether they count as equal
T = TypeVar("T")


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces, UTF-8 kept as it is, NaN and infinity refused (ValueError)."""
    return _ENCODER.encode(value)


def digest(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def differences(old: Any, new: Any, same: Same | None = None, where: str = "") -> list[str]:
    """`key: old -> new` for every leaf of JSON content that differs; `same` may take two leaves for equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [d for k in keys for d in differences(old.get(k), new.get(k), same, f"{where}.{k}" if where else k)]
    return [] if old == new or (same and same(where, old, new)) else [f"{where}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def uint63(text: str) -> int:
    """The first 63 bits of sha256(text), an integer in [0, 2^63) that fits Arrow's int64."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True)
class RowKey:
    """What a draw is for: row k of a class under one method and recipe seed, at one attempt (0 = first)."""

    recipe_seed: int
    method: str
    class_id: int
    k: int
    attempt: int = 0

    @property
    def row_id(self) -> str:
        """24 hex digits, unique in a plan; the attempt does not count."""
        text = f"{self.recipe_seed}|{self.method}|{self.class_id}|{self.k}"
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def seed(self, role: str) -> int:
        """The seed of one role (`noise`, `pair`, `turn`, `suffix`, ...), in [0, 2^63)."""
        return uint63(f"{self.recipe_seed}|{self.method}|{self.class_id}|{self.k}|{role}|{self.attempt}")

    def uniform(self, role: str) -> float:
        """A number in [0, 1), from the top 53 bits of the role's seed."""
        return (self.seed(role) >> 10) / 2.0**53

    def choice(self, role: str, options: Sequence[T]) -> T:
        """One of the options, uniformly (bias below 2^-40 for any list that fits in memory)."""
        count = len(options)
        return options[0] if count == 1 else options[self.seed(role) * count >> 63]

    def retry(self, attempt: int) -> "RowKey":
        """The same row at a later attempt: other seeds, same row id."""
        return replace(self, attempt=attempt)
