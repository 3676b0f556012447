"""No name in what others published leads out of its folder: in cards, `run.json`, plans, receipts, or as a link."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Command

from diffaug_datasets import load
from diffaug_datasets.core.errors import DiffAugError, PublishError, RunError, SourceError
from diffaug_datasets.release.exporting import export
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.release.repository import HubFiles, Repository
from diffaug_datasets.release.verify import verify
from diffaug_datasets.run.store import Run
from diffaug_datasets.sources.real import read_real

NAMES = (
    "../up",
    "/etc/passwd",
    "a/../../b",
    "..",
    "a\\b",
    "C:evil",
    "a\0b",
    "con",
    "NUL.arrow",
    "a.",
    "a\n",
    "~/x",
    "",
)


@pytest.fixture
def shelf(finished: Run, tmp_path: Path) -> Path:
    """The folder of a published config, which a test may change."""
    return tmp_path / "fashion" / publish(finished, f"file://{tmp_path}/fashion").folder


def changed(path: Path, edit: Callable[[Any], object]) -> None:
    """Rewrite a JSON file."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("key", [("files", "path"), ("beside", "file")])
def test_run_json(shelf: Path, key: tuple[str, str]) -> None:
    good = (shelf / "run.json").read_text()
    for name in NAMES:
        (shelf / "run.json").write_text(good)
        changed(shelf / "run.json", lambda told, name=name: told[key[0]][0].update({key[1]: name}))
        with pytest.raises(PublishError, match="expected plain names inside its folder"):
            load(shelf.parents[2])


def test_the_folder_that_a_card_or_run_json_names(shelf: Path) -> None:
    card = shelf.parents[2] / "README.md"
    text = card.read_text("utf-8")
    for start in ("data/..", "data/../..", "../data/x", "/data/x", "data/\\0", "data/C:"):
        card.write_text(text.replace(f"data/{shelf.parent.name}/", f"{start}/"))
        with pytest.raises(DiffAugError):
            Repository.open(str(shelf.parents[2])).release(None)
    card.write_text(text)
    for name in NAMES:
        changed(shelf / "run.json", lambda told, name=name: told.update(name=name))
        with pytest.raises(PublishError, match=r"plain name and hex digits|speaks of"):
            Repository.open(str(shelf.parents[2])).release(None)


def test_a_link_shows_only_bytes_that_were_stated(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"not yours")
    for path in shelf.glob("*"):
        if path.suffix in (".arrow", ".parquet", ".yaml") and not path.name.endswith(".receipt.json"):
            path.unlink()
            path.symlink_to(tmp_path / "secret")
    with pytest.raises(PublishError, match="has other bytes"):
        load(shelf.parents[2])


def test_a_plan_names_no_folder_elsewhere(copied: Callable[[], Run], diffaug: Command, tmp_path: Path) -> None:
    run = copied()
    good = (run.folder / "plan.json").read_text()
    outside = sorted(tmp_path.rglob("*"))
    for name in ("../../out", "/tmp/out", "a/b", "..", "a\\b", "a\0b", ""):
        fit = {"kind": name, "payload": "{}", "after": [], "name": name}
        for edit in (
            lambda told, fit=fit: told["fits"].append(fit),
            lambda told, name=name: told["header"].update(name=name),
        ):
            (run.folder / "plan.json").write_text(good)
            changed(run.folder / "plan.json", edit)
            with pytest.raises(RunError, match="the plan cannot be read"):
                Run.open(run.folder)
    assert "the plan cannot be read" in diffaug("generate", run.folder).sentence
    assert sorted(tmp_path.rglob("*")) == outside


def test_a_receipt_names_files_of_its_own_folder_alone(copied: Callable[[], Run]) -> None:
    run = copied()
    for name in NAMES[:-1]:
        changed(run.receipt_path("synthetic-00000"), lambda told, name=name: told["files"][0].update(file=name))
        if name not in ("con", "NUL.arrow", "a."):  # plain on every system that this runs on
            assert run.receipt("synthetic-00000") is None, name
        assert not run.intact("synthetic-00000")


@pytest.mark.parametrize("where", ["runs/mnie", "birds", "a/b/c", "shelf/brids"])
def test_the_hub_is_not_asked_for_a_folder_that_was_mistyped(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("runs/mine", "shelf/birds"):
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HubFiles, "local", lambda *_: pytest.fail("the Hub was asked"))
    meant = {"runs/mnie": "; did you mean runs/mine?", "shelf/brids": "; did you mean shelf/birds?"}.get(where, ".")
    for asked in (load, verify, lambda place: export(place, tmp_path / "out")):
        with pytest.raises(PublishError) as refused:
            asked(where)
        expected = "no such folder, expected a run folder, a published set (org/name on the Hub) or an address"
        assert str(refused.value) == f"{where}: {expected}{meant}"
    with pytest.raises(SourceError, match=r"^imagefolder: got 'shelf/brids', .*; did you mean 'shelf/birds'\?$"):
        read_real("imagefolder", "shelf/brids")
