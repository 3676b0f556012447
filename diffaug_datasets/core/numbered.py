"""Many numbered files in few words: patterns that match them, and no other file whose number is as long."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

MOST_LISTED = 200  # paths that are named one by one
_NUMBERED = re.compile(r"(?P<before>.*?-)(?P<number>\d+)(?P<behind>(?:-of-\d+)?\.\w+)", re.ASCII)


def listed(paths: Sequence[str]) -> list[str]:
    """The paths as a card lists them, one by one; where they are many, those that are numbered on
    (`train-00007-of-00800.arrow`) as a few patterns that match these numbers alone, in the same order.

    So a card of 10,000 shards is no longer than another.
    """
    if len(paths) <= MOST_LISTED:
        return list(paths)
    return [pattern for run in _runs(paths) for pattern in run]


def _runs(paths: Sequence[str]) -> Iterator[list[str]]:
    """Of each stretch of paths whose numbers follow one another its patterns; any other path as it is."""

    def stretch(item: tuple[int, str]) -> tuple[str, ...]:
        place, path = item
        if not (match := _NUMBERED.fullmatch(path)) or re.search(r"[*?\[\]]", path):
            return (path,)
        before, number, behind = match.groups()
        return before, behind, str(len(number)), str(int(number) - place)

    for _, grouped in groupby(enumerate(paths), stretch):
        of_stretch = [path for _, path in grouped]
        match = _NUMBERED.fullmatch(of_stretch[0])
        if match is None or len(of_stretch) == 1:
            yield of_stretch
            continue
        before, digits, behind = match.groups()
        first = int(digits)
        patterns = _patterns(first, first + len(of_stretch) - 1, len(digits))
        yield [f"{before}{pattern}{behind}" for pattern in patterns]


def _patterns(first: int, last: int, width: int) -> list[str]:
    """Patterns of `width` digits that match the numbers from `first` to `last`, in their order."""
    if width == 0:
        return [""]
    size = 10 ** (width - 1)
    if first == 0 and last == 10 * size - 1:
        return ["[0-9]" * width]
    (low, first_rest), (high, last_rest) = divmod(first, size), divmod(last, size)
    if low == high:
        return [f"{low}{rest}" for rest in _patterns(first_rest, last_rest, width - 1)]
    head = [f"{low}{rest}" for rest in _patterns(first_rest, size - 1, width - 1)] if first_rest else []
    tail = [f"{high}{rest}" for rest in _patterns(0, last_rest, width - 1)] if last_rest != size - 1 else []
    begin, end = low + bool(head), high - bool(tail)
    digit = f"[{begin}-{end}]" if begin < end else str(begin)
    middle = [digit + "[0-9]" * (width - 1)] if begin <= end else []
    return [*head, *middle, *tail]
