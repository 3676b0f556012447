"""One planned batch: generate, judge, retry. One image's failure is data; memory that runs out halves the shape.

The planned batch is the unit of exactness. A row is always made at its own place of the planned shape: on some kernels
its last bits hang on the place (seen under MKL's COMPATIBLE path: a U-Net call of 10 or 14 rows, CLIP at shapes that
are no multiple of 4; what the other rows hold and where memory lies never mattered). What stands beside it follows
from the plan and the attempt alone, never from who failed: a later attempt draws every row of the batch again and keeps
those that lacked an image.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffaug_datasets.core.errors import RunError, SourceError
from diffaug_datasets.core.identity import RowKey
from diffaug_datasets.core.method import Generated, Method, MethodConfig
from diffaug_datasets.core.plan import Batch
from diffaug_datasets.core.rows import FailedRow, PlanRow
from diffaug_datasets.run.context import WorkContext, is_out_of_memory, to_uint8
from diffaug_datasets.run.looking import look

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Slot = tuple[int, PlanRow] | None
"""A row and its place of the planned batch; None where no row stands."""


@dataclass(frozen=True)
class Made:
    """A row with its picture: uint8 [h, w, 3]; `row` holds the draws of the attempt that worked.

    `place`: of the row in its planned batch. `encoded`: the bytes of a picture that was found, not made.
    """

    row: PlanRow
    pixels: "NDArray[np.uint8]"
    measured: dict[str, object]
    attempt: int
    batch_shape: int
    place: int
    encoded: bytes | None = None


@dataclass(frozen=True)
class BatchJob:
    """How to make batches: the method, its configuration, the padded shape, the number of tries."""

    method: Method
    config: MethodConfig
    ctx: WorkContext
    seed: int
    shape: int
    attempts: int

    def make(self, batch: Batch) -> tuple[list[Made], list[FailedRow]]:
        """Images of a planned batch's rows, and the rows that have none after all attempts.

        The method is called from here, so that its frame is the next one: that makes this function a long one.
        """
        made: list[Made] = []
        _, unreadable = self._slots(batch, 0)
        failed = [_failed(batch, place, unreadable[place], 0) for place in sorted(unreadable)]
        waiting = {place for place, row in enumerate(batch) if row is not None and place not in unreadable}
        reasons: dict[int, str] = {}
        for attempt in range(self.attempts):
            slots, unreadable = self._slots(batch, attempt)
            reasons = {place: unreadable[place] for place in waiting if place in unreadable}
            waiting -= reasons.keys()
            parts = [slots]  # in order from the end; a part that memory does not hold makes way for its halves
            while parts:
                part = parts.pop()
                wanted = [(at, *slot) for at, slot in enumerate(part) if slot and slot[0] in waiting]
                if not wanted:
                    continue
                images: list[Generated] | None = None
                with self._unless_out_of_memory(len(part)):
                    images = self.method.generate(_filled(part), self.config, self.ctx)
                if images is None:
                    _free_memory()
                    if len(part) > 1:
                        parts += reversed(_halves(part))
                        continue
                looked = look(images or (), at_once=not self.ctx.recipe.profile.is_exact)
                for at, place, row in wanted:
                    reason = "out of memory at batch shape 1" if images is None else looked.flaw(at)
                    if images is None or reason:
                        reasons[place] = reason
                    else:
                        made.append(_made(row, images[at], looked.pixels(at), attempt, len(part), place))
            waiting = set(reasons)
            if not waiting:
                break
        failed += [_failed(batch, place, reasons[place], self.attempts) for place in sorted(waiting)]
        return made, failed

    def rebuild(self, row: PlanRow, batch: Batch, place: int, attempt: int, shape: int) -> Made | None:
        """The image of a finished row, which stands at a place of its planned batch, at the attempt and the shape that
        made it; None where memory does not suffice for that shape.

        Raises:
            RunError: no batch of this shape is cut to that one.
        """
        part, _ = self._slots(batch, attempt)
        part[place] = (place, row)
        while len(part) > max(1, shape):
            part = next(half for half in _halves(part) if any(slot and slot[0] == place for slot in half))
        if len(part) != shape:
            raise RunError(
                f"row {row.row_id}: was made in a batch of {shape}, to which a planned batch of {self.shape} is never "
                "cut; its recipe or its columns were changed."
            )
        images: list[Generated] | None = None
        with self._unless_out_of_memory(shape):
            images = self.method.generate(_filled(part), self.config, self.ctx)
        at = part.index((place, row))
        return None if images is None else _made(row, images[at], to_uint8(images[at].pixels), attempt, shape, place)

    def _slots(self, batch: Batch, attempt: int) -> tuple[list[Slot], dict[int, str]]:
        """The rows of an attempt at their places of the planned shape; and why no row stands at a place."""
        slots: list[Slot] = [None] * self.shape
        unreadable: dict[int, str] = {}
        for place, planned in enumerate(batch):
            if planned is None:
                continue
            key = RowKey(self.seed, self.method.NAME, planned.label, planned.k, attempt)
            row = self.method.redraw(planned, key, self.config) if attempt else planned
            try:
                for source in row.source_ids:
                    self.ctx.source(source)
                slots[place] = (place, row)
            except SourceError as error:
                unreadable[place] = str(error)
        return slots, unreadable

    @contextmanager
    def _unless_out_of_memory(self, shape: int) -> Iterator[None]:
        """Generate at a batch shape; where memory does not suffice, the block ends early."""
        import torch

        self.ctx.batch_shape = shape
        try:
            with torch.inference_mode():
                yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise


def _filled(part: Sequence[Slot]) -> list[PlanRow]:
    """A row in every slot: an empty one holds the first row that there is."""
    rows = [slot[1] if slot else None for slot in part]
    filler = next(row for row in rows if row is not None)
    return [row or filler for row in rows]


def _halves(part: Sequence[Slot]) -> tuple[list[Slot], list[Slot]]:
    """Two batches of one shape, (n + 1) // 2, that hold all n slots; of an odd number the second has one slot empty."""
    half = (len(part) + 1) // 2
    return list(part[:half]), [*part[half:], *[None] * (2 * half - len(part))]


def _free_memory() -> None:
    """Of a call that ran out of it, once its frames are gone."""
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _made(row: PlanRow, image: Generated, pixels: "NDArray[np.uint8]", attempt: int, shape: int, place: int) -> Made:
    chosen = row.model_copy(update=dict(image.chosen))
    return Made(chosen, pixels, dict(image.measured), attempt, shape, place, image.encoded)


def _failed(batch: Batch, place: int, reason: str, attempts: int) -> FailedRow:
    row = batch[place]
    assert row is not None, "an empty place fails at nothing"
    return FailedRow(row_id=row.row_id, reason=reason, attempts=attempts)
