"""Tokens stay secret, and what others wrote is refused in one sentence, whatever is in it."""

import json
import logging
import random
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Command
from hub.server import LoopbackHub
from small_release import Waits

from diffaug_datasets import load
from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.data.repository import Repository
from diffaug_datasets.publish.card import Card
from diffaug_datasets.publish.publisher import publish
from diffaug_datasets.run.store import Run

NAME = "org/fashion"
INPUTS = 1000
FORMATS = {
    "recipe.yaml": "Recipe.from_yaml(path)",
    "run.json": "read_release(path.read_bytes(), 'run.json')",
    "README.md": "Repository.open(str(path.parent)).configs",
    "receipt.json": "run.receipt('synthetic-00000') if place(path) else None",
}
READER = """
import resource, shutil, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.data.release import read_release
from diffaug_datasets.data.repository import Repository
from diffaug_datasets.run.store import Run
folder = Path(sys.argv[1])
run = Run.open(folder)

def place(path):
    return shutil.copyfile(path, folder / "shards" / "synthetic-00000.json")

refused = read = 0
for path in sorted(Path(sys.argv[2]).iterdir()):
    path = path / sys.argv[3]
    try:
        {code}
        read += 1
    except DiffAugError as error:
        assert str(error) and "Traceback" not in str(error)
        refused += 1
print(refused, read)
"""


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
    publish(finished, NAME, patience=waits.patience)
    said.append(diffaug("verify", NAME, "--json"))
    assert said[-1].code == 0, said[-1]
    told = "".join(answer.out + answer.err for answer in said) + caplog.text
    assert hub.token not in told
    files = [*finished.folder.rglob("*"), *tmp_path.rglob("*")]
    holding = [path for path in files if path.is_file() and hub.token.encode() in path.read_bytes()]
    assert holding == []
    assert caplog.text, "nothing was logged, so nothing was shown"


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Cut, repeated, flipped, or with a hostile word put in."""
    words = (
        b"../../etc/passwd",
        b"!!python/object/apply:os.system [id]",
        b"\\0",
        b"\\xff\\xfe",
        b'"' * 50,
        b"[" * 3000,
    )
    words += (b"999999999999999999999", b"-1", b"null", b"{}", b"&a [*a, *a]", b"1e999", b"NaN", b"\\ud800")
    start = draw.randrange(len(data))
    end = min(len(data), start + draw.choice((0, 1, 4, 40)))
    kind = draw.randrange(4)
    if kind == 0:
        return data[:start]
    if kind == 1:
        return data[:end] + data[start:]
    if kind == 2:
        return data[:start] + bytes(draw.randrange(256) for _ in range(end - start)) + data[end:]
    return data[:start] + draw.choice(words) + data[end:]


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_files_are_one_clear_error(name: str, finished: Run, tmp_path: Path) -> None:
    """A thousand inputs in one child process: it must not die, hang, write elsewhere or raise anything else."""
    done = publish(finished, f"file://{tmp_path}/fashion")
    places = {
        "README.md": tmp_path / "fashion" / name,
        "receipt.json": finished.folder / "shards" / "synthetic-00000.json",
    }
    data = places.get(name, tmp_path / "fashion" / done.folder / name).read_bytes()
    if name == "README.md":  # the rest of its head is long, and not what is read
        data = Card({"configs": Card.parse(data.decode()).head["configs"]}, "").text().encode()
    draw = random.Random(name)
    for number in range(INPUTS):
        path = tmp_path / "inputs" / f"{number:04d}" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(mutated(data, draw))
    folder = tmp_path / "folder"
    (folder / "shards").mkdir(parents=True)
    for needed in ("plan.json", "plan.parquet", "recipe.yaml"):
        (folder / needed).write_bytes((finished.folder / needed).read_bytes())
    before = sorted(path for path in tmp_path.rglob("*") if "shards" not in path.parts)
    code = READER.replace("{code}", FORMATS[name])
    line = [sys.executable, "-c", code, str(folder), str(tmp_path / "inputs"), name]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, (ended.returncode, ended.stderr[:1500])
    refused, read = map(int, ended.stdout.split())
    print(f"{name}: {refused} refused, {read} read, of {INPUTS}")
    assert refused + read == INPUTS
    assert refused > 50 or name == "receipt.json", "the mutations did no harm, so they show nothing"
    assert sorted(path for path in tmp_path.rglob("*") if "shards" not in path.parts) == before


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
