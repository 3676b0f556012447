"""The numbers of a bench in words, the same on the terminal, on a page and in a card.

Shares become points of a hundred; an interval stands beside what it is of; a column that would be empty is left out.
"""

from collections.abc import Callable, Sequence
from statistics import median

from diffaug_datasets.evaluate import statistics
from diffaug_datasets.evaluate.statistics import Difference
from diffaug_datasets.evaluate.table import SURE, TableRow

POINT = 0.01


def heading(row: TableRow) -> str:
    """What stands above the table of a classifier."""
    group = f"{row.group}: " if row.group else ""
    return f"{group}{row.classifier} on {row.encoder} ({row.setting})"


def columns(rows: Sequence[TableRow]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The head and the cells of one classifier's table."""
    asked = sum(row.corrected is not None for row in rows)
    over = sum(row.txt2img_corrected is not None for row in rows)
    of_draws = any(row.draws > 1 for row in rows)
    made: dict[str, Callable[[TableRow], str]] = {
        "line": lambda row: row.line,
        "accuracy (95 %)": lambda row: accuracy(row),
        "gain over real (95 %)": lambda row: difference(row.gain),
        "gain over txt2img (95 %)": lambda row: difference(row.over_txt2img) if over else "",
        f"verdict (Holm, {asked} lines)" if asked > 1 else "verdict": verdict,
        "rank (95 %)" if of_draws else "rank (95 %, this draw)": rank,
        "images": lambda row: f"{row.images:,}",
        "steps": lambda row: "" if row.steps is None else f"{row.steps:,}",
        "U-Net evaluations": lambda row: "" if row.evaluations is None else f"{row.evaluations:,}",
    }
    filled = {name: [cell(row) for row in rows] for name, cell in made.items()}
    kept = {name: cells for name, cells in filled.items() if any(cells)}
    return tuple(kept), [tuple(cells) for cells in zip(*kept.values(), strict=True)]


def accuracy(row: TableRow) -> str:
    """`84.0 (83.1 to 84.9)`, in percent."""
    low, high = row.interval
    return f"{100 * row.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def difference(found: Difference | None) -> str:
    """`+2.3 (+0.2 to +4.3)`, in points; '' where there is none."""
    return "" if found is None else f"{points(found.value)} ({points(found.low)} to {points(found.high)})"


def points(share: float) -> str:
    """A share as points of a hundred, with its sign."""
    return f"{100 * share:+.1f}".replace("-0.0", "+0.0")


def verdict(row: TableRow) -> str:
    """What the gain says, and what would say more."""
    if row.verdict != "no difference seen" or row.gain is None:
        return row.verdict
    if row.gain.p < SURE:
        return f"{row.verdict}; alone it would count, among so many lines not"
    is_open = row.needed is not None and row.needed > row.draws
    return f"{row.verdict}; {row.needed:,} draws might show it" if is_open else row.verdict


def rank(row: TableRow) -> str:
    """`2 (1 to 4)`."""
    if row.ranks is None:
        return ""
    mean, low, high = (f"{round(place, 1):g}" for place in row.ranks)
    return f"{mean} ({low} to {high})"


def what_was_seen(rows: Sequence[TableRow]) -> str:
    """What rests on how much: draws, initialisations, test images."""
    draws, seeds = max(row.draws for row in rows), max(row.seeds for row in rows)
    images = max(row.test_images for row in rows)
    crossed = f" x {seeds} initialisations" if seeds > 1 else ""
    return f"{draws} draw{'s' * (draws > 1)} of the real images{crossed}, {images:,} test images"


def what_could_be_seen(rows: Sequence[TableRow]) -> str:
    """The smallest effect that so many draws show, and how many a point would take; of one classifier's table."""
    spreads = [row.spread for row in rows if row.spread and row.corrected is not None]
    draws = max(row.draws for row in rows)
    if draws == 1:
        test = next((row.test for row in rows if row.test), "")
        how = f" ({test})" if test else ""
        return (
            f"One draw: intervals and verdicts are about its test images alone{how}; another draw of the real images "
            "may differ by more, so give several."
        )
    if not spreads:
        return ""
    middle = median(spreads)
    effect, needed = statistics.smallest_effect(middle, draws), statistics.draws_needed(middle, POINT)
    more = "more than 1,000 draws" if needed is None else f"{needed:,} draws"
    return (
        f"{draws} draws show a gain of {100 * effect:.1f} points four times of five (the median line, before Holm); a "
        f"gain of 1 point takes {more}."
    )
