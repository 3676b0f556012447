"""Real and synthetic rows mixed for training, as PyTorch datasets: by index, or as a stream that resumes exactly.

While a classifier trains, a synthetic row stands in for a real one with some probability; which one may, is the rule of
a paper (`train.replacement`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypedDict

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.identity import uint63
from diffaug_datasets.train.replacement import Replacement, Replacer, Rows

if TYPE_CHECKING:
    import datasets
    from PIL.Image import Image

STATE_SCHEMA = 1


class MixedItem(TypedDict):
    """One row as a loader gets it; `soft_label` is float32 [classes]."""

    image: object
    label: int
    soft_label: torch.Tensor
    row_id: str
    is_synthetic: bool


class LoadedRow(TypedDict):
    """The columns of a loaded set that an item is made of."""

    image: "Image"
    label: int
    soft_label: "LoadedSoftLabel"
    row_id: str
    is_synthetic: bool


LoadedSoftLabel = TypedDict("LoadedSoftLabel", {"class": list[int], "weight": list[float]})


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch: places sorted by their digest, the same on any machine."""
    return sorted(range(count), key=lambda place: (uint63(f"{seed}|order|{epoch}|{place}"), place))


class MixedDataset(Dataset[MixedItem]):
    """As long as the real rows; in each epoch some of them are replaced by synthetic ones.

    Args:
        rows: a loaded set with real and synthetic rows.
        replacement: which synthetic row may stand in: `global`, `class`, `index` or `lt_inverse`.
        probability: how often a real row is replaced, in [0, 1].
        seed: every draw follows from it, the epoch and the place.
        soft_scale: multiplies soft labels (the loaders of Diff-Mix use 0.9, which no paper states).
        transform: makes something of each PIL image, such as a float tensor [3, H, W].

    An item has `image` (PIL, or what `transform` makes of it), `label` (int), `soft_label` (float32 [classes]),
    `row_id` and `is_synthetic`.

    Raises:
        RecipeError: a rule or probability that cannot be, or no real row is there.

    >>> from diffaug_datasets import MixedDataset, generate, load, plan
    >>> run = plan("fashion_5shot_txt2img", "runs/shirts", per_class=2, config={"num_inference_steps": 2})
    >>> done = generate(run, workers=1)
    >>> mixed = MixedDataset(load("runs/shirts"), "class", probability=0.5)
    >>> mixed.set_epoch(1)
    >>> len(mixed), mixed[0]["label"], mixed[0]["soft_label"].shape
    (50, 0, torch.Size([10]))
    """

    def __init__(
        self,
        rows: "datasets.Dataset",
        replacement: Replacement = "class",
        probability: float = 0.5,
        *,
        seed: int = 0,
        soft_scale: float = 1.0,
        transform: "Callable[[Image], object] | None" = None,
    ) -> None:
        kinds = rows.with_format(None)["is_synthetic"][:]
        places = {wanted: [i for i, kind in enumerate(kinds) if kind == wanted] for wanted in (False, True)}
        self.real, self.synthetic = rows.select(places[False]), rows.select(places[True])
        self.classes = rows.features["label"].num_classes
        self.soft_scale, self.transform, self.epoch = soft_scale, transform, 0
        self.replacer = Replacer(_rows(self.real), _rows(self.synthetic), replacement, probability, seed)

    def __len__(self) -> int:
        return len(self.real)

    def set_epoch(self, epoch: int) -> None:
        """Draw other replacements; call it at the start of an epoch, before workers start."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> MixedItem:
        return self.item(self.epoch, index)

    def item(self, epoch: int, index: int) -> MixedItem:
        """The row that stands at a place in an epoch."""
        index = range(len(self))[index]
        chosen = self.replacer.choose(epoch, index)
        row: LoadedRow = self.real[index] if chosen is None else self.synthetic[chosen]
        soft = torch.zeros(self.classes)
        soft[row["soft_label"]["class"]] = torch.tensor(row["soft_label"]["weight"])
        return {
            "image": self.transform(row["image"]) if self.transform else row["image"],
            "label": row["label"],
            "soft_label": soft * self.soft_scale,
            "row_id": row["row_id"],
            "is_synthetic": row["is_synthetic"],
        }


def _rows(rows: "datasets.Dataset") -> Rows:
    plain = rows.select_columns(["label", "source_ids"]).with_format(None)
    return Rows(plain["label"][:], plain["source_ids"][:])


class MixedStream(IterableDataset[MixedItem]):
    """The items of a `MixedDataset`, epoch after epoch in a drawn order, shared by ranks and by DataLoader workers.

    Each rank has every `world_size`-th place of the order, so each row is given once per epoch and ranks differ by one
    row at most; default: those of torch.distributed where it is initialised, else all. Workers of a rank take its
    places in turn, `batch_size` at a time: give the DataLoader's, and its batches come in the order of one process,
    whatever `num_workers` is. Iterating gives what is left of the epoch.

    Two ways to resume exactly: `set_epoch(epoch, taken)` with the items that this rank was given, for any number of
    workers; or `state_dict` of each worker, for loaders that keep one for each (torchdata's StatefulDataLoader).

    Raises:
        RecipeError: rank, world size or batch size cannot be.

    >>> from diffaug_datasets import MixedDataset, MixedStream, generate, load, plan
    >>> run = plan("fashion_5shot_txt2img", "runs/shirts", per_class=2, config={"num_inference_steps": 2})
    >>> done = generate(run, workers=1)
    >>> stream = MixedStream(MixedDataset(load("runs/shirts")))
    >>> stream.set_epoch(3, taken=48)
    >>> len(stream), len(list(stream)), stream.epoch
    (50, 2, 4)
    """

    def __init__(
        self,
        mixed: MixedDataset,
        *,
        shuffle: bool = True,
        batch_size: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.mixed, self.shuffle, self.batch_size = mixed, shuffle, batch_size
        this_rank, ranks = _rank()
        self.rank = this_rank if rank is None else rank
        self.world_size = ranks if world_size is None else world_size
        if not (0 <= self.rank < self.world_size and batch_size >= 1):
            raise RecipeError(
                f"got rank {self.rank} of {self.world_size} in batches of {batch_size}, expected a rank from 0 below "
                "the world size and a batch size from 1."
            )
        self.epoch = self.begin = self.position = 0

    def __len__(self) -> int:
        """Rows of this rank in a whole epoch."""
        return len(range(self.rank, len(self.mixed), self.world_size))

    def __iter__(self) -> Iterator[MixedItem]:
        mine = self._places()
        if self._is_over(mine):  # stopped right behind the last item
            self.set_epoch(self.epoch + 1)
            mine = self._places()
        while self.position < len(mine):
            place = mine[self.position]
            self.position += 1
            yield self.mixed.item(self.epoch, place)
        self.set_epoch(self.epoch + 1)

    def _is_over(self, mine: Sequence[int]) -> bool:
        """Whether nothing is left of an epoch that was begun; one of several workers knows only what they all were."""
        alone = _worker()[1] == 1
        return self.begin >= len(self) > 0 or (alone and self.position >= len(mine) and self.position > 0)

    def _places(self) -> Sequence[int]:
        """This worker's places of the current epoch, in order."""
        count, (number, workers) = len(self.mixed), _worker()
        order = shuffled(count, self.mixed.replacer.seed, self.epoch) if self.shuffle else range(count)
        left = order[self.rank :: self.world_size][self.begin :]
        size = self.batch_size
        return [place for i in range(number * size, len(left), workers * size) for place in left[i : i + size]]

    def set_epoch(self, epoch: int, taken: int = 0) -> None:
        """Go to an epoch, behind the first `taken` items of this rank; before workers start.

        Raises:
            RecipeError: the rank has fewer items.
        """
        if not 0 <= taken <= len(self):
            raise RecipeError(f"got {taken} taken items, expected 0 to {len(self)}: that many an epoch has here.")
        self.epoch, self.begin, self.position = epoch, taken, 0

    def state_dict(self) -> dict[str, int]:
        """Where this worker's stream is."""
        return {
            "schema": STATE_SCHEMA,
            "epoch": self.epoch,
            "begin": self.begin,
            "position": self.position,
            "rows": len(self.mixed),
            "rank": self.rank,
            "world_size": self.world_size,
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the last item that was given, in the same worker of as many.

        Raises:
            RecipeError: the state belongs to another set, another rank or another batch size.
        """
        ours = self.state_dict()
        if any(state.get(key) != ours[key] for key in ours.keys() - {"epoch", "begin", "position"}):
            raise RecipeError(
                f"got the state {state}, expected one of a stream over {len(self.mixed)} real rows, rank {self.rank} "
                f"of {self.world_size}, in batches of {self.batch_size}."
            )
        self.epoch, self.begin, self.position = state["epoch"], state["begin"], state["position"]


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def _rank() -> tuple[int, int]:
    """Rank and world size of this process."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
