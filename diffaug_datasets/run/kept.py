"""Models that stay loaded from one run to the next, where one process makes many: the episodes of a bench.

Outside `keeping_models` every run loads its own. Inside, one model of each kind stays: that of the run before, for as
long as runs ask for the same. What a run changes in a model it takes back, as it must between its own units, so that
no bit depends on what was made before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

Kind = Literal["backbone", "encoder", "scorer", "judge"]
Model = TypeVar("Model")

_kept: dict[Kind, tuple[str, object]] | None = None


@contextmanager
def keeping_models() -> Iterator[None]:
    """Models that are loaded inside stay for later runs of this process; at the end all are let go."""
    global _kept
    before, _kept = _kept, {} if _kept is None else _kept
    try:
        yield
    finally:
        _kept = before


def kept(kind: Kind, key: str, load: Callable[[], Model]) -> Model:
    """The model of that kind that stayed, if it is the one of `key`; else it is loaded. `key`: all that decides it."""
    if _kept is None:
        return load()
    if kind not in _kept or _kept[kind][0] != key:
        _kept.pop(kind, None)  # two at once may be too large
        _kept[kind] = key, load()
    model: Model = _kept[kind][1]  # type: ignore[assignment]
    return model
