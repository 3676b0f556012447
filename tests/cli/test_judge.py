"""`measure` and `bench` as a person types them, on a real small run."""

import csv
import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "run"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line import Command
from small_runs import small_run

from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.store import Run
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
    assert rows.keys() == {"real", "duplicate", "classic", "txt2img", "txt2img alone", "zero_shot"}
    assert float(rows["duplicate"]["gain_value"]) == 0
    assert rows["real"]["gain_value"] == ""
    again = json.loads(diffaug(*words, "--json").out)["rows"]
    assert {row["line"]: str(row["accuracy"]) for row in again} == {line: row["accuracy"] for line, row in rows.items()}


def test_bench_prices_what_is_missing_and_writes_nothing(folder: Path, tmp_path: Path, diffaug: Command) -> None:
    small = ("--set", "per_class=2", "--set", "config.num_inference_steps=3")
    words = ("bench", "fashion_5shot_genie", "--draws", "2", *small, "--out", tmp_path / "bench")
    found = json.loads(diffaug(*words, "--dry-run", "--json").out)
    # per draw: 20 images of genie and 20 of txt2img; real, duplicate, classic, txt2img, genie, genie alone, zero_shot
    assert (found["draws"], found["runs"], found["images"]) == (2, 4, 80)
    assert (found["cells"], found["done"], found["steps"], found["cell_seconds"]) == (14, 0, 0, None)
    said = diffaug(*words, "--dry-run")
    assert "80 to make in 4 runs" in said.out and "nothing written" in said.out
    assert not (tmp_path / "bench").exists()


def test_a_finished_bench_is_priced_at_nothing(folder: Path, tmp_path: Path, diffaug: Command) -> None:
    words = ("bench", folder, "--out", tmp_path / "bench", "--classifier", "class_mean")
    said = diffaug(*words)
    assert said.code == 0
    steps = ["starting", "loading tiny", "reading 1 set and the real images beside", "6 of 6 classifiers to train"]
    places = [said.err.find(step) for step in steps]
    assert places == sorted(places) and -1 not in places, said.err
    assert re.search(
        r"^encoding [\d,]+ images with diffaug-tiny-encoder@\w+, but for those done before", said.err, re.M
    )
    found = json.loads(diffaug(*words, "--dry-run", "--json").out)
    assert (found["images"], found["cells"], found["done"], found["cell_seconds"]) == (0, 6, 6, 0)


def test_a_bench_stops_by_the_clock_and_says_what_is_left(folder: Path, tmp_path: Path, diffaug: Command) -> None:
    words = ("bench", folder, "--out", tmp_path / "bench", "--classifier", "class_mean")
    said = diffaug(*words, "--minutes", "0")
    assert said.code == 3
    assert "the time is over (--minutes) and 6 cells are left; the same command goes on." in said.err
    assert not (tmp_path / "bench" / "table.csv").exists()
    assert diffaug(*words).code == 0


def test_options_win_over_a_file_and_it_is_said(folder: Path, tmp_path: Path, diffaug: Command) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"sets: [{{set: {folder}, name: mine}}]\nclassifiers: [svm]\ncontrols: [real]\nimages_per_class: 2\n"
    )
    words = ("bench", tmp_path / "mine.yaml", "--out", tmp_path / "bench", "--images-per-class", "1")
    said = diffaug(*words, "--classifier", "class_mean")
    assert f"--images-per-class wins over `images_per_class` of {tmp_path / 'mine.yaml'}." in said.err
    assert f"--classifier wins over `classifiers` of {tmp_path / 'mine.yaml'}." in said.err
    with (tmp_path / "bench" / "table.csv").open(encoding="utf-8") as file:
        rows = {row["line"]: row for row in csv.DictReader(file)}
    assert {row["classifier"] for row in rows.values()} == {"class_mean"}
    assert rows.keys() == {"real", "mine"} and rows["mine"]["images"] == "30"
    with (tmp_path / "bench" / "cells.csv").open(encoding="utf-8") as file:
        cells = {row["line"]: row for row in csv.DictReader(file)}
    assert "seconds" in cells["mine"] and "seconds" not in rows["mine"]
    assert int(cells["mine"]["evaluations"]) > 0 and cells["real"]["evaluations"] == ""


