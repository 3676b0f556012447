"""Where the real images behind a row come from: url, author and licence of each, and how many rows rest on which."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from diffaug_datasets.core.attribution import FACTS
from diffaug_datasets.data.release import LicenceCount

COLUMNS: Mapping[str, str] = MappingProxyType({f"source_{fact}s": fact for fact in FACTS})
MEANING: Mapping[str, str] = MappingProxyType(
    {
        "source_urls": "where each image of `source_ids` comes from, as its dataset states",
        "source_authors": "who made each image of `source_ids`, as its dataset states",
        "source_licenses": "the terms of each image of `source_ids`, as its dataset states",
    }
)


def origin_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that a provenance needs: those whose fact some real image states."""
    known = source_facts(rows)
    return [column for column, fact in COLUMNS.items() if any(fact in facts for facts in known.values())]


def source_facts(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Source id -> `url`, `author`, `license` of every real image that states one, from provenance rows."""
    real = ((row["source_ids"][0], row_facts(row)) for row in rows if row["origin"] == "real")
    return {source: facts for source, facts in real if facts}


def row_facts(row: Mapping[str, Any]) -> dict[str, str]:
    """What a real or retrieved row states of its own image."""
    measured = json.loads(row["measured"] or "{}")
    return {fact: measured[fact] for fact in FACTS if isinstance(measured.get(fact), str)}


def with_origins(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows with a list a column, one entry a source, null where that source states nothing."""
    known = source_facts(rows)
    return [
        {**row, **{c: [known.get(source, {}).get(COLUMNS[c]) for source in row["source_ids"]] for c in columns}}
        for row in rows
    ]


def licence_counts(rows: Iterable[Mapping[str, Any]], ended: Sequence[str]) -> tuple[LicenceCount, ...]:
    """How many real training images and other images rest on which licence; nothing where no row states one.

    An image with sources of several licences counts under each; a retrieved one has its own. `ended`: the states of
    rows that count. The most used licence comes first, rows without one last. `rows` is gone through twice.
    """
    known = source_facts(rows)
    real: Counter[str] = Counter()
    made: Counter[str] = Counter()
    for row in rows:
        if row["status"] not in ended or row["split"] != "train":
            continue
        retrieved = [row_facts(row)] if row["origin"] == "retrieved" else None
        facts = retrieved or [known.get(source, {}) for source in row["source_ids"]]
        (real if row["origin"] == "real" else made).update({one.get("license", "") for one in facts})
    names = sorted({*real, *made}, key=lambda name: (not name, -real[name] - made[name], name))
    return tuple(LicenceCount(licence=n, real=real[n], made=made[n]) for n in names) if any(names) else ()
