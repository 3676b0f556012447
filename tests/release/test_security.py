"""Tokens stay secret, and what others wrote is refused in one sentence, whatever is in it."""

import json
import logging
import random
import traceback
from pathlib import Path

import pytest
from command_line import Command
from fuzz_readers import mutated
from hub.faults import Way
from hub.server import LoopbackHub
from small_release import Waits

from diffaug_datasets import load
from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.release.repository import Repository
from diffaug_datasets.release.targets import Retry
from diffaug_datasets.run.store import Run

NAME = "org/fashion"
INPUTS = 1000


def test_the_token_appears_nowhere(
    hub: LoopbackHub, finished: Run, diffaug: Command, caplog: pytest.LogCaptureFixture, tmp_path: Path, waits: Waits
) -> None:
    """Not in what is printed, logged or written, also when requests fail and with --debug."""
    caplog.set_level(logging.DEBUG)
    said = [diffaug("publish", finished.folder, NAME, "--dry-run")]
    hub.breaks("commit", 403)
    said.append(diffaug("publish", finished.folder, NAME))
    assert "refused with 403" in said[-1].sentence
    for kind in ("commit", "tag"):
        hub.breaks(kind, 500)
    publish(finished, NAME, retry=waits.retry)
    said.append(diffaug("verify", NAME, "--json"))
    assert said[-1].code == 0, said[-1]
    assert len(load(NAME)) == 20
    told = "".join(answer.out + answer.err for answer in said) + caplog.text
    told += "".join(raised(hub, finished, way, waits) for way in (401, 403, 500, "drop"))
    assert hub.token not in told
    files = [*finished.folder.rglob("*"), *tmp_path.rglob("*")]
    holding = [path for path in files if path.is_file() and hub.token.encode() in path.read_bytes()]
    assert holding == []
    assert caplog.text, "nothing was logged, so nothing was shown"


def raised(hub: LoopbackHub, run: Run, way: Way, waits: Waits) -> str:
    """Whole tracebacks, causes included, of publishing and loading where every request breaks."""
    told = []
    fault = hub.breaks(".*", way, times=1000)
    for work in (
        lambda: publish(run, NAME, retry=Retry(tries=2, sleep=waits)),
        lambda: publish(run, NAME, PublishOptions(create_pr=True), Retry(tries=2, sleep=waits)),
        lambda: load(NAME, revision="elsewhere"),
    ):
        with pytest.raises(PublishError) as broken:
            work()
        told += traceback.format_exception(broken.value)
    assert fault.struck
    hub.faults.clear()
    return "".join(told)


@pytest.mark.parametrize("words", [("--json",), ()])
def test_a_stranger_drives_no_terminal(finished: Run, tmp_path: Path, diffaug: Command, words: tuple[str, ...]) -> None:
    """Not by the names, numbers and texts of `run.json` or the card, in what is printed and in what is refused."""
    place = tmp_path / "fashion"
    path = place / publish(finished, f"file://{place}").folder / "run.json"
    hostile, content = "\x1b]0;x\x07\x9b2J\r\u202e", json.loads(path.read_text())
    said = []
    for change in ({"method": hostile}, {"class_names": [hostile]}, {"name": hostile}, {"package": hostile}):
        path.write_text(json.dumps(content | change))
        said.append(diffaug("verify", place, *words))
        said.append(diffaug("regen", place, hostile, *words))
    path.write_text(json.dumps(content))
    card = place / "README.md"
    card.write_text(card.read_text("utf-8").replace("\n---\n", f"\n---\n{hostile}", 1), "utf-8")
    said.append(diffaug("publish", finished.folder, f"file://{place}", "--dry-run", *words))
    told = "".join(answer.out + answer.err for answer in said)
    assert not set(told) & set(hostile.replace("]0;x", "").replace("2J", ""))
    assert told.count("u001b") > 1, "nothing hostile was met"


def test_mutated_shards_are_refused_by_digest(finished: Run, tmp_path: Path) -> None:
    """Arrow files that were changed can crash a process, so none is opened: a thousand of them, one by one."""
    done = publish(finished, f"file://{tmp_path}/fashion")
    repository = Repository.open(str(tmp_path / "fashion"))
    release = repository.release(None)
    name = release.files[0].path
    path = tmp_path / "fashion" / done.folder / name
    data, draw = path.read_bytes(), random.Random(0)
    for _ in range(INPUTS):
        changed = mutated(data, draw)
        if changed != data:
            path.write_bytes(changed)
            with pytest.raises(PublishError, match=r"has other bytes than run\.json states"):
                repository.checked(release, name)
    with pytest.raises(PublishError, match="has other bytes"):
        load(tmp_path / "fashion")


def test_a_shard_without_a_digest_is_refused(finished: Run, tmp_path: Path, diffaug: Command) -> None:
    done = publish(finished, f"file://{tmp_path}/fashion")
    path = tmp_path / "fashion" / done.folder / "run.json"
    content = json.loads(path.read_text())
    del content["files"][0]["sha256"]
    path.write_text(json.dumps(content))
    assert "is no run.json of a published config" in diffaug("verify", tmp_path / "fashion").sentence
