"""One worker: takes units that nobody else holds, makes them, marks them done. Any number may share a run folder."""

import os
import shutil
import socket
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from diffaug_datasets.core.canonical import canonical
from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.method import FitFiles, FitUnit
from diffaug_datasets.core.plan import Shard
from diffaug_datasets.core.rows import FailedRow
from diffaug_datasets.run.appraisal import appraise
from diffaug_datasets.run.batch import BatchJob
from diffaug_datasets.run.context import (
    LoadBackbone,
    WorkContext,
    images_in,
    load_backbone,
    settle,
    sources_in,
    stack,
)
from diffaug_datasets.run.features import read_stream
from diffaug_datasets.run.pools import recipe_pool
from diffaug_datasets.run.scores import Scorer
from diffaug_datasets.run.shards import encode_rows, write_arrow
from diffaug_datasets.run.store import FileDigest, Hook, Receipt, Run, no_hook, write_atomically

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class WorkerOptions:
    """Where and how one worker runs; `only_fits` leaves the shards alone, `number` spreads workers over the units.

    `fits_from`: other run folders whose finished fits may be copied instead of made again.
    """

    device: str = "cpu"
    number: int = 0
    only_fits: bool = False
    allow_mixed_stack: bool = False
    fits_from: tuple[Path, ...] = ()
    loader: LoadBackbone = load_backbone
    hook: Hook = no_hook


