"""The commands of the page on many machines, on a real Slurm and a Ray of their own; digits may differ."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_pages import closest, plain, steps

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "run"))

from slurm_nodes import slurm_nodes, wait_until

PAGE = "docs/guides/many-machines.md"


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("slurm")
def test_every_command_prints_what_the_page_says(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with slurm_nodes() as slurm:
        environment = {**os.environ, **slurm.environment, "PATH": path}
        assert len(steps(PAGE)) == 5
        for step in steps(PAGE):
            done = subprocess.run(
                ["bash", "-euc", step.command], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{step.command}: {done.stderr[-2000:]}"
            said = [plain(line) for line in done.stdout.splitlines()]
            for line in step.lines:
                assert line == "..." or closest(plain(line), said), f"{step.command}: {line!r}\n{done.stdout}"
            if "--engine slurm" in step.command and "--wait" not in step.command:
                wait_until(lambda: not slurm.ask("squeue", "-h"), 300)
                (tmp_path / "runs/many/run.json").unlink()  # so that the next one has something to do
