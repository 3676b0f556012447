"""`bench table`, `bench report` and `bench publish` as a person types them, on a small real bench and the Hub."""

import json
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "run"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line import Command
from hub.clients import loopback_hub
from huggingface_hub import HfApi, parse_eval_result_entries
from small_runs import small_run

from diffaug_datasets.evaluate.bench import bench
from diffaug_datasets.evaluate.suite import Bench
from diffaug_datasets.models.encoders import Encoder
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions

NAME, MODEL = "org/fashion", "org/classifier"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = small_run(tmp_path_factory.mktemp("shown") / "run", "txt2img", include_test=True, per_class=2)
    execute(run, WorkerOptions(), workers=1)
    return Run.open(run.folder)


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    spec = Bench.from_dict(
        {"sets": [str(run.folder)], "classifiers": ["class_mean"], "controls": ["real", "zero_shot"]}
    )
    bench(spec, [Encoder.load("tiny")], folder, cache=tmp_path_factory.getbasetemp() / "shown-cache")
    return folder


def test_table_is_understood_without_a_legend(folder: Path, diffaug: Command) -> None:
    said = diffaug("bench", "table", folder)
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0] == "1 draw of the real images, 1,000 test images"
    assert lines[2] == "class_mean on diffaug-tiny-encoder@d63e4a0e6eb8 (class, p 0.5, C 1)"
    head = ["line", "accuracy (95 %)", "gain over real (95 %)", "verdict", "rank (95 %, this draw)", "images"]
    assert lines[3].split("  ")[0] == "line" and all(name in lines[3] for name in head)
    assert {line.split("  ")[0] for line in lines[4:7]} == {"real", "txt2img", "zero_shot"}
    assert lines[7].startswith("One draw: intervals and verdicts are about its test images alone (McNemar")
    rows = json.loads(diffaug("bench", "table", folder, "--json").out)["rows"]
    assert {row["line"] for row in rows} == {"real", "txt2img", "zero_shot"}
    assert {"table.csv", "cells.csv", "cells.parquet", "answer.json", "bench.yaml"} <= {
        p.name for p in folder.iterdir()
    }


def test_report_is_one_page(folder: Path, tmp_path: Path, diffaug: Command) -> None:
    said = diffaug("bench", "report", folder)
    assert said.out.strip() == f"page: {folder / 'report.html'}"
    assert "Gain over the real images alone" in (folder / "report.html").read_text(encoding="utf-8")
    assert (
        diffaug("bench", "report", folder, "--out", tmp_path / "p.html").out.strip() == f"page: {tmp_path / 'p.html'}"
    )


def test_publish_adds_the_bench_to_the_set_and_the_result_to_the_model(
    run: Run, folder: Path, tmp_path: Path, diffaug: Command
) -> None:
    assert diffaug("bench", "table", folder).code == 0
    with loopback_hub(tmp_path) as hub:
        publish(run, NAME)
        writes = len(hub.writes())
        dry = diffaug("bench", "publish", folder, NAME, "--dry-run")
        assert dry.code == 0 and "## Does it help a classifier?" in dry.out and "eval.yaml" in dry.out
        assert "nothing was sent to org/fashion (--dry-run)" in dry.err and len(hub.writes()) == writes
        HfApi().create_repo(MODEL, repo_type="model")
        said = diffaug("bench", "publish", folder, NAME, "--model", MODEL, "--line", "txt2img")
        assert said.code == 0 and "published: org/fashion, 4 files, commit " in said.out
        files = hub.files(NAME)
        card = files["README.md"].decode()
        assert "| txt2img | " in card and "gain over real (95 %)" in card and str(run.folder) not in card
        tasks = yaml.safe_load(files["eval.yaml"])["tasks"]
        assert tasks == [{"id": run.plan.header.name, "config": run.plan.header.name, "split": "test"}]
        assert files["bench/table.csv"] == (folder / "table.csv").read_bytes()
        path = f".eval_results/org-fashion-{run.plan.header.name}.yaml"
        text = Path(HfApi().hf_hub_download(MODEL, path)).read_text()
        [entry] = parse_eval_result_entries(yaml.safe_load(text))
        assert (entry.dataset_id, entry.task_id) == (NAME, run.plan.header.name)
        assert entry.dataset_revision == HfApi().repo_info(NAME, repo_type="dataset").sha
        verified = diffaug("verify", NAME)
        assert verified.code == 0 and "bench: ok, 2 tables of a bench" in verified.out
        assert "nothing was sent" in diffaug("bench", "publish", folder, NAME).out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["table"], "bench table: got 0 places, expected FOLDER; a set that is called 'table' is reached as ./table."),
        (["publish", "FOLDER"], "bench publish: got 1 places, expected FOLDER TARGET;"),
        (["report", "FOLDER", "-p", "0.3"], "--probability: is not for `bench report`; leave it out."),
        (["publish", "FOLDER", "org/x", "--line", "real"], "--model and --line belong together"),
        (["publish", "FOLDER", "org/x", "--model", "org/m", "--line", "z"], "--line: got 'z', expected one of "),
        (["publish", "FOLDER", "org/x", "--model", "m", "--line", "real"], "--model: got 'm', expected org/name of"),
        (["publish", "FOLDER", "x"], "got the target 'x', expected org/name for the Hub or an address"),
    ],
)
def test_what_cannot_be_is_one_sentence(folder: Path, words: list[str], sentence: str, diffaug: Command) -> None:
    said = diffaug("bench", *(folder if word == "FOLDER" else word for word in words))
    assert said.sentence.startswith(sentence)
