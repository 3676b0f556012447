"""Features of all images that classifiers on frozen features need, each seen once by one of several processes.

Images are taken in parts of a fixed order, and one process at a time sees a part, so that the same images lie beside
one another however many processes there are: the last bits of a feature may depend on its neighbours.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffaug_datasets.core.identity import digest
from diffaug_datasets.evaluate.classifiers import Array
from diffaug_datasets.evaluate.draws import Images
from diffaug_datasets.evaluate.features import cached_features
from diffaug_datasets.run.leases import lease

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffaug_datasets.models.encoders import Encoder

PART = 1024  # images that one process sees before another may go on


class Features:
    """Unit-norm features [n d] of images by one encoder: `prepare` them, then call with those images.

    `folder`: where leases lie, which exists. `cache`: of features, on disk; default: the user's.
    """

    def __init__(self, encoder: "Encoder", folder: Path, cache: Path | None = None, poll: float = 0.2) -> None:
        self.encoder, self._folder, self._cache, self._poll = encoder, folder, cache, poll
        self._known: dict[str, NDArray[np.float32]] = {}

    def prepare(self, images: Iterable[Images]) -> None:
        """Know these images and no others; those on disk are not looked at again.

        Raises:
            DiffAugError: an image cannot be read, or the cache cannot be written.
        """
        places = {key: (group, i) for group in images for i, key in enumerate(group.keys)}
        self._known = {key: row for key, row in self._known.items() if key in places}
        new = sorted(places.keys() - self._known.keys())
        waiting = [new[begin : begin + PART] for begin in range(0, len(new), PART)]
        while waiting:
            left = []
            for part in waiting:
                with lease(self._folder, f"features-{digest([self.encoder.name, part])[:24]}") as mine:
                    if mine:
                        self._see(part, places)
                    else:
                        left.append(part)
            waiting = left
            if waiting:
                time.sleep(self._poll)  # another process sees them now

    def _see(self, part: Sequence[str], places: Mapping[str, tuple[Images, int]]) -> None:
        def read(number: int) -> "Image":
            images, place = places[part[number]]
            return images.read(place)

        rows = cached_features(self.encoder, part, read, self._cache)
        self._known |= dict(zip(part, rows.astype(np.float32), strict=True))

    def __call__(self, images: Images) -> Array:
        """Their features, in their order.

        Raises:
            KeyError: an image that was not prepared.
        """
        return np.stack([self._known[key] for key in images.keys]).astype(np.float64)
