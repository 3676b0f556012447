"""One worker: takes units that nobody else holds, makes them, marks them done. Any number may share a run folder."""

import logging
import math
import os
import random
import shutil
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.files import FileDigest, write_once
from diffaug_datasets.core.identity import canonical
from diffaug_datasets.core.method import FitFiles, FitUnit
from diffaug_datasets.core.models import find_backbone
from diffaug_datasets.core.plan import Shard, ShardKind
from diffaug_datasets.core.rows import Row
from diffaug_datasets.run.batch import BatchJob
from diffaug_datasets.run.context import WorkContext, images_in, sources_in
from diffaug_datasets.run.overlap import BATCHES, Drawn, Overlap, encoders
from diffaug_datasets.run.reuse import WITHOUT_BACKBONE, adoptable, same_images, take_over
from diffaug_datasets.run.scores import Scorer, measure_quality
from diffaug_datasets.run.shards import Spool, made_rows
from diffaug_datasets.run.stacks import NUMERICS, Stack, same_stack, set_determinism, stack
from diffaug_datasets.run.store import Receipt, Run
from diffaug_datasets.sources.pools import recipe_pool

log = logging.getLogger("diffaug_datasets")

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from diffaug_datasets.models.training import Team
    from diffaug_datasets.run.batch import Made
    from diffaug_datasets.run.scores import ImageScores

Heed = Callable[[str, int, int], None]
SHORTEST_WAIT, LONGEST_WAIT = 0.1, 3.0  # seconds between two looks at a unit that another one holds
STARTS = 0.618033988749895  # the golden ratio: any number of workers begin far apart from one another


@dataclass(frozen=True)
class WorkerOptions:
    """Where and how one worker runs; `only_fits` leaves the shards alone, `number` spreads workers over the units.

    `fits_from`: folders or addresses of other runs whose finished fits may be copied instead of made again, and whose
    images where the plans differ in their filters alone. `split_batches`: the processes of one `accelerate launch`
    share the batches of each concept fit. `progress`: org/name of the Hub whose card says how far the run is.
    """

    device: str = "cpu"
    number: int = 0
    only_fits: bool = False
    allow_mixed_stack: bool = False
    fits_from: tuple[Path, ...] = ()
    split_batches: bool = False
    progress: str = ""


