"""A bench is read again from its folder: all of it, and nothing that was changed since."""

import json
from pathlib import Path

import pytest
from answers import kept, simulated

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.evaluate.record import read_bench
from diffaug_datasets.evaluate.table import table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    kept(tmp_path, simulated(tmp_path, {"a": 0.1, "b": 0.0}, draws=2))
    return tmp_path


def test_what_is_read_gives_the_same_table(tmp_path: Path) -> None:
    answer = simulated(tmp_path, {"a": 0.1}, draws=3, seeds=(0, 1))
    kept(tmp_path, answer, leaks=("1 of the synthetic images are test images.",))
    found = read_bench(tmp_path)
    assert table(found.answer) == table(answer)
    assert found.draws == answer.draws and found.lines == ("a",) and found.class_names == ("cat", "dog", "fox")
    assert found.record.draws[0].real == (1, 1, 1)
    assert found.leaks[0].startswith("gone/set: 1 of the synthetic images are test images.")


def test_a_cell_of_another_bench_in_the_folder_is_no_part_of_the_answer(folder: Path) -> None:
    before = len(read_bench(folder).results)
    simulated(folder, {"other": 0.1}, draws=1, kind={"classifier": "svm"})
    assert len(read_bench(folder).results) == before


def test_addresses_lose_their_passwords(tmp_path: Path) -> None:
    kept(tmp_path, simulated(tmp_path, {"a": 0.1}, draws=1), place="s3://user:secret@host/birds")
    assert "secret" not in (tmp_path / "answer.json").read_text()


def test_an_empty_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no finished bench \(no answer.json\); `diffaug bench SET"):
        read_bench(tmp_path)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("torn", "has other predictions beside it than it states"),
        ("other", "speaks of another cell"),
        ("gone", "No such file"),
        ("label", "has a label that no class has"),
    ],
)
def test_a_changed_cell_is_one_sentence(folder: Path, damage: str, sentence: str) -> None:
    first, second = sorted(json.loads((folder / "answer.json").read_text())["cells"])[:2]
    path, file = folder / "cells" / f"{first}.json", folder / "cells" / f"{first}.parquet"
    if damage == "torn":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "other":
        path.write_text((folder / "cells" / f"{second}.json").read_text())
    elif damage == "gone":
        file.unlink()
    else:
        record = json.loads((folder / "answer.json").read_text())
        for draw in record["draws"]:
            draw["class_names"] = ["cat", "dog"]
        (folder / "answer.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=f"is not a finished cell.*{sentence}.*makes it anew"):
        read_bench(folder)


@pytest.mark.parametrize(
    "change", [{"cells": ["../../x"]}, {"cells": []}, {"schema": 99}, {"draws": []}, {"cells": "x"}]
)
def test_a_changed_record_is_one_sentence(folder: Path, change: dict) -> None:
    record = json.loads((folder / "answer.json").read_text())
    (folder / "answer.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(RunError, match=r"answer.json: cannot be read \(.*\); run the same bench again."):
        read_bench(folder)
