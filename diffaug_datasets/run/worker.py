"""One worker: takes units that nobody else holds, makes them, marks them done. Any number may share a run folder."""

import math
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.files import FileDigest, write_atomically
from diffaug_datasets.core.identity import canonical
from diffaug_datasets.core.method import FitFiles, FitUnit
from diffaug_datasets.core.models import find_backbone
from diffaug_datasets.core.plan import Shard
from diffaug_datasets.core.rows import FailedRow
from diffaug_datasets.run.batch import BatchJob
from diffaug_datasets.run.context import WorkContext, images_in, set_determinism, sources_in, stack
from diffaug_datasets.run.reuse import WITHOUT_BACKBONE, adoptable, same_images, take_over
from diffaug_datasets.run.scores import Scorer, appraise
from diffaug_datasets.run.shards import Spool, encode_rows, read_stream, write_arrow
from diffaug_datasets.run.stacks import NUMERICS, Stack, same_stack
from diffaug_datasets.run.store import Receipt, Run
from diffaug_datasets.sources.pools import recipe_pool

if TYPE_CHECKING:
    from diffaug_datasets.models.training import Team

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class WorkerOptions:
    """Where and how one worker runs; `only_fits` leaves the shards alone, `number` spreads workers over the units.

    `fits_from`: other run folders whose finished fits may be copied instead of made again, and whose images where the
    plans differ in their filters alone. `split_batches`: the
    processes of one `accelerate launch` learn each concept fit together.
    """

    device: str = "cpu"
    number: int = 0
    only_fits: bool = False
    allow_mixed_stack: bool = False
    fits_from: tuple[Path, ...] = ()
    split_batches: bool = False


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
        self.begin()
        for stage, units in self.run.units():
            if not (self.options.only_fits and stage == "synthetic"):
                self._stage(units)

    def begin(self) -> None:
        """Set threads and kernels; check that the run can be continued here. Raises RunError as `work`."""
        set_determinism(self.recipe.threads)
        self._take_device()
        self._check_stack()
        self._check_real()
        self._check_backbone()

    def appraise(self) -> None:
        """Measure the set whose units are all done; see `run.appraisal`."""
        set_determinism(self.recipe.threads)
        appraise(self.run, self._ctx)

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
            if not self.is_intact(unit.name):
                self.make(unit)
            return True

    def is_intact(self, name: str) -> bool:
        """Whether a unit is finished; what was found whole once is not looked at again."""
        if name not in self._intact and self.run.intact(name):
            self._intact.add(name)
        return name in self._intact

    def make(self, unit: FitUnit | Shard) -> None:
        """Make a unit that this process holds the lease of, or copy a fit; its receipt is the last write."""
        self.run.event(event="start", unit=unit.name, worker=self.options.number)
        begin, calls = time.perf_counter(), self._ctx.rows_evaluated
        receipt = self._fit(unit) if isinstance(unit, FitUnit) else self._taken(unit) or self._make_shard(unit)
        evaluations = self._ctx.team_total(self._ctx.rows_evaluated - calls)
        spent = {"seconds": round(time.perf_counter() - begin, 3), "evaluations": evaluations}
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        self.run.write_receipt(receipt.model_copy(update={**spent, "finished": finished}))
        self._intact.add(unit.name)
        self.run.event(event="done", unit=unit.name, rows=receipt.rows, failed=len(receipt.failed), **spent)

    def help(self, unit: FitUnit) -> None:
        """Compute this process's part of a fit that the first process of the team makes; nothing is written here."""
        calls = self._ctx.rows_evaluated
        self._fitted(unit)
        self._ctx.team_total(self._ctx.rows_evaluated - calls)

    @contextmanager
    def joined(self, team: "Team") -> Iterator[None]:
        """Fits made inside share their batches with a team."""
        before, self._ctx.team = self._ctx.team, team
        try:
            yield
        finally:
            self._ctx.team = before

    def _signature(self, unit: FitUnit | Shard) -> dict[str, Any]:
        shared = {"processes": str(self._ctx.team.size)} if self._ctx.team.size > 1 else {}
        name = f"{socket.gethostname()}:{os.getpid()}:{self.options.number}"
        return {"worker": name, "stack": {**self._stack(self._probes(unit)), **shared}}

    def _probes(self, unit: FitUnit | Shard) -> list[str]:
        """The fingerprints that a unit states: those of the networks that it needs."""
        is_drawn = any(row.backbone for row in self.plan.rows[:1])
        if isinstance(unit, FitUnit):
            return ["numerics_encoder"] if unit.kind in WITHOUT_BACKBONE else ["numerics"] * is_drawn
        needed = {
            "numerics": is_drawn,
            "numerics_encoder": is_drawn and "encoder" in self.recipe.module.NEEDS,
            "numerics_scores": self.recipe.scores.encoder or self.recipe.scores.judge,
        }
        return [key for key, is_needed in needed.items() if is_needed]

    def _stack(self, probes: Iterable[str], shape: int | None = None) -> dict[str, str]:
        """This stack with some of its fingerprints, at the planned batch shape unless told."""
        return {**self._versions, **{key: self._numerics(key, shape or self.recipe.batch_size) for key in probes}}

    def _numerics(self, key: str, shape: int) -> str:
        return self._scorer.numerics if key == "numerics_scores" else self._ctx.numerics(key, shape)

    @cached_property
    def _versions(self) -> dict[str, str]:
        return stack(self.options.device)

    def _is_ours(self, other: Stack, shape: int | None = None) -> bool:
        """Whether a stack has our versions and computes what is computed here; models are loaded only to know that."""
        return same_stack(other, self._versions | {key: other[key] for key in NUMERICS if key in other}) and same_stack(
            other, self._stack([key for key in NUMERICS if key in other], shape)
        )

    @cached_property
    def _ctx(self) -> WorkContext:
        return WorkContext(
            self.recipe,
            self.run.folder / "fits",
            sources_in(self._tables("real")),
            device=self.options.device,
            report=self._report_fit,
            pool=recipe_pool(self.recipe, self.run.pool_path),
            held_out=lambda: images_in(self._tables("test")),
        )

    def _tables(self, kind: str) -> list[Any]:
        """The run's real images, `real` (for training) or `test`, as memory-mapped tables."""
        names = [shard.name for shard in self.plan.real_shards() if shard.name.startswith(kind)]
        return [read_stream(str(self.run.shard_path(name))) for name in names]

    def _report_fit(self, step: int, total: int, loss: float) -> None:
        known = round(loss, 5) if math.isfinite(loss) else None  # a step of half precision that overflowed
        self.run.event(event="fit", unit=self._ctx.folder.name, step=step, total=total, loss=known)

    def _take_device(self) -> None:
        """What asks for a GPU without a number gets this worker's, so that it touches no other."""
        if self.options.device.startswith("cuda:"):
            import torch

            torch.cuda.set_device(self.options.device)

    def _check_backbone(self) -> None:
        planned, found = self.plan.header.backbone, find_backbone(self.recipe.backbone).name
        if found != planned:
            raise RunError(
                f"{self.run.folder}: planned for {planned}, and {self.recipe.backbone.id} is {found} here; the same "
                "rows would have other pixels. Put those weights back, or plan again into another folder."
            )

    def _check_real(self) -> None:
        broken = [s.name for s in self.plan.real_shards() if not self.run.intact(s.name)]
        if broken:
            raise RunError(
                f"{self.run.folder}: {broken[0]}.arrow is missing or damaged; `diffaug plan` writes it again."
            )

    def _check_stack(self) -> None:
        """Refuse to continue on another stack: two halves of one set would not be made alike."""
        units = [unit for _, units in self.run.units() for unit in units]
        receipts = [self.run.receipt(unit.name) for unit in units]
        if self.options.allow_mixed_stack or all(receipts):
            return
        known = {canonical(r.stack): r.stack for r in receipts if r and r.stack}
        others = [told for told, stack in sorted(known.items()) if not self._is_ours(stack)]
        if others:
            probes = [key for key in NUMERICS if key in known[others[0]]]
            raise RunError(
                f"{self.run.folder}: begun on {others[0]}, this is {canonical(self._stack(probes))}; the same rows "
                "would have other pixels here. Continue there, or give --allow-mixed-stack (the card will say so)."
            )

    def adoptable(self, unit: FitUnit) -> tuple[Run, Receipt] | None:
        """Another run folder that holds this fit, and its receipt there."""
        return adoptable(unit, self.run, self.options.fits_from, self._is_ours, self._native_size)

    def _native_size(self) -> tuple[int, int]:
        backbone = self._ctx.backbone
        return backbone.size_of(self.recipe.backbone.model_copy(update={"height": None, "width": None}))

    def _fit(self, unit: FitUnit) -> Receipt:
        return self._adopt(unit) or self._make_fit(unit)

    def _adopt(self, unit: FitUnit) -> Receipt | None:
        """The same fit from another run folder, copied."""
        found = self.adoptable(unit)
        if found is None:
            return None
        other, receipt = found
        folder = self.run.fit_folder(unit.name)
        for file in receipt.files:
            origin = other.fit_folder(unit.name) / file.file
            write_atomically(folder / file.file, partial(_copy, origin))
        return receipt.model_copy(update={"plan_id": self.plan.id})

    @cached_property
    def _same_images(self) -> list[Run]:
        """The other runs that differ from this one in their filters alone."""
        return [run for run in map(Run.open, self.options.fits_from) if same_images(self.plan, run.plan)]

    def _taken(self, shard: Shard) -> Receipt | None:
        """The same shard of another run folder; its rows name the plan that they were made under.

        Where the other run lacks a shard, which is then made here, its stack must be ours.
        """
        for other in self._same_images:
            receipt = other.receipt(shard.name)
            if receipt is None or not other.intact(shard.name):
                continue
            is_whole = all(other.receipt(each.name) for each in self.plan.shards())
            here = [r.stack for each in self.plan.shards() if (r := self.run.receipt(each.name))]
            if all(same_stack(receipt.stack, stack) for stack in here) and (is_whole or self._is_ours(receipt.stack)):
                take_over(other.shard_path(shard.name), self.run.shard_path(shard.name))
                return receipt.model_copy(update={"plan_id": self.plan.id})
        return None

    def _fitted(self, unit: FitUnit) -> FitFiles:
        folder = self.run.fit_folder(unit.name)
        folder.mkdir(parents=True, exist_ok=True)
        self._ctx.folder = folder
        self._ctx.batch_shape = self.recipe.batch_size
        return self.recipe.module.fit(unit, self.recipe.method_config, self._ctx)

    def _make_fit(self, unit: FitUnit) -> Receipt:
        made, folder = self._fitted(unit), self.run.fit_folder(unit.name)
        files = [self._save(folder / name, dict(tensors)) for name, tensors in sorted(made.tensors.items())]
        measured = dict(made.measured)
        signed = self._signature(unit)
        return Receipt(plan_id=self.plan.id, unit=unit.name, files=tuple(files), measured=measured, **signed)

    def _save(self, path: Path, tensors: dict[str, Any]) -> FileDigest:
        from safetensors.torch import save_file

        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        return write_atomically(path, lambda p: save_file(contiguous, p))

    @cached_property
    def _job(self) -> BatchJob:
        recipe = self.recipe
        return BatchJob(recipe.module, recipe.method_config, self._ctx, recipe.seed, recipe.batch_size, recipe.attempts)

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.recipe.scores, self.plan, self._ctx, self.recipe.batch_size)

    def _make_shard(self, shard: Shard) -> Receipt:
        path = self.run.shard_path(shard.name)
        with Spool(path.parent) as spool:
            failed, shapes = self._run_batches(shard, spool)
            rows = spool.rows(row.row_id for row in shard.rows)
            written = write_arrow(self.run, path, rows)
        lost = tuple(sorted(failed, key=lambda row: row.row_id))
        return written.receipt(
            self.plan.id, shard.name, failed=lost, batch_shapes=tuple(sorted(shapes)), **self._signature(shard)
        )

    def _run_batches(self, shard: Shard, spool: Spool) -> tuple[list[FailedRow], set[int]]:
        """Make the shard's batches; one is encoded and put away while the next is made, and no more are held."""
        failed: list[FailedRow] = []
        shapes: set[int] = set()
        with ThreadPoolExecutor(1, "encode") as pool:
            encoding: Future[list[dict[str, Any]]] | None = None
            for batch in shard.batches(self.recipe.batch_size):
                made, lost = self._job.make(batch)
                scores = self._scorer.score(made)
                if encoding:
                    spool.add(encoding.result())
                encoding = pool.submit(encode_rows, made, scores, self.plan.id, self.recipe.image_format)
                failed += lost
                shapes |= {one.batch_shape for one in made}
                self.run.event(event="batch", unit=shard.name, rows=len(made), failed=len(lost))
            if encoding:
                spool.add(encoding.result())
        return failed, shapes


def _copy(origin: Path, target: Path) -> None:
    shutil.copyfile(origin, target)
