"""One planned batch: generate, judge, retry. One image's failure is data; memory that runs out halves the shape.

The planned batch is the unit of exactness. A row is always made at its own place of the planned shape: on some kernels
its last bits hang on the place (seen under MKL's COMPATIBLE path: a U-Net call of 10 or 14 rows, CLIP at shapes that
are no multiple of 4; what the other rows hold and where memory lies never mattered). What stands beside it follows
from the plan and the attempt alone, never from who failed: a later attempt draws every row of the batch again and keeps
those that lacked an image.
"""

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from diffaug_datasets.core.errors import RunError, SourceError
from diffaug_datasets.core.method import Generated, Method, redraw
from diffaug_datasets.core.plan import Batch
from diffaug_datasets.core.rows import FailedRow, PlanRow
from diffaug_datasets.core.seeds import RowKey
from diffaug_datasets.run.context import WorkContext

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Made:
    """A row with its picture: uint8 [h, w, 3]; `row` holds the draws of the attempt that worked.

    `place`: of the row in its planned batch. `encoded`: the bytes of a picture that was found, not made.
    """

    row: PlanRow
    pixels: "NDArray[np.uint8]"
    measured: dict[str, Any]
    attempt: int
    batch_shape: int
    place: int
    encoded: bytes | None = None


@dataclass(frozen=True)
class BatchJob:
    """How to make batches: the method, its configuration, the padded shape, the number of tries."""

    method: Method
    config: BaseModel
    ctx: WorkContext
    seed: int
    shape: int
    attempts: int

    def make(self, batch: Batch) -> tuple[list[Made], list[FailedRow]]:
        """Images of a planned batch's rows, and the rows that have none after all attempts."""
        _, unreadable = self._slots(batch, 0)
        named = _named(batch, unreadable)
        failed = [FailedRow(row_id=row.row_id, reason=unreadable[place], attempts=0) for place, row in named]
        waiting = [place for place, row in enumerate(batch) if row is not None and place not in unreadable]
        made: list[Made] = []
        reasons: dict[int, str] = {}
        for attempt in range(self.attempts):
            good, reasons = self._try(batch, waiting, attempt)
            made += good
            waiting = sorted(reasons)
            if not waiting:
                break
        named = _named(batch, waiting)
        failed += [FailedRow(row_id=row.row_id, reason=reasons[p], attempts=self.attempts) for p, row in named]
        return made, failed

    def rebuild(self, row: PlanRow, batch: Batch, place: int, attempt: int, shape: int) -> Made | None:
        """The image of a finished row, which stands at a place of its planned batch, at the attempt and the shape that
        made it; None where memory does not suffice for that shape.

        Raises:
            RunError: no batch of this shape is cut to that one.
        """
        slots, _ = self._slots(batch, attempt)
        slots[place] = row
        at = place
        while len(slots) > max(1, shape):
            lower, upper = _halves(slots)
            slots, at = (lower, at) if at < len(lower) else (upper, at - len(lower))
        if len(slots) != shape:
            raise RunError(
                f"row {row.row_id}: was made in a batch of {shape}, to which a planned batch of {self.shape} is never "
                "cut; its recipe or its columns were changed."
            )
        [(_, image, made_at)] = self._generate(slots, [at])
        return None if image is None or made_at != shape else _made(row, image, attempt, shape, place)

    def _slots(self, batch: Batch, attempt: int) -> tuple[list[PlanRow | None], dict[int, str]]:
        """The rows of an attempt at their places of the planned shape, None where no row can stand; why, by place."""
        rows = [row and self._drawn(row, attempt) for row in batch]
        unreadable = {p: told for p, row in enumerate(rows) if row is not None and (told := self._unreadable(row))}
        slots = [None if place in unreadable else row for place, row in enumerate(rows)]
        return [*slots, *[None] * (self.shape - len(slots))], unreadable

    def _unreadable(self, row: PlanRow) -> str:
        try:
            for source in row.source_ids:
                self.ctx.source(source)
        except SourceError as error:
            return str(error)
        return ""

    def _drawn(self, row: PlanRow, attempt: int) -> PlanRow:
        key = RowKey(self.seed, self.method.NAME, row.label, row.k, attempt)
        return redraw(self.method, row, key, self.config) if attempt else row

    def _try(self, batch: Batch, wanted: Sequence[int], attempt: int) -> tuple[list[Made], dict[int, str]]:
        """The images of an attempt at these places; of those that cannot stay, the reason by place."""
        slots, unreadable = self._slots(batch, attempt)
        bad = {place: unreadable[place] for place in wanted if place in unreadable}
        good: list[Made] = []
        for place, image, shape in self._generate(slots, [place for place in wanted if place not in bad]):
            reason = "out of memory at batch shape 1" if image is None else flaw(image)
            row = slots[place]
            if image is None or row is None or reason:
                bad[place] = reason
            else:
                good.append(_made(row, image, attempt, shape, place))
        return good, bad

    def _generate(
        self, slots: Sequence[PlanRow | None], wanted: Sequence[int]
    ) -> list[tuple[int, Generated | None, int]]:
        """(place, image, shape) of the wanted places; in padded halves where memory does not suffice for all slots.

        An empty slot holds the first row that there is.
        """
        if not wanted:
            return []
        shape, filler = len(slots), next(row for row in slots if row is not None)
        try:
            images = self._images([row or filler for row in slots])
            return [(place, images[place], shape) for place in wanted]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        _free_memory()
        if shape == 1:
            return [(place, None, 1) for place in wanted]
        lower, upper = _halves(slots)
        half = len(lower)
        first = self._generate(lower, [place for place in wanted if place < half])
        second = self._generate(upper, [place - half for place in wanted if place >= half])
        return [*first, *[(place + half, image, made_at) for place, image, made_at in second]]

    def _images(self, rows: Sequence[PlanRow]) -> list[Generated]:
        import torch

        self.ctx.batch_shape = len(rows)
        with torch.inference_mode():
            return self.method.generate(rows, self.config, self.ctx)


def _named(batch: Batch, places: Iterable[int]) -> list[tuple[int, PlanRow]]:
    return [(place, row) for place in sorted(places) if (row := batch[place]) is not None]


def _halves(slots: Sequence[PlanRow | None]) -> tuple[list[PlanRow | None], list[PlanRow | None]]:
    """Two batches of one shape, (n + 1) // 2, that hold all n slots; of an odd number the second has one slot empty."""
    half = (len(slots) + 1) // 2
    return list(slots[:half]), [*slots[half:], *[None] * (2 * half - len(slots))]


def _made(row: PlanRow, image: Generated, attempt: int, shape: int, place: int) -> Made:
    from diffaug_datasets.run.context import to_uint8

    chosen = row.model_copy(update=dict(image.chosen))
    return Made(chosen, to_uint8(image.pixels), dict(image.measured), attempt, shape, place, image.encoded)


def flaw(image: Generated) -> str:
    """Why an image cannot stay: there is none, it is not finite, or of one flat colour; empty where it can."""
    import torch

    if image.lacking:
        return image.lacking
    if not bool(torch.isfinite(image.pixels).all()):
        return "not finite"
    low, high = image.pixels.amin(), image.pixels.amax()
    return "constant image" if float(high - low) < 1 / 255 else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the batch did not fit, on any device."""
    import torch

    text = str(error).lower()
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "out of memory" in text or "not enough memory" in text


def _free_memory() -> None:
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
