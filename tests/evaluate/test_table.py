"""The table: what is averaged, what is paired with what, which bytes come of it, and that it explains itself."""

import csv
import io
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from answers import guesses, result, simulated
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from diffaug_datasets.evaluate.bench import Answer
from diffaug_datasets.evaluate.frame import cells_frame, table_csv, table_frame
from diffaug_datasets.evaluate.table import TableRow, table
from diffaug_datasets.evaluate.words import columns, verdict, what_could_be_seen, what_was_seen


def found(answer: Answer, **told) -> dict[str, TableRow]:
    return {row.line: row for row in table(answer, **told)}


def test_initialisations_of_a_draw_are_one_value(tmp_path: Path) -> None:
    """Thirty cells in three draws are three pairs, not thirty."""
    answer = simulated(tmp_path, {"a": 0.05}, draws=3, seeds=range(10))
    row = found(answer)["a"]
    by_draw = {
        line: [
            np.mean(
                [r.receipt.accuracy for r in answer.results if (r.receipt.cell.draw, r.receipt.cell.line) == (d, line)]
            )
            for d in answer.draws
        ]
        for line in ("a", "real")
    }
    expected = stats.ttest_rel(by_draw["a"], by_draw["real"])
    assert (row.draws, row.seeds, row.gain.draws) == (3, 10, 3)
    assert row.gain.p == pytest.approx(expected.pvalue)
    assert row.interval == pytest.approx(stats.t.interval(0.95, 2, np.mean(by_draw["a"]), stats.sem(by_draw["a"])))
    assert what_was_seen([row]) == "3 draws of the real images x 10 initialisations, 300 test images"


def test_one_draw_is_mcnemars_and_says_so(tmp_path: Path) -> None:
    answer = simulated(tmp_path, {"a": 0.1}, draws=1)
    rows = found(answer)
    ours, base = (next(r.correct for r in answer.results if r.receipt.cell.line == line) for line in ("a", "real"))
    cells = [[(ours & base).sum(), (ours & ~base).sum()], [(~ours & base).sum(), (~ours & ~base).sum()]]
    assert rows["a"].gain.p == pytest.approx(mcnemar(cells, exact=True).pvalue)
    assert rows["a"].test == "McNemar over the test images of one draw"
    assert "another draw of the real images may differ by more" in what_could_be_seen(list(rows.values()))
    assert rows["a"].spread is rows["a"].bootstrap is None and rows["a"].ranks.mean == 1
    several = found(simulated(tmp_path, {"a": 0.1}, draws=1, seeds=(0, 1, 2)))["a"]
    assert several.test == "paired t over the test images of one draw" and several.gain.draws == 1


def test_gains_over_txt2img_are_paired_with_it_and_corrected_on_their_own(tmp_path: Path) -> None:
    answer = simulated(tmp_path, {"txt2img": 0.05, "a": 0.1, "b": 0.0}, draws=6)
    rows = found(answer)
    values = {
        line: np.array([r.receipt.accuracy for r in answer.results if r.receipt.cell.line == line]) for line in rows
    }
    for line in ("a", "b"):
        expected = stats.ttest_rel(values[line], values["txt2img"])
        assert rows[line].over_txt2img.p == pytest.approx(expected.pvalue)
    p_values = [rows[line].over_txt2img.p for line in ("a", "b")]
    corrected = [rows[line].txt2img_corrected for line in ("a", "b")]
    assert corrected == pytest.approx(multipletests(p_values, method="holm")[1])
    assert rows["txt2img"].over_txt2img is rows["real"].over_txt2img is None
    p_values = [rows[line].gain.p for line in ("txt2img", "a", "b")]
    assert [rows[line].corrected for line in ("txt2img", "a", "b")] == pytest.approx(
        multipletests(p_values, method="holm")[1]
    )


def test_without_txt2img_there_is_no_such_column(tmp_path: Path) -> None:
    head, _ = columns(table(simulated(tmp_path, {"a": 0.1})))
    assert head == ("line", "accuracy (95 %)", "gain over real (95 %)", "verdict", "rank (95 %)", "images")


def test_zero_shot_stands_beside_every_classifier_and_is_not_asked_about(tmp_path: Path) -> None:
    answer = simulated(tmp_path, {"a": 0.1}, draws=3)
    other = simulated(tmp_path, {"a": 0.1}, draws=3, rng_seed=1, kind={"classifier": "svm"})
    rng = np.random.default_rng(5)
    text = {"classifier": "text", "setting": "a photo"}
    shots = [result(tmp_path, draw, "zero_shot", guesses(rng, 0.9), kind=text) for draw in answer.draws]
    rows = table(replace(answer, results=(*answer.results, *other.results, *shots)))
    assert {(r.classifier, r.line) for r in rows} == {
        (kind, line) for kind in ("logistic", "svm") for line in ("real", "a", "zero_shot")
    }
    shot = next(row for row in rows if row.line == "zero_shot")
    assert shot.gain.value > 0.1 and shot.corrected is None and shot.verdict == "control"
    assert next(row for row in rows if row.line == "a").corrected == next(row for row in rows if row.line == "a").gain.p
    alone = table(replace(answer, results=tuple(shots)))
    assert [(row.classifier, row.line) for row in alone] == [("text", "zero_shot")]


