"""Real and synthetic rows mixed for training, as PyTorch datasets: by place, or as a stream that resumes exactly."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.data.mixing import Replacement, Replacer, Rows, shuffled

if TYPE_CHECKING:
    import datasets

STATE_SCHEMA = 1
Item = dict[str, Any]


class MixedDataset(Dataset[Item]):
    """As long as the real rows; in each epoch some of them are replaced by synthetic ones.

    `rows`: a loaded set with both kinds. `probability`: how often a real row is replaced. `soft_scale` multiplies soft
    labels (1.0; the loaders of Diff-Mix use 0.9, which no paper states). An item has `image` (PIL, or what `transform`
    makes of it), `label` (int), `soft_label` (float32 [classes]), `row_id` and `is_synthetic`.

    Raises RecipeError as `Replacer` does.
    """

    def __init__(
        self,
        rows: "datasets.Dataset",
        replacement: Replacement = "class",
        probability: float = 0.5,
        *,
        seed: int = 0,
        soft_scale: float = 1.0,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        kinds = rows.with_format(None)["is_synthetic"][:]
        places = {kind: [i for i, found in enumerate(kinds) if found == kind] for kind in (False, True)}
        self.real, self.synthetic = rows.select(places[False]), rows.select(places[True])
        self.classes = rows.features["label"].num_classes
        self.soft_scale, self.transform, self.epoch = soft_scale, transform, 0
        self.replacer = Replacer(_rows(self.real), _rows(self.synthetic), replacement, probability, seed)

    def __len__(self) -> int:
        return len(self.real)

    def set_epoch(self, epoch: int) -> None:
        """Draw other replacements; call it at the start of an epoch, before workers start."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> Item:
        return self.item(self.epoch, index)

    def item(self, epoch: int, index: int) -> Item:
        """The row that stands at a place in an epoch."""
        index = range(len(self))[index]
        chosen = self.replacer.choose(epoch, index)
        return self._told(self.real[index] if chosen is None else self.synthetic[chosen])

    def _told(self, row: Item) -> Item:
        soft = torch.zeros(self.classes)
        soft[row["soft_label"]["class"]] = torch.tensor(row["soft_label"]["weight"])
        image = self.transform(row["image"]) if self.transform else row["image"]
        kept = {key: row[key] for key in ("label", "row_id", "is_synthetic")}
        return {"image": image, **kept, "soft_label": soft * self.soft_scale}


def _rows(rows: "datasets.Dataset") -> Rows:
    plain = rows.select_columns(["label", "source_ids"]).with_format(None)
    return Rows(plain["label"][:], plain["source_ids"][:])


class MixedStream(IterableDataset[Item]):
    """The items of a `MixedDataset`, epoch after epoch in a drawn order; `state_dict` resumes at the exact item.

    Iterating gives what is left of the current epoch. Workers of a DataLoader share the places; a state belongs to one
    worker of so many (torchdata's StatefulDataLoader keeps one for each).
    """

    def __init__(self, mixed: MixedDataset, *, shuffle: bool = True) -> None:
        self.mixed, self.shuffle = mixed, shuffle
        self.epoch = self.position = 0

    def __iter__(self) -> Iterator[Item]:
        mine = self._places()
        if self.position and self.position >= len(mine):  # stopped right behind the last item
            self.set_epoch(self.epoch + 1)
            mine = self._places()
        while self.position < len(mine):
            place = mine[self.position]
            self.position += 1
            yield self.mixed.item(self.epoch, place)
        self.set_epoch(self.epoch + 1)

    def _places(self) -> Sequence[int]:
        """This worker's places of the current epoch, in order."""
        count, (number, workers) = len(self.mixed), _worker()
        order = shuffled(count, self.mixed.replacer.seed, self.epoch) if self.shuffle else range(count)
        return order[number::workers]

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Where this worker's stream is."""
        return {"schema": STATE_SCHEMA, "epoch": self.epoch, "position": self.position, "rows": len(self.mixed)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the last item that was given.

        Raises:
            RecipeError: the state belongs to another set.
        """
        if state.get("schema") != STATE_SCHEMA or state.get("rows") != len(self.mixed):
            raise RecipeError(f"got the state {state}, expected one of a stream over {len(self.mixed)} real rows.")
        self.epoch, self.position = state["epoch"], state["position"]


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)
