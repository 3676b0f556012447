"""A run folder keeps its word: whatever a crash, an editor, another machine or a poor file system did to it."""

import errno
import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Command
from small_runs import digests, small_recipe, small_run

from diffaug_datasets.core import files
from diffaug_datasets.core.errors import DiffAugError, PlanError, RunError
from diffaug_datasets.core.files import write_text
from diffaug_datasets.core.method import Generated, discover_methods, find_method
from diffaug_datasets.core.models import ModelRef
from diffaug_datasets.planning import prepare as preparing
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.release.read import load
from diffaug_datasets.report.run_view import RunView
from diffaug_datasets.run.assembly import Assembled, current, finished
from diffaug_datasets.run.execute import execute, over_budget
from diffaug_datasets.run.progress import Progress, status
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions
from diffaug_datasets.train.builder import RunBuilder, load_builder

Copy = Callable[[], Run]
CHANGES: dict[str, Any] = {
    "per_class": 1,
    "attempts": 1,
    "failure_budget": 0.1,
    "filters": [{"column": "clip_score", "lowest": 0.25}],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with fits, of whose ten rows one failed and two were dropped."""
    from diffaug_datasets.methods import genie_ada

    run = small_run(tmp_path_factory.mktemp("folder") / "run", "genieada", **CHANGES)
    unlucky, real = run.plan.rows[3].row_id, genie_ada.generate

    def generate(rows: Any, cfg: Any, ctx: Any) -> list[Generated]:
        done = real(rows, cfg, ctx)
        return [replace(g, pixels=g.pixels * 0) if r.row_id == unlucky else g for r, g in zip(rows, done, strict=True)]

    with pytest.MonkeyPatch.context() as patch:
        unlucky_method = replace(find_method("genie_ada"), generate=generate)
        patch.setitem(discover_methods(), "genie_ada", unlucky_method)
        execute(run, WorkerOptions(), workers=1)
    return run


@pytest.fixture
def copied(made: Run, tmp_path: Path) -> Copy:
    """A copy of the finished run."""
    return lambda: Run.open(Path(shutil.copytree(made.folder, tmp_path / "run", dirs_exist_ok=True)))


def again(run: Run) -> Assembled:
    """What `generate` gives."""
    done = execute(Run.open(run.folder), WorkerOptions(), workers=1)
    assert done is not None
    return done


def test_counts_know_failed_from_dropped(made: Run) -> None:
    done = finished(made)
    assert done is not None
    total = {key: sum(getattr(c, key) for c in done.counts) for key in ("planned", "written", "failed", "kept")}
    assert total == {"planned": 10, "written": 9, "failed": 1, "kept": 7}
    [lost] = [count for count in done.counts if count.failed]
    assert (lost.written, lost.kept) == (0, 0)


def test_the_budget_is_met_exactly_or_not(made: Run, copied: Copy) -> None:
    done, run = finished(made), copied()
    assert done is not None
    for budget, fine in ((0.1, True), (0.0999, False), (0.0, False), (1.0, True)):
        run.__dict__["recipe"] = made.recipe.model_copy(update={"failure_budget": budget})
        assert (over_budget(run, done) == "") == fine, budget
    run.__dict__["recipe"] = made.recipe.model_copy(update={"failure_budget": 0.29})
    run.__dict__["plan"] = replace(made.plan, rows=tuple(made.plan.rows) * 10)  # 0.29 * 100 is less than 29 in binary
    assert over_budget(run, done.model_copy(update={"failed": done.failed * 29})) == ""
    assert over_budget(run, done.model_copy(update={"failed": done.failed * 30})) != ""


def test_the_time_of_fits_and_shards_is_counted(made: Run) -> None:
    done, names = finished(made), [unit.name for _, units in made.units() for unit in units]
    spent = [receipt.seconds for name in names if (receipt := made.receipt(name))]
    assert made.plan.fits and len(spent) == len(names) and min(spent) > 0
    assert done is not None and done.seconds == pytest.approx(sum(spent), abs=1e-3)


EDITS = {
    "config.num_inference_steps: 4 -> 5": ("num_inference_steps: 4", "num_inference_steps: 5"),
    "seed: 0 -> 7": ("seed: 0", "seed: 7"),
    "batch_size: 3 -> 8": ("batch_size: 3\n", ""),
    "backbone: diffaug-tiny@": ("id: tiny", "id: stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "the recipe of its plan cannot be read": ("method: genie_ada", "method: [genie_ada"),
}


@pytest.mark.parametrize("said", EDITS)
def test_an_edited_recipe_is_refused(diffaug: Command, copied: Copy, said: str) -> None:
    file = copied().folder / "recipe.yaml"
    old, new = EDITS[said]
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    for verb in ("generate", "status"):
        assert said in diffaug(verb, file.parent).sentence


def test_a_cut_or_lost_recipe_is_refused(copied: Copy) -> None:
    file = copied().folder / "recipe.yaml"
    text = file.read_text()
    for share in (0.0, 0.3, 0.9):
        file.write_text(text[: int(len(text) * share)])
        with pytest.raises(RunError, match=r"recipe"):
            Run.open(file.parent)
    file.unlink()
    with pytest.raises(RunError, match=r"put recipe\.yaml back as it was, or plan again into another folder"):
        Run.open(file.parent)


def test_places_and_prose_of_a_recipe_may_change(copied: Copy) -> None:
    run = copied()
    file = run.folder / "recipe.yaml"
    file.write_text("# a note\n" + file.read_text().replace("source: null", "source: /elsewhere/images"))
    assert Run.open(run.folder).recipe.source == "/elsewhere/images"


def test_other_weights_than_planned_are_refused(copied: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffaug_datasets.run import worker

    run = copied()
    (run.folder / "shards" / "synthetic-00000.json").unlink()
    other = ModelRef("backbone", "diffaug-tiny", "tiny", Path("0" * 40), is_local=False)
    monkeypatch.setattr(worker, "find_backbone", lambda spec: other)
    with pytest.raises(RunError, match=r"planned for diffaug-tiny@\w{12}, and tiny is diffaug-tiny@0{12} here"):
        again(run)


@pytest.mark.parametrize("damage", ["cut", "empty", "not text", "a list", "of another plan", "absent"])
def test_a_damaged_run_json_is_written_again(diffaug: Command, copied: Copy, damage: str) -> None:
    run = copied()
    file = run.folder / "run.json"
    good = file.read_bytes()
    other = good.replace(run.plan.id.encode(), b"0" * 64)
    bad = {
        "cut": good[: len(good) // 2],
        "empty": b"",
        "not text": b"\xff\0",
        "a list": b"[]",
        "of another plan": other,
    }
    file.unlink() if damage == "absent" else file.write_bytes(bad[damage])
    assert status(run).finished is False
    assert diffaug("status", run.folder).code == 0
    with pytest.raises(RunError, match=r"`diffaug generate"):
        load(run.folder)
    again(run)
    assert file.read_bytes() == good


@pytest.mark.parametrize("change", ["a byte of a kept file", "a kept file", "README.md", "selection.parquet"])
def test_what_run_json_names_is_made_again(copied: Copy, change: str) -> None:
    run = copied()
    expected = digests(run.folder)
    path = next((run.folder / "kept").iterdir()) if "kept" in change else run.folder / change
    if change.startswith("a byte"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    else:
        path.unlink()
    assert current(run) is None
    again(run)
    assert digests(run.folder) == expected and path.exists() and current(run)


def test_run_json_of_other_shards_is_written_again(copied: Copy) -> None:
    """Shards that were made again, on another stack say, and a run.json of before."""
    run = copied()
    good = (run.folder / "run.json").read_bytes()
    told = json.loads(good)
    told["files"][0]["sha256"] = "0" * 64
    (run.folder / "run.json").write_text(json.dumps(told))
    assert current(run) is None
    again(run)
    assert (run.folder / "run.json").read_bytes() == good


TORN = [
    b'{"event":"bat',
    b"\0\0\0\0",
    b"\xff\xfe",
    b"[]",
    b"3",
    b'"batch"',
    b"{}",
    b'{"event":"batch"}',
    b'{"event":"batch","unit":"synthetic-00000","rows":"2","failed":0}',
    b'{"event":"batch","unit":["x"],"rows":2,"failed":0}',
    b'{"event":["batch"]}',
    b'{"event":"done","unit":"synthetic-00000","rows":null,"failed":0}',
    b'{"event":"fit","unit":"x","step":1,"total":2}',
    b'{"event":"fit","unit":"x","step":1,"total":2,"loss":"low"}',
    b'{"event":"fit","unit":"x","step":1,"total":2,"loss":1' + b"0" * 400 + b"}",
    b"[" * 100_000,
]


@pytest.mark.parametrize("line", TORN, ids=lambda line: line[:50].decode("latin-1"))
def test_a_torn_or_foreign_event_counts_for_nothing(made: Run, tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "events.jsonl"
    run = Run(tmp_path)
    progress = Progress.from_now(run)
    run.event(event="batch", unit="synthetic-00000", rows=3, failed=1)
    with path.open("ab") as file:
        file.write(line + b"\n")
    run.event(event="batch", unit="synthetic-00000", rows=2, failed=0)
    assert len(progress.poll()) == 2 and progress.rows == 6
    run.__dict__["plan"] = made.plan
    assert RunView(run).losses("x") == []


def test_an_event_lost_in_a_torn_line_is_made_good(tmp_path: Path) -> None:
    run, progress = Run(tmp_path), Progress.from_now(Run(tmp_path))
    run.event(event="start", unit="synthetic-00000", worker=0)
    run.event(event="batch", unit="synthetic-00000", rows=3, failed=0)
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"event":"bat')  # the next event stands on the same line
    run.event(event="batch", unit="synthetic-00000", rows=3, failed=1)
    run.event(event="done", unit="synthetic-00000", rows=6, failed=1)
    progress.poll()
    assert progress.rows == 7
    (tmp_path / "events.jsonl").write_bytes(b"")
    run.event(event="batch", unit="synthetic-00001", rows=2, failed=0)
    assert len(progress.poll()) == 1, "a file that was cut is read from its beginning"


def test_only_dead_or_old_temporary_files_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    (tmp_path / "shards").mkdir()
    ours, dead = (files.temporary_path(tmp_path / "shards" / f"synthetic-0000{i}.arrow") for i in range(2))
    dead = dead.with_name(dead.name.replace(f".{os.getpid()}.", ".4194304.", 1))
    foreign = dead.with_name(dead.name.replace("00001", "00002").replace(files.machine(), "elsewhere-01234567"))
    old, kept = (foreign.with_name(foreign.name.replace("00002", f"0000{i}")) for i in (3, 4))
    for path in (ours, dead, foreign, old, kept, tmp_path / ".notes.tmp"):
        path.touch()
    for path in (old, kept, tmp_path / ".notes.tmp"):
        os.utime(path, (0, time.time() - 2 * 24 * 3600))
    with run.lease("synthetic-00004") as mine:
        assert mine
        run.sweep()
    assert not dead.exists() and not old.exists()
    assert all(path.exists() for path in (ours, foreign, kept, tmp_path / ".notes.tmp"))


def test_a_machine_is_known_by_name_boot_and_pid_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(owner: Any, name: str, value: str) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *_: value)
            files.machine.cache_clear()
            return files.machine()

    names = [files.machine(), named(socket, "gethostname", "x.é")]
    names += [named(files, "_content", "another boot"), named(files, "_namespace", "pid:[7]")]
    files.machine.cache_clear()
    assert len(set(names)) == 4 and all("." not in name for name in names)


def test_a_long_name_has_a_temporary_file_too(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".json")
    write_text(path, "{}")
    assert path.read_text() == "{}" and files.temporary_path(path) != files.temporary_path(path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError if error is OSError else error):
        write_text(tmp_path / "x.json", "{}")
    assert not list(tmp_path.iterdir())


def test_leases_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with Run(tmp_path).lease("unit") as mine:
            assert mine and (tmp_path / mine.key).stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_good_enough(
    diffaug: Command, copied: Copy, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    run = copied()
    (run.folder / "shards" / "synthetic-00000.json").unlink()
    monkeypatch.setattr(fcntl, "flock", flock)
    assert diffaug("generate", run.folder, "--workers", 1).code == 0
    assert status(run).finished


def test_looking_at_a_run_writes_nothing(copied: Copy) -> None:
    run = copied()
    (run.folder / "shards" / "synthetic-00000.json").unlink()
    before = sorted(run.folder.rglob("*"))
    assert status(run).held == () and sorted(run.folder.rglob("*")) == before


def test_without_fcntl_everything_works(shell: Command, made: Run, tmp_path: Path) -> None:
    """As on Windows."""
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from diffaug_datasets import load, Run, MixedDataset\nfrom diffaug_datasets.release import targets, verify\n"
        "from diffaug_datasets.cli import main\n"
        "def call(*words):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: print('code', end.code)\n"
        "small = ('--set', 'per_class=1', '--set', 'include_test=false')\n"
        "call('plan', 'fashion_2shot_txt2img', *small, '--run', sys.argv[2])\n"
        "call('status', sys.argv[2])\ncall('generate', sys.argv[2], '--workers', '1')\n"
        "print('rows', len(load(sys.argv[1])))\n"
        "call('publish', sys.argv[1], 'file://' + sys.argv[3], '--allow', 'failures', '--allow', 'alignment')\n"
    )
    said = shell(sys.executable, "-c", code, made.folder, tmp_path / "new", tmp_path / "out")
    assert [line for line in said.out.splitlines() if line.startswith(("code", "rows"))][:4] == [
        *("code 0", "code 0", "code 0", "rows 27")
    ], said
    assert "Traceback" not in said.err


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError, PlanError, ZeroDivisionError])
@pytest.mark.parametrize("step", ["write_real_shards", "write_text", "Run.write_plan"])
def test_a_plan_that_fails_leaves_nothing(
    tmp_path: Path, error: type[BaseException], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(small_recipe("txt2img", per_class=1))
    (tmp_path / "mine" / "shards").mkdir(parents=True)
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))

    def fail(*_: object) -> None:
        raise error

    owner, _, name = step.rpartition(".")
    monkeypatch.setattr(Run if owner else preparing, name, fail)
    for folder in (tmp_path / "sweep" / "7" / "run", tmp_path / "mine"):
        with pytest.raises(error):
            write_run(prepared, folder)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_finished_run_survives_a_plan_that_fails(copied: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    run, recipe = copied(), small_recipe("genieada", **CHANGES)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    prepared = prepare(recipe)
    monkeypatch.setattr(preparing, "write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_run(prepared, run.folder)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


ADDRESSED = [
    ("plan", "fashion_2shot_genie", "--run", "ftp://u:secret@bucket/run"),
    ("demo", "--run", "s3://bucket/runs"),
    ("build", "fashion_2shot_genie", "--run", "gs://bucket/run"),
    *((verb, "hf://bucket/run") for verb in ("generate", "fit", "status", "report")),
    ("publish", "http://bucket/run", "org/name"),
    ("withdraw", "hf://datasets/org/name", "0" * 64),
]


@pytest.mark.parametrize("line", ADDRESSED, ids=lambda line: line[0])
def test_an_address_is_no_run_folder(
    diffaug: Command, line: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = diffaug(*line).sentence
    assert "got an address (" in said and "expected a folder on a disk of this machine" in said and "secret" not in said
    assert not list(tmp_path.iterdir())


def test_an_address_is_no_run_folder_in_python_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"run_dir: got an address \(s3://\.\.\.\)"):
        load_builder("fashion_2shot_genie", run_dir="s3://bucket/run")
    for place in ("hf://bucket/run", Path("ftp://bucket/run"), "file:///run"):
        with pytest.raises(DiffAugError, match="got an address"):
            Run.open(place)
    assert Run("C:/runs").folder == Path("C:/runs") and not list(tmp_path.iterdir())


def test_brackets_in_a_path_are_warned_of_and_loaded_by_us(diffaug: Command, copied: Copy, tmp_path: Path) -> None:
    run = copied()
    folder = tmp_path / "exp[lr=1e-4]" / "run"
    shutil.copytree(run.folder, folder)
    said = diffaug("generate", folder)
    assert "warning: " in said.err and "load_dataset takes [ in a path for a pattern" in said.err
    assert diffaug("generate", run.folder).err == ""
    builder = RunBuilder(Run.open(folder))
    builder.download_and_prepare()
    assert len(load(folder)) == len(builder.as_dataset(split="train")) == len(load(run.folder))
