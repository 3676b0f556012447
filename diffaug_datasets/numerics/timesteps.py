"""Timestep labels and start indices: whole numbers only, so that planning needs no torch.

`T` is the number of training timesteps (1000 for Stable Diffusion), `offset` its `steps_offset` (1). `spacing` is how
labels are laid out on 0..T-1 (Table 2 of Lin et al. 2023, arXiv 2305.08891); each solver has its own default.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from diffaug_datasets.core.scheduler_config import Spacing


def ddim_labels(n: int, T: int = 1000, offset: int = 1, spacing: Spacing = "leading") -> tuple[int, ...]:
    """The n labels of DDIM sampling, highest first: n = 25 of 1000 gives 961, 921, ..., 41, 1.

    Follows diffusers' `DDIMScheduler`; only 'leading' labels are offset. Inversion runs the same labels upwards.

    Raises:
        ValueError: n is outside 1..T (2..T for 'linspace', whose only label would be 0), or the offset pushes the
            highest label past T - 1 (diffusers fails later there).
    """
    _check_count(n, T, 2 if spacing == "linspace" else 1)
    if spacing == "leading":
        labels = tuple(i * (T // n) + offset for i in reversed(range(n)))
    elif spacing == "linspace":
        labels = _even(np.linspace(0, T - 1, n)[::-1])
    else:
        labels = _trailing(n, T)
    if not 0 <= labels[-1] <= labels[0] < T:
        raise ValueError(f"got {n} steps with offset {offset}: label {labels[0]} lies outside 0 to {T - 1}")
    return labels


def dpm_labels(n: int, T: int = 1000, offset: int = 1, spacing: Spacing = "linspace") -> tuple[int, ...]:
    """The n labels of DPM-Solver++, highest first: n = 25 of 1000 gives 999, 959, ..., 80, 40.

    Follows diffusers' `DPMSolverMultistepScheduler`; with 'linspace': n + 1 even points on 0..T-1, rounded half to
    even, without the point 0. Only 'leading' labels, of n + 1 points too, are offset.

    Raises:
        ValueError: n is outside 1..T-1 (with n = T two labels would coincide), or the offset pushes the highest label
            past T - 1.
    """
    _check_count(n, T - 1)
    if spacing == "linspace":
        return tuple(round(i * ((T - 1) / n)) for i in range(n, 0, -1))
    if spacing == "trailing":
        return _trailing(n, T)
    labels = tuple(i * (T // (n + 1)) + offset for i in range(n, 0, -1))
    if labels[0] >= T:
        raise ValueError(f"got {n} steps with offset {offset}: label {labels[0]} lies outside 0 to {T - 1}")
    return labels


def plms_labels(n: int, T: int = 1000, offset: int = 1, spacing: Spacing = "leading") -> tuple[int, ...]:
    """The n + 1 labels of PLMS, highest first, the second one twice: n = 50 of 1000 gives 981, 961, 961, 941, ..., 1.

    Follows diffusers' `PNDMScheduler` with skip_prk_steps.

    Raises:
        ValueError: n is outside 2..T, or the offset pushes the highest label past T - 1.
    """
    labels = ddim_labels(n, T, offset, spacing)
    if n < 2:
        raise ValueError(f"got {n} inference steps; PLMS needs 2 or more")
    return (*labels[:2], *labels[1:])


LABELS = {"ddim": ddim_labels, "dpm": dpm_labels, "plms": plms_labels}
"""Sampler -> its labels."""


def _trailing(n: int, T: int) -> tuple[int, ...]:
    """From T - 1 down, T / n apart; numpy's own float steps, which decide halves as diffusers has them."""
    return _even(np.arange(T, 0, -T / n)[:n], below=1)


def _even(points: "np.ndarray[tuple[int], np.dtype[np.float64]]", below: int = 0) -> tuple[int, ...]:
    """Points rounded half to even, less a constant."""
    return tuple(int(point) - below for point in np.round(points))


def _check_count(n: int, most: int, least: int = 1) -> None:
    if not least <= n <= most:
        raise ValueError(f"got {n} inference steps; give {least} to {most}")


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
