"""The command line, driven as a person drives it, on the embedded default."""

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Answer, Command
from typer.main import get_command

from diffaug_datasets.cli import INTERRUPTED, main
from diffaug_datasets.cli.verbs import app
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.catalogue import shipped_recipes
from diffaug_datasets.run.store import Run

GROUPS = {
    "Make": ["demo", "new", "cp", "plan", "generate", "run", "build"],
    "Look": ["builders", "methods", "families", "status", "show", "report", "export", "regen", "doctor"],
    "Evaluate": ["measure", "bench"],
    "Publish": ["publish", "verify", "withdraw"],
    "Expert": ["captions", "sentences", "fit", "convert"],
}
VERBS = [verb for verbs in GROUPS.values() for verb in verbs]
SMALL = ("--set", "per_class=1", "--set", "config.num_inference_steps=2", "--set", "include_test=false")
DIFFAUG = (sys.executable, "-m", "diffaug_datasets")
PLAN_ID = re.compile(r"plan ([0-9a-f]{16})")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten images in two steps, finished by one worker."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    for line in (["plan", "fashion_2shot_genie", *SMALL, "--run", folder], ["generate", folder, "--workers", 1]):
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in line])
        assert not left.value.code
    return folder


def row_ids(folder: Path) -> list[str]:
    """The generated rows of a run."""
    from diffaug_datasets import Run

    return [row.row_id for row in Run.open(folder).plan.rows]


