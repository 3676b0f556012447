"""`measure` as a person types it: leaks first, numbers kept for report, card and JSON, and known when they are old."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "run"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line import Command
from small_runs import small_run

from diffaug_datasets.core.files import sha256_file
from diffaug_datasets.core.models import find_model
from diffaug_datasets.release.measures import MeasuresFile, selection_digest
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = small_run(tmp_path_factory.mktemp("measured") / "run", "txt2img", include_test=True, per_class=1)
    execute(run, WorkerOptions(), workers=1)
    return run.folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "measure-cache"))


def test_numbers_go_into_run_folder_report_card_and_published_set(
    folder: Path, tmp_path: Path, diffaug: Command
) -> None:
    run = Run.open(folder)
    said = diffaug("measure", folder)
    assert said.code == 0
    assert f"measures: {folder / 'measures.json'}, for report and publish" in said.err
    assert re.search(r"^comparing [\d,]+ synthetic images with [\d,]+ real test images \.\.\.$", said.err, re.M), (
        said.err
    )
    assert "was trained on the training split of Fashion-MNIST and not on its test images, says its card" in said.err
    kept = MeasuresFile.model_validate_json((folder / "measures.json").read_text(encoding="utf-8"))
    assert (kept.plan_id, kept.measured[0].where) == (run.plan.id, run.plan.header.name)
    assert kept.selection == selection_digest(folder / "selection.parquet")
    probe = kept.measured[0].get("probe_agreement")
    assert str(tmp_path) not in kept.text()

    assert diffaug("report", folder).code == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Beside real images" in page
    assert f'<td data-name="value">{probe.value:.4g}</td>' in page
    assert "10 images, 128 are needed for a covariance of 64 features" in page

    shelf = tmp_path / "shelf"
    assert diffaug("publish", folder, shelf.as_uri()).code == 0
    card = (shelf / "README.md").read_text(encoding="utf-8")
    assert "### How the images compare with real ones" in card
    assert re.search(rf"label accuracy by a probe .*\| {probe.value:.4g} \| ", card)
    assert "Withheld, Frechet distance (down): 10 images, 128 are needed" in card
    (published,) = shelf.rglob("measures.json")
    assert MeasuresFile.model_validate_json(published.read_bytes()) == kept
    assert diffaug("verify", shelf).code == 0

    out = tmp_path / "out.json"
    said = diffaug("measure", shelf, "-o", out)
    assert said.code == 0
    again = MeasuresFile.model_validate_json(out.read_bytes())
    assert (again.plan_id, again.selection) == (kept.plan_id, kept.selection)
    assert again.measured[0].measures == kept.measured[0].measures

    published.write_text(kept.model_copy(update={"plan_id": "0" * 64}).text(), encoding="utf-8")
    stated = published.parent / "run.json"
    content = json.loads(stated.read_text(encoding="utf-8"))
    for file in content["beside"]:
        if file["file"] == "measures.json":
            file |= {"sha256": sha256_file(published), "size": published.stat().st_size}
    stated.write_text(json.dumps(content), encoding="utf-8")
    said = diffaug("verify", shelf)
    assert said.code == 1
    assert "measures.json: belongs to plan 0000000000000000" in said.out


def test_by_class_is_added_and_another_encoder_stands_beside(folder: Path, tmp_path: Path, diffaug: Command) -> None:
    own = tmp_path / "own"
    packaged = find_model("tiny", "encoder").folder
    assert packaged is not None
    shutil.copytree(packaged, own)
    (own / "README.md").write_text("---\ndatasets: [zalando-datasets/fashion_mnist]\n---\n", encoding="utf-8")
    content = json.loads(diffaug("measure", folder, "--json").out)
    assert {m["of"] for m in content[0]["measures"]} > {None, "Bag"}
    said = diffaug("measure", folder, "--encoder", own, "--encoder", "tiny")
    assert said.code == 0
    assert f"warning: {folder}: encoder own@" in said.err and "and names no split" in said.err
    kept = MeasuresFile.model_validate_json((folder / "measures.json").read_text(encoding="utf-8"))
    assert [one.encoder.partition("@")[0] for one in kept.measured] == ["own", "diffaug-tiny-encoder"]
    assert [any(m.of == "Bag" for m in one.measures) for one in kept.measured] == [False, True]
    assert diffaug("report", folder).code == 0
    assert "Leak: encoder own@" in (folder / "report.html").read_text(encoding="utf-8")


def test_measures_of_other_rows_are_named_and_not_used(folder: Path, tmp_path: Path, diffaug: Command) -> None:
    old = MeasuresFile(plan_id="0" * 64, selection=selection_digest(folder / "selection.parquet"), measured=())
    (folder / "measures.json").write_text(old.text(), encoding="utf-8")
    reason = "belongs to plan 0000000000000000, and this is plan"
    said = diffaug("publish", folder, (tmp_path / "shelf").as_uri(), "--dry-run")
    assert f"measures.json: {reason}" in said.err and "`diffaug measure" in said.err
    assert "data/fashion" in said.out and "/measures.json" not in said.out
    assert diffaug("report", folder).code == 0
    assert reason in (folder / "report.html").read_text(encoding="utf-8")


def test_a_place_that_is_none_is_refused_before_anything_is_loaded(folder: Path, diffaug: Command) -> None:
    for verb in ("measure", "bench"):
        said = diffaug(verb, folder, folder.with_name("rum"))
        assert said.code == 2 and "loading" not in said.err, said.err
        assert "no such folder, expected a run folder, a published set (org/name on the Hub) or an address" in said.err


def test_a_file_is_of_one_set(folder: Path, tmp_path: Path, diffaug: Command) -> None:
    said = diffaug("measure", folder, folder.parent, "-o", tmp_path / "out.json")
    assert said.sentence == "--out: got 2 sets, and a file is of one; measure them one by one."
