"""What may not go out, the sentence that says why, and what the card says where a person overruled it."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from command_line import Command
from datasets import load_dataset
from hub.server import LoopbackHub
from small_release import made

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.sources import BuilderFacts
from diffaug_datasets.release import contents as contents_module
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.publishing import preview, publish
from diffaug_datasets.run.assembly import assemble
from diffaug_datasets.run.store import Run

NAME = "org/fashion"


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same source under terms that forbid passing images on."""
    real = contents_module.recipe_facts

    def facts(recipe: Recipe) -> BuilderFacts:
        return replace(real(recipe), redistributable=False, licence="research only", licence_id="other")

    monkeypatch.setattr(contents_module, "recipe_facts", facts)


@pytest.mark.usefixtures("forbidden")
def test_derivatives_of_protected_images_need_a_word(hub: LoopbackHub, finished: Run) -> None:
    with pytest.raises(
        PublishError, match=r"may not be redistributed \(research only\).*--recipe-only, or with --i-have"
    ):
        publish(finished, NAME)
    assert not hub.writes()
    publish(finished, NAME, PublishOptions(with_rights=True))
    files = hub.files(NAME)
    card = files["README.md"].decode()
    assert "Published over the objection of the gate `licence`" in card
    assert "They are not published here" in card
    assert "license: other" in card
    ids = {row.source_ids[0].encode() for row in finished.plan.real}
    shards = [pa.ipc.open_stream(data).read_all() for path, data in files.items() if "/train-" in path]
    assert {origin for table in shards for origin in table["origin"].to_pylist()} == {"generated"}
    assert sum(table.num_rows for table in shards) == len(finished.plan.rows)
    provenance = next(data for path, data in files.items() if path.endswith("provenance.arrow"))
    assert all(found in provenance for found in ids), "withheld images must stay findable by id"
    assert b"withheld" in provenance


def test_a_word_that_nobody_asked_for_is_not_stated(hub: LoopbackHub, finished: Run) -> None:
    publish(finished, NAME, PublishOptions(with_rights=True, allow=("test-leak",)))
    assert "objection" not in hub.files(NAME)["README.md"].decode()


@pytest.mark.usefixtures("forbidden")
def test_a_recipe_goes_out_without_a_pixel(hub: LoopbackHub, finished: Run) -> None:
    publish(finished, NAME, PublishOptions(recipe_only=True))
    files = hub.files(NAME)
    assert not any(b"\x89PNG" in data for data in files.values())
    assert {path.rsplit("/", 1)[1] for path in files if path.startswith("data/")} == {
        *("plan.json", "plan.parquet", "provenance.arrow", "provenance.parquet", "recipe.yaml", "run.json"),
        "selection.parquet",
    }
    assert "holds no pixels" in files["README.md"].decode()


def test_a_model_of_unknown_terms(hub: LoopbackHub, copied: Callable[[], Run]) -> None:
    run = copied()
    path = run.folder / "plan.json"
    plan = json.loads(path.read_text())
    plan["header"]["backbone"] = "someone/their-model@0123"
    path.write_text(json.dumps(plan))
    run = Run(run.folder)
    done = json.loads((run.folder / "run.json").read_text()) | {"plan_id": run.plan.id}
    (run.folder / "run.json").write_text(json.dumps(done))
    with pytest.raises(PublishError, match="the terms of someone/their-model@0123 are not known"):
        publish(run, NAME)
    assert not hub.log


def test_too_many_failed_rows(hub: LoopbackHub, copied: Callable[[], Run]) -> None:
    run = copied()
    done = json.loads((run.folder / "run.json").read_text())
    lost = [{"row_id": row.row_id, "reason": "constant image", "attempts": 3} for row in run.plan.rows[:3]]
    (run.folder / "run.json").write_text(json.dumps(done | {"failed": lost}))
    with pytest.raises(PublishError, match=r"failed-rows: 3 of 10 rows failed.*--allow failed-rows"):
        publish(run, NAME)
    done = publish(run, NAME, PublishOptions(allow=("failed-rows",)))
    assert "objection of the gate `failed-rows`" in hub.files(NAME)["README.md"].decode()


