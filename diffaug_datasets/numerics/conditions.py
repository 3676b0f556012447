"""What a network is told beside the state and the time: one tensor, or several that belong together.

A model with one text encoder has a plain tensor [b s d]. One that is told more (a pooled text, a mask of the sequence,
a second encoder's states) has a `Condition`, whose tensors share their first axis, the rows. The functions here treat
both alike, so that a method which stacks, joins and switches conditions by them works with every family.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, overload

import torch
from jaxtyping import Bool
from torch import Tensor


class Condition:
    """Named tensors of the same rows: `text` [b s d], and whatever else its family tells its network. Immutable."""

    __slots__ = ("_parts",)
    _parts: Mapping[str, Tensor]

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        object.__setattr__(self, "_parts", MappingProxyType(dict(parts)))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Condition does not change; make another one")

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """Its tensors by name."""
        return self._parts

    def __getitem__(self, name: str) -> Tensor:
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        """Rows."""
        return len(next(iter(self.parts.values())))

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return next(iter(self.parts.values())).device

    def map(self, function: Callable[[Tensor], Tensor]) -> "Condition":
        """The same with every tensor replaced by what the function makes of it."""
        return Condition({name: function(part) for name, part in self.parts.items()})

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Condition":
        """On a device; tensors of floats in that dtype, masks and numbers of tokens as they are."""
        return self.map(lambda part: part.to(device, dtype if part.is_floating_point() else None))

    def __repr__(self) -> str:
        return f"Condition({ {name: tuple(part.shape) for name, part in self.parts.items()} })"


Conditioning = Tensor | Condition
"""What `DiffusionModel.prompts` gives and its predictions take."""


@overload
def stacked(conditions: Sequence[Tensor]) -> Tensor: ...
@overload
def stacked(conditions: Sequence[Conditioning]) -> Any: ...
def stacked(conditions: Sequence[Conditioning]) -> Any:
    """The conditions of several rows, each without the axis of rows, as one."""
    return _together(torch.stack, conditions)


def joined(conditions: Sequence[Conditioning]) -> Any:
    """The rows of several conditions, one after the other."""
    return _together(torch.cat, conditions)


def chosen(mask: Bool[Tensor, " b"], if_so: Conditioning, otherwise: Conditioning) -> Any:
    """Row by row, `if_so` where the mask is true."""
    if isinstance(if_so, Condition) or isinstance(otherwise, Condition):
        _check_alike([if_so, otherwise])
        return Condition({name: chosen(mask, if_so[name], otherwise[name]) for name in if_so})  # type: ignore[index]
    return torch.where(mask.reshape(-1, *[1] * (if_so.ndim - 1)), if_so, otherwise)


def rows_of(condition: Conditioning, places: Any) -> Any:
    """The rows at an index, a slice or a tensor of places."""
    return condition.map(lambda part: part[places]) if isinstance(condition, Condition) else condition[places]


def text_of(condition: Conditioning) -> Tensor:
    """The states of the text [b s d]."""
    return condition["text"] if isinstance(condition, Condition) else condition


def tensors_of(condition: Conditioning) -> tuple[Tensor, ...]:
    """All its tensors, in the order of their names in it."""
    return tuple(condition.parts.values()) if isinstance(condition, Condition) else (condition,)


def _together(function: Callable[[list[Tensor]], Tensor], conditions: Sequence[Conditioning]) -> Any:
    first = conditions[0]
    if not isinstance(first, Condition):
        return function(list(conditions))  # type: ignore[arg-type]
    _check_alike(conditions)
    return Condition({name: function([one[name] for one in conditions]) for name in first})  # type: ignore[index]


def _check_alike(conditions: Sequence[Conditioning]) -> None:
    kinds = {tuple(one) if isinstance(one, Condition) else None for one in conditions}
    if len(kinds) > 1:
        raise ValueError(f"got conditions of different models: {', '.join(map(repr, conditions))}")
