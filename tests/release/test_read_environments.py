"""Published sets in environments of other releases; DIFFAUG_OLD_PYTHON names the interpreter of an old one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_loading.py"
pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]


def checked(*pythons: str) -> tuple[int, list[str]]:
    """Exit status and lines of the script."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *pythons], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return done.returncode, done.stdout.splitlines()


def test_sets_load_here_and_in_an_old_environment() -> None:
    """Arrow and Parquet, eager, streamed and offline: every row's id, label and pixels."""
    pythons = [sys.executable, *filter(None, [os.environ.get("DIFFAUG_OLD_PYTHON")])]
    status, lines = checked(*pythons)
    assert status == 0, lines
    assert sum(line.endswith(": eager ok, streamed ok, offline ok") for line in lines) == 2 * len(pythons)
    assert lines[-1] == f"PASS: 0 of {6 * len(pythons)} ways differ"


def test_an_environment_without_datasets_is_told(tmp_path: Path) -> None:
    import venv

    venv.create(tmp_path / "bare", with_pip=False)
    status, lines = checked(str(tmp_path / "bare" / "bin" / "python"))
    assert status == 1
    assert "ModuleNotFoundError: No module named 'datasets'" in lines[0]
    assert lines[-1] == "FAIL: 6 of 6 ways differ"
