"""Published sets in environments of other releases; DIFFAUG_OLD_PYTHON names the interpreter of an old one."""

import os
import re
import sys
from pathlib import Path

import pytest
from command_line import Command

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_loading.py"


@pytest.mark.full
def test_sets_load_here_and_in_an_old_environment(shell: Command) -> None:
    """Arrow and Parquet, eager, streamed and offline: every row's id, label and pixels."""
    others = [python for python in [os.environ.get("DIFFAUG_OLD_PYTHON")] if python]
    said = shell(sys.executable, SCRIPT, sys.executable, *others)
    assert said.code == 0, said.out + said.err
    count = 1 + len(others)
    assert said.out.count(": eager ok, streamed ok, offline ok") == 2 * count
    assert said.out.splitlines()[-1] == f"PASS: 0 of {6 * count} ways differ"


@pytest.mark.full
def test_an_environment_without_datasets_is_told(shell: Command, tmp_path: Path) -> None:
    import venv

    venv.create(tmp_path / "bare", with_pip=False)
    said = shell(sys.executable, SCRIPT, tmp_path / "bare" / "bin" / "python")
    assert said.code == 1
    assert re.search(r"ModuleNotFoundError: No module named 'datasets'", said.out)
    assert said.out.splitlines()[-1] == "FAIL: 6 of 6 ways differ"
