"""How well `efficientnet-lite0` knows photographs: `python scripts/check_oracle.py FOLDER [LABEL=IMAGENET_WORDS...]`.

FOLDER holds train/ and test/ with one folder per class. Printed are the accuracy of nearest class means of its features
(fitted on train/, asked on test/), and for every LABEL how many of its test photographs its ImageNet class gets.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image

from diffaug_datasets.core.models import ORACLE
from diffaug_datasets.evaluate.classifiers import Examples, fit
from diffaug_datasets.models.encoders import Encoder, Judge


def photographs(folder: Path, label: str) -> list[Path]:
    """The images of a class, in order."""
    return sorted(path for path in (folder / label).iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def main(folder: Path, named: dict[str, str]) -> None:
    """Print what the module's text says."""
    labels = sorted(place.name for place in (folder / "train").iterdir() if place.is_dir())
    encoder, judge = Encoder.load(ORACLE), Judge.load(ORACLE)
    features, classes = {}, {}
    begin = time.perf_counter()
    for split in ("train", "test"):
        paths = [(path, i) for i, label in enumerate(labels) for path in photographs(folder / split, label)]
        found = encoder.image_features(Image.open(path).convert("RGB") for path, _ in paths)
        features[split], classes[split] = found.double().numpy(), np.array([i for _, i in paths])
    count = sum(map(len, classes.values()))
    each = 1000 * (time.perf_counter() - begin) / count
    means = fit("class_mean", Examples.of_labels(features["train"], classes["train"].tolist(), len(labels)))
    accuracy = means.accuracy(features["test"], classes["test"].tolist())
    print(f"{folder.name}: {len(labels)} classes, {count} photographs")
    print(f"  {each:.0f} ms a photograph")
    print(f"  nearest class mean: {100 * accuracy:.1f} % of {len(classes['test'])} test photographs")
    for label, words in named.items():
        (column,) = judge.columns([words], "label")
        paths = photographs(folder / "test", label)
        seen = judge.probabilities(Image.open(path).convert("RGB") for path in paths).argmax(1)
        print(f"  {label}: {int((seen == column).sum())} of {len(paths)} by ImageNet's class {words!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("named", nargs="*", metavar="LABEL=IMAGENET_WORDS")
    arguments = parser.parse_args()
    if not (arguments.folder / "train").is_dir():
        parser.error(f"{arguments.folder} has no train/: give a folder of train/ and test/ with a folder per class")
    if unnamed := [word for word in arguments.named if "=" not in word]:
        parser.error(f"got {unnamed[0]!r}, expected LABEL=IMAGENET_WORDS")
    named = dict(word.split("=", 1) for word in arguments.named)
    if unknown := [label for label in named if not (arguments.folder / "test" / label).is_dir()]:
        parser.error(f"{unknown[0]!r} is no folder in {arguments.folder}/test")
    main(arguments.folder, named)
