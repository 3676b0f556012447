"""The ways from data to noise and back by name, and what each takes; the mathematics is in `inverting`. No torch."""

from typing import Literal

Inverter = Literal["ddim", "midpoint", "bdia", "edict"]


def is_paired(inverter: str) -> bool:
    """Whether the state of an inverter is a pair of latents."""
    return inverter in ("bdia", "edict")


def calls(inverter: Inverter, n: int, *, upwards: bool = False) -> int:
    """Network calls of n steps of an inverter, on the way back or upwards."""
    if inverter == "bdia":
        return n if upwards else n - 1
    return n if inverter == "ddim" else 2 * n
