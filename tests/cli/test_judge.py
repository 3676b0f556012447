"""`measure` and `bench` as a person types them, on a real small run."""

import csv
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "run"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line import Command
from small_runs import small_run

from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.worker import WorkerOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = small_run(tmp_path_factory.mktemp("judged") / "run", "txt2img", include_test=True, per_class=2)
    execute(run, WorkerOptions(), workers=1)
    return run.folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "judged-cache"))


def test_measure_prints_every_number_or_why_there_is_none(folder: Path, diffaug: Command) -> None:
    said = diffaug("measure", folder)
    assert said.code == 0
    assert "20 synthetic beside 1,000 real test images" in said.out
    assert "20 images, 128 are needed for a covariance of 64 features" in said.out
    content = json.loads(diffaug("measure", folder, "--json").out)
    [found] = content
    assert {m["of"] for m in found["measures"]} > {None, "Bag"}
    assert all((m["value"] is None) == bool(m["withheld"]) for m in found["measures"])


def test_bench_prints_a_table_and_keeps_it(folder: Path, tmp_path: Path, diffaug: Command) -> None:
    words = ("bench", folder, "--out", tmp_path / "bench", "--classifier", "class_mean")
    said = diffaug(*words)
    assert said.code == 0
    assert "1 draw of the real images, 1,000 test images" in said.out
    with (tmp_path / "bench" / "table.csv").open(encoding="utf-8") as file:
        rows = {row["line"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"real", "duplicate", "txt2img", "txt2img alone", "zero_shot"}
    assert float(rows["duplicate"]["gain_value"]) == 0
    assert rows["real"]["gain_value"] == ""
    again = json.loads(diffaug(*words, "--json").out)
    assert {row["line"]: str(row["accuracy"]) for row in again} == {line: row["accuracy"] for line, row in rows.items()}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--classifier", "forest"], "--classifier: got 'forest', expected 'class_mean', 'logistic' or 'svm'."),
        (["-p", "2"], "--probability: got 2.0, expected less than or equal to 1."),
        (["--rule", "any"], "--rule: got 'any', expected 'class', 'global', 'index' or 'lt_inverse'."),
    ],
)
def test_what_cannot_be_is_one_sentence(folder: Path, words: list[str], sentence: str, diffaug: Command) -> None:
    said = diffaug("bench", folder, *words)
    assert said.sentence == sentence
