"""Commands and blocks of the README and of the pages run, and print what stands there; digits may differ.

Blocks marked `console` are run in the order of PAGES, in one folder, each command once; so are blocks marked `python`.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import yaml
from command_line import Command
from PIL import Image

from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.evaluate.suite import Bench
from diffaug_datasets.sources import real

ROOT = Path(__file__).resolve().parents[2]
ONE_TEST = f"{ROOT / 'tests' / 'test_package.py'} -k one_version"
PAGES = ("README.md", "docs/quickstart.md", "docs/guides/does-it-help.md", "docs/guides/publish.md")
PHOTOS, TRAIN = "docs/guides/own-photos.md", "docs/guides/train.md"
SHORT = {
    "scripts/demo": f"{sys.executable} -m diffaug_datasets demo --short",
    "scripts/test": f"{sys.executable} -m pytest -q -p no:cacheprovider {ONE_TEST}",
}
OF_THE_SCRIPTS = ("environment: ", "demo: ok", "test: ok", "[1/")
DIGITS = re.compile(r"\b[0-9a-f]{8,64}\b|\d[\d,.:]*|\b[kMGT]B\b")


@dataclass(frozen=True)
class Step:
    """A command and the lines that the README prints under it."""

    command: str
    lines: tuple[str, ...]


def text_of(page: str) -> str:
    """A page as it stands in the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language in a page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.M | re.S)


def steps(page: str) -> list[Step]:
    """All commands of all console blocks of a page."""
    parts = [
        part.splitlines() for block in blocks(page, "console") for part in re.split(r"^\$ ", block, flags=re.M)[1:]
    ]
    return [Step(lines[0], tuple(lines[1:])) for lines in parts]


def plain(line: str) -> str:
    """A line without what differs from machine to machine."""
    return DIGITS.sub("#", line).rstrip()


@pytest.mark.timeout(900)
def test_every_command_prints_what_the_pages_say(tmp_path: Path) -> None:
    """In one folder; then the first Python of the README and of the quickstart, which load the run."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    answers: dict[str, str] = {}
    for page in PAGES:
        assert steps(page), page
        for step in steps(page):
            command = SHORT.get(step.command, step.command)
            if command not in answers:
                done = subprocess.run(
                    ["bash", "-euc", command], cwd=tmp_path, env=environment, capture_output=True, text=True
                )
                assert done.returncode == 0, f"{step.command}: {done.stderr[-2000:]}"
                answers[command] = done.stdout
            said = [plain(line) for line in answers[command].splitlines()]
            for line in step.lines:
                if line != "..." and not line.startswith(OF_THE_SCRIPTS):
                    assert said and closest(plain(line), said), (
                        f"{step.command}: {page} says {line!r}, not so\n{answers[command]}"
                    )
    run_python(tmp_path, blocks("README.md", "python")[0] + "assert len(next(iter(loader))) == 32\n")
    run_python(tmp_path, blocks("docs/quickstart.md", "python")[0] + "assert train.num_rows == 70\n")
    events = {path: path.read_bytes() for path in tmp_path.glob("runs/fashion_*/events.jsonl")}
    subprocess.run(["bash", "-euc", SHORT["scripts/demo"]], cwd=tmp_path, check=True)
    assert events and all(path.read_bytes() == then for path, then in events.items()), (
        "the second demo made images again"
    )


def closest(line: str, said: list[str]) -> bool:
    """Whether a line was said; the demo's load line counts rows, which its short form has fewer of."""
    start = line.partition("  # ")[0]
    return any(other == line or (start != line and other.startswith(start)) for other in said)


