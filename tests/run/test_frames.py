"""How deep the engine lies: from `main()` to a method's `generate` a reader passes ten functions of ours at most."""

import inspect
import json
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from command_line import Command
from small_runs import load_backbone, loading, small_run

import diffaug_datasets
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.run.engines import local
from diffaug_datasets.run.worker import WorkerOptions

PACKAGE = Path(diffaug_datasets.__file__).parent
MOST = 10


@pytest.fixture
def frames() -> Iterator[list[str]]:
    """Functions of the package between `main` and `generate`, both counted: whoever generates asks for conditions."""
    found: list[str] = []

    def note() -> None:
        ours = [one.frame.f_code for one in inspect.stack(0) if Path(one.filename).is_relative_to(PACKAGE)][::-1]
        names = [code.co_qualname for code in ours]
        in_methods = [i for i, code in enumerate(ours) if Path(code.co_filename).parent.name == "methods"]
        for in_method in in_methods[:1]:
            found[:] = names[names.index("main") : in_method + 1]

    def load(spec: BackboneSpec, device: str) -> Any:
        backbone = load_backbone(spec, device)
        prompts = backbone.prompts
        backbone.prompts = lambda *given, **named: (note(), prompts(*given, **named))[1]
        return backbone

    with loading(load):
        yield found


def test_one_worker_in_this_process(diffaug: Command, frames: list[str], tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "genie", per_class=1)
    assert diffaug("generate", run.folder, "--workers", 1, "--device", "cpu").code == 0
    check(frames)


def test_a_worker_process(diffaug: Command, frames: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_run(tmp_path / "run", "genie", per_class=1)
    monkeypatch.setattr(local, "die_with_parent", lambda pipe: None)  # it would end the tests with their parent
    before = signal.getsignal(signal.SIGINT)
    try:
        assert diffaug("worker", run.folder, 0, json.dumps(asdict(WorkerOptions()))).code == 0
    finally:
        signal.signal(signal.SIGINT, before)
    check(frames)


def check(frames: list[str]) -> None:
    assert frames[-1] == "generate"
    assert len(frames) <= MOST, frames
