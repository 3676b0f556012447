"""A backbone whose answer is known in closed form: Gaussian data, for tests of samplers and guidance."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.numerics.precision import per_row, widened
from diffaug_datasets.numerics.schedule import Schedule


class ToyBackbone:
    """Latents distributed as N(mu, s^2 I), on the CPU. A condition [b s d] moves mu by the mean of its entries.

    With alpha_bar = a the state is N(sqrt(a) mu, (a s^2 + 1 - a) I), so E[eps | x_t] is linear in x_t.
    """

    def __init__(
        self, mu: float = 0.0, s: float = 1.0, shape: tuple[int, int, int] = (4, 4, 4), schedule: Schedule | None = None
    ) -> None:
        self.name = f"toy@mu{mu:g}s{s:g}"
        self.mu, self.s, self.latent_shape = mu, s, shape
        self.schedule = schedule or Schedule.from_betas("scaled_linear", 0.00085, 0.012)
        self.device, self.dtype = torch.device("cpu"), torch.float64
        self.calls = 0
        self.rows_evaluated = 0

    def prompt(self, text: str) -> Float[Tensor, "1 1"]:
        """The number that a text is, 0 for one that is none: "0.5" moves the mean by 0.5."""
        try:
            return torch.tensor([[float(text)]], dtype=self.dtype)
        except ValueError:
            return torch.zeros(1, 1, dtype=self.dtype)

    def prompts(self, texts: Sequence[str]) -> Float[Tensor, "b 1 1"]:
        """The conditions of several texts."""
        return torch.stack([self.prompt(text) for text in texts])

    def eps(
        self, xt: Float[Tensor, "b c h w"], t: int | Sequence[int], cond: Float[Tensor, "b s d"]
    ) -> Float[Tensor, "b c h w"]:
        """E[eps | x_t] = sqrt(1 - a) (x_t - sqrt(a) mu) / (a s^2 + 1 - a), float64 for float64 states, else float32."""
        self.calls += 1
        self.rows_evaluated += len(xt)
        state = widened(xt)
        levels = [self.schedule.level(label) for label in ([t] * len(xt) if isinstance(t, int) else t)]
        mean = per_row(self.mu + cond.double().mean(dim=(1, 2)), state)
        signal = per_row([math.sqrt(a) for a in levels], state)
        gain = per_row([math.sqrt(1 - a) / (a * self.s**2 + 1 - a) for a in levels], state)
        return gain * (state - signal * mean)

    def exact_sample(self, xt: Float[Tensor, "b c h w"], t: int) -> Float[Tensor, "b c h w"]:
        """Where the probability flow ODE takes x_t: the same quantile of N(mu, s^2 I), without a condition."""
        a = self.schedule.level(t)
        return self.mu + self.s * (widened(xt) - math.sqrt(a) * self.mu) / math.sqrt(a * self.s**2 + 1 - a)