def test_help_is_fast_because_it_imports_almost_nothing(shell: Command) -> None:
    code = (
        "import sys\nfrom diffaug_datasets.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    said = shell(sys.executable, "-c", code)
    print(f"diffaug --help: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before:.2f} s of user time")
    loaded = set(said.out.rpartition("loaded:")[2].split())
    assert "typer" in loaded
    assert not loaded & {"torch", "datasets", "pyarrow", "pandas", "numpy", "diffusers", "transformers", "yaml"}


def test_help_lists_every_verb_in_one_group(diffaug: Command) -> None:
    text = diffaug("--help").out.partition("Options:")[2]
    pieces = re.split(r"^([A-Z][a-z]+):$", text, flags=re.M)[1:]
    listed = {
        group: re.findall(r"^  ([a-z]+)  ", verbs, re.M) for group, verbs in zip(pieces[::2], pieces[1::2], strict=True)
    }
    assert listed == GROUPS
    assert len(VERBS) == len(set(VERBS)) and "\x1b" not in text and "│" not in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(diffaug: Command, verb: str) -> None:
    said = diffaug(verb, "--help")
    assert said.code == 0
    assert f"Usage: diffaug {verb}" in said.out


@pytest.mark.parametrize("line", [(), ("--debug",)])
def test_the_command_alone_greets_with_a_screen_of_help(diffaug: Command, line: tuple[str, ...]) -> None:
    said = diffaug(*line)
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    examples = re.findall(r"^  (diffaug [a-z].*?)(?:  |$)", said.out, re.M)
    assert len(examples) > 5
    for example in examples:
        parsed(example)


def parsed(line: str) -> str:
    """A command line goes through the parser of its verb, which would refuse a wrong word; the verb."""
    program, verb, *words = shlex.split(line)
    assert program == "diffaug"
    get_command(app).commands[verb].make_context(verb, words)
    return verb


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_has_an_example_that_parses(diffaug: Command, verb: str) -> None:
    examples = re.findall(r"^  Example: (diffaug .*)$", diffaug(verb, "--help").out, re.M)
    assert examples and {parsed(example) for example in examples} == {verb}


def test_an_example_that_does_not_parse_is_caught() -> None:
    with pytest.raises(Exception, match="No such option: --worker"):
        parsed("diffaug generate runs/mine --worker 2")


def test_summaries_fit_a_narrow_terminal(diffaug: Command) -> None:
    text = diffaug("--help").out.partition("Options:")[2]
    assert "..." not in text and max(map(len, text.splitlines())) <= 80


def test_whoever_stops_reading_sees_no_error(shell: Command) -> None:
    """`head` closes the pipe at once, and the rest is more than a pipe holds."""
    code = (
        "from diffaug_datasets.cli import look, main\n"
        "look.print_builders = lambda json: [look.say('x' * 1000) for _ in range(1000)]\n"
        "main(['builders'])"
    )
    said = shell("bash", "-c", '"$PYTHON" -c "$CODE" | head -c 10; echo " ${PIPESTATUS[0]}"', CODE=code)
    assert (said.out, said.err) == ("xxxxxxxxxx 1\n", "")


def test_a_user_without_a_home_is_told_or_served(shell: Command, tmp_path: Path) -> None:
    nobody = "import os, sys, pwd\nos.environ.pop('HOME', 0); os.environ.pop('HF_HOME', 0)\n"
    nobody += "def unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\n"
    code = nobody + "from diffaug_datasets.cli import main; main(sys.argv[1:])"
    line = ("plan", "fashion_2shot_genie", *SMALL, "--dry-run")
    hub = ("--set", "backbone=stable-diffusion-v1-5/stable-diffusion-v1-5")
    planned = shell(sys.executable, "-c", code, *line, *hub)
    assert planned.code == 0 and "weights not here" in planned.out
    told = shell(sys.executable, "-c", code, *line, "--source", "~/photos").sentence
    assert "got '~/photos', but `~` stands for no folder (this user has no home and HOME is not set), expected" in told


def test_version_is_the_packages(diffaug: Command) -> None:
    import diffaug_datasets

    assert diffaug("--version").out == f"diffaug {diffaug_datasets.__version__}\n"


def test_plan_prices_and_writes_a_run_folder(diffaug: Command, tmp_path: Path) -> None:
    said = diffaug("plan", "fashion_5shot_txt2img", "--set", "per_class=3", "--run", tmp_path / "run")
    assert said.code == 0 and said.err == ""
    work = "1,600 U-Net evaluations (100 of them fill batches up), "
    for part in ("30: 3 per class, 10 classes", "1, in batches of 16", work, "free", "about "):
        assert part in said.out
    assert (tmp_path / "run" / "plan.json").exists()
    assert said.out.splitlines()[-1] == f"next: diffaug generate {tmp_path / 'run'}"


def test_a_dry_run_writes_nothing(diffaug: Command, tmp_path: Path) -> None:
    said = diffaug("plan", "fashion_5shot_txt2img", "--run", tmp_path / "run", "--dry-run", "--json")
    price = json.loads(said.out)
    assert price["run"] is None and price["rows"] == 250
    assert not (tmp_path / "run").exists()


def test_planning_again_completes_the_same_folder(diffaug: Command, tmp_path: Path) -> None:
    line = ("plan", "fashion_2shot_genie", *SMALL, "--run", tmp_path / "run")
    first, second = diffaug(*line), diffaug(*line)
    assert second.code == 0
    assert PLAN_ID.findall(first.out) == PLAN_ID.findall(second.out)


def test_set_reaches_into_the_recipe(diffaug: Command, tmp_path: Path) -> None:
    line = ("plan", "fashion_2shot_img2img", "--set", "config.strength=0.3", "--set", "backbone=tiny", "--source")
    diffaug(*line, "", "--run", tmp_path / "run")
    recipe = Recipe.from_yaml(tmp_path / "run" / "recipe.yaml")
    assert recipe.config["strength"] == 0.3 and recipe.backbone.id == "tiny" and recipe.source is None


WITHOUT_TORCH = """
import json, sys, hiding
hiding.hide(*hiding.GENERATING)
from diffaug_datasets.cli import main
for line, code in json.loads(sys.argv[1]):
    try:
        main(line)
    except SystemExit as left:
        assert left.code == code, line
assert "torch" not in sys.modules
sys.exit(2)
"""


@pytest.mark.parametrize("slug", ["diffii", "diffinversion", "retrieval"])
def test_planning_needs_no_torch_and_gives_the_same_plan(
    diffaug: Command, shell: Command, tmp_path: Path, slug: str
) -> None:
    """In one process, which never imports it: planned, looked at, and what makes images is refused."""
    line, bare = ["plan", f"fashion_5shot_{slug}", "--set", "per_class=2", "--run"], str(tmp_path / "a")
    calls = [([*line, bare], 0), (["status", bare], 0), (["generate", bare], 2)]
    without = shell(sys.executable, "-c", WITHOUT_TORCH, json.dumps(calls))
    refused = without.sentence
    assert "is not installed; run `pip install '.[generate]'` in your clone of diffaug-datasets" in refused
    assert PLAN_ID.findall(without.out)[0] == PLAN_ID.findall(diffaug(*line, tmp_path / "b").out)[0]


def test_generate_status_show_regen_and_report(diffaug: Command, finished: Path, tmp_path: Path) -> None:
    row = row_ids(finished)[3]
    again = diffaug("generate", finished)
    assert "10 images written, 0 failed, 10 kept" in again.out
    assert json.loads(diffaug("status", finished, "--json").out)["finished"] is True
    assert "10 written, 0 failed, of 10" in diffaug("status", finished).out
    assert row in diffaug("show", finished, row[:10]).out
    rebuilt = diffaug("regen", finished, row[:10], "--out", tmp_path / "row.png")
    assert rebuilt.code == 0 and "bit-equal" in rebuilt.out
    assert (tmp_path / "row.png").read_bytes().startswith(b"\x89PNG")
    page = tmp_path / "page.html"
    assert diffaug("report", finished, "--out", page).out == f"report page: {page}\n"
    assert page.stat().st_size > 1000


@pytest.mark.parametrize(("has_browser", "said"), [(True, ""), (False, "no browser could be started here; ")])
def test_a_report_is_opened_where_it_is_asked_for(
    diffaug: Command, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_browser: bool, said: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: (asked.append(address), has_browser)[1])
    answer = diffaug("report", finished, "--out", tmp_path / "page.html", "--open")
    assert answer.code == 0 and said in answer.err and bool(answer.err) != has_browser
    assert asked == [(tmp_path / "page.html").as_uri()]


def test_regen_of_another_image_exits_with_1(diffaug: Command, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffaug_datasets.run import rebuild

    row_id = row_ids(finished)[0]
    row = rebuild.finished_row(Run.open(finished), row_id)
    changed = replace(row, columns={**row.columns, "pixel_sha256": "0" * 64})
    monkeypatch.setattr(rebuild, "finished_row", lambda run, prefix: changed)
    said = diffaug("regen", finished, row_id, "--json")
    assert said.code == 1 and json.loads(said.out)["equal"] is False
    assert json.loads(said.out)["outcome"] == "WRONG"


def test_more_failures_than_the_budget_exit_with_1(
    diffaug: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from diffaug_datasets.core.method import Generated, discover_methods, find_method

    black = Generated(torch.zeros(32, 32, 3))
    dark = replace(find_method("txt2img"), generate=lambda rows, cfg, ctx: [black] * len(rows))
    monkeypatch.setitem(discover_methods(), "txt2img", dark)
    diffaug("plan", "fashion_2shot_txt2img", *SMALL, "--run", tmp_path / "run")
    said = diffaug("generate", tmp_path / "run", "--workers", 1)
    assert said.code == 1
    assert said.err == ("diffaug: 10 of 10 rows failed, above the budget of 1.0%; first reason: constant image.\n")
    assert "failed 10 times: constant image" in diffaug("status", tmp_path / "run").out


def test_under_accelerate_the_first_process_alone_prints(
    diffaug: Command, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, expected in (("1", ""), ("0", "10 images written")):
        for name, value in {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, value)
        said = diffaug("generate", finished)
        assert said.code == 0
        assert expected in said.out and bool(said.out) == bool(expected)


def shards(folder: Path) -> dict[str, bytes]:
    """The generated shards of a run, by name."""
    found = {path.name: path.read_bytes() for path in (folder / "shards").glob("synthetic*.arrow")}
    assert found
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_says_one_line_and_the_run_goes_on(diffaug: Command, tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "run"
    long = ("--set", "config.num_inference_steps=900", "--set", "shard_rows=5")
    diffaug("plan", "fashion_2shot_txt2img", *SMALL, *long, "--run", folder)
    line = [*DIFFAUG, "generate", str(folder), "--workers", str(workers)]
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
    wait_for(folder / "events.jsonl")
    os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=120)
    # A shell sees 130 either way: CPython ends by the signal itself if it came inside an `exec` of text, as imports do.
    assert child.returncode in (130, -signal.SIGINT)
    assert err == f"{INTERRUPTED}\n"
    assert "in work  nothing" in diffaug("status", folder).out


def test_ctrl_c_ends_a_process_that_swallows_it(shell: Command) -> None:
    code = (
        "import os, signal, time, diffaug_datasets.cli as cli\n"
        "def app(*words, **options):\n"
        "    try: os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "    except KeyboardInterrupt: time.sleep(60)\n"
        "cli.app, cli.GRACE_SECONDS = app, 0.1\n"
        "cli.main(['status'])"
    )
    said = shell(sys.executable, "-c", code)
    assert said.code == 130
    assert said.err == f"{INTERRUPTED}\n"


def wait_for(path: Path) -> None:
    """Until a file is there."""
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.1)


def test_a_terminal_gets_a_bar(diffaug: Command, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    diffaug("plan", "fashion_2shot_txt2img", *SMALL, "--run", folder)
    said = on_terminal(*DIFFAUG, "generate", str(folder), "--workers", "1")
    assert "━" in said and "10/10" in said and "images/s" in said
    assert "10 images written" in said


def on_terminal(*words: str) -> str:
    """What a command writes to a terminal."""
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "PYTHONUTF8": "1"}
    child = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert child.wait(timeout=120) == 0
    return said.decode()


def test_a_published_set_is_priced_without_its_images(diffaug: Command) -> None:
    """GPU hours, bytes, requests to a store; the mean of what classes get, whose own sizes are not published."""
    said = diffaug("plan", "pets_full_txt2img", "--set", "per_image=1", "--price").out.splitlines()
    told = {line[:10].strip(): line[10:] for line in said[1:-1]}
    assert said[0] == "pets_full_txt2img" and said[-1].startswith("counted on stand-ins")
    assert told["images"] == "3,680: 99.5 per class on average, 37 classes"
    assert told["beside"] == "3,680 real images for training, 3,669 for testing"
    assert re.match(r"1\.63 hours; assumed, not measured: 31\.4 guided steps a second", told["GPU"])
    assert re.match(r"about [\d,]+ writes, [\d,]+ listings, [\d,]+ reads, where the run lies in one$", told["store"])
    assert re.match(r"\d\.\d GB needed", told["disk"])


def test_elsewhere_there_are_plain_lines(diffaug: Command, tmp_path: Path) -> None:
    diffaug("plan", "fashion_2shot_txt2img", *SMALL, "--run", tmp_path / "run")
    said = diffaug("generate", tmp_path / "run", "--workers", 1)
    assert "\x1b" not in said.out and "\r" not in said.out
    assert re.search(r"^  100 %, 10/10 images, \d+\.\d images/s, 0 failed$", said.out, re.M)
    assert said.out.splitlines()[-1] == f"next: diffaug report {tmp_path / 'run'}"


def test_standard_input_may_be_closed_and_workers_share_the_work(
    diffaug: Command, shell: Command, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        diffaug("plan", "fashion_2shot_genie", *SMALL, "--set", "shard_rows=5", "--run", tmp_path / name)
    said = shell("bash", "-c", f'"$PYTHON" -m diffaug_datasets generate {tmp_path / "two"} --workers 2 <&-')
    assert said.code == 0 and said.err == ""
    diffaug("generate", tmp_path / "one", "--workers", 1)
    assert shards(tmp_path / "one") == shards(tmp_path / "two")


def test_fits_are_taken_over_from_another_run(diffaug: Command, tmp_path: Path) -> None:
    from diffaug_datasets import Run

    first, second = tmp_path / "first", tmp_path / "second"
    for folder, rows in ((first, 1), (second, 2)):
        diffaug("plan", "fashion_2shot_genieada", *SMALL, "--set", f"per_class={rows}", "--run", folder)
    assert diffaug("fit", first, "--workers", 1).code == 0
    assert diffaug("fit", second, "--workers", 1, "--fits-from", first).code == 0
    made, taken = ([run.receipt(unit.name) for unit in run.plan.fits] for run in map(Run.open, (first, second)))
    assert made and [r.files for r in made if r] == [r.files for r in taken if r]
    assert {r.evaluations for r in taken if r} == {0}, "made again, not copied"
    assert "no plan.json here" in diffaug("fit", second, "--fits-from", tmp_path / "nowhere").sentence


def test_build_prepares_a_config(diffaug: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffaug_datasets.planning import catalogue, new_run

    small = {"per_class": 1, "include_test": False, "config": {"num_inference_steps": 2}}
    monkeypatch.setattr(new_run, "config_recipe", lambda name, **given: catalogue.config_recipe(name, **small, **given))
    said = diffaug("build", "fashion_2shot_genie", "--run", tmp_path / "run", "--workers", 1)
    assert said.code == 0, said.err
    assert "prepared, 30 train rows" in said.out


def test_shipped_recipes_are_listed_and_copied(diffaug: Command, tmp_path: Path) -> None:
    listed = diffaug("cp").out
    for name, item in shipped_recipes().items():
        assert name in listed
        assert diffaug("cp", name, tmp_path / f"{name}.yaml").code == 0
        copied = (tmp_path / f"{name}.yaml").read_text(encoding="utf-8")
        assert copied == item.read_text(encoding="utf-8") and copied.startswith("# ")
        Recipe.from_yaml(tmp_path / f"{name}.yaml")


def test_a_copied_config_gives_the_configs_own_plan(diffaug: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    assert diffaug("cp", "fashion_2shot_genie", file).code == 0
    copied, named = (diffaug("plan", recipe, "--dry-run").out for recipe in (file, "fashion_2shot_genie"))
    assert PLAN_ID.findall(copied) == PLAN_ID.findall(named) != []


def test_builders_and_methods_are_listed(diffaug: Command) -> None:
    assert {item["name"] for item in json.loads(diffaug("builders", "--json").out)} >= {"fashion", "cub", "imagefolder"}
    assert "in the package" in diffaug("builders").out
    assert {item["slug"] for item in json.loads(diffaug("methods", "--json").out)} >= {"diffii", "genie"}
    page = diffaug("methods", "diff_ii").out
    assert "2408.16266" in page and "concepts.rank" in page and ">= 0, <= 512" in page and "Eq. 5 to 7" in page


def test_doctor_says_what_this_machine_can_do(diffaug: Command) -> None:
    said = diffaug("doctor", "--json")
    assert said.code == 0
    found = json.loads(said.out)
    assert found["can_generate"] is True and "diffaug-tiny@" in found["packaged backbone"]
    assert "HF_HUB_OFFLINE=1" in found["environment"]


def test_debug_shows_the_traceback(shell: Command) -> None:
    said: Answer = shell(*DIFFAUG, "plan", "nosuch_5shot_genie", "--debug")
    assert said.code == 1 and "Traceback" in said.err and "RecipeError" in said.err


def test_plan_shows_classes_prompts_and_json_has_them_all(diffaug: Command, tmp_path: Path) -> None:
    """Twenty classes are all printed; of more, a sample spread evenly and their count."""
    from PIL import Image

    line = ("plan", "imagefolder_full_txt2img", "--source", tmp_path / "images", "--set", "backbone=tiny", "--dry-run")
    for number in range(45):
        place = tmp_path / "images" / f"the_{number:02}" / "0.png"
        place.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(place)
        if number == 19:
            said = diffaug(*line).out
            names = [f"the_{n:02}" for n in range(20)]
            assert "classes  20: " + ", ".join(names) in " ".join(said.split()).replace("classes 20", "classes  20")
            assert "prompts " + ", ".join(names).replace("_", " ") in " ".join(said.split())
    said = diffaug(*line).out
    assert "  classes  45, such as the_00, the_06, the_12, the_18, the_24, the_30, the_36, the_42\n" in said
    assert "  prompts  the 00, the 06, the 12, the 18, the 24, the 30, the 36, the 42\n" in said
    found = json.loads(diffaug(*line, "--json").out)["found"]
    assert found["layout"] == "class folders" and (found["left_out"], found["skipped"]) == ([], {})
    assert len(found["prompts"]) == 45 and found["prompts"]["the_44"] == "the 44"