def test_episodes_have_test_images_of_their_own(tmp_path: Path) -> None:
    """Images of different draws are not resampled together where they are others."""
    shared = simulated(tmp_path / "one", {"a": 0.05}, draws=8)
    apart = simulated(tmp_path / "two", {"a": 0.05}, draws=8, own_images=True)
    one, two = (found(answer)["a"] for answer in (shared, apart))
    assert one.gain == two.gain and one.bootstrap != two.bootstrap
    assert two.bootstrap[0] < 0.05 < two.bootstrap[1]


def test_the_bytes_do_not_depend_on_who_made_the_cells(tmp_path: Path) -> None:
    answer = simulated(tmp_path, {"a": 0.1, "b": 0.1, "same as real": 0.0}, seeds=(0, 1))
    expected = table_csv(table(answer))
    shuffled = list(answer.results)
    random.Random(3).shuffle(shuffled)
    slow = [replace(r, receipt=r.receipt.model_copy(update={"seconds": i * 7.7})) for i, r in enumerate(shuffled)]
    assert table_csv(table(replace(answer, results=tuple(slow)))) == expected
    assert "seconds" not in expected.partition("\n")[0]


def test_csv_and_frames_have_every_row(tmp_path: Path) -> None:
    answer = simulated(tmp_path, {"a": 0.1}, steps=50, evaluations=900)
    rows = table(answer) + table(answer, group="few (below 5)")
    read = list(csv.DictReader(io.StringIO(table_csv(rows))))
    frame = table_frame(rows)
    assert [row["group"] for row in read] == ["", "", "few (below 5)", "few (below 5)"]
    assert [float(row["accuracy"]) for row in read] == frame["accuracy"].tolist()
    assert set(frame["steps"]) == {50} and set(frame["evaluations"]) == {900}
    cells = answer.frame()
    assert len(cells) == 10 and cells["seconds"].sum() == pytest.approx(5.0)
    assert cells.equals(cells_frame(answer.results[::-1]))
    head, _ = columns(rows[:2])
    assert head[-3:] == ("images", "steps", "U-Net evaluations")


def test_the_smallest_effect_is_that_of_the_median_line(tmp_path: Path) -> None:
    rows = table(simulated(tmp_path, {"a": 0.0}, draws=5))
    spread = next(row.spread for row in rows if row.line == "a")
    told = what_could_be_seen(rows)
    effect = float(told.split("a gain of ")[1].split(" points")[0])
    power = stats.nct.sf(stats.t.ppf(0.975, 4), 4, effect / 100 / spread * 5**0.5)
    assert power == pytest.approx(0.8, abs=0.03)


def test_an_open_verdict_says_what_would_close_it(tmp_path: Path) -> None:
    row = found(simulated(tmp_path, {"a": 0.02}))["a"]
    assert row.gain and row.spread
    alone = replace(row, corrected=0.2, gain=row.gain._replace(p=0.02))
    open_still = replace(alone, gain=row.gain._replace(p=0.2, value=row.spread / 3))
    enough = replace(open_still, gain=open_still.gain._replace(value=9.0))
    assert verdict(alone) == "no difference seen; alone it would count, among so many lines not"
    assert verdict(open_still) == f"no difference seen; {open_still.needed} draws might show it"
    assert open_still.needed and open_still.needed > row.draws
    assert verdict(enough) == "no difference seen"


def test_lines_that_do_nothing_are_rarely_called_different_with_seeds(tmp_path: Path) -> None:
    """Initialisations do not count as draws: then far more than 5 % would be called."""
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(200):
        results = []
        for draw in range(4):
            for line in ("real", "a"):
                luck = rng.normal(0, 0.03)  # of the line in this draw, the same for every initialisation
                results += [fast(draw, line, seed, rng.random(200) < 0.7 + luck) for seed in range(5)]
        rows = found(Answer(tuple("0123"), (), tuple(results)), resamples=2)
        called += rows["a"].verdict in ("better", "worse")
    assert called <= 10 + 2 * (200 * 0.05 * 0.95) ** 0.5


def fast(draw: int, line: str, seed: int, correct: np.ndarray):
    """A cell that lies nowhere."""
    from diffaug_datasets.core.files import FileDigest
    from diffaug_datasets.evaluate.cells import Cell, CellReceipt, Result

    names = {"encoder": "e", "classifier": "c", "setting": "s", "content": "", "stack": ""}
    cell = Cell(draw=str(draw), line=line, seed=seed, **names)
    done = FileDigest(file="a.parquet", sha256="", size=0)
    told = {"accuracy": float(correct.mean()), "images": 1, "mass": 1.0, "seconds": 0.0}
    return Result(CellReceipt(cell=cell, predictions=done, **told), correct)
