"""Images that fail, memory that runs out, sources that cannot be read: through the real worker and real models."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import digests, load_backbone, loading, small_run

from diffaug_datasets.core.files import write_atomically
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.report.run_view import RunView
from diffaug_datasets.run import context
from diffaug_datasets.run.assembly import Assembled
from diffaug_datasets.run.execute import execute, over_budget
from diffaug_datasets.run.progress import Progress, status
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Worker, WorkerOptions


@dataclass
class Misbehaving:
    """A real backbone that spoils the images of named noise seeds, or runs out of memory above a batch shape."""

    inner: Backbone
    spoil: dict[int, float] = field(default_factory=dict)
    most_rows: int = 10**9
    marked: list[float | None] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def guided_eps(self, xt: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(xt) > self.most_rows:
            raise torch.OutOfMemoryError("planted: CUDA out of memory")
        named = {seed: self._noise(seed) for seed in self.spoil}
        found = [next((self.spoil[s] for s, n in named.items() if torch.equal(n, x)), None) for x in xt]
        self.marked = found if any(f is not None for f in found) or len(found) != len(self.marked) else self.marked
        return self.inner.guided_eps(xt, *rest)

    def decode_float(self, z: torch.Tensor) -> torch.Tensor:
        images = self.inner.decode_float(z)
        for i, value in enumerate(self.marked[: len(images)]):
            if value is not None:
                images[i] = value
        self.marked = []
        return images

    def _noise(self, seed: int) -> torch.Tensor:
        return torch.randn(self.inner.latent_shape, generator=torch.Generator().manual_seed(seed))


Load = Callable[[BackboneSpec, str], Any]


def load_misbehaving(spec: BackboneSpec, device: str, **faults: Any) -> Any:
    return Misbehaving(load_backbone(spec, device), **faults)


def misbehaving(**faults: Any) -> Load:
    return partial(load_misbehaving, **faults)


def executed(run: Run, load: Load, **options: Any) -> Assembled | None:
    """The run made by one worker on such a backbone."""
    with loading(load):
        return execute(run, WorkerOptions(**options), workers=1)


def seeds_of(run: Run, row: PlanRow, attempts: Sequence[int]) -> list[int]:
    from diffaug_datasets.core.identity import RowKey

    return [RowKey(run.recipe.seed, row.method, row.label, row.k, a).seed("noise") for a in attempts]


def rows_of(run: Run) -> dict[str, dict[str, Any]]:
    tables = [run.table(s) for s in run.plan.shards()]
    return {row["row_id"]: row for table in tables for row in table.to_pylist()}


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "not finite"), (0.5, "constant image")])
def test_a_bad_image_is_tried_again_with_another_seed(tmp_path: Path, value: float, reason: str) -> None:
    run = small_run(tmp_path / "run", "txt2img")
    unlucky, hopeless = run.plan.rows[4], run.plan.rows[9]
    spoil = dict.fromkeys(seeds_of(run, unlucky, [0]) + seeds_of(run, hopeless, [0, 1, 2]), value)
    assembled = executed(run, misbehaving(spoil=spoil))
    assert assembled is not None
    rows = rows_of(run)
    assert rows[unlucky.row_id]["attempt"] == 1
    assert rows[unlucky.row_id]["seed"] == seeds_of(run, unlucky, [1])[0]
    assert [(f.row_id, f.reason, f.attempts) for f in assembled.failed] == [(hopeless.row_id, reason, 3)]
    assert hopeless.row_id not in rows
    assert sum(c.planned for c in assembled.counts) == len(rows) + len(assembled.failed) == 20
    assert over_budget(run, assembled).startswith("1 of 20 rows failed, above the budget of 1.0%")
    assert status(run).rows_failed == 1


def test_neighbours_of_a_bad_image_keep_their_bits(tmp_path: Path) -> None:
    clean, faulty = small_run(tmp_path / "a", "txt2img"), small_run(tmp_path / "b", "txt2img")
    spoil = dict.fromkeys(seeds_of(clean, clean.plan.rows[4], [0, 1, 2]), float("nan"))
    execute(clean, WorkerOptions(), workers=1)
    executed(faulty, misbehaving(spoil=spoil))
    expected, got = rows_of(clean), rows_of(faulty)
    del expected[clean.plan.rows[4].row_id]
    assert got == expected


def test_out_of_memory_runs_padded_halves(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "txt2img", batch_size=4)
    executed(run, misbehaving(most_rows=2))
    assert {row["batch_shape"] for row in rows_of(run).values()} == {2}
    again = small_run(tmp_path / "again", "txt2img", batch_size=4)
    executed(again, misbehaving(most_rows=2))
    assert digests(run.folder) == digests(again.folder)


def test_no_memory_at_all_fails_the_rows_and_says_so(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "txt2img")
    assembled = executed(run, misbehaving(most_rows=0))
    assert assembled is not None
    assert {f.reason for f in assembled.failed} == {"out of memory at batch shape 1"}
    assert len(assembled.failed) == 20


def test_an_undecodable_source_fails_its_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffaug_datasets.core import images
    from diffaug_datasets.core.errors import SourceError

    run = small_run(tmp_path / "run", "img2img", failure_budget=1.0)
    victim = run.plan.rows[0].source_ids[0]

    def decode(data: bytes, name: str = "image") -> Image.Image:
        if images.source_id(data) == victim:
            raise SourceError("image: not a readable image")
        return images.decode_image(data, name)

    monkeypatch.setattr(context, "decode_image", decode)
    assembled = execute(run, WorkerOptions(), workers=1)
    assert assembled is not None
    users = {row.row_id for row in run.plan.rows if victim in row.source_ids}
    assert {f.row_id for f in assembled.failed} == users
    assert {f.attempts for f in assembled.failed} == {0}


def test_an_inversion_that_overflowed_fails_its_rows_alone(tmp_path: Path) -> None:
    """As half precision leaves it: the fit is whole, and one image's latent in it is not finite."""
    from safetensors.torch import load_file, save_file

    run = small_run(tmp_path / "run", "diffii", failure_budget=1.0)
    execute(run, WorkerOptions(only_fits=True), workers=1)
    unit = next(unit for unit in run.plan.fits if unit.kind == "inversions")
    receipt = run.receipt(unit.name)
    assert receipt is not None
    path = run.fit_folder(unit.name) / receipt.files[0].file
    latents = load_file(path)
    unlucky = sorted(latents)[0]
    latents[unlucky][0, 0, 0] = torch.nan
    changed = write_atomically(path, lambda temporary: save_file(latents, temporary))
    run.write_receipt(receipt.model_copy(update={"files": (changed,)}))
    assembled = execute(run, WorkerOptions(), workers=1)
    assert assembled is not None
    lost = {row.row_id for row in run.plan.rows if unlucky.partition("/")[0] in row.source_ids}
    assert lost and {failed.row_id for failed in assembled.failed} == lost
    assert rows_of(run).keys() == {row.row_id for row in run.plan.rows} - lost
    assert all(failed.reason.startswith("the inversion of a source is not finite;") for failed in assembled.failed)


def test_a_step_that_overflowed_is_told_and_ends_nothing(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "diffgen")
    worker, progress = Worker(run), Progress.from_now(run)
    worker.context.folder = run.fit_folder(run.plan.fits[0].name)
    worker.context.report(1, 2, math.nan)
    progress.poll()
    assert progress.fit.endswith("1/2, overflowed, step left out")
    worker.context.report(2, 2, 0.25)
    progress.poll()
    assert progress.fit.endswith("2/2, loss 0.2500")
    assert [point.step for point in RunView(run).losses(run.plan.fits[0].name)] == [2]


def test_finished_images_carry_their_origin(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "genie")
    execute(run, WorkerOptions(), workers=1)
    for row in rows_of(run).values():
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            packet = image.info["XML:com.adobe.xmp"]
            assert np.asarray(image).shape == (32, 32, 3)
        assert row["row_id"] in packet
        assert "compositeWithTrainedAlgorithmicMedia" in packet
