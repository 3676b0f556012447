"""Whether a set helps: measures of its images, classifiers trained on it, and how sure the answer is.

From Python: a `Bench` says what is compared, `compare` makes it, and `by_group` and `worths` look at the `Answer` anew.
Names are imported when they are first used.

>>> from diffaug_datasets.evaluate import Bench, compare
>>> bench = Bench.from_dict({"sets": ["runs/shirts"], "controls": ["real", "duplicate"]})
>>> answer = compare(bench, "runs/bench")
>>> sorted(result.receipt.cell.line for result in answer.results)
['duplicate', 'real', 'txt2img']
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffaug_datasets.evaluate.bench import Answer, compare
    from diffaug_datasets.evaluate.groups import by_group
    from diffaug_datasets.evaluate.runs import Doing
    from diffaug_datasets.evaluate.suite import Bench
    from diffaug_datasets.evaluate.worth import worths

__all__ = ["Answer", "Bench", "Doing", "by_group", "compare", "worths"]

_HOMES = {
    "Answer": "bench",
    "Bench": "suite",
    "Doing": "runs",
    "by_group": "groups",
    "compare": "bench",
    "worths": "worth",
}


def __dir__() -> list[str]:
    return list(__all__)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
