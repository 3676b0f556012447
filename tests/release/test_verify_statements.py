"""Each statement of `run.json` in turn says something else, digests of files made to agree: `verify` names it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Command
from small_release import made
from test_verify import Shelf, with_column

from diffaug_datasets.release.checks import OK, WRONG, Check
from diffaug_datasets.release.rebuild import Rebuilder
from diffaug_datasets.release.repository import Repository
from diffaug_datasets.release.verify import run_checks
from diffaug_datasets.run.store import Run

NOT_COMPARED = {
    "seconds": "receipts of shards stay with the publisher",
    "evaluations": "receipts of shards stay with the publisher",
    "finished": "a time of the publisher's clock",
    "package": "nothing else names the version that published",
    "files[].num_bytes": "memory, which follows from the version of Arrow",
    "stacks[].*": "stacks of shards are stated here alone; of fits they are compared, see below",
    "leak_check.test_images": "this set has no test split; of one that has, it is compared, see below",
    "shown.oracle.model": "who looked is the publisher's word; what is counted from its verdicts is compared",
    "shown.oracle.real.images[]": "how the oracle did on real images is the publisher's word",
    "shown.oracle.real.right[]": "how the oracle did on real images is the publisher's word",
    "shown.withheld": "why there is no oracle; here is one",
    "shown.classes[].remark": "advice, which changes with the version",
    "leak_check.embeddings": "which grounds were looked at leaves no trace",
}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Pattern of a statement (`files[].size`) and the keys that lead to its first instance."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            for pattern, keys in leaves(item, f"{path}.{key}".lstrip(".")):
                yield pattern, [key, *keys]
    elif isinstance(value, list) and value:
        for pattern, keys in leaves(value[0], f"{path}[]"):
            yield pattern, [0, *keys]
    else:
        yield path, []


def other(value: Any) -> Any:
    """A value of the same kind that says something else."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1") if value else "x"
    return {"files": [], "overrides": ["licence"], "extra": ["test_similarity"]}.get(str(value))


EMPTY = {  # what stands in the place of an empty list, an empty mapping or null
    "failed": [{"row_id": "0" * 24, "reason": "constant image", "attempts": 3}],
    "overrides": ["licence"],
    "extra": ["test_similarity"],
    "licences": [{"licence": "CC0", "real": 1, "made": 1}],
}


def checks(shelf: Shelf) -> list[Check]:
    """What `verify` says, without making rows again; a `run.json` that cannot be read is one check that failed."""
    repository = Repository.open(shelf.place)
    try:
        release = repository.release(None)
    except Exception as error:
        return [Check("run.json", WRONG, str(error))]
    return list(run_checks(repository, release, Rebuilder(repository, release, shelf.folder), 0))


def wrong(shelf: Shelf) -> str:
    """The words of everything that failed."""
    return " | ".join(check.told for check in checks(shelf) if check.outcome != OK)


def test_every_statement_is_compared(finished: Run, tmp_path: Path) -> None:
    shelf = Shelf(finished, tmp_path / "fashion")
    path = shelf.folder / "run.json"
    good = json.loads(path.read_text())
    assert wrong(shelf) == ""
    silent, found = [], dict(leaves(good))
    for pattern, keys in found.items():
        content = json.loads(json.dumps(good))
        place: Any = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = EMPTY[pattern] if pattern in EMPTY else other(place[keys[-1]])
        path.write_text(json.dumps(content))
        told = wrong(shelf)
        if not told:
            silent.append(pattern)
        elif pattern.partition("[")[0].partition(".")[0] not in (
            "schema",
            "schema_digest",
            "class_names",
            "files",
            "beside",
        ):
            word = str(keys[0]).partition("_")[0]
            assert word in told.replace("plan's", "plan_id") or "run.json" in told, (pattern, told)
    expected = {p for p in found if p in NOT_COMPARED or (p.startswith("stacks[]") and "stacks[].*" in NOT_COMPARED)}
    assert set(silent) == expected
    assert len(found) > 40


def test_statements_that_are_left_out_are_missed(finished: Run, tmp_path: Path) -> None:
    """A file, a class or a number that run.json is silent about."""
    shelf = Shelf(finished, tmp_path / "fashion")
    path = shelf.folder / "run.json"
    good = json.loads(path.read_text())
    changes: dict[str, Any] = {
        "files": good["files"][:-1],
        "beside": [file for file in good["beside"] if file["file"] != "selection.parquet"],
        "counts": good["counts"][:-1],
        "quality": {name: value for name, value in good["quality"].items() if name != "clip_score"},
        "stacks": good["stacks"] * 2,
    }
    for key, value in changes.items():
        path.write_text(json.dumps(good | {key: value}))
        assert wrong(shelf), key


def test_what_this_set_lacks_is_compared_where_it_is(tmp_path: Path) -> None:
    """Stacks of fits, and the number of test images."""
    run = made(
        tmp_path / "run", "fashion_1shot_diffii", include_test=True,
        config={"num_inference_steps": 2, "inversion_steps": 2, "concepts": {"steps": 1}},
    )  # fmt: skip
    shelf = Shelf(run, tmp_path / "fashion", allow=("test-leak",))
    path = shelf.folder / "run.json"
    good = json.loads(path.read_text())
    assert wrong(shelf) == ""
    path.write_text(json.dumps(good | {"stacks": [{**good["stacks"][0], "torch": "1.0"}]}))
    assert "stacks: fits/" in wrong(shelf)
    path.write_text(json.dumps(good | {"leak_check": {"test_images": 7, "embeddings": True}}))
    assert "leak_check: run.json states 7, 1000 is so" in wrong(shelf)
    path.write_text(json.dumps(good))
    receipt = next(shelf.folder.glob("fits/*/receipt.json"))
    receipt.write_text("[")
    shelf.agree(str(receipt.relative_to(shelf.folder)))
    assert "receipt.json is no receipt that can be read" in wrong(shelf)


def test_another_recipe_or_row_is_found(finished: Run, tmp_path: Path, diffaug: Command) -> None:
    shelf = Shelf(finished, tmp_path / "fashion")
    recipe = shelf.folder / "recipe.yaml"
    good = recipe.read_text()
    for old, new in (("seed: 0", "seed: 5"), ("id: tiny", "id: someone/else"), ("shard_rows: 4", "shard_rows: 5")):
        assert old in good
        recipe.write_text(good.replace(old, new))
        shelf.agree("recipe.yaml")
        assert "recipe.yaml is not the recipe of the plan" in wrong(shelf), new
    recipe.write_text(good)
    shelf.agree("recipe.yaml")
    shelf.change("provenance.parquet", with_column("row_id", lambda old: ["0" * 24, *old[1:]]))
    assert "rows are not in both the plan and the provenance" in wrong(shelf)


def test_what_is_no_json_object_states_nothing(finished: Run, tmp_path: Path) -> None:
    """The column that names makers and licences, written by a stranger."""
    shelf = Shelf(finished, tmp_path / "fashion")
    shelf.change("provenance.parquet", with_column("measured", lambda old: ["[1]", "{", "3", *old[3:]]))
    assert wrong(shelf) == ""


@pytest.mark.parametrize("origin", ["retrieved", "real"])
def test_rows_are_of_the_origin_that_is_stated(finished: Run, tmp_path: Path, origin: str) -> None:
    shelf = Shelf(finished, tmp_path / "fashion")
    shelf.change("train-00001-of-00004.arrow", with_column("origin", lambda old: [origin, *old[1:]]))
    assert "train-00001-of-00004.arrow has rows that are not generated, as run.json states" in wrong(shelf)
