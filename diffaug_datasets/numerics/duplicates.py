"""Pictures that look alike, by perceptual hash and by embedding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Looks:
    """How n pictures look: perceptual hashes [n 64] and unit-norm features [n d]."""

    bits: Bool[Tensor, "n 64"]
    features: Float[Tensor, "n d"]

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, place: int) -> "Looks":
        return Looks(self.bits[place : place + 1], self.features[place : place + 1])


@dataclass(frozen=True)
class LikenessRule:
    """When two pictures count as the same. A bound of None is not looked at; without both, nothing looks alike.

    `hash_distance`: Hamming distance of the hashes, 0 to 64, at most; `cosine`: of the features, at least.
    """

    hash_distance: int | None
    cosine: float | None
    rule: Literal["either", "both"] = "either"

    def alike(self, one: Looks, others: Looks) -> bool:
        """Whether the one picture counts as the same as any of the others."""
        tests = []
        if self.hash_distance is not None:
            tests.append((one.bits != others.bits).sum(1) <= self.hash_distance)
        if self.cosine is not None:
            tests.append(others.features @ one.features[0] >= self.cosine)
        if not tests or not len(others):
            return False
        both = torch.stack(tests)
        return bool((both.any(0) if self.rule == "either" else both.all(0)).any())


class Sieve:
    """Refuses the pictures that it is told of, those that look like a picture of a named set, and repeats.

    `told`: place -> reason. `against`: name of a set (`test`, `source`) -> its pictures. A picture that is not refused
    counts as let through, and what looks like it is refused as a `row`; at most `room` pictures are let through.
    """

    def __init__(
        self, pool: Looks, told: Mapping[int, str], against: Mapping[str, Looks], rule: LikenessRule, room: int
    ) -> None:
        self._pool, self._told, self._against, self._rule = pool, told, against, rule
        self._kept = Looks(pool.bits.new_zeros(room, 64), pool.features.new_zeros(room, pool.features.shape[1]))
        self._count = 0
        self.refused: dict[str, set[int]] = {}

    def __call__(self, place: int) -> bool:
        """Whether the picture in this place is refused; `refused` keeps it under the reason."""
        reason = self._told.get(place) or self._looks_like(self._pool[place])
        if reason:
            self.refused.setdefault(reason, set()).add(place)
            return True
        self._kept.bits[self._count] = self._pool.bits[place]
        self._kept.features[self._count] = self._pool.features[place]
        self._count += 1
        return False

    def _looks_like(self, one: Looks) -> str:
        kept = Looks(self._kept.bits[: self._count], self._kept.features[: self._count])
        sets = {**self._against, "row": kept}
        return next((f"looks like a {name}" for name, others in sets.items() if self._rule.alike(one, others)), "")