class Worker:
    """Executes what a run still lacks, unit by unit."""

    def __init__(self, run: Run, options: WorkerOptions = WorkerOptions()) -> None:
        self.run, self.options = run, options
        self.plan, self.recipe = run.plan, run.recipe
        self._intact: set[str] = set()
        self._begun = time.time()

    def work(self) -> None:
        """Make every missing unit, or wait for whoever holds it.

        Raises:
            RunError: the run was begun on another stack, or the disk is full.
        """
        settle(self.recipe.threads)
        self._check_stack()
        self._check_real()
        for stage, units in self.run.units():
            if not (self.options.only_fits and stage == "synthetic"):
                self._stage(units)

    def appraise(self) -> None:
        """Measure the set whose units are all done; see `run.appraisal`."""
        settle(self.recipe.threads)
        appraise(self.run, self._ctx, self.options.hook)

    def _stage(self, units: Sequence[FitUnit | Shard]) -> None:
        """Take free units until all are done; a unit whose holder dies becomes free again."""
        offset = self.options.number * len(units) // 8 % max(1, len(units))
        waiting = [*units[offset:], *units[:offset]]
        while waiting:
            waiting = [unit for unit in waiting if not self._done_or_made(unit)]
            if waiting:
                time.sleep(POLL_SECONDS)

    def _done_or_made(self, unit: FitUnit | Shard) -> bool:
        with self.run.lease(unit.name) as mine:
            if not mine:
                return False
            if not self._is_intact(unit.name):
                self._make(unit)
            return True

    def _is_intact(self, name: str) -> bool:
        if name not in self._intact and self.run.intact(name):
            self._intact.add(name)
        return name in self._intact

    def _make(self, unit: FitUnit | Shard) -> None:
        self.run.event(event="start", unit=unit.name, worker=self.options.number)
        begin, calls = time.perf_counter(), self._evaluated
        receipt = self._adopt(unit) or self._make_fit(unit) if isinstance(unit, FitUnit) else self._make_shard(unit)
        self.options.hook(f"{unit.name}: before receipt")
        spent = {"seconds": round(time.perf_counter() - begin, 3), "evaluations": self._evaluated - calls}
        self.run.write_receipt(receipt.model_copy(update=spent))
        self._intact.add(unit.name)
        self.run.event(event="done", unit=unit.name, rows=receipt.rows, failed=len(receipt.failed), **spent)

    @property
    def _evaluated(self) -> int:
        loaded = self._ctx.__dict__.get("backbone")
        return int(getattr(loaded, "rows_evaluated", 0))

    @property
    def _signature(self) -> dict[str, Any]:
        return {"worker": f"{socket.gethostname()}:{os.getpid()}:{self.options.number}", "stack": self._stack}

    @cached_property
    def _stack(self) -> dict[str, str]:
        return stack(self.options.device)

    @cached_property
    def _ctx(self) -> WorkContext:
        return WorkContext(
            self.recipe.backbone,
            self.run.folder / "fits",
            sources_in(self._tables("real")),
            device=self.options.device,
            encoder=getattr(self.recipe.method_config, "encoder", None),
            batch_shape=self.recipe.batch_size,
            loader=self.options.loader,
            report=self._report_fit,
            pool=recipe_pool(self.recipe, self.run.pool_path),
            held_out=lambda: images_in(self._tables("test")),
        )

    def _tables(self, kind: str) -> list[Any]:
        """The run's real images, `real` (for training) or `test`, as memory-mapped tables."""
        names = [shard.name for shard in self.plan.real_shards() if shard.name.startswith(kind)]
        return [read_stream(str(self.run.shard_path(name))) for name in names]

    def _report_fit(self, step: int, total: int, loss: float) -> None:
        self.options.hook(f"fit step {step}")
        self.run.event(event="fit", unit=self._ctx.folder.name, step=step, total=total, loss=round(loss, 5))

    def _check_real(self) -> None:
        broken = [s.name for s in self.plan.real_shards() if not self.run.intact(s.name)]
        if broken:
            raise RunError(
                f"{self.run.folder}: {broken[0]}.arrow is missing or damaged; `diffaug plan` writes it again."
            )

    def _check_stack(self) -> None:
        """Refuse to continue on another stack: two halves of one set would not be made alike."""
        names = [unit.name for _, units in self.run.units() for unit in units]
        others = {canonical(r.stack) for name in names if (r := self.run.receipt(name)) and r.stack}
        if others - {canonical(self._stack)} and not self.options.allow_mixed_stack:
            raise RunError(
                f"{self.run.folder}: begun on {sorted(others)[0]}, this is {canonical(self._stack)}; the same rows "
                "would have other pixels here. Continue there, or give --allow-mixed-stack (the card will say so)."
            )

    def _adopt(self, unit: FitUnit) -> Receipt | None:
        """The same fit from another run folder made on this stack, copied; a fit's name is the digest of its inputs."""
        for other in map(Run.open, self.options.fits_from):
            receipt = other.receipt(unit.name)
            if receipt is None or receipt.stack != self._stack or not other.intact(unit.name):
                continue
            folder = self.run.fit_folder(unit.name)
            for file in receipt.files:
                origin = other.fit_folder(unit.name) / file.file
                write_atomically(folder / file.file, partial(_copy, origin))
            return receipt.model_copy(update={"plan_id": self.plan.id})
        return None

    def _make_fit(self, unit: FitUnit) -> Receipt:
        folder = self.run.fit_folder(unit.name)
        folder.mkdir(parents=True, exist_ok=True)
        self._ctx.folder = folder
        self._ctx.batch_shape = self.recipe.batch_size
        made: FitFiles = self.recipe.module.fit(unit, self.recipe.method_config, self._ctx)
        files = [self._save(folder / name, dict(tensors)) for name, tensors in sorted(made.tensors.items())]
        measured = dict(made.measured)
        return Receipt(plan_id=self.plan.id, unit=unit.name, files=tuple(files), measured=measured, **self._signature)

    def _save(self, path: Path, tensors: dict[str, Any]) -> FileDigest:
        from safetensors.torch import save_file

        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        return write_atomically(path, lambda p: save_file(contiguous, p), self.options.hook)

    @cached_property
    def _job(self) -> BatchJob:
        recipe = self.recipe
        return BatchJob(recipe.module, recipe.method_config, self._ctx, recipe.seed, recipe.batch_size, recipe.attempts)

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.recipe.scores, self.plan, self._ctx, self.recipe.batch_size)

    def _make_shard(self, shard: Shard) -> Receipt:
        with ThreadPoolExecutor(1, "encode") as pool:
            pending, failed, shapes = self._run_batches(shard, pool)
        encoded = {row["row_id"]: row for rows in pending for row in rows.result()}
        rows = [encoded[row.row_id] for row in shard.rows if row.row_id in encoded]
        written = write_arrow(self.run, self.run.shard_path(shard.name), rows, self.options.hook)
        lost = tuple(sorted(failed, key=lambda row: row.row_id))
        return written.receipt(
            self.plan.id, shard.name, failed=lost, batch_shapes=tuple(sorted(shapes)), **self._signature
        )

    def _run_batches(
        self, shard: Shard, pool: ThreadPoolExecutor
    ) -> tuple[list[Future[list[dict[str, Any]]]], list[FailedRow], set[int]]:
        pending, failed, shapes = [], [], set()
        for batch in shard.batches(self.recipe.batch_size):
            made, lost = self._job.make(batch)
            scores = self._scorer.score(made)
            pending.append(pool.submit(encode_rows, made, scores, self.plan.id, self.recipe.image_format))
            failed += lost
            shapes |= {one.batch_shape for one in made}
            self.run.event(event="batch", unit=shard.name, rows=len(made), failed=len(lost))
            self.options.hook(f"{shard.name}: batch done")
        return pending, failed, shapes


def _copy(origin: Path, target: Path) -> None:
    shutil.copyfile(origin, target)
