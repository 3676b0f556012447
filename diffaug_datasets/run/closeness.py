"""How close an image that was made again came to the stored one, and whether that is as it should be.

On the stack that made it an image must come out bit for bit. Another stack rounds elsewhere, so there the distance is
measured and must stay below a tolerance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diffaug_datasets.core.images import decode_image
from diffaug_datasets.run.regenerate import Rebuilt, Regenerator
from diffaug_datasets.run.stacks import Stack, difference, same_stack

# Seen between MKL's, ATen's and oneDNN's paths on one CPU (the packaged model in float32, 10 and 25 steps, 40 rows of
# each of four methods): at most 1 level, on up to 7 of 40 rows, 0.0007 on average. A larger model, more pixels and
# another device spread that further. The mean must stay narrow: a source noised to a label that is one off gives 0.04
# and at most 1 level; another seed, prompt, source or fit gives tens of levels.
MOST_LEVELS = 4
MOST_MEAN = 0.02


@dataclass(frozen=True)
class Closeness:
    """How a rebuilt image compares with the stored one. Differences are in grey levels from 0 to 255.

    `mean` and `largest` are None where the images are equal or the stored one could not be looked at. `elsewhere`: how
    this stack differs from the one that made the row; empty where it is the same.
    """

    row_id: str
    equal: bool
    stored: str
    made: str
    mean: float | None = None
    largest: int | None = None
    elsewhere: str = ""

    @property
    def is_unknown(self) -> bool:
        """Whether nothing can be said: other pixels on another stack, and the stored ones are not there."""
        return not self.equal and bool(self.elsewhere) and self.largest is None

    @property
    def is_within(self) -> bool:
        """Whether it differs by no more than another stack may make it."""
        if self.equal or not self.elsewhere or self.mean is None or self.largest is None:
            return False
        return self.largest <= MOST_LEVELS and self.mean <= MOST_MEAN

    @property
    def is_good(self) -> bool:
        """Whether the image is what it should be here."""
        return self.equal or self.is_within

    def __str__(self) -> str:
        if self.equal:
            return f"row {self.row_id}: bit-equal to the stored image (pixel sha256 {self.made[:16]})"
        if self.is_within:
            far = f"{levels(self.largest)}, {self.mean:.4f} on average"
            return f"row {self.row_id}: within tolerance: {far} ({self.elsewhere})"
        if self.is_unknown:
            return f"row {self.row_id}: has other pixels here, and none are stored to measure from ({self.elsewhere})"
        far = "" if self.mean is None else f" by {self.mean:.3f} grey levels on average, {self.largest} at most"
        allowed = f"; another stack may give {MOST_LEVELS} at most and {MOST_MEAN} on average ({self.elsewhere})"
        return f"row {self.row_id}: differs from the stored image{far}{allowed if self.elsewhere else ''}"


def levels(largest: int | None) -> str:
    """`at most 1 grey level`."""
    return f"at most {largest} grey level{'' if largest == 1 else 's'}"


def closeness(
    row_id: str,
    stored: str,
    made: Rebuilt,
    stacks: Sequence[Stack],
    regenerate: Regenerator,
    image: Callable[[], bytes | None],
) -> Closeness:
    """Compare a rebuilt row with what is stored of it: its pixel digest, the stacks that made the set, and, asked for
    only where the digests differ, its encoded image (None where there is none).
    """
    if made.equal:
        return Closeness(row_id, True, stored, made.pixel_sha256)
    ours = regenerate.stack
    is_ours = all(same_stack(stack, ours) for stack in stacks)
    there, elsewhere = image(), "" if is_ours else difference(stacks, ours)
    mean, largest = (None, None) if there is None else _distance(there, made.data)
    return Closeness(row_id, False, stored, made.pixel_sha256, mean, largest, elsewhere)


def _distance(one: bytes, other: bytes) -> tuple[float, int]:
    """Mean and largest absolute difference of two encoded images; the largest there is where sizes differ."""
    import numpy as np

    there, here = (np.asarray(decode_image(data), dtype=np.int16) for data in (one, other))
    if there.shape != here.shape:
        return 255.0, 255
    gap = np.abs(there - here)
    return float(gap.mean()), int(gap.max())
