"""Small sets of pictures in which the answer is known, as `load` gives a run's."""

import datasets
import numpy as np
from PIL import Image

from diffaug_datasets.core.images import pixel_sha256
from diffaug_datasets.release.read import EmptySplit

NAMES = ["dark", "light"]
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=NAMES),
        "soft_label": {
            "class": datasets.List(datasets.Value("int32")),
            "weight": datasets.List(datasets.Value("float32")),
        },
        "source_ids": datasets.List(datasets.Value("string")),
        "origin": datasets.Value("string"),
        "method": datasets.Value("string"),
        "pixel_sha256": datasets.Value("string"),
    }
)
Pictures = list[tuple[Image.Image, int]]


def pictures(n: int, seed: int, label: int | None = None, apart: int = 90) -> Pictures:
    """Noisy pictures of two classes, which differ in how light they are: by `apart` of 255 levels."""
    rng = np.random.default_rng(seed)
    labels = [i % 2 if label is None else label for i in range(n)]
    return [(Image.fromarray(rng.integers(apart * c, apart * c + 60, (16, 16, 3), np.uint8)), c) for c in labels]


def table(real: Pictures, made: Pictures = (), method: str = "txt2img") -> datasets.Dataset:
    """Rows as a run has them."""
    rows = [(picture, label, "real", "real") for picture, label in real]
    rows += [(picture, label, "generated", method) for picture, label in made]
    content = {
        "image": [picture for picture, *_ in rows],
        "label": [label for _, label, *_ in rows],
        "soft_label": [{"class": [label], "weight": [1.0]} for _, label, *_ in rows],
        "source_ids": [[pixel_sha256(picture)] for picture, *_ in rows],
        "origin": [origin for _, _, origin, _ in rows],
        "method": [name for *_, name in rows],
        "pixel_sha256": [pixel_sha256(picture) for picture, *_ in rows],
    }
    return datasets.Dataset.from_dict(content, features=FEATURES)


class Sets:
    """Stands where `load` does: sets by name, each a train and perhaps a test table."""

    def __init__(self, **sets: tuple[datasets.Dataset, datasets.Dataset | None]) -> None:
        self.sets = sets

    def __call__(self, where, config, split, with_real=None) -> datasets.Dataset:
        train, test = self.sets[str(where)]
        if split == "test" and test is None:
            raise EmptySplit("there is no test split.")
        return train if split == "train" else test
