"""What one training step draws: a function of the seed and the step's number alone, on CPU generators."""

from collections import Counter
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from diffaug_datasets.core.seeds import uint63


@runtime_checkable
class DrawConfig(Protocol):
    """What decides the draws: `batch` images a step, the share `flip` that is mirrored, classes balanced or not."""

    @property
    def seed(self) -> int: ...

    @property
    def batch(self) -> int: ...

    @property
    def flip(self) -> float: ...

    @property
    def class_balanced(self) -> bool: ...


@dataclass(frozen=True)
class StepDraw:
    """Which images, mirrored or not, at which timestep labels, under which noise and prompt; all on the CPU."""

    images: Int[Tensor, " b"]
    mirrored: Bool[Tensor, " b"]
    t: tuple[int, ...]
    eps: Float[Tensor, "b c h w"]
    prompts: Int[Tensor, " b"]

    def part(self, number: int, of: int) -> "StepDraw":
        """Part `number` of `of` nearly equal ones, in order; the parts together are the whole."""
        size = len(self.t)
        cut = slice(number * size // of, (number + 1) * size // of)
        return StepDraw(self.images[cut], self.mirrored[cut], self.t[cut], self.eps[cut], self.prompts[cut])


@dataclass(frozen=True)
class StepDraws:
    """The random choices of a training run over images with these class ids; `purpose` sets runs apart."""

    cfg: DrawConfig
    labels: tuple[int, ...]
    latent_shape: tuple[int, int, int]
    num_train_timesteps: int
    prompts: int = 1
    purpose: str = "concepts"

    def step(self, i: int) -> StepDraw:
        """Everything random about step i: the same whether or not the run was interrupted before it."""
        size = self.cfg.batch
        t = torch.randint(self.num_train_timesteps, (size,), generator=self._generator(i, "timestep"))
        mirrored = torch.rand(size, generator=self._generator(i, "flip")) < self.cfg.flip
        eps = torch.randn(size, *self.latent_shape, generator=self._generator(i, "noise"))
        images = self._balanced(i) if self.cfg.class_balanced else self._in_epochs(i)
        prompts = torch.randint(self.prompts, (size,), generator=self._generator(i, "prompt"))
        return StepDraw(images, mirrored, tuple(t.tolist()), eps, prompts)

    def _generator(self, i: int, role: str) -> Generator:
        return torch.Generator().manual_seed(uint63(f"{self.cfg.seed}|{self.purpose}|{i}|{role}"))

    def _balanced(self, i: int) -> Int[Tensor, " b"]:
        """Images with replacement, image j with weight 1 over the number of images of its class."""
        counts = Counter(self.labels)
        weights = torch.tensor([1 / counts[label] for label in self.labels], dtype=torch.float64)
        return torch.multinomial(weights, self.cfg.batch, replacement=True, generator=self._generator(i, "image"))

    def _in_epochs(self, i: int) -> Int[Tensor, " b"]:
        """Images without replacement, in an order that every epoch draws anew; a batch may span epochs."""
        count = len(self.labels)
        places = range(i * self.cfg.batch, (i + 1) * self.cfg.batch)
        orders = {epoch: self._order(epoch) for epoch in {place // count for place in places}}
        return torch.stack([orders[place // count][place % count] for place in places])

    def _order(self, epoch: int) -> Int[Tensor, " n"]:
        return torch.randperm(len(self.labels), generator=self._generator(epoch, "epoch"))
