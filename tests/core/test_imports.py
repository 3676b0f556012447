"""`core` is light: neither it nor a test of it loads what only generating needs."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import diffaug_datasets.core

HEAVY = ("torch", "datasets", "diffusers", "transformers")
MODULES = [f"diffaug_datasets.core.{item.name}" for item in pkgutil.iter_modules(diffaug_datasets.core.__path__)]
TESTS = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py"))


@pytest.mark.parametrize("names", [MODULES, TESTS], ids=["modules", "tests"])
def test_nothing_heavy_is_loaded(names: list[str]) -> None:
    """In a process of its own, one after the other, so that the first that loads something is named."""
    code = (
        f"import importlib, sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]\n"
        "    assert not loaded, f'{name} loads {loaded}'\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-500:]
