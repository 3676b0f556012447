"""What a scheduler's configuration says of a rectified flow, without torch: shift, grid, and what is refused.

Read are `FlowMatchEulerDiscreteScheduler` and `DPMSolverMultistepScheduler` with use_flow_sigmas. Every key is
honoured, known to be neutral, or refused, as in `timesteps`.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from diffaug_datasets.numerics.flow import DynamicShift, FlowSchedule, Grid
from diffaug_datasets.numerics.timesteps import MOST_TIMESTEPS, Unfit

EULER = "FlowMatchEulerDiscreteScheduler"
SOLVER = "DPMSolverMultistepScheduler"

# Key -> the values that change nothing. Any other value changes images in a way that no sampler here follows.
ONLY: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), (False,)),
        **dict.fromkeys(("invert_sigmas", "stochastic_sampling", "use_lu_lambdas", "thresholding"), (False,)),
        "prediction_type": ("flow_prediction",),
        "use_flow_sigmas": (True,),
        "final_sigmas_type": ("zero",),
        "rescale_betas_zero_snr": (False,),
    }
)
DYNAMIC = frozenset({"base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift", "time_shift_type"})
HONOURED = frozenset({"num_train_timesteps", "shift", "flow_shift", "use_dynamic_shifting", "shift_terminal"}) | DYNAMIC
# Of betas, which a flow has not, and of a solver that the recipe's sampler replaces.
NEUTRAL = frozenset(
    {"beta_start", "beta_end", "beta_schedule", "trained_betas", "timestep_spacing", "steps_offset", "variance_type"}
    | {"solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final", "lambda_min_clipped"}
    | {"dynamic_thresholding_ratio", "sample_max_value"}
)


def read_flow(config: Mapping[str, object], *, grid: Grid = "scheduler", tokens: int = 0) -> FlowSchedule:
    """The flow that a `scheduler_config.json` describes, for an image of so many tokens.

    `grid`: the sigmas that the family's pipeline asks Euler's method for.

    Raises:
        Unfit: it asks for something that no sampler here does, or for something unknown.
    """
    stated = {key: value for key, value in config.items() if value is not None and not key.startswith("_")}
    written_by = config.get("_class_name")
    if written_by not in (EULER, SOLVER) or (written_by == SOLVER and stated.get("use_flow_sigmas") is not True):
        raise Unfit(f"has a scheduler of the class {written_by!r}", f"{EULER}, or {SOLVER} with use_flow_sigmas")
    for key, value in stated.items():
        _check_key(key, value)
    is_solver = written_by == SOLVER
    schedule = FlowSchedule(
        num_train_timesteps=_whole(stated, "num_train_timesteps", 1000, 2, MOST_TIMESTEPS),
        shift=_number(stated, "flow_shift" if is_solver else "shift", 1.0),
        grid="solver" if is_solver else grid,
        tokens=tokens,
    )
    dynamic = stated.get("use_dynamic_shifting", False)
    if not isinstance(dynamic, bool):
        raise Unfit(f"has a scheduler with use_dynamic_shifting {dynamic!r}", "true or false")
    if not dynamic:
        if "shift_terminal" in stated:
            raise Unfit("has a scheduler with shift_terminal and a fixed shift", "use_dynamic_shifting beside it")
        return schedule
    if is_solver:
        raise Unfit(f"has a {SOLVER} with use_dynamic_shifting", f"a fixed flow_shift, or {EULER}")
    return replace(schedule, dynamic=_dynamic(stated))


def _dynamic(stated: Mapping[str, object]) -> DynamicShift:
    kind = stated.get("time_shift_type", "exponential")
    if kind not in ("exponential", "linear"):
        raise Unfit(f"has a scheduler with time_shift_type {kind!r}", "exponential or linear")
    terminal = _number(stated, "shift_terminal", 0.0) if "shift_terminal" in stated else None
    if terminal is not None and not terminal < 1:
        raise Unfit(f"has a scheduler with shift_terminal {terminal}", "a number below 1")
    shift = DynamicShift(
        base_tokens=_whole(stated, "base_image_seq_len", 256, 1, 2**31),
        most_tokens=_whole(stated, "max_image_seq_len", 4096, 1, 2**31),
        base=_number(stated, "base_shift", 0.5),
        most=_number(stated, "max_shift", 1.15),
        kind="linear" if kind == "linear" else "exponential",
        terminal=terminal or None,
    )
    if shift.most_tokens <= shift.base_tokens:
        lengths = f"base_image_seq_len {shift.base_tokens} and max_image_seq_len {shift.most_tokens}"
        raise Unfit(f"has a scheduler with {lengths}", "the second above the first")
    return shift


def _check_key(key: str, value: object) -> None:
    if key in HONOURED or key in NEUTRAL:
        return
    if key not in ONLY:
        raise Unfit(f"has an unknown key {key!r} in its scheduler", "keys whose effect on images is known")
    if not any(value is known or (isinstance(known, str) and value == known) for known in ONLY[key]):
        way = "which no sampler here follows (in scheduler/scheduler_config.json)"
        raise Unfit(f"has a scheduler with {key} {value!r}, {way}", f"{ONLY[key][0]!r} there")


def _whole(stated: Mapping[str, object], key: str, default: int, least: int, most: int) -> int:
    value = stated.get(key, default)
    if type(value) is not int or not least <= value <= most:
        raise Unfit(f"has a scheduler with {key} {value!r}", f"a whole number from {least} to {most:,}")
    return value


def _number(stated: Mapping[str, object], key: str, default: float) -> float:
    value = stated.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise Unfit(f"has a scheduler with {key} {value!r}", "a number from 0 on")
    if value == 0 and key in ("shift", "flow_shift"):
        raise Unfit(f"has a scheduler with {key} 0", "a number above 0")
    return float(value)
