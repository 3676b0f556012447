"""`run`, `export`, `show FILE` and pages that open, as a person uses them on the embedded default."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import webbrowser
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import Command
from PIL import Image
from test_cli import DIFFAUG, SMALL, shards

from diffaug_datasets.cli import main
from diffaug_datasets.cli.run import unlicensed
from diffaug_datasets.core.images import encode_image, xmp_packet
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.run.store import Run

CONFIG = "fashion_2shot_genie"
SHOWN = re.compile(r"^shows its class: \d+ % \(best .+ \d+, worst .+ \d+\)$", re.M)
ORACLE = "by the judge diffaug-tiny-judge@"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `run` was called once."""
    place = tmp_path_factory.mktemp("home")
    before = Path.cwd()
    os.chdir(place)
    try:
        with pytest.raises(SystemExit) as left:
            main(["run", CONFIG, *SMALL, "--workers", "1"])
        assert not left.value.code
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """That run, with its folder as the current one."""
    monkeypatch.chdir(home)
    [folder] = Path("runs").iterdir()
    return Run.open(folder)


def test_a_finished_run_says_so_and_makes_nothing(diffaug: Command, run: Run) -> None:
    events = (run.folder / "events.jsonl").read_bytes()
    again = diffaug("run", CONFIG, *SMALL)
    assert again.code == 0 and again.err == ""
    assert again.out.splitlines()[0] == f"{run.folder}: is finished already, nothing was left to do"
    assert "10 images written, 0 failed, 10 kept" in again.out
    assert SHOWN.search(again.out) and ORACLE in again.out and "right on " in again.out
    assert f"report page: {run.folder / 'report.html'}" in again.out
    assert (run.folder / "events.jsonl").read_bytes() == events
    by_folder = diffaug("run", run.folder)
    assert by_folder.out == again.out


def test_the_share_stands_in_status_report_and_json(diffaug: Command, run: Run) -> None:
    said = diffaug("status", run.folder)
    line = next(line.strip() for line in said.out.splitlines() if "shows its class" in line)
    assert SHOWN.fullmatch(line)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert f"S{line[1:]}, {ORACLE}" in page
    told = json.loads(diffaug("status", run.folder, "--json").out)["shown"]
    whole = json.loads(diffaug("run", run.folder, "--json").out)
    assert whole["shown"] == told and whole["was_finished"] is True and whole["written"] == 10
    assert f"{100 * told['value']:.0f} %" in line
    assert told["oracle"]["kind"] == "judge" and len(told["classes"]) == 10


def test_a_killed_run_goes_on_by_the_same_command(diffaug: Command, run: Run, tmp_path: Path) -> None:
    """kill -9 after the first shard, then once more: the same bytes as of a run that nothing disturbed."""
    many = ("--set", "shard_rows=2")
    line = [*DIFFAUG, "run", CONFIG, *SMALL, *many, "--workers", "1"]
    child = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_shard(tmp_path)
    child.send_signal(signal.SIGKILL)
    child.wait()
    [folder] = (tmp_path / "runs").iterdir()
    first = shards(folder)
    assert not (folder / "run.json").exists()
    os.chdir(tmp_path)
    said = diffaug("run", CONFIG, *SMALL, *many, "--workers", 1)
    assert said.code == 0 and "10 images written, 0 failed" in said.out and SHOWN.search(said.out)
    assert re.search(r"^  100 %, 10/10 images, ", said.out, re.M)
    assert first.items() <= shards(folder).items()
    assert (folder / "report.html").is_file()


def wait_for_shard(home: Path) -> None:
    end = time.monotonic() + 120
    while not list(home.glob("runs/*/shards/synthetic-*.json")):
        assert time.monotonic() < end, "no shard appeared"
        time.sleep(0.02)


def test_the_run_folder_of_the_same_plan_is_found(diffaug: Command, run: Run, tmp_path: Path) -> None:
    """Planned under a name of a person's own."""
    os.chdir(tmp_path)
    planned = diffaug("plan", CONFIG, *SMALL, "--run", "runs/mine")
    assert planned.code == 0
    said = diffaug("run", CONFIG, *SMALL, "--workers", 1)
    assert "in runs/mine" in said.out and "run folder: runs/mine" in said.out
    assert [path.name for path in Path("runs").iterdir()] == ["mine"]


