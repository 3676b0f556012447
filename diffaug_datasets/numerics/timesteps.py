"""Timestep labels and start indices, and the scheduler's configuration that decides them: all without torch.

`T` is the number of training timesteps (1000 for Stable Diffusion), `offset` its `steps_offset` (1). `spacing` is how
labels are laid out on 0..T-1 (Table 2 of Lin et al. 2023, arXiv 2305.08891); each solver has its own default.

The recipe chooses the solver (`sampler`), so the class in a model's scheduler configuration counts only for what it
says of the model: its noise levels, its prediction, and which labels it wants visited. Every key is honoured, known to
be neutral, or refused.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from diffaug_datasets.numerics.levels import Prediction

Spacing = Literal["leading", "trailing", "linspace"]

PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")
BETA_RULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
MOST_TIMESTEPS = 100_000
# Variance-preserving schedulers of diffusers -> the spacing that each has where nothing is said.
SPACINGS: Mapping[str, Spacing] = MappingProxyType(
    {
        **dict.fromkeys(("DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"), "leading"),
        **dict.fromkeys(("LCMScheduler", "DDPMScheduler", "DDPMParallelScheduler", "PNDMScheduler"), "leading"),
        **dict.fromkeys(("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"), "linspace"),
        **dict.fromkeys(("HeunDiscreteScheduler", "LMSDiscreteScheduler"), "linspace"),
        **dict.fromkeys(("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"), "linspace"),
        **dict.fromkeys(("DPMSolverMultistepScheduler", "DPMSolverSDEScheduler"), "linspace"),
        **dict.fromkeys(("DPMSolverMultistepInverseScheduler", "DPMSolverSinglestepScheduler"), "linspace"),
        **dict.fromkeys(("DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"), "linspace"),
    }
)
CONSISTENCY = "LCMScheduler"
ENDS_AT_FIRST_LEVEL: tuple[str, ...] = (
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDIMInverseScheduler",
    "DDPMScheduler",
)
ENDS_AT_FIRST_LEVEL += ("DDPMParallelScheduler", "PNDMScheduler")
ORDINARY = "an ordinary model (the samplers here give wrong images of one that was distilled to a few steps)"
FEW_STEPS = 8  # more than any model asks for that was distilled without guidance, as SD-Turbo was
EULER = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")

HONOURED = frozenset(
    {"prediction_type", "beta_schedule", "beta_start", "beta_end", "trained_betas", "num_train_timesteps"}
    | {"steps_offset", "set_alpha_to_one", "timestep_spacing", "rescale_betas_zero_snr"}
    | {"original_inference_steps", "timestep_scaling"}
)
# Key -> the values that change nothing. Any other value changes images in a way that no sampler here follows.
ONLY: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("clip_sample", "thresholding"), (False,)),
        **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), (False,)),
        **dict.fromkeys(("use_lu_lambdas", "use_flow_sigmas", "use_dynamic_shifting"), (False,)),
        "flow_shift": (1, 1.0),
        "lambda_min_clipped": (-math.inf,),
        "final_sigmas_type": ("zero",),
        "timestep_type": ("discrete",),
        "sigma_min": (),
        "sigma_max": (),
        "shift_terminal": (),
        # A network of learned variance has twice the outputs, which the U-Net's own config shows too.
        "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    }
)
# Of a solver that the recipe's sampler replaces, of clipping and thresholding that are off (else refused above), of
# shifting that is off, or of sigmas between labels, which no sampler here visits.
NEUTRAL = frozenset(
    {"skip_prk_steps", "solver_order", "solver_type", "solver_p", "algorithm_type", "lower_order_final"}
    | {"euler_at_final", "predict_x0", "disable_corrector", "predictor_order", "corrector_order", "tau_func"}
    | {"noise_sampler_seed", "clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio"}
    | {"time_shift_type", "interpolation_type"}
)


@dataclass(frozen=True)
class SchedulerSettings:
    """What decides a schedule. `spacing` is None where the file says nothing, so that each solver keeps its own; what
    it says goes for every solver, as where diffusers makes one scheduler from another's file.

    `is_zero_snr`: the betas are rescaled to zero terminal SNR. `is_few_step`: the model was distilled to a few steps
    without guidance, as SD-Turbo was: it is sampled as diffusers' Euler schedulers do, from s eps to zero noise, with
    fresh noise in each step where `is_ancestral`, as SDXL-Turbo is. `original_steps`, `timestep_scaling`: of a
    consistency model (LCM); see `numerics.schedule.Schedule`. `ends_clean`: the scheduler that wrote the file ends
    without noise, whatever `set_alpha_to_one` says.
    """

    prediction_type: Prediction = "epsilon"
    beta_schedule: str = "linear"
    beta_start: float = 0.0001
    beta_end: float = 0.02
    trained_betas: tuple[float, ...] | None = None
    num_train_timesteps: int = 1000
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    spacing: Spacing | None = None
    is_zero_snr: bool = False
    is_few_step: bool = False
    is_ancestral: bool = False
    ends_clean: bool = False
    original_steps: int | None = None
    timestep_scaling: float = 10.0

    @property
    def timeline(self) -> "Timeline":
        """The labels that samplers visit."""
        return Timeline(self.num_train_timesteps, self.steps_offset, self.spacing, self.original_steps)


class Unfit(ValueError):
    """A schedule that cannot be driven: `got`, and what was `expected`, as parts of a sentence on the model."""

    def __init__(self, got: str, expected: str) -> None:
        super().__init__(f"{got}, expected {expected}")
        self.got, self.expected = got, expected


def read_settings(config: Mapping[str, object]) -> SchedulerSettings:
    """What a `scheduler_config.json` says; what it leaves open is as diffusers' `DDIMScheduler` has it.

    Clipping is off where nothing is said of it, as Stable Diffusion's pipelines have it.

    Raises:
        Unfit: it asks for something that no sampler here does, or for something unknown.
    """
    stated = {key: value for key, value in config.items() if value is not None and not key.startswith("_")}
    written_by = config.get("_class_name")
    _check_class(written_by, stated)
    is_consistent = written_by == CONSISTENCY
    settings = SchedulerSettings(
        prediction_type=_prediction(stated),
        beta_schedule=_beta_rule(stated),
        beta_start=_beta(stated, "beta_start", 0.0001),
        beta_end=_beta(stated, "beta_end", 0.02),
        trained_betas=_trained_betas(stated),
        num_train_timesteps=_whole(stated, "num_train_timesteps", 1000, 2, MOST_TIMESTEPS),
        steps_offset=_whole(stated, "steps_offset", 0, 0, MOST_TIMESTEPS),
        set_alpha_to_one=_truth(stated, "set_alpha_to_one", True),
        spacing=_spacing(stated),
        is_zero_snr=_truth(stated, "rescale_betas_zero_snr", False),
        is_few_step=written_by in EULER and stated.get("timestep_spacing") == "trailing",
        is_ancestral=written_by == EULER[1],
        ends_clean=isinstance(written_by, str) and written_by not in ENDS_AT_FIRST_LEVEL,
        original_steps=_whole(stated, "original_inference_steps", 50, 1, MOST_TIMESTEPS) if is_consistent else None,
        timestep_scaling=_above_zero(stated, "timestep_scaling", 10.0),
    )
    if is_consistent and (settings.original_steps or 0) > settings.num_train_timesteps:
        got = f"original_inference_steps {settings.original_steps} for {settings.num_train_timesteps} timesteps"
        raise Unfit(f"has a scheduler with {got}", "no more than there are timesteps")
    if settings.is_zero_snr:
        settings = replace(settings, is_few_step=False)  # 'trailing' is what such a schedule needs anyway
        if settings.prediction_type == "epsilon":
            reason = "where eps says nothing of the image"
            raise Unfit(f"rescales its betas to zero terminal SNR, {reason}", "a network that predicts v or x0 there")
    if settings.is_few_step:
        settings = replace(settings, set_alpha_to_one=True)  # which these schedulers do not read
    for key, value in stated.items():
        _check_key(key, value)
    if settings.trained_betas and len(settings.trained_betas) != settings.num_train_timesteps:
        got = f"trained_betas of {len(settings.trained_betas)} numbers for {settings.num_train_timesteps} timesteps"
        raise Unfit(f"has a scheduler with {got}", "one number per timestep")
    return settings


def _check_class(written_by: object, stated: Mapping[str, object]) -> None:
    if written_by == "TCDScheduler":
        raise Unfit(f"is made for a few steps ({written_by})", ORDINARY)
    if "original_inference_steps" in stated and written_by != CONSISTENCY:
        raise Unfit("is made for a few steps (its scheduler has original_inference_steps)", ORDINARY)
    if not {"beta_start", "trained_betas"} & stated.keys() and stated.get("beta_schedule") != "squaredcos_cap_v2":
        raise Unfit(f"has a {written_by} without betas", "a variance-preserving schedule")
    if written_by is not None and (not isinstance(written_by, str) or written_by not in SPACINGS):
        raise Unfit(f"has a scheduler of the class {written_by!r}", f"one of {', '.join(SPACINGS)}")


def _check_key(key: str, value: object) -> None:
    if key in HONOURED or key in NEUTRAL:
        return
    if key not in ONLY:
        raise Unfit(f"has an unknown key {key!r} in its scheduler", "keys whose effect on images is known")
    if value not in ONLY[key] or isinstance(value, bool) != any(isinstance(v, bool) for v in ONLY[key]):
        usual = " or ".join(repr(v) for v in ONLY[key]) or "nothing"
        way = "which no sampler here follows (in scheduler/scheduler_config.json)"
        raise Unfit(f"has a scheduler with {key} {value!r}, {way}", f"{usual} there")


def _prediction(stated: Mapping[str, object]) -> Prediction:
    value = stated.get("prediction_type", "epsilon")
    for known in PREDICTIONS:
        if value == known:
            return known
    raise Unfit(f"predicts {value!r}", f"{', '.join(PREDICTIONS[:-1])} or {PREDICTIONS[-1]}")


def _beta_rule(stated: Mapping[str, object]) -> str:
    rule = stated.get("beta_schedule", "linear")
    if rule not in BETA_RULES:
        reason = f"got beta schedule {rule!r}; use {', '.join(map(repr, BETA_RULES[:-1]))} or {BETA_RULES[-1]!r}"
        raise Unfit(f"has a schedule that cannot be built ({reason})", "DDPM betas")
    return str(rule)


def _beta(stated: Mapping[str, object], key: str, default: float) -> float:
    value = stated.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise Unfit(f"has a scheduler with {key} {value!r}", "a number between 0 and 1")
    return float(value)


def _above_zero(stated: Mapping[str, object], key: str, default: float) -> float:
    value = stated.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise Unfit(f"has a scheduler with {key} {value!r}", "a number above 0")
    return float(value)


def _trained_betas(stated: Mapping[str, object]) -> tuple[float, ...] | None:
    betas = stated.get("trained_betas")
    if not betas and (betas is None or betas == []):
        return None
    numbers = betas if isinstance(betas, list) else [None]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 < n < 1 for n in numbers):
        raise Unfit("has a scheduler whose trained_betas make no schedule", "a list of numbers between 0 and 1")
    return tuple(map(float, numbers))


def _whole(stated: Mapping[str, object], key: str, default: int, least: int, most: int) -> int:
    value = stated.get(key, default)
    if type(value) is not int or not least <= value <= most:
        raise Unfit(f"has a scheduler with {key} {value!r}", f"a whole number from {least} to {most:,}")
    return value


def _truth(stated: Mapping[str, object], key: str, default: bool) -> bool:
    value = stated.get(key, default)
    if not isinstance(value, bool):
        raise Unfit(f"has a scheduler with {key} {value!r}", "true or false")
    return value


def _spacing(stated: Mapping[str, object]) -> Spacing | None:
    value = stated.get("timestep_spacing")
    if value is None:
        return None
    for known in ("leading", "trailing", "linspace"):
        if value == known:
            return known
    raise Unfit(f"has a scheduler with timestep_spacing {value!r}", "'leading', 'trailing' or 'linspace'")


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


def consistency_labels(n: int, T: int = 1000, original: int = 50) -> tuple[int, ...]:
    """The n labels of a consistency model that was distilled from `original` steps, highest first.

    n = 4 of 50 gives 999, 759, 499, 259. Follows diffusers' `LCMScheduler`: n of the labels T/50 apart, evenly by
    number.

    Raises:
        ValueError: n is outside 1..original.
    """
    _check_count(n, original)
    apart = T // original
    chosen = np.floor(np.linspace(0, original, num=n, endpoint=False))  # in floats, which decide where it is near
    return tuple((original - int(place)) * apart - 1 for place in chosen)


LABELS = {"ddim": ddim_labels, "dpm": dpm_labels, "plms": plms_labels, "ancestral": ddim_labels}
"""Sampler -> its labels."""


@runtime_checkable
class Labels(Protocol):
    """What a plan knows of a schedule: T, and the falling labels that a sampler visits in n steps."""

    @property
    def num_train_timesteps(self) -> int:
        """T."""

    def labels(self, sampler: str, n: int) -> tuple[float, ...]:
        """The labels. Raises ValueError where they do not fit."""


@dataclass(frozen=True)
class Timeline:
    """What labels hang on; by default as Stable Diffusion 1.x has it. `spacing`: None = as each sampler has it.

    `original_steps`: of a consistency model, as `consistency_labels` says; None = it is none.
    """

    num_train_timesteps: int = 1000
    steps_offset: int = 1
    spacing: Spacing | None = None
    original_steps: int | None = None

    def labels(self, sampler: str, n: int) -> tuple[int, ...]:
        """The falling labels of a sampler over n steps; PLMS has one more.

        Raises:
            ValueError: they do not fit, or the sampler is none of such a schedule.
        """
        if sampler == "lcm" and self.original_steps is not None:
            return consistency_labels(n, self.num_train_timesteps, self.original_steps)
        if sampler not in LABELS:
            raise ValueError(f"{sampler} is no sampler of this schedule; use {', '.join(LABELS)}")
        said = {} if self.spacing is None else {"spacing": self.spacing}
        return LABELS[sampler](n, self.num_train_timesteps, self.steps_offset, **said)


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


def genie_start(timesteps: Sequence[float], ratio: float, *, num_train_timesteps: int = 1000) -> int:
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
    timesteps: Sequence[float],
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


def _trailing(n: int, T: int) -> tuple[int, ...]:
    """From T - 1 down, T / n apart; numpy's own float steps, which decide halves as diffusers has them."""
    return _even(np.arange(T, 0, -T / n)[:n], below=1)


def _even(points: "np.ndarray[tuple[int], np.dtype[np.float64]]", below: int = 0) -> tuple[int, ...]:
    """Points rounded half to even, less a constant."""
    return tuple(int(point) - below for point in np.round(points))


def _check_count(n: int, most: int, least: int = 1) -> None:
    if not least <= n <= most:
        raise ValueError(f"got {n} inference steps; give {least} to {most}")