@pytest.mark.parametrize("draws", ["x", "0", "3-1", "1,1", "-1", "1-99999999"])
def test_draws_that_cannot_be_are_one_sentence(folder: Path, draws: str, diffaug: Command) -> None:
    assert "draws" in diffaug("bench", folder, f"--draws={draws}").sentence


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--classifier", "forest"], "--classifier: got 'forest', expected one of class_mean, logistic, svm, scratch."),
        (["-p", "2"], "--probability: got 2.0, input should be less than or equal to 1."),
        (
            ["--rule", "any"],
            "--rule: got 'any', input should be 'global', 'class', 'index', 'lt_inverse' or 'concatenate'.",
        ),
    ],
)
def test_options_that_cannot_be_are_one_sentence(
    folder: Path, words: list[str], sentence: str, diffaug: Command
) -> None:
    said = diffaug("bench", folder, *words)
    assert said.sentence == sentence


@pytest.mark.parametrize("verb", ["measure", "bench"])
def test_what_is_no_set_is_one_sentence(verb: str, folder: Path, tmp_path: Path, diffaug: Command) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.png").write_bytes(b"x")
    unfinished = small_run(tmp_path / "unfinished", "txt2img", per_class=1).folder
    out = ("--out", tmp_path / "bench") if verb == "bench" else ()

    def refusal(*words: object) -> str:
        return diffaug(verb, *words, *out).sentence

    empty, photo = tmp_path / "empty", tmp_path / "photo.png"
    assert refusal(empty).startswith(f"{empty}: is no run folder (no plan.json) and no published set (no README.md)")
    for place in ("nowhere", photo, tmp_path / "none"):
        assert refusal(place).startswith(f"{place}: no such folder, expected a run folder, a published set")
    assert refusal(unfinished).startswith(f"{unfinished}: not finished; `diffaug generate")
    assert "encoder 'none' is neither a folder nor a Hub id" in refusal(folder, "--encoder", "none")
    assert refusal(folder, "--config", "x") == (
        f"--config: is for published sets, and {folder} is a run folder; leave it out."
    )
    assert refusal(folder, "--with-real", "x").startswith("--with-real: is for published sets")


def test_a_place_that_cannot_be_written_is_one_sentence(folder: Path, tmp_path: Path, diffaug: Command) -> None:
    (tmp_path / "file").write_bytes(b"")
    cells = tmp_path / "file" / "bench" / "cells"
    assert diffaug("bench", folder, "--out", cells.parent).sentence == (
        f"{cells}: cannot be made (Not a directory); give another place."
    )


def test_published_sets_without_what_is_needed_are_one_sentence(folder: Path, tmp_path: Path, diffaug: Command) -> None:
    out = ("--out", tmp_path / "bench")
    name = Run.open(folder).plan.header.name
    whole, pixelless, untested = (tmp_path / shelf for shelf in ("whole", "pixelless", "untested"))
    assert diffaug("publish", folder, whole.as_uri()).code == 0
    assert diffaug("publish", folder, pixelless.as_uri(), "--recipe-only").code == 0
    for verb, words in (("measure", ()), ("bench", out)):
        assert "was published without pixels" in diffaug(verb, pixelless, *words).sentence
        provenance = diffaug(verb, whole, "--config", f"{name}_provenance", *words)
        assert provenance.sentence == f"{whole}: this config holds no images; choose another one."
        synthetic = diffaug(verb, whole, "--config", f"{name}_synthetic", *words).sentence
        assert "choose another" in synthetic and "your copy of the real images (--with-real)" in synthetic
    run = small_run(tmp_path / "run", "txt2img", per_class=1)
    execute(run, WorkerOptions(), workers=1)
    assert diffaug("publish", run.folder, untested.as_uri()).code == 0
    for place in (run.folder, untested):
        assert diffaug("bench", place, *out).sentence == (
            f"{place}: holds no test image, and a bench needs some; plan with include_test: true and a source that has "
            "a test split."
        )
