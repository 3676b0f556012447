"""Networks that learn the lines of a bench from their images, under accelerate: exactly so many steps for every line.

What is at a place of an epoch is what `train.mixing.MixedStream` gives there: the same order, and the same synthetic
image in a real one's place. A batch may begin in one epoch and end in the next. Every draw is a digest of the seed and
what it is for, and on a CPU a network learns in one thread, so two runs give the same bits wherever they run.
"""

import random
import time
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.memory import ByteCache
from diffaug_datasets.evaluate.cells import Fitted
from diffaug_datasets.evaluate.classifiers import Array
from diffaug_datasets.evaluate.draws import Images
from diffaug_datasets.evaluate.features import cached_features
from diffaug_datasets.evaluate.suite import Mixing, Network
from diffaug_datasets.evaluate.training_sets import TrainingSet
from diffaug_datasets.evaluate.views import (
    DRW_BEGIN,
    Augmentation,
    by_inverse_count,
    draw_blend,
    effective_weights,
    randoms,
    seen,
    smoothed,
)
from diffaug_datasets.models.image_networks import Bytes, ImageNetwork, load_network
from diffaug_datasets.train.mixing import shuffled
from diffaug_datasets.train.replacement import Replacer, Rows

if TYPE_CHECKING:
    from accelerate import Accelerator

TEST_BATCH = 64
LOOKS = 10  # at the validation images, in the whole training
FALLS = ((0.8, 0.01), (0.9, 0.0001))  # of `steps`: epochs 160 and 180 of 200, LDAM's and Diff-Mix's long tail
MOST_BYTES = 1 << 30  # of prepared images that are kept
GPU_LOADERS = 4  # processes that prepare batches; on a CPU the training itself does

Predictor = Callable[[Images], NDArray[np.int64]]


def train(
    spec: Network,
    training_set: TrainingSet,
    test: Images,
    val: Images | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    cache: Path | None = None,
) -> Fitted:
    """Train a network on a line and predict the test images.

    `val`: real training images outside the line, for `select: val`; `seed`: of new weights, order, replacement and
    augmentation; `cache`: of features, where a head learns from them.

    Raises:
        BackboneError: the model cannot be read, or the device is not there.
        RecipeError: there is nothing to select with, the training diverges, or several processes share it.
    """
    begin = time.perf_counter()
    if spec.select == "val" and not val:
        raise RecipeError("select: got val and no validation image, expected some; set val_per_class, or select: last.")
    classes = training_set.real.labelled.soft.shape[1]
    with _alone(device), torch.random.fork_rng(_cuda(device)):
        network = load_network(spec.model, spec.kind, classes, seed, side=spec.image_size, device=device)
        torch.manual_seed(seed)
        lesson = Lesson(spec, training_set, network.preparation, seed)
        predict = learn(network, lesson, val if spec.select == "val" else None, device=device, cache=cache)
        predicted = predict(test)
    return Fitted(
        predicted,
        len(lesson),
        training_set.mass,
        time.perf_counter() - begin,
        steps=spec.steps,
        batch_size=spec.batch_size,
    )


def described(spec: Network, mixing: Mixing) -> str:
    """All settings of a network beside its model, as they stand in the table."""
    momentum = f" momentum {spec.momentum:g}" if spec.optimizer == "sgd" else ""
    parts = [
        f"{spec.kind.replace('_', '-')}, {mixing.rule or 'class'}, p {mixing.probability:g}, weight {mixing.weight:g}",
        "" if mixing.soft_labels else "hard labels",
        f"{spec.steps:,} steps of {spec.batch_size}",
        f"{spec.optimizer} {spec.learning_rate:g}{momentum} decay {spec.weight_decay:g}",
        f"{spec.schedule} after {spec.warm_up:g}",
        f"smoothing {spec.label_smoothing:g}" if spec.label_smoothing else "",
        f"{spec.augmentation} augmentation",
        f"{spec.image_size} px" if spec.image_size else "",
        f"best of {LOOKS} on val" if spec.select == "val" else "",
    ]
    return ", ".join(filter(None, parts))


def stack(device: str) -> str:
    """The libraries and the kind of device that decide a network's bits."""
    names = ("torch", "transformers", "accelerate", "numpy", "pillow")
    return " ".join([*(f"{name} {version(name)}" for name in names), torch.device(device).type])


