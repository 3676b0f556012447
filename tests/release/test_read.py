"""Published sets as others load them: with `datasets` alone, or without a copy through `load`."""

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from command_line import Command
from hub.clients import loopback_hub
from hub.server import LoopbackHub
from small_release import made

from diffaug_datasets import load
from diffaug_datasets.core import numbered
from diffaug_datasets.core.errors import PublishError, RunError, SourceError
from diffaug_datasets.release import contents
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.layout import read_release
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.release.repository import Repository
from diffaug_datasets.run.assembly import assemble
from diffaug_datasets.run.store import Run

NAME, CONFIG = "org/fashion", "fashion_1shot_genie"
ABSENT = ("diffaug_datasets", "torch", "diffusers", "transformers", "peft", "pydantic", "typer", "jinja2")


@pytest.fixture(scope="module")
def shelf(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """A Hub that holds the run; tests only read."""
    with loopback_hub(tmp_path_factory.mktemp("shelf")) as hub:
        publish(finished, NAME)
        yield hub


@pytest.fixture
def synthetic_only(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a release that may not carry its real images."""
    real = contents.recipe_facts
    monkeypatch.setattr(contents, "recipe_facts", lambda recipe: replace(real(recipe), redistributable=False))
    address = f"file://{tmp_path}/fashion"
    publish(finished, address, PublishOptions(with_rights=True))
    return address


def test_plain_datasets_reads_many_files_by_their_patterns(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a release, and of a run folder, where a losing attempt at a shard has left its file."""
    monkeypatch.setattr(numbered, "MOST_LISTED", 1)
    publish(finished, f"file://{tmp_path}/shelf")
    run = Run.open(shutil.copytree(finished.folder, tmp_path / "run"))
    shutil.copy(run.folder / "shards/synthetic-00001.arrow", run.folder / f"shards/synthetic-00001-{16 * 'a'}.arrow")
    assemble(run)
    expected = [row.row_id for row in (*run.plan.real, *run.plan.rows)]
    for place in ("shelf", "run"):
        assert "-0000[0-" in (tmp_path / place / "README.md").read_text()
        rows = datasets.load_dataset(str(tmp_path / place), split="train", cache_dir=str(tmp_path / "cache"))
        assert rows["row_id"][:] == expected


def test_plain_datasets_loads_what_the_card_says(shelf: LoopbackHub, shell: Command, tmp_path: Path) -> None:
    """The card's own lines, where nothing of ours is installed; streamed; and again without a network."""
    card = shelf.files(NAME)["README.md"].decode()
    lines = next(block for block in re.findall(r"```python\n(.*?)```", card, re.S) if "load_dataset" in block)
    head = f"from hiding import hide\nhide{ABSENT}\n{lines}"
    told = "print(len(train), len(synthetic), len(rows), train[12]['image'].size, train.features['label'].names[0])\n"
    streamed = (
        f"stream = load_dataset('{NAME}', '{CONFIG}', split='train', streaming=True)\n"
        "assert [row['row_id'] for row in stream] == train['row_id'][:]\n"
        f"assert load_dataset('{NAME}', split='train')['row_id'][:] == train['row_id'][:]\n"
    )
    environment = shelf.environment(tmp_path)
    online = shell(sys.executable, "-c", head + told + streamed, **environment)
    assert (online.code, online.out) == (0, "20 10 20 (32, 32) T-shirt/top\n"), online.err
    seen = len(shelf.log)
    offline = shell(sys.executable, "-c", head + told, **{**environment, "HF_HUB_OFFLINE": "1"})
    assert offline.out == online.out, offline.err
    assert len(shelf.log) == seen


def test_load_maps_the_downloaded_shards(shelf: LoopbackHub, finished: Run) -> None:
    published, ours = load(NAME, CONFIG), load(finished.folder)
    assert published.to_dict() == ours.to_dict()
    assert published.features == ours.features
    assert all("snapshots" in file["filename"] for file in published.cache_files), "it was copied"
    assert load(NAME)["row_id"][:] == ours["row_id"][:], "the default config is another"
    only = load(NAME, CONFIG, augmented_only=True)
    assert set(only["origin"]) == {"generated"}
    assert only["row_id"][:] == load(NAME, f"{CONFIG}_synthetic")["row_id"][:]
    assert load(NAME, f"{CONFIG}_provenance").column_names[-3:] == ["status", "reason", "split"]


def test_load_takes_tags(hub: LoopbackHub, finished: Run, other_plan: Run) -> None:
    first = publish(finished, NAME)
    publish(other_plan, NAME)
    assert set(load(NAME, CONFIG)["plan_id"]) >= {other_plan.plan.id}
    assert finished.plan.id in load(NAME, CONFIG, revision=first.tag)["plan_id"][:]
    with pytest.raises(PublishError, match=r"README.md cannot be had \(.*; check the name, the revision"):
        load(NAME, CONFIG, revision="no-such-tag")
    with pytest.raises(PublishError, match=f"has no config 'other' of a diffaug run; it has {CONFIG}, "):
        load(NAME, "other")
    with pytest.raises(RunError, match="has no rows for split 'test'"):
        load(NAME, CONFIG, "test")


@pytest.mark.parametrize("file_format", ["arrow", "parquet"])
def test_load_reads_addresses(finished: Run, tmp_path: Path, file_format: str) -> None:
    for address in (f"file://{tmp_path}/fashion", f"memory://{tmp_path.name}"):
        publish(finished, address, PublishOptions(file_format="parquet" if file_format == "parquet" else "arrow"))
        assert load(address, CONFIG).to_dict() == load(finished.folder).to_dict()
    assert len(load(tmp_path / "fashion", CONFIG)) == 20


def test_other_bytes_are_refused_before_anything_opens_them(finished: Run, tmp_path: Path) -> None:
    done = publish(finished, f"file://{tmp_path}/fashion")
    shard = tmp_path / "fashion" / done.folder / "train-00001-of-00004.arrow"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 255
    shard.write_bytes(data)
    with pytest.raises(PublishError, match=r"train-00001-of-00004\.arrow has other bytes than run\.json states"):
        load(tmp_path / "fashion", CONFIG)
    shard.unlink()
    with pytest.raises(PublishError, match="is not there; check the address"):
        load(tmp_path / "fashion", CONFIG)


def test_own_images_join_a_synthetic_only_release(
    synthetic_only: str, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of files and folders do not matter, only the bytes; more images than needed do no harm."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert set(load(synthetic_only, CONFIG)["origin"]) == {"generated"}
    images, paths = tmp_path / "images", []
    for row in load(finished.folder).data.to_pylist():
        paths.append(images / f"kind {row['label']}" / f"{row['row_id']}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        paths[-1].write_bytes(row["image"]["bytes"])
    joined = load(synthetic_only, CONFIG, with_real=images)
    assert joined.to_dict() == load(finished.folder).to_dict()
    assert joined.data.column("image").to_pylist() == load(finished.folder).data.column("image").to_pylist()
    only = load(synthetic_only, CONFIG, with_real=images, augmented_only=True)
    assert set(only["origin"]) == {"generated"}
    for path in paths[:2]:
        path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(SourceError, match=r"images: lacks 2 of 10 real images of this release, such as the one with"):
        load(synthetic_only, CONFIG, with_real=images)


def test_real_images_are_not_joined_twice(shelf: LoopbackHub) -> None:
    with pytest.raises(PublishError, match="has its real images; leave with_real out"):
        load(NAME, CONFIG, with_real="anything")


def test_a_recipe_only_release_has_no_rows_to_load(finished: Run, tmp_path: Path) -> None:
    publish(finished, f"file://{tmp_path}/fashion", PublishOptions(recipe_only=True))
    with pytest.raises(PublishError, match="was published without pixels"):
        load(tmp_path / "fashion", CONFIG)
    assert len(load(tmp_path / "fashion", f"{CONFIG}_provenance")) == 20


@pytest.mark.parametrize("name", ["../up.arrow", "/etc/passwd", "a/../../b", "fits/..", ".hidden", "a\\b", "a\0b", ""])
def test_a_run_json_cannot_lead_outside(finished: Run, tmp_path: Path, name: str) -> None:
    import json

    done = publish(finished, f"file://{tmp_path}/fashion")
    path = tmp_path / "fashion" / done.folder / "run.json"
    content = json.loads(path.read_text())
    content["files"][0]["path"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(PublishError, match="expected plain names inside its folder"):
        load(tmp_path / "fashion", CONFIG)


def test_a_newer_schema_is_named(finished: Run, tmp_path: Path) -> None:
    done = publish(finished, f"file://{tmp_path}/fashion")
    text = (tmp_path / "fashion" / done.folder / "run.json").read_text()
    with pytest.raises(PublishError, match="has release schema 9, this version reads up to 1; update"):
        read_release(text.replace('"release_schema":1', '"release_schema":9'), "there")
    with pytest.raises(PublishError, match=r"is no run\.json of a published config"):
        read_release("{}", "there")


@pytest.mark.parametrize("card", ["# no head", "---\nconfigs: [3]\n---\n", "---\n[1]\n---\n", "---\na: [\n---\n"])
def test_a_card_that_lists_nothing(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card)
    with pytest.raises(PublishError, match=r"README\.md names no config"):
        Repository.open(str(tmp_path)).release(None)


def test_a_test_split_travels_along(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = made(tmp_path_factory.mktemp("split") / "run", include_test=True)
    publish(run, f"file://{tmp_path}/fashion")
    test = load(tmp_path / "fashion", CONFIG, "test")
    assert len(test) == 1000
    assert set(test["origin"]) == {"real"}
    assert "test: 1000 real" in (tmp_path / "fashion" / "README.md").read_text()
