"""Leaks, said before any number: test images among what a set trains on, and models that have seen the test images.

Whether an image shows a test image is decided by `release.leakage`, as before publishing: pixels, crops and mirror
images that align, perceptual hashes and, with `features`, the place in an encoder's space. The limit of the last was
set for the packaged encoder. What was compared once is kept beside the features.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from pydantic import BaseModel, ConfigDict

from diffaug_datasets.core.files import write_text
from diffaug_datasets.core.identity import digest
from diffaug_datasets.core.models import TINY, find_model
from diffaug_datasets.evaluate.features import BATCH, ImageEncoder, default_folder, places_by_origin
from diffaug_datasets.evaluate.seen import Known, Seen, SourceDataset, seen_by
from diffaug_datasets.release.leakage import VERSION, Features, Lazily, Leak, Looks, Vectors, find_leaks

if TYPE_CHECKING:
    from collections.abc import Iterable

    import datasets

EXACT = ("same bytes", "same pixels")


class Comparison(BaseModel):
    """The synthetic images of a set that show test images, as pairs of pixel digests; what is kept on disk."""

    model_config = ConfigDict(frozen=True)

    key: str
    leaks: tuple[Leak, ...]


@dataclass(frozen=True)
class Leaks:
    """What was found of a set.

    `exact`, `near`: pixel digests of synthetic images that are, or look like, test images -> digest of the test image
    and why. `rows`: how many synthetic rows each of them has. `real`: pixel digests of real training images that are
    test images. `seen`: what the models' cards say. `compared`: test images that were looked at, 0 where there is none.
    """

    exact: Mapping[str, Leak]
    near: Mapping[str, Leak]
    rows: Mapping[str, int]
    real: tuple[str, ...]
    seen: tuple[Seen, ...]
    compared: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for whatever makes the numbers of this set look better than they are."""
        return tuple(self._warnings())

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for what is known, or is not, without being a leak."""
        return tuple(one.sentence for one in self.seen if not one.grave)

    def _warnings(self) -> Iterator[str]:
        for found, how in ((self.exact, "are test images"), (self.near, "look like test images")):
            if found:
                count, first = sum(self.rows[name] for name in found), next(iter(found.values()))
                yield (
                    f"{count} of the synthetic images {how} (first: {first}), so all numbers flatter them; leave them "
                    "out."
                )
        if self.real:
            yield (
                f"{len(self.real)} of the real training images are test images (first: {self.real[0][:16]}), so all "
                "numbers flatter what is trained on them."
            )
        yield from (one.sentence for one in self.seen if one.grave)


def leaks_of(
    where: str | Path,
    train: "datasets.Dataset",
    test: "datasets.Dataset | None",
    encoders: Sequence[Known] = (),
    *,
    judges: Sequence[Known] = (),
    dataset: SourceDataset | None = None,
    features: Features | None = None,
    cache: Path | None = None,
    looks: Looks | None = None,
) -> Leaks:
    """Look for leaks in a loaded set, as `load` gives it, and in the cards of the models that judge it.

    `dataset`: the real one, see `seen.dataset_of`; without it no card is asked. `features`: see `leak_features`.
    `cache`: the folder of features. `looks`: of test images, from sets before.

    Raises:
        RunError: the set holds no images, or the folder cannot be written.
        SourceError: an image cannot be read.
    """
    real_rows, made_rows = places_by_origin(train, where)
    made, real = train.select(made_rows), train.select(real_rows)
    names = list(made["pixel_sha256"])
    rows = dict.fromkeys(names, 0)
    for name in names:
        rows[name] += 1
    asked = [*((model, "encoder") for model in encoders), *((model, "judge") for model in judges)]
    seen = [seen_by(model, dataset, role) for model, role in asked] if dataset is not None else []
    known = tuple(one for one in seen if one is not None)
    if test is None:
        return Leaks({}, {}, rows, (), known, 0)
    found = {leak.source: leak for leak in reversed(_compared(made, test, features, cache, looks))}
    exact = {name: leak for name, leak in found.items() if leak.grounds[0] in EXACT}
    near = {name: leak for name, leak in found.items() if name not in exact}
    held_out = set(test["pixel_sha256"])
    in_both = tuple(name for name in dict.fromkeys(real["pixel_sha256"]) if name in held_out)
    order = [name for name in rows if name in found]
    return Leaks(
        {name: exact[name] for name in order if name in exact},
        {name: near[name] for name in order if name in near},
        rows,
        in_both,
        known,
        len(test),
    )


def leak_features(encoder: ImageEncoder) -> Features | None:
    """What the packaged encoder sees, for `leaks_of`; None for others, whose cosines the limit was not set for."""
    if encoder.name != find_model(TINY, "encoder").name:
        return None

    def features(pictures: "Iterable[Image.Image]") -> Vectors:
        """Unit-norm features [n d]."""
        return encoder.image_features(iter(pictures), batch_shape=BATCH).numpy()

    return features


def _compared(
    made: "datasets.Dataset",
    test: "datasets.Dataset",
    features: Features | None,
    cache: Path | None,
    looks: Looks | None,
) -> tuple[Leak, ...]:
    """Every pair that a ground speaks for, by pixel digests; from disk where these images were compared before."""
    names = [list(dict.fromkeys(rows["pixel_sha256"])) for rows in (made, test)]
    key = digest([VERSION, *names, features is not None])
    path = (cache or default_folder()) / "leaks" / f"{key[:32]}.json"
    with suppress(OSError, ValueError):  # not there, or damaged: made again
        known = Comparison.model_validate_json(path.read_text(encoding="utf-8"))
        if known.key == key:
            return known.leaks
    comparison = Comparison(key=key, leaks=tuple(find_leaks(_encoded(made), _encoded(test), features, looks)))
    write_text(path, comparison.model_dump_json(indent=1))
    return comparison.leaks


def _encoded(rows: "datasets.Dataset") -> Mapping[str, bytes]:
    """Pixel digest -> encoded bytes, read whenever they are asked for."""
    import datasets

    undecoded = rows.select_columns("image").cast_column("image", datasets.Image(decode=False))
    places = {name: place for place, name in reversed(list(enumerate(rows["pixel_sha256"])))}

    def read(name: str) -> bytes:
        return bytes(undecoded[places[name]]["image"]["bytes"])

    return Lazily(dict.fromkeys(rows["pixel_sha256"]), read)