def emptied(run: Run) -> Run:
    """The run as where the filters took every row out."""
    done = json.loads((run.folder / "run.json").read_text())
    done["files"] = [file for file in done["files"] if file["origin"] == "real"]
    for count in done["counts"]:
        count["kept"] = 0
    (run.folder / "run.json").write_text(json.dumps(done))
    return Run(run.folder)


def test_a_set_without_a_synthetic_row(hub: LoopbackHub, copied: Callable[[], Run]) -> None:
    run = emptied(copied())
    with pytest.raises(PublishError, match=r"^failed-rows: no synthetic row was kept; loosen .*--allow failed-rows"):
        publish(run, NAME)
    assert not hub.writes()


@pytest.mark.usefixtures("forbidden")
def test_all_gates_that_object_are_named_at_once(
    hub: LoopbackHub, copied: Callable[[], Run], diffaug: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the way past each; one by one they are overruled, and the last one still stands."""
    run = emptied(copied())
    monkeypatch.setattr("diffaug_datasets.release.publishing.local_models", lambda recipe: ["backbone.id"])
    monkeypatch.setattr("diffaug_datasets.release.card_metadata.MODELS", {})
    ways = {
        "licence: ": "--i-have-rights",
        "model-licence: ": "--allow model-licence",
        "local-model: ": "--allow local-model",
        "failed-rows: ": "--allow failed-rows",
    }
    said = diffaug("publish", run.folder, NAME).sentence
    assert said.startswith("4 gates say no. (1) licence: ")
    assert [said.index(word) for word in ways] == sorted(said.index(word) for word in ways)
    assert all(way in said for way in ways.values())
    shown = diffaug("publish", run.folder, NAME, "--dry-run")
    assert (shown.code, shown.out.count("REFUSED")) == (1, 4)
    left = diffaug("publish", run.folder, NAME, *[word for way in list(ways.values())[:3] for word in way.split()])
    assert left.sentence.startswith("failed-rows: no synthetic row was kept")
    assert not hub.writes()


def test_counts_that_do_not_add_up(hub: LoopbackHub, copied: Callable[[], Run]) -> None:
    run = copied()
    done = json.loads((run.folder / "run.json").read_text())
    done["counts"][0]["kept"] += 1
    (run.folder / "run.json").write_text(json.dumps(done))
    with pytest.raises(PublishError, match="rows: 10 synthetic rows lie in the shards, stated are 11"):
        publish(run, NAME)
    assert not hub.writes()


def test_shards_of_two_schemas(hub: LoopbackHub, copied: Callable[[], Run]) -> None:
    from diffaug_datasets.core.files import sha256_file
    from diffaug_datasets.run.shards import read_stream

    run = copied()
    path = run.shard_path("synthetic-00001")
    table = read_stream(str(path))
    turned = table.schema.metadata[b"huggingface"].replace(b'"T-shirt/top", "Trouser"', b'"Trouser", "T-shirt/top"')
    assert turned != table.schema.metadata[b"huggingface"]
    path.unlink()
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema.with_metadata({b"huggingface": turned})) as writer,
    ):
        writer.write_table(table)
    done = json.loads((run.folder / "run.json").read_text())
    for file in done["files"]:
        if file["path"].endswith("synthetic-00001.arrow"):
            file["sha256"] = sha256_file(path)
    (run.folder / "run.json").write_text(json.dumps(done))
    with pytest.raises(PublishError, match=r"rows: train-00002-of-00004\.arrow has another schema"):
        publish(run, NAME)
    assert not hub.writes()


def test_rows_of_two_stacks_are_no_promise_of_equal_bits(hub: LoopbackHub, copied: Callable[[], Run]) -> None:
    run = copied()
    receipt = run.receipt("synthetic-00001")
    assert receipt and (run.folder / "run.json").is_file()
    run.receipt_path("synthetic-00001").unlink()
    run.write_receipt(receipt.model_copy(update={"stack": {**receipt.stack, "torch": "another"}}))
    (run.folder / "run.json").unlink()
    assert (done := assemble(run)).tier == "T2" and len(done.stacks) == 2
    card = preview(run, NAME).card
    assert "tier T2 (several stacks made the rows" in card and "torch another" in card


def test_a_filtered_run_says_what_was_dropped(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> None:
    rule = [{"column": "clip_margin", "minimum": 0.0}]
    run = made(tmp_path_factory.mktemp("filtered") / "run", filters=rule)
    found = preview(run, NAME)
    kept = sum(count.kept for count in found.contents.release.counts)
    assert 0 < kept < 10
    assert f"{kept} synthetic training images" in found.card
    provenance = next(item.read() for item in found.contents.items if item.name == "provenance.arrow")
    assert provenance.count(b"clip_margin") > 1


def test_a_folder_is_loaded_by_plain_datasets(finished: Run, diffaug: Command, tmp_path: Path) -> None:
    said = diffaug("publish", finished.folder, f"file://{tmp_path}/shelf")
    name = finished.plan.header.name
    assert said.out.splitlines()[-1] == f'  load_dataset("{tmp_path}/shelf", "{name}") loads it'
    rows = load_dataset(f"{tmp_path}/shelf", name, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows > 0
    assert "From a disk, plain `datasets` loads it" in (tmp_path / "shelf" / "README.md").read_text(encoding="utf-8")


def test_dry_run_sends_nothing_and_shows_what_would_be(hub: LoopbackHub, finished: Run, diffaug: Command) -> None:
    said = diffaug("publish", finished.folder, NAME, "--dry-run")
    *doing, last = said.err.splitlines()
    assert (said.code, last) == (0, "nothing was sent to org/fashion (--dry-run)")
    assert doing[0] == f"gathering the files of {finished.folder} ..." and "checking" in doing[1]
    assert all(line.endswith(" ...") for line in doing)
    assert not hub.writes()
    told = json.loads(diffaug("publish", finished.folder, NAME, "--dry-run", "--json").out)
    assert not hub.writes()
    assert hub.calls("repo_info"), "it did not look at the repository"
    done = diffaug("publish", finished.folder, NAME)
    assert done.code == 0, done
    files = hub.files(NAME)
    assert told["card"].encode() == files["README.md"]
    head, text = told["card"].rstrip().split("dataset_info:\n")
    assert said.out.startswith(head), "the card scrolls the verdicts away"
    columns, body = text.split("---\n", 1)
    assert re.search(r"^dataset_info: \(\d{3} lines on columns and sizes; --json has the whole card\)$", said.out, re.M)
    assert body in said.out and "name: soft_label" in columns and "name: soft_label" not in said.out
    for file in told["files"]:
        assert len(files[file["path"]]) == file["size"]
        assert file["path"] in said.out
    assert set(files) == {file["path"] for file in told["files"]} | {"README.md", "croissant.json", ".gitattributes"}
    again = len(hub.writes())
    diffaug("publish", finished.folder, NAME, "--dry-run")
    assert len(hub.writes()) == again


@pytest.mark.usefixtures("forbidden")
def test_dry_run_shows_a_refusal(hub: LoopbackHub, finished: Run, diffaug: Command) -> None:
    said = diffaug("publish", finished.folder, NAME, "--dry-run")
    assert said.code == 1
    assert "gate licence: REFUSED, licence: images of Fashion-MNIST may not be redistributed" in said.out
    assert "may not be redistributed" in diffaug("publish", finished.folder, NAME).sentence
    assert not hub.writes()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--format", "csv"), "--format: got 'csv', expected arrow or parquet."),
        (
            ("--allow", "all"),
            "--allow: got 'all', expected one of licence, model-licence, local-model, failed-rows, rows, test-leak.",
        ),
    ],
)
def test_wrong_words(finished: Run, diffaug: Command, words: tuple[str, ...], reason: str) -> None:
    assert diffaug("publish", finished.folder, NAME, *words).sentence == reason
