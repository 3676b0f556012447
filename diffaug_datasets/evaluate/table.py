"""A bench as a table: every line's accuracy, its paired differences to other lines, and how sure these are.

Draws of the real images are crossed with initialisations (`seeds`): those of a draw are averaged first, so that the
draws are what a difference is paired over (Student's interval and test). With one draw there is only the test set to be
sure about (McNemar's test), and the table says so: another draw may differ by more. p values are corrected for the
number of lines (Holm). The base and the zero-shot classifier are no question of a bench, and no part of that number.

Nothing in a table depends on how long something took or which process did it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from diffaug_datasets.evaluate import statistics
from diffaug_datasets.evaluate.cells import Result
from diffaug_datasets.evaluate.statistics import Answers, Difference, Ranks

if TYPE_CHECKING:
    from diffaug_datasets.evaluate.bench import Answer

BASE, GENERATED, TEXT = "real", "txt2img", "text"
CONTROLS = (BASE, "zero_shot")  # lines that are not asked about
SURE = 0.05
FIELDS = {
    "gain": Difference._fields,
    "over_txt2img": Difference._fields,
    "ranks": Ranks._fields,
    "interval": ("low", "high"),
    "bootstrap": ("low", "high"),
}
Judge = tuple[str, str, str]
"""Encoder, classifier and setting: what stands above a table."""


@dataclass(frozen=True)
class TableRow:
    """A line under one classifier. Accuracies are shares in [0, 1]; `evaluations`: U-Net rows, where they are known.

    `group`: of test images, '' for all. `interval`: of the accuracy, over draws, or over the test images where there
    is one draw or where all are alike; `deviation`: from draw to draw. `gain`: difference to the real images alone, by
    which `test`, None for these; `corrected`: its p value after Holm. `over_txt2img`: the same to plain generation,
    with `txt2img_corrected`. Of several draws only: `bootstrap`, the interval of the gain when draws and then test
    images are resampled, and `spread`, the deviation of the gain from draw to draw. `images`, `steps` and `evaluations`
    are means over draws.
    """

    encoder: str
    classifier: str
    setting: str
    group: str
    line: str
    draws: int
    seeds: int
    test_images: int
    accuracy: float
    interval: tuple[float, float]
    deviation: float | None
    images: int
    steps: int | None
    evaluations: int | None
    gain: Difference | None
    test: str
    corrected: float | None
    over_txt2img: Difference | None
    txt2img_corrected: float | None
    ranks: Ranks | None
    bootstrap: tuple[float, float] | None
    spread: float | None

    @property
    def judge(self) -> Judge:
        """What stands above its table."""
        return self.encoder, self.classifier, self.setting

    @property
    def smallest(self) -> float | None:
        """The gain that so many draws find four times of five; None for one draw."""
        return None if self.spread is None else statistics.smallest_effect(self.spread, self.draws)

    @property
    def needed(self) -> int | None:
        """How many draws would find a gain as large as this four times of five; None where that is not known."""
        if self.gain is None or self.spread is None or not self.gain.value:
            return None
        return statistics.draws_needed(self.spread, abs(self.gain.value))

    @property
    def verdict(self) -> str:
        """In words what the gain says."""
        if self.gain is None or self.corrected is None:
            return "control" if self.line in CONTROLS else ""
        if self.corrected >= SURE:
            return "no difference seen"
        return "better" if self.gain.value > 0 else "worse"

    def flat(self) -> dict[str, object]:
        """One level of columns, for a CSV file or a DataFrame."""
        columns: dict[str, object] = {}
        for name, value in asdict(self).items():
            fields = FIELDS.get(name)
            if fields is None:
                columns[name] = value
            else:
                columns |= {f"{name}_{one}": None if value is None else value[i] for i, one in enumerate(fields)}
        return columns | {"smallest": self.smallest, "needed": self.needed, "verdict": self.verdict}


@dataclass(frozen=True)
class Cross:
    """The initialisations of a line in one draw, averaged."""

    results: tuple[Result, ...] = field(repr=False)

    @cached_property
    def correct(self) -> Answers:
        """Whether each test image got its label [n]; the share of initialisations where there are several."""
        if len(self.results) == 1:
            return self.results[0].correct
        shares: Answers = np.mean([result.correct for result in self.results], axis=0)
        return shares

    @cached_property
    def accuracy(self) -> float:
        """Share of test images that got their label."""
        return float(np.mean([result.receipt.accuracy for result in self.results]))

    def has_images_of(self, other: "Cross") -> bool:
        """Whether both have the same test images in the same order, as far as the predictions say."""
        ours, theirs = self.results[0].table, other.results[0].table
        if ours is None or theirs is None:
            return len(self.correct) == len(other.correct)
        return bool(ours["pixel_sha256"].equals(theirs["pixel_sha256"]))


Line = Mapping[str, Cross]
"""Draw -> a line there, in the order of the draws."""


class Numbers(TypedDict):
    """What a line has of its own, see `TableRow`."""

    draws: int
    seeds: int
    test_images: int
    accuracy: float
    interval: tuple[float, float]
    deviation: float | None
    images: int
    steps: int | None
    evaluations: int | None


class Spread(TypedDict):
    """How a gain differs from draw to draw, see `TableRow`."""

    bootstrap: tuple[float, float] | None
    spread: float | None


def table(answer: "Answer", group: str = "", resamples: int = statistics.RESAMPLES) -> tuple[TableRow, ...]:
    """Rows of a bench, the best of each classifier first.

    `group`: what the test images of the answer have in common; `resamples`: of the bootstrap intervals. A zero-shot
    classifier stands beside every classifier of its encoder, or alone where there is none.
    """
    judges: dict[Judge, list[Result]] = {}
    for result in sorted(answer.results, key=lambda one: (one.receipt.cell.line, one.receipt.cell.seed)):
        cell = result.receipt.cell
        judges.setdefault((cell.encoder, cell.classifier, cell.setting), []).append(result)
    texts = {judge: judges.pop(judge) for judge in list(judges) if judge[1] == TEXT}
    for judge, of_text in texts.items():
        beside = [other for other in judges if other[0] == judge[0]]
        for other in beside:
            judges[other] += of_text
        if not beside:
            judges[judge] = of_text
    rows: list[TableRow] = []
    for judge in sorted(judges):
        rows += _of_judge(judge, _crossed(judges[judge], answer.draws), group, resamples)
    return tuple(rows)


def by_judge(rows: Sequence[TableRow]) -> dict[Judge, list[TableRow]]:
    """The rows below each heading, in their order."""
    judges: dict[Judge, list[TableRow]] = {}
    for row in rows:
        judges.setdefault(row.judge, []).append(row)
    return judges


def _crossed(results: Sequence[Result], draws: Sequence[str]) -> dict[str, Line]:
    """Line -> draw -> its initialisations."""
    order = {draw: place for place, draw in enumerate(draws)}
    found: dict[str, dict[str, list[Result]]] = {}
    for result in sorted(results, key=lambda one: order[one.receipt.cell.draw]):
        found.setdefault(result.receipt.cell.line, {}).setdefault(result.receipt.cell.draw, []).append(result)
    return {line: {draw: Cross(tuple(several)) for draw, several in by_draw.items()} for line, by_draw in found.items()}


def _of_judge(judge: Judge, lines: Mapping[str, Line], group: str, resamples: int) -> list[TableRow]:
    base, generated = lines.get(BASE, {}), lines.get(GENERATED, {})
    gains = {line: _difference(draws, base) for line, draws in lines.items() if line != BASE}
    over = {line: _difference(draws, generated) for line, draws in lines.items() if line not in (*CONTROLS, GENERATED)}
    corrected, over_corrected = _corrected(gains), _corrected(over)
    ranks = _ranks(lines, resamples)
    rows = [
        TableRow(
            *judge,
            group=group,
            line=line,
            **_numbers(draws),
            gain=gains.get(line),
            test=_test(draws, base) if gains.get(line) else "",
            corrected=corrected.get(line),
            over_txt2img=over.get(line),
            txt2img_corrected=over_corrected.get(line),
            ranks=ranks.get(line),
            **_spread(draws, base, resamples if gains.get(line) else 0),
        )
        for line, draws in lines.items()
    ]
    return sorted(rows, key=lambda row: (-round(row.accuracy, statistics.DIGITS), row.line))


def _numbers(draws: Line) -> Numbers:
    """What a line has of its own."""
    crosses = list(draws.values())
    accuracies = np.array([cross.accuracy for cross in crosses])
    receipts = [result.receipt for cross in crosses for result in cross.results]
    several, differ = len(crosses) > 1, bool(np.ptp(accuracies) > 0)
    interval = statistics.mean_interval(accuracies) if differ else statistics.share_interval(crosses[0].correct)
    return {
        "draws": len(crosses),
        "seeds": max(len(cross.results) for cross in crosses),
        "test_images": max(len(cross.correct) for cross in crosses),
        "accuracy": float(accuracies.mean()),
        "interval": (max(0.0, interval[0]), min(1.0, interval[1])),
        "deviation": None if not several else float(accuracies.std(ddof=1)) if differ else 0.0,
        "images": round(float(np.mean([receipt.images for receipt in receipts]))),
        "steps": _mean_of_known([receipt.steps for receipt in receipts]),
        "evaluations": _mean_of_known([receipt.evaluations for receipt in receipts]),
    }


def _mean_of_known(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known))) if len(known) == len(values) else None


def _pairs(line: Line, base: Line) -> list[tuple[Cross, Cross]]:
    return [(cross, base[draw]) for draw, cross in line.items() if draw in base]


def _difference(line: Line, base: Line) -> Difference | None:
    pairs = _pairs(line, base)
    if not pairs:
        return None
    if len(pairs) == 1:
        if not pairs[0][0].has_images_of(pairs[0][1]):  # the worst groups of two lines
            return None
        return statistics.difference_over_images(pairs[0][0].correct, pairs[0][1].correct)
    ours, theirs = (np.array([pair[side].accuracy for pair in pairs]) for side in (0, 1))
    return statistics.paired_difference(ours, theirs)


def _test(line: Line, base: Line) -> str:
    """How a difference was looked at, in words."""
    pairs = _pairs(line, base)
    if len(pairs) > 1:
        return f"paired t over {len(pairs)} draws"
    is_plain = all(len(cross.results) == 1 for cross in pairs[0])
    return "McNemar over the test images of one draw" if is_plain else "paired t over the test images of one draw"


def _corrected(differences: Mapping[str, Difference | None]) -> dict[str, float]:
    """p values after Holm of the lines that are asked about."""
    asked = {line: found.p for line, found in differences.items() if found is not None and line not in CONTROLS}
    return dict(zip(asked, statistics.holm(list(asked.values())), strict=True))


def _ranks(lines: Mapping[str, Line], resamples: int) -> dict[str, Ranks]:
    """Of the lines that are in every draw, over draws; of one draw over its test images."""
    draws = {draw for by_draw in lines.values() for draw in by_draw}
    whole = {line: by_draw for line, by_draw in lines.items() if draws <= by_draw.keys()}
    if len(whole) < 2:
        return {}
    first = next(iter(next(iter(whole.values())).values()))
    if len(draws) == 1 and not all(first.has_images_of(cross) for found in whole.values() for cross in found.values()):
        return {}
    if len(draws) > 1:
        units = {line: np.array([cross.accuracy for cross in found.values()]) for line, found in whole.items()}
    else:
        units = {line: next(iter(found.values())).correct.astype(np.float64) for line, found in whole.items()}
    return statistics.rank_intervals(units, resamples=resamples)


def _spread(line: Line, base: Line, resamples: int) -> Spread:
    """The deviation of the gain from draw to draw, and its bootstrap interval; none for one draw."""
    pairs = _pairs(line, base)
    if not resamples or len(pairs) < 2:
        return {"bootstrap": None, "spread": None}
    spread = float(np.std([ours.accuracy - theirs.accuracy for ours, theirs in pairs], ddof=1))
    if not all(cross.has_images_of(beside) for cross, beside in pairs):
        return {"bootstrap": None, "spread": spread}
    ours, theirs = ([pair[side].correct for pair in pairs] for side in (0, 1))
    if all(cross.has_images_of(pairs[0][0]) for cross, _ in pairs):
        stacked = [np.stack([one.astype(np.float64) for one in side]) for side in (ours, theirs)]
        bootstrap = statistics.hierarchical_interval(stacked[0], stacked[1], resamples=resamples)
    else:
        bootstrap = statistics.interval_of_apart(ours, theirs, resamples=resamples)
    return {"bootstrap": bootstrap, "spread": spread}
