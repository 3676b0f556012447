"""One planned batch: generate, judge, retry. One image's failure is data; memory that runs out halves the shape."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.method import Generated, Method, redraw
from diffaug_datasets.core.rows import FailedRow, PlanRow
from diffaug_datasets.core.seeds import RowKey
from diffaug_datasets.run.context import WorkContext

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Made:
    """A row with its picture: uint8 [h, w, 3]; `row` holds the draws of the attempt that worked.

    `encoded`: the bytes of a picture that was found, not made.
    """

    row: PlanRow
    pixels: "NDArray[np.uint8]"
    measured: dict[str, Any]
    attempt: int
    batch_shape: int
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

    def make(self, rows: Sequence[PlanRow]) -> tuple[list[Made], list[FailedRow]]:
        """Images of the rows, and the rows that have none after all attempts."""
        waiting, failed = self._readable(rows)
        made: list[Made] = []
        reasons: dict[str, str] = {}
        for attempt in range(self.attempts):
            good, bad = self._try(waiting, attempt)
            made += good
            reasons |= bad
            waiting = [self._again(row, attempt + 1) for row in waiting if row.row_id in bad]
            if not waiting:
                break
        failed += [FailedRow(row_id=r.row_id, reason=reasons[r.row_id], attempts=self.attempts) for r in waiting]
        return made, failed

    def _readable(self, rows: Sequence[PlanRow]) -> tuple[list[PlanRow], list[FailedRow]]:
        good, failed = [], []
        for row in rows:
            try:
                for source in row.source_ids:
                    self.ctx.source(source)
                good.append(row)
            except SourceError as error:
                failed.append(FailedRow(row_id=row.row_id, reason=str(error), attempts=0))
        return good, failed

    def _try(self, rows: Sequence[PlanRow], attempt: int) -> tuple[list[Made], dict[str, str]]:
        good: list[Made] = []
        bad: dict[str, str] = {}
        for row, image, shape in self._generate(rows, self.shape):
            reason = "out of memory at batch shape 1" if image is None else flaw(image)
            if image is None or reason:
                bad[row.row_id] = reason
            else:
                good.append(_made(row, image, attempt, shape))
        return good, bad

    def _generate(self, rows: Sequence[PlanRow], shape: int) -> list[tuple[PlanRow, Generated | None, int]]:
        """The planned shape, padded by the last row; in padded halves where memory does not suffice."""
        if not rows:
            return []
        padded = [*rows, *[rows[-1]] * (shape - len(rows))]
        try:
            images = self._images(padded, shape)
            return [(row, image, shape) for row, image in zip(rows, images, strict=False)]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        _free_memory()
        if shape == 1:
            return [(row, None, 1) for row in rows]
        half = (shape + 1) // 2
        return self._generate(rows[:half], half) + self._generate(rows[half:], half)

    def _images(self, rows: Sequence[PlanRow], shape: int) -> list[Generated]:
        import torch

        self.ctx.batch_shape = shape
        with torch.inference_mode():
            return self.method.generate(rows, self.config, self.ctx)

    def _again(self, row: PlanRow, attempt: int) -> PlanRow:
        key = RowKey(self.seed, self.method.NAME, row.label, row.k, attempt)
        return redraw(self.method, row, key, self.config)

    def rebuild(self, row: PlanRow, shape: int) -> Made | None:
        """The image of one finished row, at the shape it was made with; None where it cannot be made."""
        [(row, image, _)] = replace(self, shape=shape)._generate([row], shape)
        return None if image is None else _made(row, image, 0, shape)


def _made(row: PlanRow, image: Generated, attempt: int, shape: int) -> Made:
    from diffaug_datasets.run.context import to_uint8

    chosen = row.model_copy(update=dict(image.chosen))
    return Made(chosen, to_uint8(image.pixels), dict(image.measured), attempt, shape, image.encoded)


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
