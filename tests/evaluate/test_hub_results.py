"""What a bench says to others, as the Hub's own parser reads it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from answers import kept, simulated
from hub.clients import loopback_hub
from hub.server import LoopbackHub
from huggingface_hub import HfApi, parse_eval_result_entries

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.evaluate.hub_results import (
    Benchmark,
    Trained,
    bench_files,
    eval_result,
    results_file,
    send_result,
)
from diffaug_datasets.evaluate.record import read_bench
from diffaug_datasets.evaluate.table import TableRow, table

MODEL = "org/classifier"
BENCHMARK = Benchmark("org/fashion", "fashion_5shot_genie", "0" * 40, "2026-11-26")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with loopback_hub(tmp_path) as found:
        yield found


@pytest.fixture
def rows(tmp_path: Path) -> tuple[TableRow, ...]:
    return table(simulated(tmp_path, {"genie": 0.1, "txt2img": 0.05}))


def test_a_result_is_what_the_hubs_parser_reads(hub: LoopbackHub, rows: tuple[TableRow, ...]) -> None:
    entry = eval_result(rows, Trained(MODEL, "genie"), BENCHMARK)
    api = HfApi()
    api.create_repo(MODEL, repo_type="model")
    send_result(entry, MODEL)
    commit = send_result(entry, MODEL)
    assert commit == api.repo_info(MODEL).sha and len(api.list_repo_commits(MODEL)) <= 2
    path = ".eval_results/org-fashion-fashion_5shot_genie.yaml"
    text = Path(api.hf_hub_download(MODEL, path)).read_text()
    [read] = parse_eval_result_entries(yaml.safe_load(text))
    assert read == entry
    row = next(row for row in rows if row.line == "genie")
    assert read.value == round(100 * row.accuracy, 2) and read.dataset_revision == "0" * 40
    assert (read.dataset_id, read.task_id, read.date) == (BENCHMARK.dataset, BENCHMARK.task, BENCHMARK.date)
    assert "gain over the real images alone +" in read.notes and "5 draws" in read.notes


def test_a_result_needs_its_line_and_its_classifier(tmp_path: Path, rows: tuple[TableRow, ...]) -> None:
    with pytest.raises(PublishError, match=r"--line: got 'x', expected one of "):
        eval_result(rows, Trained(MODEL, "x"), BENCHMARK)
    other = table(simulated(tmp_path, {"genie": 0.1}, kind={"classifier": "svm"}))
    with pytest.raises(PublishError, match=r"--classifier: say which one .* one of logistic, svm"):
        eval_result((*rows, *other), Trained(MODEL, "genie"), BENCHMARK)
    entry = eval_result((*rows, *other), Trained(MODEL, "genie", "svm"), BENCHMARK)
    assert "svm on tiny@1" in entry.notes


def test_a_model_that_is_not_there(hub: LoopbackHub, rows: tuple[TableRow, ...]) -> None:
    entry = eval_result(rows, Trained(MODEL, "genie"), BENCHMARK)
    with pytest.raises(PublishError, match="org/classifier: no such model repository"):
        send_result(entry, MODEL)
    with pytest.raises(PublishError, match=r"--model: got '../x'"):
        eval_result(rows, Trained("../x", "genie"), BENCHMARK)


def test_the_file_name_of_a_result_leads_nowhere(rows: tuple[TableRow, ...]) -> None:
    entry = eval_result(rows, Trained(MODEL, "genie"), Benchmark("a/../b", "x/y", "", "2026-11-26"))
    assert results_file(entry)[0] == ".eval_results/a-..-b-x-y.yaml"


def test_the_section_has_intervals_and_no_markup_of_others(tmp_path: Path) -> None:
    answer = simulated(tmp_path, {"a | <b>x</b>": 0.1}, draws=3)
    kept(tmp_path, answer, place="gone/set", leaks=("1 of the synthetic images are test images.",))
    found = read_bench(tmp_path)
    section = bench_files(found, table(found.answer)).section
    assert "<b>" not in section and "gone/set" not in section
    assert "1 of the synthetic images are test images" in section
    head = next(line for line in section.splitlines() if line.startswith("| line"))
    assert "gain over real (95 %)" in head
    assert all(line.count(" | ") == head.count(" | ") for line in section.splitlines() if line.startswith("| "))


@pytest.mark.parametrize("name", ["genie (/home/me/run)", "genie (s3://bucket/run)", "~/x", "x (C:\\runs)"])
def test_places_of_this_machine_do_not_go_out(tmp_path: Path, name: str) -> None:
    kept(tmp_path, simulated(tmp_path, {name: 0.1}, draws=1))
    found = read_bench(tmp_path)
    with pytest.raises(PublishError, match="names a place of this machine; give the set a `name`"):
        bench_files(found, table(found.answer))
