"""The report's table of what a judge sees: counts, and shares of a class's own rows."""

from types import SimpleNamespace
from typing import Any

from diffaug_datasets.report.figures import confusion


def test_shares_are_of_the_class_s_rows() -> None:
    seen = [("ant", "ant", 3), ("ant", "bee", 1), ("bee", "cat", 2), ("bee", "ant", 2)]
    names = ("ant", "bee", "cat")
    rows = [
        SimpleNamespace(label=names.index(label), judge_label=names.index(other))
        for label, other, count in seen
        for _ in range(count)
    ]
    gathered: Any = SimpleNamespace(class_names=names, rows=[*rows, SimpleNamespace(label=2, judge_label=None)])
    table = confusion(gathered)
    assert [row.counts for row in table] == [(3, 1, 0), (2, 0, 2), (0, 0, 0)]
    assert [row.shares for row in table] == [(0.75, 0.25, 0.0), (0.5, 0.0, 0.5), (0.0, 0.0, 0.0)]