class Worker:
    """Executes what a run still lacks, unit by unit."""

    def __init__(self, run: Run, options: WorkerOptions = WorkerOptions(), heed: Heed | None = None) -> None:
        """`heed` is told (unit, 0, 1) when a unit is begun, then how much of it is done of how much, and (unit, 1, 1)
        when its receipt is written. What it raises ends the work, and the unit is free for others.
        """
        self.run, self.options, self._heed = run, options, heed or _go_on
        self.plan, self.recipe = run.plan, run.recipe
        self._intact: set[str] = set()
        self._overlap = Overlap()

    def work(self) -> None:
        """Make every missing unit, or wait for whoever holds it.

        Raises:
            RunError: the run was begun on another stack, or the disk is full.
        """
        self.begin()
        self._overlap = Overlap()
        with closing(self._overlap), closing(self._leased()) as units:
            for unit in units:
                if isinstance(unit, Shard) and not self.recipe.profile.is_exact:
                    self._make_beside(unit)
                else:
                    self.make(unit)

    def begin(self) -> None:
        """Set threads and kernels; check that the run can be continued here. Raises RunError as `work`."""
        set_determinism(self.recipe.threads)
        if self.options.device.startswith("cuda:"):
            import torch

            torch.cuda.set_device(self.options.device)  # what asks for a GPU without a number gets this worker's
        self.run.refresh()
        self._check_stack()
        folder, spec = self.run.where, self.recipe.backbone
        if broken := [shard.name for shard in self.plan.real_shards() if not self.run.intact(shard.name)]:
            raise RunError(f"{folder}: {broken[0]}.arrow is missing or damaged; `diffaug plan` writes it again.")
        if (here := find_backbone(spec).name) != self.plan.header.backbone:
            raise RunError(
                f"{folder}: planned for {self.plan.header.backbone}, and {spec.id} is {here} here; the same rows "
                "would have other pixels. Put those weights back, or plan again into another folder."
            )

    def measure_quality(self) -> None:
        """Measure the set whose units are all done; see `run.scores`."""
        set_determinism(self.recipe.threads)
        measure_quality(self.run, self.context)

    def adoptable(self, unit: FitUnit) -> tuple[Run, Receipt] | None:
        """Another run folder that holds this fit, and its receipt there."""

        def native_size() -> tuple[int, int]:
            as_it_comes = self.recipe.backbone.model_copy(update={"height": None, "width": None})
            return self.context.backbone.size_of(as_it_comes)

        return adoptable(unit, self.run, self.options.fits_from, self._is_ours, native_size)

    def is_intact(self, name: str) -> bool:
        """Whether a unit is finished; what was found whole once is not looked at again."""
        if name not in self._intact and self.run.intact(name):
            self._intact.add(name)
        return name in self._intact

    def make(self, unit: FitUnit | Shard) -> None:
        """Make a unit that this process holds the lease of, or copy a fit; its receipt is the last write."""
        self.run.event(event="start", unit=unit.name, worker=self.options.number)
        self._heed(unit.name, 0, 1)
        begin, calls = time.perf_counter(), self.context.rows_evaluated
        if isinstance(unit, FitUnit):
            receipt = self._adopt(unit) or self._make_fit(unit)
        else:
            receipt = self._taken(unit) or self._make_shard(unit).finish(self._written)
        self._commit(unit, receipt, self._spent(begin, calls))

    def _make_beside(self, shard: Shard) -> None:
        """Make a shard whose end is left to a thread, so that the next one begins."""
        self.run.event(event="start", unit=shard.name, worker=self.options.number)
        self._heed(shard.name, 0, 1)
        begin, calls = time.perf_counter(), self.context.rows_evaluated
        if taken := self._taken(shard):
            self._commit(shard, taken, self._spent(begin, calls))
            return
        drawn = self._make_shard(shard)
        spent = self._spent(begin, calls)
        finish = partial(drawn.finish, self._written)
        self._overlap.begin(shard, finish, lambda receipt: self._commit(shard, receipt, spent))

    def _spent(self, begin: float, calls: int) -> dict[str, object]:
        """Seconds since `begin`, and U-Net rows since there were `calls`, over the team."""
        evaluations = self.context.team_total(self.context.rows_evaluated - calls)
        return {"seconds": round(time.perf_counter() - begin, 3), "evaluations": evaluations}

    def _commit(self, unit: FitUnit | Shard, receipt: Receipt, spent: dict[str, object]) -> bool:
        """Write a unit's receipt; False where another worker had taken it over."""
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        if not self.run.write_receipt(receipt.model_copy(update={**spent, "finished": finished})):
            log.warning("%s: was taken over while this worker stood still; another one makes it.", unit.name)
            return False
        self._intact.add(unit.name)
        self.run.event(event="done", unit=unit.name, rows=receipt.rows, failed=len(receipt.failed), **spent)
        self._heed(unit.name, 1, 1)
        return True

    def help(self, unit: FitUnit) -> None:
        """Compute this process's part of a fit that the first process of the team makes; nothing is written here."""
        calls = self.context.rows_evaluated
        self._fitted(unit)
        self.context.team_total(self.context.rows_evaluated - calls)

    @contextmanager
    def sharing(self, team: "Team") -> Iterator[None]:
        """Fits made inside share their batches with a team."""
        before, self.context.team = self.context.team, team
        try:
            yield
        finally:
            self.context.team = before

    @cached_property
    def context(self) -> WorkContext:
        """The models and data of this worker, loaded when they are first needed."""

        def report(step: int, total: int, loss: float) -> None:
            known = round(loss, 5) if math.isfinite(loss) else None  # a step of half precision that overflowed
            self.run.event(event="fit", unit=self.context.folder.name, step=step, total=total, loss=known)
            self.run.save_progress(self.context.folder.name)
            if step < total:
                self._heed(self.context.folder.name, step, total)

        return WorkContext(
            self.recipe,
            self.run.folder / "fits",
            sources_in(self._tables("real")),
            device=self.options.device,
            report=report,
            pool=recipe_pool(self.recipe, self.run.pool_path),
            held_out=lambda: images_in(self._tables("test")),
            have=self.run.have,
        )

    @cached_property
    def job(self) -> BatchJob:
        """How this worker makes batches."""
        recipe, shape = self.recipe, self.recipe.batch_size
        return BatchJob(
            recipe.method_definition, recipe.method_config, self.context, recipe.seed, shape, recipe.attempts
        )

    @cached_property
    def scorer(self) -> Scorer:
        """What measures finished images."""
        return Scorer(self.recipe.scores, self.plan, self.context, self.recipe.batch_size)

    def _leased(self) -> Generator[FitUnit | Shard, None, None]:
        """The missing units, stage by stage, each while this process holds its lease.

        A unit that another process holds is waited for before the next stage; when its holder dies, it is free again.
        """
        for stage, units in self.run.units():
            if self.options.only_fits and stage == "synthetic":
                continue
            offset = int(self.options.number * STARTS % 1 * len(units))
            waiting = [*units[offset:], *units[:offset]]
            for wait in growing_waits():
                held_elsewhere: list[FitUnit | Shard] = []
                self.run.refresh()
                for unit in waiting:
                    if self.is_intact(unit.name):
                        continue
                    with ExitStack() as held:
                        mine = held.enter_context(self.run.lease(unit.name))
                        self.run.look_again(unit.name)
                        if mine and not self.is_intact(unit.name):
                            yield unit
                        if mine and self._overlap.keep(unit.name, mine, held):
                            continue
                        if mine and self.is_intact(unit.name):
                            mine.done = True
                        else:
                            held_elsewhere.append(unit)
                self._overlap.wait()
                waiting = [*held_elsewhere, *self._overlap.lost()]
                if not waiting:
                    break
                time.sleep(wait)

    def _signature(self, unit: FitUnit | Shard) -> dict[str, object]:
        """The fields of a receipt that say who made a unit."""
        shared = {"processes": str(self.context.team.size)} if self.context.team.size > 1 else {}
        name = f"{socket.gethostname()}:{os.getpid()}:{self.options.number}"
        return {"worker": name, "stack": {**self._stack(self._probes(unit)), **shared}}

    def _probes(self, unit: FitUnit | Shard) -> list[str]:
        """The fingerprints that a unit states: those of the networks that it needs."""
        is_drawn = any(row.backbone for row in self.plan.rows[:1])
        if isinstance(unit, FitUnit):
            return ["numerics_encoder"] if unit.kind in WITHOUT_BACKBONE else ["numerics"] * is_drawn
        needed = {
            "numerics": is_drawn,
            "numerics_encoder": is_drawn and "encoder" in self.recipe.method_definition.NEEDS,
            "numerics_scores": self.recipe.scores.encoder or self.recipe.scores.judge,
        }
        return [key for key, is_needed in needed.items() if is_needed]

    def _stack(self, probes: Iterable[str], shape: int | None = None) -> dict[str, str]:
        """This stack with some of its fingerprints, at the planned batch shape unless another is given."""
        shape = shape or self.recipe.batch_size
        known = {
            key: self.scorer.numerics if key == "numerics_scores" else self.context.numerics(key, shape)
            for key in probes
        }
        return {**self._versions, **known, **self.context.kernels(known)}

    @cached_property
    def _versions(self) -> dict[str, str]:
        return stack(self.options.device, self.recipe.profile)

    def _is_ours(self, other: Stack, shape: int | None = None) -> bool:
        """Whether a stack has our versions and computes what is computed here; models are loaded only to know that."""
        return same_stack(other, self._versions | {key: other[key] for key in NUMERICS if key in other}) and same_stack(
            other, self._stack([key for key in NUMERICS if key in other], shape)
        )

    def _tables(self, kind: ShardKind) -> "list[pa.Table]":
        """The run's real images, `real` (for training) or `test`, as memory-mapped tables."""
        return [self.run.table(shard) for shard in self.plan.real_shards() if shard.kind == kind]

    def _check_stack(self) -> None:
        """Refuse to continue on another stack: two halves of one set would not be made alike."""
        units = [unit for _, units in self.run.units() for unit in units]
        receipts = [self.run.receipt(unit.name) for unit in units]
        if self.options.allow_mixed_stack or all(receipts):
            return
        known = {canonical(r.stack): r.stack for r in receipts if r and r.stack}
        others = [text for text, stack in sorted(known.items()) if not self._is_ours(stack)]
        if others:
            probes = [key for key in NUMERICS if key in known[others[0]]]
            raise RunError(
                f"{self.run.where}: begun on {others[0]}, this is {canonical(self._stack(probes))}; the same rows "
                "would have other pixels here. Continue there, or give --allow-mixed-stack (the card will say so)."
            )

    def _adopt(self, unit: FitUnit) -> Receipt | None:
        """The same fit from another run folder, copied."""
        adopted = self.adoptable(unit)
        if adopted is None:
            return None
        other, receipt = adopted
        folder = self.run.fit_folder(unit.name)
        self.run.make_way(unit.name)
        files = tuple(
            write_once(folder / file.file, partial(shutil.copyfile, other.fit_folder(unit.name) / file.file))
            for file in receipt.files
        )
        return receipt.model_copy(update={"plan_id": self.plan.id, "files": files})

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
                other.have(shard.name)
                self.run.make_way(shard.name)
                target = self.run.folder / "shards" / f"{shard.name}.arrow"
                file = take_over(other.shard_path(shard.name), target)
                return receipt.model_copy(update={"plan_id": self.plan.id, "files": (file,)})
        return None

    def _fitted(self, unit: FitUnit) -> FitFiles:
        folder = self.run.fit_folder(unit.name)
        folder.mkdir(parents=True, exist_ok=True)
        self.run.restore_progress(unit.name)
        self.context.folder = folder
        self.context.batch_shape = self.recipe.batch_size
        return self.recipe.method_definition.fit(unit, self.recipe.method_config, self.context)

    def _make_fit(self, unit: FitUnit) -> Receipt:
        from safetensors.torch import save_file

        def save(path: Path, tensors: "Mapping[str, Tensor]") -> FileDigest:
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            return write_once(path, lambda temporary: save_file(contiguous, temporary))

        self.run.make_way(unit.name)
        made, folder = self._fitted(unit), self.run.fit_folder(unit.name)
        files = tuple(save(folder / name, tensors) for name, tensors in sorted(made.tensors.items()))
        content = {"plan_id": self.plan.id, "unit": unit.name, "files": files, "measured": dict(made.measured)}
        return Receipt.model_validate({**content, **self._signature(unit)})

    def _make_shard(self, shard: Shard) -> Drawn:
        """Make the shard's batches; those before are encoded and put away meanwhile, and no more than two are held."""
        drawn = Drawn(shard, Spool(self.run.folder / "shards"))
        if any(row.backbone for row in shard.rows):
            self.context.load()
        self.run.event(event="loaded", unit=shard.name)
        is_exact, skipped = self.recipe.profile.is_exact, self.context.rows_skipped
        with ExitStack() as unless_done:
            unless_done.enter_context(drawn.spool)
            batches = list(shard.batches(self.recipe.batch_size))
            for number, batch in enumerate(batches):
                if number:
                    self._heed(shard.name, number, len(batches))
                made, lost = self.job.make(batch)
                scores = self.scorer.score(made)
                drawn.drain(0 if is_exact else BATCHES - 1)
                drawn.encoding.append(self._encoded(made, scores))
                drawn.failed += lost
                drawn.shapes |= {one.batch_shape for one in made}
                self.run.event(event="batch", unit=shard.name, rows=len(made), failed=len(lost))
            drawn.facts = self._signature(shard)
            if self.recipe.profile.is_turbo:
                drawn.facts["measured"] = {"evaluations_skipped": self.context.rows_skipped - skipped}
            drawn.held = unless_done.pop_all()
        return drawn

    def _encoded(self, made: "Sequence[Made]", scores: "Sequence[ImageScores]") -> "list[Future[list[Row]]]":
        """The rows of a batch, encoded by threads: one in exact, else one task for each of several."""
        parts = 1 if self.recipe.profile.is_exact else encoders()
        each = math.ceil(len(made) / parts) or 1
        cuts = [slice(begin, begin + each) for begin in range(0, len(made), each)]
        form = self.plan.id, self.recipe.image_format
        return [self._encoders.submit(made_rows, made[cut], scores[cut], *form) for cut in cuts]

    @cached_property
    def _encoders(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1 if self.recipe.profile.is_exact else encoders(), "encode")

    def _written(self, drawn: Drawn) -> Receipt:
        """Write the file of a shard whose rows are all put away; its receipt, not yet written."""
        shard = drawn.shard
        receipt = self.run.write_shard(shard, drawn.spool.rows(row.row_id for row in shard.rows))
        lost_rows = tuple(sorted(drawn.failed, key=lambda row: row.row_id))
        outcome = {"failed": lost_rows, "batch_shapes": tuple(sorted(drawn.shapes)), **drawn.facts}
        return receipt.model_copy(update=outcome)


def _go_on(_unit: str, _done: int, _total: int) -> None:
    """Nothing is to be heeded."""


def growing_waits() -> Iterator[float]:
    """Seconds to wait between looks: short at first, a tenth of the whole time waited then, and apart by chance."""
    waited = 0.0
    while True:
        wait = min(LONGEST_WAIT, max(SHORTEST_WAIT, waited / 10)) * random.uniform(0.7, 1.0)
        waited += wait
        yield wait
