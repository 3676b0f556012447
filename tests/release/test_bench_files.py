"""A bench beside a published set: one commit, nothing doubled, nothing of others lost, and `verify` knows it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hub.server import LoopbackHub

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.files import load_yaml
from diffaug_datasets.release.bench_files import BenchFiles, configs_with_test, eval_yaml, send_bench, stated_digests
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.release.verify import verify
from diffaug_datasets.run.store import Run

NAME = "org/fashion"
FIRST = BenchFiles("## Does it help?\n\nno", {"table.csv": b"line,gain\na,0\n", "cells.parquet": b"PAR1 one"})
SECOND = BenchFiles("## Does it help?\n\nyes", {"table.csv": b"line,gain\na,5\n", "cells.parquet": b"PAR1 one"})


def test_a_bench_goes_out_in_one_commit_and_takes_the_place_of_the_last(hub: LoopbackHub, finished: Run) -> None:
    publish(finished, NAME)
    before = hub.files(NAME)["README.md"].decode()
    dry = send_bench(FIRST, NAME, dry_run=True)
    assert hub.files(NAME)["README.md"].decode() == before
    assert {item.path for item in dry.items} == {"README.md", "bench/table.csv", "bench/cells.parquet"}
    done = send_bench(FIRST, NAME)
    assert hub.files(NAME)["bench/table.csv"] == FIRST.tables["table.csv"]
    assert not send_bench(FIRST, NAME).items and send_bench(FIRST, NAME).commit == done.commit
    again = send_bench(SECOND, NAME)
    assert {item.path for item in again.items} == {"README.md", "bench/table.csv"}
    card = hub.files(NAME)["README.md"].decode()
    assert card.count("diffaug-bench: begin") == 1 and "yes" in card and "\n\nno\n" not in card
    assert card.startswith(before.rstrip())


def test_publishing_the_set_again_keeps_the_bench(hub: LoopbackHub, finished: Run, other_plan: Run) -> None:
    publish(finished, NAME)
    send_bench(FIRST, NAME)
    publish(other_plan, NAME)
    assert set(stated_digests(hub.files(NAME)["README.md"].decode())) == {"bench/table.csv", "bench/cells.parquet"}


def test_verify_knows_the_tables(hub: LoopbackHub, finished: Run, tmp_path: Path) -> None:
    publish(finished, NAME)
    assert "bench" not in {check.name for check in verify(NAME).checks}
    send_bench(FIRST, NAME)
    found = verify(NAME)
    assert found.passed
    assert next(check.told for check in found.checks if check.name == "bench").startswith("2 tables of a bench have")
    place = (tmp_path / "shelf").as_uri()
    publish(finished, place)
    send_bench(FIRST, place)
    assert verify(tmp_path / "shelf").passed
    (tmp_path / "shelf" / "bench" / "table.csv").write_bytes(b"line,gain\na,99\n")
    found = verify(tmp_path / "shelf")
    assert [check.told for check in found.checks if check.outcome == "WRONG"] == [
        "bench/table.csv has other bytes than README.md states"
    ]


@pytest.mark.parametrize("make", [lambda api: None, lambda api: api.create_repo(NAME, repo_type="dataset")])
def test_without_a_published_set_nothing_goes(hub: LoopbackHub, make: Callable) -> None:
    from huggingface_hub import HfApi

    make(HfApi())
    with pytest.raises(PublishError, match=r"org/fashion: no .*publish the run first"):
        send_bench(FIRST, NAME)


def test_eval_yaml_has_a_task_per_tested_config_and_keeps_what_people_wrote() -> None:
    metadata = {
        "configs": [
            {"config_name": "birds_diffii", "data_files": [{"split": "train"}, {"split": "test"}]},
            {"config_name": "birds_diffii_synthetic", "data_files": [{"split": "train"}, {"split": "test"}]},
            {"config_name": "birds_genie", "data_files": [{"split": "train"}]},
        ]
    }
    configs = configs_with_test(metadata)
    assert configs == ["birds_diffii"]
    first = load_yaml(eval_yaml(None, "Birds", configs))
    assert first["tasks"] == [{"id": "birds_diffii", "config": "birds_diffii", "split": "test"}]
    assert first["name"] == "Birds" and first["description"]
    theirs = "name: Mine\nevaluation_framework: mteb\ntasks:\n- id: birds_diffii\n  split: validation\n- id: other\n"
    kept = load_yaml(eval_yaml(theirs, "Birds", [*configs, "more"]))
    assert kept["name"] == "Mine" and kept["evaluation_framework"] == "mteb"
    assert [task["id"] for task in kept["tasks"]] == ["birds_diffii", "other", "more"]
    assert kept["tasks"][0]["split"] == "validation"


@pytest.mark.parametrize("old", ["- 1", "tasks: 5", "tasks: [1]", "a: [", "!!python/name:os.system x"])
def test_an_eval_yaml_that_is_none_is_one_sentence(old: str) -> None:
    with pytest.raises(PublishError, match=r"eval.yaml: .*put it right or remove it"):
        eval_yaml(old, "Birds", ["a"])


def test_a_mark_names_no_other_files() -> None:
    card = (
        f"<!-- diffaug-bench: begin bench/../README.md={'0' * 64} data/x={'1' * 64} -->\nx\n<!-- diffaug-bench: end -->"
    )
    assert stated_digests(card) == {}
