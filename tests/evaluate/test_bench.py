"""A bench end to end on pictures in which the answer is known, and tables of answers whose truth is known."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tables import Sets, pictures, table

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.files import FileDigest
from diffaug_datasets.evaluate import bench as benching
from diffaug_datasets.evaluate import draws as drawing
from diffaug_datasets.evaluate.bench import Answer, bench
from diffaug_datasets.evaluate.cells import Cell, CellReceipt, Result
from diffaug_datasets.evaluate.suite import Bench
from diffaug_datasets.evaluate.table import TableRow
from diffaug_datasets.evaluate.table import table as rows_of
from diffaug_datasets.models.encoders import Encoder

EVERY = {"classifiers": ["class_mean", "logistic", "svm"]}
NO_SYNTHETIC_ALONE = {"controls": ["duplicate", "zero_shot"]}
TWO = Bench.from_dict({"sets": ["a"], "classifiers": ["class_mean", "logistic"]})


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load("tiny")


@pytest.fixture
def run_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoder: Encoder):
    def run(sets: dict, keys: dict = EVERY, folder: str = "bench") -> Answer:
        monkeypatch.setattr(drawing, "load", Sets(**sets))
        spec = Bench.from_dict({"sets": list(sets), **keys})
        return bench(spec, [encoder], tmp_path / folder, cache=tmp_path / "cache")

    return run


def found(answer: Answer) -> dict[tuple[str, str], TableRow]:
    return {(row.classifier, row.line): row for row in rows_of(answer)}


def hard(n: int, seed: int):
    """Pictures whose classes are hard to tell apart."""
    return pictures(n, seed, apart=3)


def test_controls_are_there_and_copies_change_nothing(run_bench) -> None:
    test = table(hard(100, 9))
    rows = found(run_bench({"a": (table(hard(8, 0), hard(30, 1)), test)}))
    lines = {"real", "duplicate", "classic", "txt2img", "txt2img alone", "zero_shot"}
    assert set(rows) == {(kind, line) for kind in EVERY["classifiers"] for line in lines}
    for kind in EVERY["classifiers"]:
        assert rows[kind, "duplicate"].gain[:4] == (0, 0, 0, 1)
        assert rows[kind, "real"].gain is None and rows[kind, "real"].verdict == "control"


def test_a_set_of_the_real_images_of_a_long_tail_does_what_their_balance_does(run_bench) -> None:
    tail = [*pictures(12, 0, label=0, apart=3), *pictures(2, 1, label=1, apart=3)]
    keys = {**EVERY, "mixing": {"rule": "lt_inverse"}, "controls": ["duplicate", "rebalanced"]}
    answer = run_bench({"a": (table(tail, tail), table(hard(100, 9)))}, keys)
    cells = {(r.receipt.cell.classifier, r.receipt.cell.line): r.receipt for r in answer.results}
    for kind in ("logistic", "svm"):
        assert cells[kind, "txt2img"].predictions.sha256 == cells[kind, "rebalanced"].predictions.sha256
        assert cells[kind, "duplicate"].predictions.sha256 == cells[kind, "real"].predictions.sha256
        assert cells[kind, "rebalanced"].predictions.sha256 != cells[kind, "real"].predictions.sha256
    assert "rebalanced" not in {line for _, line in found(run_bench({"a": (table(tail, tail), table(hard(100, 9)))}))}


def test_the_same_images_in_two_sets_give_exactly_the_same(run_bench) -> None:
    test, real, made = table(hard(100, 9)), hard(8, 0), hard(30, 1)
    answer = run_bench({"a": (table(real, made), test), "b": (table(real, made), test)})
    first, second = (
        [r.receipt.predictions.sha256 for r in answer.results if r.receipt.cell.line == f"txt2img ({name})"]
        for name in "ab"
    )
    assert first == second and len(first) == 3
    assert len(answer.draws) == 1


def test_wrong_labels_cost_accuracy_in_order(run_bench) -> None:
    sets = {}
    for draw in range(4):
        real, test = hard(6, draw), table(hard(400, 100))
        good = hard(60, 10 + draw)
        for share in (0, 2, 4):
            made = [(picture, 1 - label if i % 10 < share else label) for i, (picture, label) in enumerate(good)]
            sets[f"{share}_{draw}"] = (table(real, made, method=f"noise{share}"), test)
    rows = found(run_bench(sets, NO_SYNTHETIC_ALONE))
    gains = [rows["logistic", f"noise{share}"].gain for share in (0, 2, 4)]
    assert gains[0].value > gains[1].value > gains[2].value
    assert [gain.draws for gain in gains] == [4, 4, 4]
    assert rows["logistic", "noise0"].smallest > 0
    assert rows["logistic", "noise0"].ranks.mean == 1


def test_finished_cells_are_not_made_again_and_damaged_ones_are(run_bench, tmp_path: Path, monkeypatch) -> None:
    sets = {"a": (table(hard(8, 0), hard(30, 1)), table(hard(50, 9)))}
    first = run_bench(sets)
    fitted = []
    real_fit = benching.fit_best
    monkeypatch.setattr(benching, "fit_best", lambda kind, *rest: fitted.append(kind) or real_fit(kind, *rest))
    assert rows_of(run_bench(sets)) == rows_of(first)
    assert not fitted
    victim = next(r for r in first.results if (r.receipt.cell.classifier, r.receipt.cell.line) == ("svm", "real"))
    path = tmp_path / "bench" / "cells" / victim.receipt.predictions.file
    path.write_bytes(path.read_bytes()[:-1])
    run_bench(sets)
    assert fitted == ["svm"]
    run_bench(sets, {"classifiers": ["svm"], "mixing": {"probability": 0.4}})
    assert fitted == ["svm"] + 5 * ["svm"]


def test_the_same_images_under_other_labels_are_other_cells(run_bench) -> None:
    real, made, test = hard(8, 0), hard(30, 1), hard(50, 9)
    first = run_bench({"a": (table(real, made), table(test))}, {})
    swapped = [(picture, 1 - label) for picture, label in real]
    second = run_bench({"a": (table(swapped, made), table(test))}, {})
    third = run_bench({"a": (table(real, made), table([(picture, 1 - label) for picture, label in test]))}, {})
    assert len({first.draws, second.draws, third.draws}) == 3
    accuracies = [found(answer)["logistic", "real"].accuracy for answer in (first, second, third)]
    assert accuracies[1] == accuracies[2] == pytest.approx(1 - accuracies[0])


def test_a_test_image_among_the_synthetic_ones_is_named(run_bench) -> None:
    test = hard(50, 9)
    answer = run_bench({"a": (table(hard(8, 0), [*hard(10, 1), test[7]]), table(test))}, {})
    [sentence] = answer.lines[0].leaks
    planted = table(test)["pixel_sha256"][7]
    assert sentence.startswith(f"1 of the synthetic images are test images (first: {planted[:16]} is test image ")


def test_sets_of_one_method_are_told_apart_by_their_places(run_bench) -> None:
    test, real, made = table(hard(50, 9)), hard(8, 0), hard(12, 1)
    sets = {place: (table(real, made), test) for place in ("a/one", "b/one", "b/two")}
    answer = run_bench({**sets}, NO_SYNTHETIC_ALONE)
    names = ["txt2img (a/one)", "txt2img (b/one)", "txt2img (two)"]
    assert [line.name for line in answer.lines] == names
    assert set(names) < {row.line for row in rows_of(answer)}


def test_images_of_one_class(run_bench) -> None:
    """Among the real ones they leave nothing to tell apart; among the synthetic ones they have no line of their own."""
    test, both, light = table(hard(50, 9)), hard(8, 0), pictures(12, 1, label=1)
    rows = {row.line for row in rows_of(run_bench({"a": (table(both, light), test)}, {}))}
    assert rows == {"real", "duplicate", "classic", "txt2img", "zero_shot"}
    with pytest.raises(RunError, match="a: its real images are of one class, and a bench needs two or more"):
        run_bench({"a": (table(light, both), test)})


def test_a_set_without_test_images_is_refused(run_bench) -> None:
    with pytest.raises(RunError, match="a: holds no test image, and a bench needs some"):
        run_bench({"a": (table(hard(4, 0), hard(4, 1)), None)})


@pytest.mark.parametrize(("real", "made", "what"), [(0, 4, "real training"), (4, 0, "synthetic")])
def test_a_set_that_lacks_images_is_refused(run_bench, real: int, made: int, what: str) -> None:
    with pytest.raises(RunError, match=f"a: holds no {what} image, and a bench needs some"):
        run_bench({"a": (table(hard(real, 0), hard(made, 1)), table(hard(9, 2)))})


def _killed(number: int, folder: Path, cache: Path, sets: Sets) -> None:
    """A process that dies at its n-th finished file."""
    replace, seen = os.replace, iter(range(1, 1000))

    def counting(origin, target, **options) -> None:
        if next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(origin, target, **options)

    os.replace, drawing.load = counting, sets
    bench(TWO, [Encoder.load("tiny")], folder, cache=cache)


def test_a_bench_that_is_killed_at_any_file_goes_on_to_the_same_files(
    tmp_path: Path, monkeypatch, encoder: Encoder
) -> None:
    sets = Sets(a=(table(hard(8, 0), hard(12, 1)), table(hard(30, 9))))
    monkeypatch.setattr(drawing, "load", sets)
    whole = bench(TWO, [encoder], tmp_path / "whole", cache=tmp_path / "cache")
    context = multiprocessing.get_context("fork")
    for number in range(1, 2 * len(whole.results) + 1, 3):
        child = context.Process(target=_killed, args=(number, tmp_path / "killed", tmp_path / "cache", sets))
        child.start()
        child.join()
        assert child.exitcode in (-signal.SIGKILL, 0)
    resumed = bench(TWO, [encoder], tmp_path / "killed", cache=tmp_path / "cache")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert [r.receipt.accuracy for r in resumed.results] == [r.receipt.accuracy for r in whole.results]


def _shared(folder: Path, cache: Path, sets: Sets) -> None:
    drawing.load = sets
    bench(TWO, [Encoder.load("tiny")], folder, cache=cache, poll=0.02)


def test_eight_processes_make_the_files_of_one(tmp_path: Path, monkeypatch, encoder: Encoder) -> None:
    sets = Sets(a=(table(hard(8, 0), hard(12, 1)), table(hard(30, 9))))
    monkeypatch.setattr(drawing, "load", sets)
    bench(TWO, [encoder], tmp_path / "one", cache=tmp_path / "cache")
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_shared, args=(tmp_path / "eight", tmp_path / "cache", sets)) for _ in range(8)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == 8 * [0]
    assert files(tmp_path / "eight") == files(tmp_path / "one")


def files(folder: Path) -> dict[str, object]:
    """Everything but how long a cell took."""
    contents = {path.name: path.read_bytes() for path in folder.glob("cells/*.parquet")}
    for path in folder.glob("cells/*.json"):
        contents[path.name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}
    return contents


def simulated(rng: np.random.Generator, draws: int, gains: dict[str, float]) -> Answer:
    """Answers of lines whose true gain over the real images is known; draws differ, lines of a draw less so."""
    results = []
    for draw in range(draws):
        ease = rng.normal(0.8, 0.03)
        for line, gain in {"real": 0.0, **gains}.items():
            correct = rng.random(400) < ease + gain + rng.normal(0, 0.01)
            cell = Cell(
                draw=str(draw), line=line, content="", encoder="e", classifier="c", setting="s", seed=0, stack=""
            )
            done = FileDigest(file="a.parquet", sha256="", size=0)
            receipt = CellReceipt(
                cell=cell, predictions=done, accuracy=float(correct.mean()), images=1, mass=1.0, seconds=0.0
            )
            results.append(Result(receipt, correct))
    return Answer(tuple(map(str, range(draws))), (), tuple(results))


@pytest.mark.parametrize("draws", [1, 5])
def test_lines_that_do_nothing_are_rarely_called_different(draws: int) -> None:
    rng = np.random.default_rng(draws)
    called = 0
    for _ in range(200):
        answer = simulated(rng, draws, {"a": 0.0, "b": 0.0, "c": 0.0})
        verdicts = {row.verdict for row in rows_of(answer, resamples=2)}
        called += bool(verdicts & {"better", "worse"})
    # With one draw the test is over images alone, and a line's own luck in that draw counts as a difference.
    assert called <= (200 * 0.05 + 2 * (200 * 0.05 * 0.95) ** 0.5 if draws > 1 else 40)


def test_lines_whose_names_are_shuffled_in_every_draw_are_rarely_called_different() -> None:
    rng, called = np.random.default_rng(0), 0
    for _ in range(200):
        answer = simulated(rng, 10, {"a": 0.02, "b": -0.02, "c": 0.0})
        names = {draw: rng.permutation(["real", "a", "b", "c"]).tolist() for draw in answer.draws}
        results = []
        for result in answer.results:
            cell = result.receipt.cell
            name = names[cell.draw]["abc".find(cell.line)]
            receipt = result.receipt.model_copy(update={"cell": cell.model_copy(update={"line": name})})
            results.append(Result(receipt, result.correct))
        rows = rows_of(Answer(answer.draws, (), tuple(results)), resamples=2)
        called += bool({row.verdict for row in rows} & {"better", "worse"})
    assert called <= stats.binom.ppf(0.99, 200, 0.05)


def test_lines_that_help_or_harm_are_called_so() -> None:
    rows = {row.line: row for row in rows_of(simulated(np.random.default_rng(0), 10, {"good": 0.08, "bad": -0.08}))}
    assert (rows["good"].verdict, rows["bad"].verdict) == ("better", "worse")
    assert [rows[line].ranks.mean for line in ("good", "real", "bad")] == [1, 2, 3]
    low, high = rows["good"].bootstrap
    assert 0 < low < 0.08 < high < 0.12
    assert rows["good"].smallest < 0.08 and rows["good"].needed <= 10
    flat = rows["good"].flat()
    assert (flat["bootstrap_low"], flat["bootstrap_high"]) == (low, high)
    assert flat["gain_low"] < 0.08 < flat["gain_high"] and flat["ranks_mean"] == 1
    assert all(not isinstance(value, tuple) for value in flat.values())
