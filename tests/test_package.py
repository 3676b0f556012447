"""What ships: every package and asset, one version, no local path or host, and files that keep to the house style."""

import ast
import re
import subprocess
import tomllib
from collections import Counter
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Command

import diffaug_datasets

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PLACES = {"diffaug_datasets": ROOT / "diffaug_datasets", "builders": ROOT / "builders", "cards": ROOT / "cards"}
OUTSIDE = ("diffaug_datasets.builders", "diffaug_datasets.cards")
MODULES = sorted(path for place in PLACES.values() for path in place.rglob("*.py"))
HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "scikit-learn"}


def name_of(requirement: str) -> str:
    """`torch` of `torch>=2.6`."""
    return re.split(r"[<>=!~\[; ]", requirement, maxsplit=1)[0].lower()


def test_every_package_ships() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    inside = {".".join(p.parent.relative_to(ROOT).parts) for p in PLACES["diffaug_datasets"].rglob("__init__.py")}
    assert listed == inside | set(OUTSIDE)


def test_every_data_file_ships() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    for package, place in (("diffaug_datasets", "diffaug_datasets"), *((name, name.split(".")[1]) for name in OUTSIDE)):
        shipped = {path for pattern in patterns[package] for path in PLACES[place].glob(pattern) if path.is_file()}
        data = {p for p in PLACES[place].rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
        assert data <= shipped, f"{package} leaves out {sorted(data - shipped)}"


def test_the_package_is_typed_and_licensed() -> None:
    assert (ROOT / "diffaug_datasets" / "py.typed").exists()
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")[:200]


def test_there_is_one_version() -> None:
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert diffaug_datasets.__version__ == version == citation["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_lines_that_install_work_as_they_stand() -> None:
    """From a clone: the package lies on no index. Every extra that a line or a sentence names exists."""
    from diffaug_datasets.core.errors import EXTRAS, install

    extras = PROJECT["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) <= set(extras)
    for module, extra in EXTRAS.items():
        named = {name_of(item).replace("-", "_") for item in extras[extra]}
        assert {"sklearn": "scikit_learn", "faiss": "faiss_cpu"}.get(module, module) in named
    texts = [path for place in PLACES.values() for path in place.rglob("*") if path.suffix in (".py", ".jinja")]
    texts += [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "scripts").glob("*")]
    lines = [
        line for path in texts if path.is_file() for line in re.findall(r"pip install (.*)", path.read_text("utf-8"))
    ]
    assert len(lines) > 3
    for line in lines:
        assert not re.match(r"['\"]?diffaug", line, re.IGNORECASE), line
        assert set(re.findall(r"\.\[(\w+)\]", line)) <= set(extras), line
    assert install("generate") == "`pip install '.[generate]'` in your clone of diffaug-datasets"


def test_planning_and_loading_ask_for_nothing_heavy() -> None:
    project = PROJECT["project"]
    assert project["requires-python"] == ">=3.11"
    assert not {name_of(item) for item in project["dependencies"]} & HEAVY
    extras = {"generate", "eval", "oracle", "retrieval", "ray", "s3", "slurm", "dev"}
    assert set(project["optional-dependencies"]) == extras
    assert "torch>=2.6" in project["optional-dependencies"]["generate"]
    assert not any("==" in item or "<" in item for item in project["dependencies"])


def test_constraints_pin_every_requirement_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    pinned = {name_of(pin).replace("_", "-") for pin in pins}
    asked = {name_of(item).replace("_", "-") for item in requires("diffaug-datasets") or ()}
    assert asked - pinned <= {"diffaug-datasets", "setuptools"}


def test_no_shipped_text_names_a_place_of_a_machine() -> None:
    telling = re.compile(r"(?<![\w.])/(work|root|home|Users|tmp)/|--(extra-)?index-url|--find-links")
    scripts = [p for p in (ROOT / "scripts").iterdir() if p.is_file()]
    others = [ROOT / name for name in ("README.md", "CHANGELOG.md", "pyproject.toml", "constraints.txt", ".ci/run")]
    for path in (*MODULES, *scripts, *others):
        found = telling.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path.relative_to(ROOT)}: {found[0] if found else ''}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short_and_documented(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 600
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "the module has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_names_are_nouns_of_the_field(path: Path) -> None:
    assert path.stem not in ("utils", "helpers", "common", "manager", "base", "misc")


def test_no_two_modules_share_a_file_name() -> None:
    """But for the same idea at two levels: errors inside and at the front door, a row made again of a run and a set."""
    names = Counter(path.name for path in PLACES["diffaug_datasets"].rglob("*.py") if path.name != "__init__.py")
    assert {name for name, count in names.items() if count > 1} <= {"errors.py", "rebuild.py"}


@pytest.mark.parametrize("script", ["scripts/demo", "scripts/test", "scripts/check", "scripts/docs", ".ci/run"])
def test_scripts_stop_at_the_first_error(script: str, shell: Command) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111, "not executable"
    assert "set -euo pipefail" in path.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_continuous_integration_calls_the_scripts() -> None:
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "scripts/check" in text and "scripts/test" in text
