"""Every command and every block of the README runs, and prints what the README says; digits may differ."""

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
from diffaug_datasets.sources import real

ROOT = Path(__file__).resolve().parents[1]
ONE_TEST = f"{ROOT / 'tests' / 'test_package.py'} -k one_version"
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = {
    "scripts/demo": f"{sys.executable} -m diffaug_datasets demo --short",
    "scripts/test": f"{sys.executable} -m pytest -q -p no:cacheprovider {ONE_TEST}",
}
OF_THE_SCRIPTS = ("environment: ", "demo: ok", "test: ok", "[1/")
DIGITS = re.compile(r"\b[0-9a-f]{8,64}\b|\d[\d,.:]*|\b[kMGT]B\b")
RUN = re.compile(r"runs/fashion_5shot_diffii-[0-9a-f]{8}")


@dataclass(frozen=True)
class Step:
    """A command and the lines that the README prints under it."""

    command: str
    lines: tuple[str, ...]


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.M | re.S)


def steps() -> list[Step]:
    """All commands of all console blocks."""
    parts = [part.splitlines() for block in blocks("console") for part in re.split(r"^\$ ", block, flags=re.M)[1:]]
    return [Step(lines[0], tuple(lines[1:])) for lines in parts]


def plain(line: str) -> str:
    """A line without what differs from machine to machine."""
    return DIGITS.sub("#", line).rstrip()


def test_every_command_prints_what_the_readme_says(tmp_path: Path) -> None:
    """In the order of the README, in one folder; then its Python, which finds the demo's run."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    found = ""
    for step in steps():
        command = SHORT.get(step.command, step.command)
        done = subprocess.run(["bash", "-euc", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{step.command}: {done.stderr[-2000:]}"
        said = [plain(line) for line in done.stdout.splitlines()]
        for line in step.lines:
            if line != "..." and not line.startswith(OF_THE_SCRIPTS):
                assert said and closest(plain(line), said), (
                    f"{step.command}: the README says {line!r}, not so\n{done.stdout}"
                )
        found = found or next(iter(RUN.findall(done.stdout)), "")
    assert found, "the demo named no run folder"
    run_python(tmp_path, RUN.sub(found, blocks("python")[0]))
    events = (tmp_path / found / "events.jsonl").read_bytes()
    subprocess.run(["bash", "-euc", SHORT["scripts/demo"]], cwd=tmp_path, check=True)
    assert (tmp_path / found / "events.jsonl").read_bytes() == events, "the second demo made its images again"


def closest(line: str, said: list[str]) -> bool:
    """Whether a line was said; the demo's load line counts rows, which its short form has fewer of."""
    start = line.partition("  # ")[0]
    return any(other == line or (start != line and other.startswith(start)) for other in said)


def run_python(folder: Path, code: str) -> None:
    """A block in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_own_photographs_are_planned_as_the_readme_says(
    diffaug: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder as it is downloaded: a Mac's and a NAS's leavings, phone photos, a validation split, a double."""
    [block] = [text for text in blocks("text") if text.startswith("$ diffaug plan")]
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
    block = next(block for block in blocks("python") if "load_builder" in block)
    quick = block.replace("per_class=1", 'per_class=1, include_test=False, config={"num_inference_steps": 2}')
    assert quick != block
    run_python(tmp_path, quick + "assert len(train) == 60, train\n")


def test_the_front_door_block_runs(tmp_path: Path) -> None:
    block = next(block for block in blocks("python") if "import generate, load, plan" in block)
    quick = block.replace("per_class=1", 'per_class=1, include_test=False, config={"num_inference_steps": 2}')
    assert quick != block
    run_python(tmp_path, quick + 'assert load("runs/python").num_rows == 60\n')


def test_the_recipe_is_one() -> None:
    [block] = blocks("yaml")
    recipe = Recipe.from_dict(yaml.safe_load(block))
    assert (recipe.builder, recipe.method, recipe.config["ratio"]) == ("imagefolder", "genie", 0.8)


def test_the_dataset_file_is_a_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = next(block for block in blocks("python") if "HUB_ID" in block)
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


def test_what_the_architecture_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    places = re.findall(
        r"`((?:core|numerics|models|methods|sources|run|planning|release|evaluate|report|train|cli)/[\w./]+)`", text
    )
    assert len(places) > 15
    for place in places:
        assert (ROOT / "diffaug_datasets" / place).exists(), place
    folders = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert set(folders) == {path.parent.name for path in (ROOT / "diffaug_datasets").glob("*/__init__.py")}


def test_what_the_readme_names_exists() -> None:
    for name in re.findall(r"`((?:scripts|builders|tests|diffaug_datasets)/[\w./]*|\.ci/run|CITATION\.cff)`", TEXT):
        assert (ROOT / name).exists(), name
    assert (ROOT / "diffaug_datasets" / "methods" / "txt2img.py").exists()


def test_verbs_and_extras_that_the_readme_names_exist(diffaug: Command) -> None:
    from importlib.metadata import metadata

    verbs = set(re.findall(r"`diffaug ([a-z]+)", TEXT))
    assert len(verbs) > 5
    for verb in verbs:
        assert diffaug(verb, "--help").code == 0, verb
    extras = set(re.findall(r"\.\[([a-z]+)\]", TEXT))
    assert extras <= set(metadata("diffaug-datasets").get_all("Provides-Extra") or ())
