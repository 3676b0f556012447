"""Timestep labels and start indices: whole numbers only, so that planning needs no torch.

`T` is the number of training timesteps (1000 for Stable Diffusion), `offset` its `steps_offset` (1).
"""

from collections.abc import Sequence
from typing import Literal


def ddim_labels(n: int, T: int = 1000, offset: int = 1) -> tuple[int, ...]:
    """The n labels of DDIM sampling, highest first: n = 25 of 1000 gives 961, 921, ..., 41, 1.

    Follows diffusers' `DDIMScheduler` with 'leading' spacing; inversion runs the same labels upwards.

    Raises:
        ValueError: n is outside 1..T, or the offset pushes the highest label past T - 1 (diffusers fails later there).
    """
    _check_count(n, T)
    labels = tuple(i * (T // n) + offset for i in reversed(range(n)))
    if not 0 <= labels[-1] <= labels[0] < T:
        raise ValueError(f"got {n} steps with offset {offset}: label {labels[0]} lies outside 0 to {T - 1}")
    return labels


def dpm_labels(n: int, T: int = 1000) -> tuple[int, ...]:
    """The n labels of DPM-Solver++, highest first: n = 25 of 1000 gives 999, 959, ..., 80, 40.

    Follows diffusers' `DPMSolverMultistepScheduler` with 'linspace' spacing: n + 1 even points on 0..T-1, rounded half
    to even, without the point 0.

    Raises:
        ValueError: n is outside 1..T-1 (with n = T two labels would coincide).
    """
    _check_count(n, T - 1)
    return tuple(round(i * ((T - 1) / n)) for i in range(n, 0, -1))


def plms_labels(n: int, T: int = 1000, offset: int = 1) -> tuple[int, ...]:
    """The n + 1 labels of PLMS, highest first, the second one twice: n = 50 of 1000 gives 981, 961, 961, 941, ..., 1.

    Follows diffusers' `PNDMScheduler` with skip_prk_steps and 'leading' spacing.

    Raises:
        ValueError: n is outside 2..T, or the offset pushes the highest label past T - 1.
    """
    labels = ddim_labels(n, T, offset)
    if n < 2:
        raise ValueError(f"got {n} inference steps; PLMS needs 2 or more")
    return (*labels[:2], *labels[1:])


def _check_count(n: int, most: int) -> None:
    if not 1 <= n <= most:
        raise ValueError(f"got {n} inference steps; give 1 to {most}")


def img2img_start(n: int, strength: float) -> int:
    """The index of the first executed step of n, in 0..n-1, for an img2img strength in (0, 1].

    Follows diffusers' `StableDiffusionImg2ImgPipeline.get_timesteps`: k = int(n * strength) steps run, the last ones.

    Raises:
        ValueError: strength is outside [0, 1], or so small that no step would run (diffusers fails later there).
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"got strength {strength}; give a number above 0 and at most 1")
    executed = min(int(n * strength), n)
    if executed == 0:
        raise ValueError(f"strength {strength} of {n} steps runs no step; use a strength of at least 1/{n}")
    return n - executed


def genie_start(timesteps: Sequence[int], ratio: float, *, num_train_timesteps: int = 1000) -> int:
    """The index of the first label that GeNIe keeps, for a noise ratio r in (0, 1].

    Follows the authors' code (UCDvision/GeNIe): labels with t - 1 > 1000 r are skipped, and r > 0.999 starts from pure
    noise, so all labels are kept. The first kept label may lie up to a step from int(1000 r), where noise was added.

    Raises:
        ValueError: r is outside (0, 1], or keeps no label.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"got noise ratio {ratio}; give a number above 0 and at most 1")
    if ratio > 0.999:
        return 0
    kept = [i for i, t in enumerate(timesteps) if t - 1 <= num_train_timesteps * ratio]
    if not kept:
        raise ValueError(f"noise ratio {ratio} keeps none of {len(timesteps)} labels; raise it or use more steps")
    return kept[0]


def suffix_steps(
    timesteps: Sequence[int],
    split_ratio: float,
    convention: Literal["code", "paper"] = "code",
    *,
    num_train_timesteps: int = 1000,
) -> int:
    """How many leading steps of falling labels use the suffixed prompt, for Diff-II's split ratio s in [0, 1] (Eq. 8).

    'code' follows the authors' code, t >= T (1 - s): s is the share of steps with the suffix, which is what the paper's
    own ablation needs. 'paper' implements Eq. 8 as printed, t > s T: the share *without* it.

    Raises:
        ValueError: s is outside [0, 1], or the convention is unknown.
    """
    if not 0 <= split_ratio <= 1:
        raise ValueError(f"got split ratio {split_ratio}; give a number from 0 to 1")
    if convention == "code":
        return sum(t >= num_train_timesteps * (1 - split_ratio) for t in timesteps)
    if convention == "paper":
        return sum(t > num_train_timesteps * split_ratio for t in timesteps)
    raise ValueError(f"got convention {convention!r}; use 'code' or 'paper'")