def test_what_cannot_be_meant_is_refused(diffaug: Command, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = diffaug("run", run.folder, "--set", "per_class=3").sentence
    assert refused == f"--set: {run.folder} is planned already and keeps its recipe; leave it out, or give a recipe."
    assert "begins with no builder" in diffaug("run", "shirts_5shot_genie").sentence
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "under `accelerate launch`, plan first, then generate" in diffaug("run", CONFIG).sentence


def test_pages_open_in_the_browser(diffaug: Command, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: not opened.append(url))
    page = (run.folder / "report.html").resolve().as_uri()
    assert diffaug("report", run.folder, "--open").err == ""
    assert diffaug("run", run.folder, "--open").err == ""
    assert opened == [page, page]
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    said = diffaug("report", run.folder, "--open")
    assert said.code == 0 and "no browser could be started here" in said.err


def test_export_says_what_it_left_and_how_it_is_read(diffaug: Command, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = diffaug("export", run.folder, out)
    assert said.out.splitlines()[0] == f"{out}: exported, 30 train images of {CONFIG} as imagefolder"
    assert f'load_dataset("imagefolder", data_dir="{out}")' in said.out
    assert "T-shirt_top for T-shirt/top" in said.out
    with (out / "train" / "metadata.csv").open(newline="") as file:
        real = next(row for row in csv.DictReader(file) if row["is_synthetic"] == "False" and row["label"] == "Dress")
    shown = diffaug("show", out / "train" / real["file_name"])
    assert shown.out.startswith(f"{out / 'train' / real['file_name']}: a real image of class Dress\n")
    assert re.search(rf"^  row_id +{real['row_id']}$", shown.out, re.M)
    again = diffaug("export", run.folder, out)
    assert again.out.startswith(f"{out}: is there already, every file as it should be")
    told = json.loads(diffaug("export", run.folder, out, "--json").out)
    assert told["was_finished"] is True and told["rows"] == {"train": 30} and told["folder"] == str(out)
    assert (
        "expected one of imagefolder, webdataset, parquet, csv"
        in diffaug("export", run.folder, out, "--as", "zip").sentence
    )
    assert diffaug("export", run.folder, out, "--as", "parket").sentence.endswith("; did you mean 'parquet'?")
    assert "holds another export" in diffaug("export", run.folder, out, "--synthetic-only").sentence


def test_a_picture_says_which_row_it_is(diffaug: Command, run: Run, tmp_path: Path) -> None:
    diffaug("export", run.folder, tmp_path / "out", "--synthetic-only")
    picture = next((tmp_path / "out").rglob("*.png"))
    row = picture.stem
    said = diffaug("show", picture)
    head = f"{picture}: row {row} of plan {run.plan.id[:16]}"
    assert said.out.splitlines()[:2] == [head, f"run folder: {run.folder}"]
    assert said.out.endswith(diffaug("show", run.folder, row).out)
    os.chdir(tmp_path)
    alone = diffaug("show", picture)
    assert alone.code == 0 and alone.out.splitlines()[0] == head
    assert "no run in runs/ has it" in alone.out


def test_a_picture_of_a_published_set(diffaug: Command, run: Run, tmp_path: Path) -> None:
    address = f"file://{tmp_path}/shelf"
    assert diffaug("publish", run.folder, address).code == 0
    diffaug("export", address, tmp_path / "out", "--synthetic-only", "--as", "csv")
    picture = next((tmp_path / "out" / "images").glob("*.png"))
    said = diffaug("show", picture, tmp_path / "shelf")
    assert said.code == 0 and re.search(rf"^  row_id +{picture.stem}$", said.out, re.M) and "prompt" in said.out
    other = tmp_path / "other.png"
    name = f"urn:diffaug:{'0' * 16}:{picture.stem}"
    other.write_bytes(encode_image(Image.new("RGB", (4, 4)), "png", xmp_packet(name, "trainedAlgorithmicMedia")))
    assert f"holds no row {picture.stem} of plan {'0' * 16}" in diffaug("show", other, tmp_path / "shelf").sentence
    assert f"holds no row {picture.stem} of plan {'0' * 16}" in diffaug("show", other, run.folder).sentence


@pytest.mark.parametrize("format", ["png", "webp"])
def test_both_formats_carry_the_name(diffaug: Command, run: Run, tmp_path: Path, format: str) -> None:
    name = f"urn:diffaug:{run.plan.id[:16]}:{run.plan.rows[0].row_id}"
    data = encode_image(Image.new("RGB", (4, 4)), format, xmp_packet(name, "trainedAlgorithmicMedia"))  # type: ignore[arg-type]
    (tmp_path / "a").write_bytes(data)
    assert f"row {run.plan.rows[0].row_id} of {CONFIG}" in diffaug("show", tmp_path / "a").out


def test_other_pictures_get_one_true_sentence(diffaug: Command, run: Run, tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "JPEG")
    (tmp_path / "photo.jpg").write_bytes(buffer.getvalue())
    assert "names no row of ours in its metadata" in diffaug("show", tmp_path / "photo.jpg").sentence
    (tmp_path / "notes.png").write_text("<html>")
    assert "a web page (HTML) instead of an image" in diffaug("show", tmp_path / "notes.png").sentence
    odd = xmp_packet("urn:diffaug:../../x:<y>", "trainedAlgorithmicMedia")
    (tmp_path / "odd.png").write_bytes(encode_image(Image.new("RGB", (4, 4)), "png", odd))
    assert "names no row of ours" in diffaug("show", tmp_path / "odd.png").sentence
    assert "expected a run folder and a row id" in diffaug("show", tmp_path / "none.png").sentence


def test_summaries_fit_and_new_verbs_have_an_example(diffaug: Command) -> None:
    for verb in ("run", "export", "show", "report"):
        assert re.search(rf"Examples?: diffaug {verb} ", diffaug(verb, "--help").out)
    lines = diffaug("--help").out.splitlines()
    assert all(len(line) <= 80 for line in lines), [line for line in lines if len(line) > 80]
    for verb in ("run", "export", "show"):
        [line] = [line for line in lines if line.startswith(f"  {verb} ")]
        assert not line.endswith("..."), line


@pytest.mark.full
def test_run_loads_no_torch_where_everything_is_made(shell: Command, run: Run) -> None:
    code = (
        "import sys\nfrom diffaug_datasets.cli import main\n"
        "try: main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules, 'torch'"
    )
    said = shell(sys.executable, "-c", code, "run", run.folder.absolute())
    assert said.code == 0, said.err


@pytest.mark.parametrize(
    ("changes", "is_told"),
    [
        ({"builder": "imagefolder"}, True),
        ({"builder": "imagefolder", "licence": "cc-by-4.0"}, False),
        ({"builder": "fashion"}, False),
    ],
)
def test_a_licence_that_is_not_stated_is_said_before_publishing(changes: dict[str, str], is_told: bool) -> None:
    recipe = Recipe.from_dict({"protocol": "full", "method": "txt2img", "per_class": 1, **changes})
    said = unlicensed(SimpleNamespace(recipe=recipe))  # type: ignore[arg-type]
    assert bool(said) == is_told and said.startswith("licence: not stated" if is_told else "")