def run_python(folder: Path, code: str) -> str:
    """A block in a process of its own; what it printed."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def pets(folder: Path) -> None:
    """The photographs of the page: three of each class to train with, two to test with."""
    for number, (split, name, place) in enumerate(
        (split, name, place)
        for split, count in (("train", 3), ("test", 2))
        for name in ("golden_retriever", "tabby_cat")
        for place in range(count)
    ):
        path = folder / "pets" / split / name / f"{place}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((48, 40), 41 + number).convert("RGB").save(path)


def test_the_short_way_says_what_the_page_says(
    diffaug: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pets(tmp_path)
    monkeypatch.chdir(tmp_path)
    for start in ("$ diffaug new", "$ diffaug run"):
        [block] = [text for text in blocks(PHOTOS, "text") if text.startswith(start)]
        command, *lines = block.splitlines()
        said = diffaug(*command.split()[2:])
        assert said.code == 0, said
        told = [plain(line) for line in said.out.splitlines() if not re.match(r" *\d+ %, ", line)]
        assert told == [plain(line) for line in lines], said


@pytest.mark.full
def test_one_call_gives_what_the_page_says(tmp_path: Path) -> None:
    pets(tmp_path)
    [block] = [text for text in blocks(TRAIN, "py") if "augment(" in text]
    [said] = blocks(TRAIN, "text")
    assert run_python(tmp_path, block) == said


def test_own_photographs_are_planned_as_the_page_says(
    diffaug: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder as it is downloaded: a Mac's and a NAS's leavings, phone photos, a validation split, a double."""
    [block] = [text for text in blocks(PHOTOS, "text") if text.startswith("$ diffaug plan")]
    command, *lines = block.splitlines()
    for place in ("Training/golden_retriever/0.jpg", "Training/golden_retriever/1.jfif", "Training/tabby_cat/0.jpg",
                  "Training/tabby_cat/1.jpg", "val/tabby_cat/0.jpg", "Testing/golden_retriever/0.jpg",
                  "Testing/tabby_cat/0.jpg", "Training/@eaDir/0.jpg"):  # fmt: skip
        path = tmp_path / "pets" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((48, 40), 40 + len(list(tmp_path.rglob("*.j*")))).convert("RGB").save(path, "JPEG")
    cats = tmp_path / "pets" / "Training" / "tabby_cat"
    (cats.parent / "golden_retriever" / "2.jpg").write_bytes((cats / "1.jpg").read_bytes())
    for name in ("2.jp2", "3.jp2", ".DS_Store", "notes.txt"):
        (cats / name).write_bytes(b"x")
    text = "file_name,license\nTraining\\tabby_cat\\0.jpg,CC0\nTraining/tabby_cat/7.jpg,CC0\n"
    (tmp_path / "pets" / "metadata.csv").write_text(text)
    monkeypatch.chdir(tmp_path)
    said = diffaug(*command.split()[2:])
    assert said.code == 0, said
    found = said.out.replace(str(tmp_path), "/data")
    assert [plain(line) for line in found.splitlines()] == [plain(line) for line in lines], found


def test_the_builder_block_runs(tmp_path: Path) -> None:
    block = next(block for block in blocks("docs/quickstart.md", "python") if "load_builder" in block)
    quick = block.replace("per_class=1", 'per_class=1, include_test=False, config={"num_inference_steps": 2}')
    assert quick != block
    run_python(tmp_path, quick + "assert len(train) == 60, train\n")


def test_the_front_door_block_runs(tmp_path: Path) -> None:
    block = next(block for block in blocks("docs/quickstart.md", "python") if "import generate, load, plan" in block)
    quick = block.replace("per_class=1", 'per_class=1, include_test=False, config={"num_inference_steps": 2}')
    assert quick != block
    run_python(tmp_path, quick + 'assert load("runs/python").num_rows == 60\n')


def test_the_recipe_is_one() -> None:
    [block] = blocks(PHOTOS, "yaml")
    recipe = Recipe.from_dict(yaml.safe_load(block))
    assert (recipe.builder, recipe.method, recipe.config["ratio"]) == ("imagefolder", "genie", 0.8)


def test_the_dataset_file_is_a_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [block] = blocks("docs/contributing/builder.md", "python")
    (tmp_path / "pins.py").write_text(block, encoding="utf-8")
    spec = spec_from_file_location("pins", tmp_path / "pins.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    known = {**real.discover_builders(), module.NAME: module}
    monkeypatch.setattr(real, "discover_builders", lambda: known)
    for name in ("map_pin", "push_pin"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / "images" / name / "0.png")
    found = real.read_real("pins", tmp_path / "images")
    assert found.train.prompt_names == ("map pin", "push pin")
    assert found.facts.licence == "CC BY 4.0"


def test_the_model_family_of_the_page_draws_its_colours(tmp_path: Path) -> None:
    [block] = blocks("docs/contributing/family.md", "python")
    assert run_python(tmp_path, block) == "[[0.9, 0.1, 0.1], [0.1, 0.1, 0.9]]\n"


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small finished run, `runs/mine`."""
    folder = tmp_path_factory.mktemp("train")
    small = (
        "from diffaug_datasets import generate, plan\ngenerate(plan('fashion_5shot_genie', 'runs/mine', per_class=1, "
    )
    run_python(folder, small + "include_test=False, config={'num_inference_steps': 2}), workers=1)")
    return folder


FULL = pytest.mark.full
LIBRARIES = {"datasets": "rows.num_rows == 60", "PyTorch": "0 < loss.item() < 10"}
SLOWER = {"transformers": "len(rows) == 60", "Keras": "model.count_params() > 0"}


@pytest.mark.parametrize(
    ("title", "truth"), [*LIBRARIES.items(), *(pytest.param(*one, marks=FULL) for one in SLOWER.items())]
)
def test_classifiers_train_as_the_page_says(trained_on: Path, title: str, truth: str) -> None:
    titles = re.findall(r"^(?:# Train|## (PyTorch|transformers|Keras))", text_of(TRAIN), re.M)
    found = dict(zip([title or "datasets" for title in titles], blocks(TRAIN, "python"), strict=True))
    assert found.keys() == {*LIBRARIES, *SLOWER}
    run_python(trained_on, f"{found[title]}\nassert {truth}\n")


def test_the_bench_file_is_one() -> None:
    [block] = blocks("docs/guides/does-it-help.md", "yaml")
    bench = Bench.from_dict(yaml.safe_load(block))
    assert bench.sets[1].name == "mine" and bench.more_real == (1, 5) and bench.draws == tuple(range(10))
