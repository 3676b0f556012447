"""Who says what an image of a run shows: its judge, its image-text encoder, or its own few real images.

Tried in that order on the real images that the run carries, those of the test split where it has one; the first that is
right on most of them is taken. A judge and an encoder with texts have seen every image when it was made, so
their verdicts stand in its columns. The class of the nearest real images is found afterwards, by whoever goes through
the images anyway (`run.scores`).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa
from PIL import Image

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.images import decode_image
from diffaug_datasets.core.models import model_name
from diffaug_datasets.core.recipe import SHOTS
from diffaug_datasets.run.context import WorkContext
from diffaug_datasets.run.kept import kept
from diffaug_datasets.run.shown import Oracle, OracleKind, RealCheck, SeenColumn, percent
from diffaug_datasets.run.store import Run

if TYPE_CHECKING:
    from torch import Tensor

    from diffaug_datasets.models.encoders import Encoder

MOST_REAL = 1000  # test images that an oracle is tried on, spread evenly
MOST_SHOTS = 20  # training images of a class that it learns from
NO_ENCODER = "for the recipe names no encoder; scores.encoder (a CLIP model of the Hub, or its folder) gives the number"


@dataclass
class Found:
    """The oracle of a run, and what it sees in features [n d] where its verdicts stand in no column yet."""

    oracle: Oracle | None = None
    withheld: str = ""
    seen: "Callable[[Tensor], Tensor] | None" = field(default=None, repr=False)


class Oracles:
    """The candidates of a run. `encoder`: the one whose features the classes of its real images are compared by."""

    def __init__(self, run: Run, ctx: WorkContext) -> None:
        self.run, self.ctx, self.recipe = run, ctx, run.recipe
        self.header, self.shape = run.plan.header, run.recipe.batch_size
        self.classes = len(self.header.class_names)
        self.name = self.recipe.scores.encoder or self.recipe.method_config.requirements.encoder

    def find(self) -> Found:
        """The first candidate that knows real images; see `Oracle.is_poor`."""
        if self.classes < 2:
            return Found(withheld="for there is one class")
        poor = []
        by_shots = self.recipe.scores.judge == SHOTS
        others = (self._shots, self._zero_shot) if by_shots else (self._zero_shot, self._shots)
        for candidate in (self._judge, *others):
            found = candidate()
            if found is None or found.oracle is None:
                continue
            if not found.oracle.is_poor:
                return found
            poor.append(found.oracle)
        if not poor:
            return Found(withheld=NO_ENCODER)
        best = max(poor, key=lambda oracle: oracle.real.share.value)
        right = f"{percent(best.real.share.value)} of {sum(best.real.images):,} real {best.real.of} images"
        return Found(withheld=f"for {best.model} is right on no more than {right}, which is too few to go by")

    @cached_property
    def encoder(self) -> "Encoder":
        """Of the scores, or the method's own."""
        from diffaug_datasets.models.encoders import Encoder

        if self.name == self.recipe.method_config.requirements.encoder:
            return self.ctx.encoder
        name, device = str(self.name), self.ctx.device
        return kept("scorer", f"{model_name(name)} {device}", lambda: Encoder.load(name, device))

    def _judge(self) -> Found | None:
        if self.recipe.scores.judge in (None, SHOTS):
            return None
        from diffaug_datasets.models.encoders import Judge

        name, device = str(self.recipe.scores.judge), self.ctx.device
        judge = kept("judge", f"{model_name(name)} {device}", lambda: Judge.load(name, device))
        columns = judge.columns(self.header.class_names, "scores.judge")
        seen = judge.probabilities(pictures(self._tried), batch_shape=self.shape)[:, columns].argmax(1)
        return Found(self._oracle("judge", judge.name, "judge_label", seen))

    def _zero_shot(self) -> Found | None:
        if self.recipe.scores.encoder is None or not self.encoder.has_text:
            return None
        texts = self.encoder.text_features([f"a photo of a {name}" for name in self.header.prompt_names])

        def seen(features: "Tensor") -> "Tensor":
            return (features @ texts.T).argmax(1)

        on_real = seen(self._tried_features)
        if self._has_test:  # then the images are gone through anyway, and more is known than the sign of a margin
            return Found(self._oracle("zero-shot", self.encoder.name, "seen_label", on_real), seen=seen)
        return Found(self._oracle("zero-shot", self.encoder.name, "clip_margin", on_real))

    def _shots(self) -> Found | None:
        """The nearest mean of the real training images; where these are all, each is left out of its own class's mean.

        An image that is alone in its class cannot be tried.
        """
        if self.name is None:
            return None
        import torch
        from torch.nn import functional as F

        features, labels = self._training_features, torch.tensor([one.label for one in self._training])
        sums = torch.zeros(self.classes, features.shape[1]).index_add_(0, labels, features)
        counts = torch.bincount(labels, minlength=self.classes)
        means = sums / counts.clamp(min=1)[:, None]

        def cosines(features: "Tensor") -> "Tensor":
            return (features @ F.normalize(means, dim=1).T).masked_fill(counts == 0, -torch.inf)

        column: SeenColumn = "judge_label" if self.recipe.scores.judge == SHOTS else "seen_label"
        tried: list[RealImage | None] = list(self._tried)
        on_real = cosines(self._tried_features)
        if not self._has_test:
            others = F.normalize(sums[labels] - features, dim=1)
            on_real[torch.arange(len(labels)), labels] = (features * others).sum(1)
            tried = [one if counts[one.label] > 1 else None for one in self._training]
        oracle = self._oracle("shots", self.encoder.name, column, on_real.argmax(1), tried)
        return Found(oracle, seen=(lambda made: cosines(made).argmax(1)) if column == "seen_label" else None)

    def _oracle(
        self, kind: OracleKind, model: str, column: SeenColumn, seen: "Tensor", tried: "Sequence[RealImage | None]" = ()
    ) -> Oracle:
        """`seen`: class ids, by the candidate, of the images that it was tried on; None is not counted."""
        images, right = Counter[int](), Counter[int]()
        for one, label in zip(tried or self._tried, seen.tolist(), strict=True):
            if one is not None:
                images[one.label] += 1
                right[one.label] += label == one.label
        known = range(self.classes)
        real = RealCheck(
            of="test" if self._has_test else "training",
            images=tuple(images[label] for label in known),
            right=tuple(right[label] for label in known),
        )
        return Oracle(kind=kind, model=model, column=column, real=real)

    @cached_property
    def _has_test(self) -> bool:
        return any(shard.kind == "test" for shard in self.run.plan.real_shards())

    @cached_property
    def _tried(self) -> "Sequence[RealImage]":
        """Some of the test images, spread evenly; where there are none, the training images."""
        if not self._has_test:
            return self._training
        images = self._images("test")
        return images[:: -(-len(images) // MOST_REAL)]

    @cached_property
    def _training(self) -> "Sequence[RealImage]":
        """The first of each class."""
        counts = Counter[int]()
        chosen = []
        for image in self._images("real"):
            counts[image.label] += 1
            if counts[image.label] <= MOST_SHOTS:
                chosen.append(image)
        return chosen

    def _images(self, kind: str) -> "list[RealImage]":
        tables = [self.run.table(shard) for shard in self.run.plan.real_shards() if shard.kind == kind]
        return [RealImage(label, t, i) for t in tables for i, label in enumerate(t.column("label").to_pylist())]

    @cached_property
    def _tried_features(self) -> "Tensor":
        if not self._has_test:
            return self._training_features
        return self.encoder.image_features(pictures(self._tried), batch_shape=self.shape)

    @cached_property
    def _training_features(self) -> "Tensor":
        return self.encoder.image_features(pictures(self._training), batch_shape=self.shape)


@dataclass(frozen=True, slots=True)
class RealImage:
    """A real image of the run: its class id, and where it lies."""

    label: int
    table: pa.Table
    index: int


def pictures(images: Sequence[RealImage]) -> Iterator[Image.Image]:
    """The images one by one; an empty picture in the place of one that cannot be decoded."""
    for image in images:
        try:
            yield decode_image(bytes(image.table.column("image")[image.index].as_py()["bytes"]))
        except SourceError:
            yield Image.new("RGB", (8, 8))
