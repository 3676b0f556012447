"""Models that stay from run to run: loaded once, let go at the end or for another one; same bytes, same counts."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import CONCEPTS, small_run

from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.kept import keeping_models, kept
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions

SMALL: dict[str, Any] = {"per_class": 1, "config": {"num_inference_steps": 2}}
LEARNED: dict[str, Any] = {"per_class": 1, "config": {"num_inference_steps": 2, "concepts": {**CONCEPTS, "steps": 2}}}


def bytes_of(run: Run) -> dict[str, object]:
    """What every unit left, and what it took."""
    units = [unit.name for unit in (*run.plan.fits, *run.plan.shards())]
    receipts = {name: run.receipt(name) for name in units}
    return {name: (one.files, one.evaluations, one.stack) for name, one in receipts.items() if one}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backbones that were loaded."""
    seen: list[str] = []
    load = Backbone.load.__func__  # type: ignore[attr-defined]

    def listening(cls: type[Backbone], spec: Any, *given: Any) -> Backbone:
        seen.append(spec.id)
        made: Backbone = load(cls, spec, *given)
        return made

    monkeypatch.setattr(Backbone, "load", classmethod(listening))
    return seen


def test_runs_share_their_models_and_nothing_else(tmp_path: Path, loads: list[str]) -> None:
    """The second one after concepts were learned into the model that it takes over."""

    def made(folder: str, slug: str, changes: dict[str, Any]) -> dict[str, object]:
        run = small_run(tmp_path / folder, slug, **changes)
        execute(run, WorkerOptions(), workers=1)
        return bytes_of(run)

    alone = made("alone", "txt2img", SMALL)
    assert len(loads) == 1
    with keeping_models():
        made("before", "diffgen", LEARNED)
        assert made("after", "txt2img", SMALL) == alone
    assert len(loads) == 2


def test_one_model_of_a_kind_is_held_and_none_afterwards() -> None:
    made: list[str] = []

    def load(key: str) -> str:
        return kept("encoder", key, lambda: made.append(key) or key)  # type: ignore[func-returns-value]

    with keeping_models():
        assert [load(key) for key in "aabba"] == list("aabba") and made == list("aba")
        with keeping_models():
            load("a")
        assert made == list("aba")
    load("a")
    assert made == list("abaa")
