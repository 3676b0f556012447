"""Canonical JSON and digests: the same text for the same content on any machine; and what two contents differ in."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

Same = Callable[[str, Any, Any], bool]  # a key, an old and a new value: whether they count as equal


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces, UTF-8 kept as it is, NaN and infinity refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


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