@dataclass(frozen=True)
class Drawn:
    """One image of a batch before it is looked at: its place among all, its label times its weight [C], its words."""

    place: int
    target: Array
    words: tuple[object, ...]


class Lesson:
    """What a network is shown, batch by batch: a function of the seed and the step alone."""

    def __init__(self, spec: Network, training_set: TrainingSet, prepare: "Callable[..., Bytes]", seed: int) -> None:
        self.spec, self.seed, self._set = spec, seed, training_set
        self.augmentation = Augmentation.of(spec.augmentation, training_set.views, training_set.baseline)
        made = training_set.synthetic
        self.parts: tuple[Images, ...] = (training_set.real,) if made is None else (training_set.real, made)
        self._prepared = ByteCache[int, Bytes](
            lambda place: prepare(self._read(place)), lambda pixels: pixels.nbytes, MOST_BYTES
        )

    def __len__(self) -> int:
        """How many images there are: the real ones' places come first, then the synthetic ones'."""
        return sum(map(len, self.parts))

    def drawn(self, step: int) -> list[Drawn]:
        """The images of a step, `batch_size` of them."""
        size, count = self.spec.batch_size, self._epoch_length
        chosen = []
        for number in range(step * size, (step + 1) * size):
            epoch, turn = divmod(number, count)
            place = _order(count, self.seed, epoch)[turn]
            replaced = self._replacer.choose(epoch, place) if self._replacer else None
            place = place if replaced is None else len(self._set.real) + replaced
            chosen.append(Drawn(place, self._target(place), ("look", self.seed, epoch, turn)))
        return chosen

    def batch(self, step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Pixels [b h w 3] from 0 to 255 and targets [b C] of a step."""
        drawn = self.drawn(step)
        pixels = [self._look(one) for one in drawn]
        targets = [one.target for one in drawn]
        draws = randoms("blend", self.seed, step)
        kind = self.augmentation.blend
        if kind is not None and self.augmentation.blends_at(step / self.spec.steps, draws):
            others = self._foregrounds(step, draws) if kind == "cmo" else draws.sample(drawn, len(drawn))
            for i, other in enumerate(others):
                height, width, _ = pixels[i].shape
                blended = draw_blend(kind, height, width, draws)
                pixels[i] = blended.pixels(pixels[i], self._look(other))
                targets[i] = blended.targets(targets[i], other.target)
        return np.stack(pixels), (np.stack(targets) * self._class_weights(step)).astype(np.float32)

    @property
    def looks_plainly(self) -> bool:
        """Whether an image is always seen as it is, so that what a frozen trunk makes of it is always the same."""
        return self.augmentation.look == "none" and self.augmentation.blend is None

    def weighted(self, step: int, drawn: Sequence[Drawn]) -> NDArray[np.float32]:
        """Targets [b C] of images that are seen as they are."""
        return (np.stack([one.target for one in drawn]) * self._class_weights(step)).astype(np.float32)

    @cached_property
    def _replacer(self) -> Replacer | None:
        """None where images stand side by side."""
        mixing, made = self._set.mixing, self._set.synthetic
        if made is None or mixing.rule == "concatenate":
            return None
        if mixing.rule is None:
            raise RecipeError("mixing.rule: got none, expected one; say which images stand in for a real one.")
        real, synthetic = (Rows(i.labelled.labels.tolist(), i.labelled.source_ids) for i in (self._set.real, made))
        return Replacer(real, synthetic, mixing.rule, mixing.probability, self.seed)

    @cached_property
    def _epoch_length(self) -> int:
        return len(self) if self._set.mixing.rule == "concatenate" else len(self._set.real)

    def _target(self, place: int) -> Array:
        """The smoothed label [C] of an image, times what it counts."""
        mixing, first = self._set.mixing, len(self._set.real)
        if place < first:
            labelled, weight = self._set.real.labelled.select([place]), 1.0
        else:
            labelled, weight = self.parts[1].labelled.select([place - first]), mixing.weight
            labelled = labelled if mixing.soft_labels else labelled.hardened()
        target: Array = weight * smoothed(labelled.soft, self.spec.label_smoothing)[0]
        return target

    def _read(self, place: int) -> Image.Image:
        first = len(self._set.real)
        return self.parts[0].read(place) if place < first else self.parts[1].read(place - first)

    @cached_property
    def _effective(self) -> Array:
        labels = self._set.real.labelled
        return effective_weights(np.bincount(labels.labels, minlength=labels.soft.shape[1]).astype(np.float64))

    def _class_weights(self, step: int) -> Array | float:
        deferred = self.augmentation.reweighted and step >= DRW_BEGIN * self.spec.steps
        return self._effective if deferred else 1.0

    @cached_property
    def _foreground_ends(self) -> Sequence[float]:
        return by_inverse_count(self._set.real.labelled.labels.tolist())

    def _foregrounds(self, step: int, draws: random.Random) -> list[Drawn]:
        """Real images, rare classes as often as others, for the patches of a step."""
        ends, chosen = self._foreground_ends, []
        for turn in range(self.spec.batch_size):
            place = min(bisect(ends, draws.random() * ends[-1]), len(ends) - 1)
            chosen.append(Drawn(place, self._target(place), ("foreground", self.seed, step, turn)))
        return chosen

    def _look(self, one: Drawn) -> NDArray[np.float32]:
        pixels = self._prepared(one.place)
        if self.augmentation.look != "none":
            pixels = np.asarray(seen(Image.fromarray(pixels), self.augmentation.look, randoms(*one.words)))
        return pixels.astype(np.float32)


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> Sequence[int]:
    return shuffled(count, seed, epoch)


class _Batches(Dataset[tuple[NDArray[np.float32], NDArray[np.float32]]]):
    """Inputs and targets of every step; the inputs are pixels, or features where these are given."""

    def __init__(self, lesson: Lesson, features: NDArray[np.float32] | None) -> None:
        self._lesson, self._features = lesson, features

    def __len__(self) -> int:
        return self._lesson.spec.steps

    def __getitem__(self, step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self._features is None:
            return self._lesson.batch(step)
        drawn = self._lesson.drawn(step)
        return self._features[[one.place for one in drawn]], self._lesson.weighted(step, drawn)


def learn(
    network: ImageNetwork, lesson: Lesson, val: Images | None = None, *, device: str = "cpu", cache: Path | None = None
) -> Predictor:
    """Take all steps of a lesson; the network is changed in place. Returns what predicts class ids of images.

    With `val` the network ends as it was at the best of ten looks at these images, the first of equal ones.

    Raises:
        RecipeError: the training diverges, or several processes share it.
    """
    spec = lesson.spec
    part = network.trained(spec.kind)
    features = _Trunk(network, device, cache) if spec.kind == "head" and lesson.looks_plainly else None
    accelerator = _accelerator(device)
    optimiser = optimiser_of(spec, part)
    loader = DataLoader(
        _Batches(lesson, np.concatenate([features(part) for part in lesson.parts]) if features else None),
        batch_size=None,
        num_workers=0 if accelerator.device.type == "cpu" else GPU_LOADERS,
    )
    part, optimiser, loader, schedule = accelerator.prepare(part, optimiser, loader, schedule_of(spec, optimiser))
    predict = _predictor(network, features)
    best, kept = -1.0, None
    network.eval()
    part.train()
    for step, (inputs, targets) in enumerate(loader):
        loss = weighted_loss(_logits(network, spec, features, inputs), targets)
        if not bool(loss.isfinite()):
            raise RecipeError(
                f"learning_rate: got {spec.learning_rate:g}, and the loss of step {step + 1} is not finite; lower it."
            )
        optimiser.zero_grad()
        accelerator.backward(loss)
        optimiser.step()
        schedule.step()
        if val is not None and _is_look(step, spec.steps):
            accuracy = float((predict(val) == val.labelled.labels).mean())
            if accuracy > best:
                best, kept = accuracy, {key: value.detach().clone() for key, value in part.state_dict().items()}
            part.train()
    if kept is not None:
        part.load_state_dict(kept)
    return predict


def weighted_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross entropy of logits [b C], an image and class counting as much as `targets` [b C] say."""
    loss: Tensor = -(targets * F.log_softmax(logits.float(), dim=1)).sum() / targets.sum()
    return loss


def optimiser_of(spec: Network, part: nn.Module) -> Optimizer:
    """torch's, over all parameters of the part that learns; weight decay is Adam's and SGD's penalty, AdamW's own."""
    rate, decay, parameters = spec.learning_rate, spec.weight_decay, part.parameters()
    if spec.optimizer == "sgd":
        return SGD(parameters, lr=rate, momentum=spec.momentum, weight_decay=decay)
    return (Adam if spec.optimizer == "adam" else AdamW)(parameters, lr=rate, weight_decay=decay)


def schedule_of(spec: Network, optimiser: Optimizer) -> LRScheduler:
    """A linear rise over the warm-up, then half a cosine to 0, the same rate on, or falls at .8 and .9 of the steps."""
    from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

    rising = round(spec.warm_up * spec.steps)
    if spec.schedule == "cosine":
        return get_cosine_schedule_with_warmup(optimiser, rising, spec.steps)  # type: ignore[no-any-return]
    if spec.schedule == "constant":
        return get_constant_schedule_with_warmup(optimiser, rising)  # type: ignore[no-any-return]

    def factor(step: int) -> float:
        if step < rising:
            return step / rising
        return min((fall for share, fall in FALLS if step >= share * spec.steps), default=1.0)

    return LambdaLR(optimiser, factor)


class _Trunk:
    """Features of images by a frozen trunk, from the cache on disk; as they are, of no unit length.

    On a CPU each image is seen alone, so no bit depends on which others were missing from the cache.
    """

    def __init__(self, network: ImageNetwork, device: str, cache: Path | None) -> None:
        self.name = f"{network.name} below its head, {network.preparation}"
        self._network, self._cache = network, cache
        self._size = 1 if torch.device(device).type == "cpu" else TEST_BATCH

    def __call__(self, images: Images) -> NDArray[np.float32]:
        return cached_features(self, images.keys, images.read, self._cache).astype(np.float32)

    @torch.no_grad()
    def image_features(self, images: Iterator[object], *, batch_shape: int = 1, normalise: bool = True) -> Tensor:  # noqa: ARG002
        """What the cache asks an encoder for."""
        return torch.cat([self._network.features(part).cpu() for part in _squares(self._network, images, self._size)])


def _logits(network: ImageNetwork, spec: Network, features: _Trunk | None, inputs: Tensor) -> Tensor:
    if features is not None:
        return network.head(inputs)  # type: ignore[no-any-return]
    if spec.kind == "head":
        with torch.no_grad():
            seen_by_head = network.features(inputs)
        return network.head(seen_by_head)  # type: ignore[no-any-return]
    return network(inputs)  # type: ignore[no-any-return]


def _predictor(network: ImageNetwork, features: _Trunk | None) -> Predictor:
    @torch.no_grad()
    def predict(images: Images) -> NDArray[np.int64]:
        network.eval()
        place = network.pixel_mean.device
        if features is not None:
            logits = [network.head(torch.from_numpy(features(images)).to(place))]
        else:
            opened = (images.read(i) for i in range(len(images)))
            logits = [network(part) for part in _squares(network, opened, TEST_BATCH)]
        predicted: NDArray[np.int64] = torch.cat(logits).argmax(1).cpu().numpy()
        return predicted

    return predict


def _squares(network: ImageNetwork, images: Iterator[object], size: int) -> Iterator[Tensor]:
    """Batches of pixels [b h w 3] of pictures, which are taken one by one, where the network is."""
    while part := list(islice(images, size)):
        squares = np.stack([network.preparation(image) for image in part])  # type: ignore[arg-type]
        yield torch.from_numpy(squares).to(network.pixel_mean.device)


def _is_look(step: int, steps: int) -> bool:
    return (step + 1) * LOOKS // steps > step * LOOKS // steps


def _accelerator(device: str) -> "Accelerator":
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=torch.device(device).type == "cpu", mixed_precision="no")
    if accelerator.num_processes > 1:
        raise RecipeError(
            f"bench: got {accelerator.num_processes} processes that share one training, expected one; start `bench` "
            "several times on one folder instead: each takes other cells."
        )
    return accelerator


def _cuda(device: str) -> list[torch.device]:
    place = torch.device(device)
    return [place] if place.type == "cuda" else []


@contextmanager
def _alone(device: str) -> Iterator[None]:
    """One thread on a CPU, and on a GPU that one and operations that repeat their bits, while a network learns."""
    place, threads = torch.device(device), torch.get_num_threads()
    if place.type != "cuda":
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
        return
    with torch.cuda.device(place), torch.backends.cudnn.flags(benchmark=False, deterministic=True):
        yield
