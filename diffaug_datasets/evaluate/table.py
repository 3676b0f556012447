"""A bench as a table: every line's accuracy, its paired difference to the real images alone, and how sure that is.

With several draws of the real images the difference is paired over draws (Student's interval and test). With one draw
there is only the test set to be sure about (McNemar's test), and the table says so: another draw may differ by more.
p values are corrected for the number of lines (Holm).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from diffaug_datasets.evaluate import statistics
from diffaug_datasets.evaluate.bench import CONTROLS, Answer
from diffaug_datasets.evaluate.cells import Result
from diffaug_datasets.evaluate.statistics import Difference, Ranks

BASE = "real"
SURE = 0.05
FIELDS = {"gain": Difference._fields, "ranks": Ranks._fields, "bootstrap": ("low", "high")}


@dataclass(frozen=True)
class TableRow:
    """A line under one classifier. Accuracies are shares in [0, 1]; `evaluations`: U-Net rows, where they are known.

    `gain`: difference to the real images alone, None for these; `corrected`: its p value after Holm. Of several draws
    only: `bootstrap`, the interval of the gain when draws and then test images are resampled, and `spread`, the
    deviation of the gain from draw to draw.
    """

    encoder: str
    classifier: str
    setting: str
    line: str
    draws: int
    accuracy: float
    deviation: float | None
    images: int
    seconds: float
    evaluations: int | None
    gain: Difference | None
    corrected: float | None
    ranks: Ranks | None
    bootstrap: tuple[float, float] | None
    spread: float | None

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
                columns |= {f"{name}_{field}": None if value is None else value[i] for i, field in enumerate(fields)}
        return columns | {"smallest": self.smallest, "needed": self.needed, "verdict": self.verdict}


def table(answer: Answer, resamples: int = statistics.RESAMPLES) -> tuple[TableRow, ...]:
    """Rows of a bench, the best of each classifier first. `resamples`: of the bootstrap intervals."""
    rows: list[TableRow] = []
    judges = {(r.receipt.cell.encoder, r.receipt.cell.classifier, r.receipt.cell.setting) for r in answer.results}
    for encoder, classifier, setting in sorted(judges):
        chosen = [
            result
            for result in answer.results
            if (result.receipt.cell.encoder, result.receipt.cell.classifier, result.receipt.cell.setting)
            == (encoder, classifier, setting)
        ]
        rows += _of_classifier(chosen, answer.draws, resamples)
    return tuple(rows)


def _of_classifier(results: Sequence[Result], draws: Sequence[str], resamples: int) -> list[TableRow]:
    by_line: dict[str, dict[str, Result]] = {}
    for result in results:
        by_line.setdefault(result.receipt.cell.line, {})[result.receipt.cell.draw] = result
    base = by_line.get(BASE, {})
    gains = {line: _gain(by_draw, base) for line, by_draw in by_line.items() if line != BASE and base}
    compared = [line for line, gain in gains.items() if gain is not None]
    corrected = dict(zip(compared, statistics.holm([gains[line].p for line in compared]), strict=True))  # type: ignore[union-attr]
    whole = {
        line: np.array([by_draw[draw].receipt.accuracy for draw in draws])
        for line, by_draw in by_line.items()
        if set(draws) <= by_draw.keys()
    }
    ranks = statistics.rank_intervals(whole, resamples=resamples) if len(draws) > 1 and whole else {}
    rows = [
        _row(line, list(by_draw.values()), gains.get(line), corrected.get(line), ranks.get(line), base, resamples)
        for line, by_draw in by_line.items()
    ]
    return sorted(rows, key=lambda row: -row.accuracy)


def _gain(by_draw: dict[str, Result], base: dict[str, Result]) -> Difference | None:
    shared = [draw for draw in by_draw if draw in base]
    if not shared:
        return None
    if len(shared) == 1:
        return statistics.mcnemar(by_draw[shared[0]].correct, base[shared[0]].correct)
    pairs = [(by_draw[draw].receipt.accuracy, base[draw].receipt.accuracy) for draw in shared]
    ours, theirs = (np.array(side) for side in zip(*pairs, strict=True))
    return statistics.paired_difference(ours, theirs)


def _row(
    line: str,
    results: Sequence[Result],
    gain: Difference | None,
    corrected: float | None,
    ranks: Ranks | None,
    base: dict[str, Result],
    resamples: int,
) -> TableRow:
    receipts = [result.receipt for result in results]
    accuracies = np.array([receipt.accuracy for receipt in receipts])
    known = [receipt.evaluations for receipt in receipts if receipt.evaluations is not None]
    bootstrap = spread = None
    if gain is not None and gain.draws > 1:
        pairs = [(result, base[result.receipt.cell.draw]) for result in results]
        spread = float(np.std([ours.receipt.accuracy - theirs.receipt.accuracy for ours, theirs in pairs], ddof=1))
        if len({len(ours.correct) for ours, _ in pairs}) == 1:
            line_correct, base_correct = (np.stack([pair[i].correct for pair in pairs]) for i in (0, 1))
            bootstrap = statistics.hierarchical_interval(line_correct, base_correct, resamples=resamples)
    cell = receipts[0].cell
    return TableRow(
        encoder=cell.encoder,
        classifier=cell.classifier,
        setting=cell.setting,
        line=line,
        draws=len(receipts),
        accuracy=float(accuracies.mean()),
        deviation=float(accuracies.std(ddof=1)) if len(accuracies) > 1 else None,
        images=round(float(np.mean([receipt.images for receipt in receipts]))),
        seconds=float(np.sum([receipt.seconds for receipt in receipts])),
        evaluations=round(float(np.mean(known))) if len(known) == len(receipts) else None,
        gain=gain,
        corrected=corrected,
        ranks=ranks,
        bootstrap=bootstrap,
        spread=spread,
    )
