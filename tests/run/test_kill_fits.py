"""kill -9 while image embeddings are learned or a pool is searched, run again: the same bytes."""

from pathlib import Path

import pytest
from kills import KillAt, Planned, start
from small_runs import small_run

WINDOWS = {
    "diffinversion": ("fit: 3", "replace: image_embeddings.safetensors"),
    "retrieval": ("replace: features.safetensors", "replace: index.safetensors"),
}


@pytest.mark.full
@pytest.mark.parametrize("slug", WINDOWS)
def test_a_kill_inside_a_fit(tmp_path: Path, slug: str) -> None:
    folder = tmp_path / "run"
    small_run(folder, slug)
    planned = Planned.measure(folder)
    for number, window in enumerate(WINDOWS[slug]):
        copy = planned.copy(f"window-{number}")
        child = start(copy, KillAt(window))
        child.join()
        assert child.exitcode == -9, f"no point is called {window!r}"
        planned.check(copy)
