"""The batch size that a device makes images with most quickly, found by trying before a plan is made and stored in it.

Twice as many rows each time, one guided step and one encoding and decoding of pictures, as the recipe's model and
profile have them, until memory runs out or images come hardly faster. Nothing is compiled for a trial.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.run.context import is_out_of_memory

if TYPE_CHECKING:
    from diffaug_datasets.models.backbone import Backbone

LARGEST = {"cuda": 512, "cpu": 16}
LEAST_GAIN = 1.03  # images a second over half as many rows
MOST_SHARE = 0.9  # of a card's memory: methods hold a little more than a trial
USUAL_STEPS = 25


@dataclass(frozen=True)
class Trial:
    """A batch that was tried: its rows, and images a second; None where memory did not suffice."""

    rows: int
    rate: float | None


@dataclass(frozen=True)
class FoundBatch:
    """The batch size to take, and what was tried."""

    rows: int
    trials: tuple[Trial, ...]

    @property
    def words(self) -> str:
        """In a line: `2; tried, in images a second: 1 (0.5), 2 (0.9), 4 (out of memory)`."""
        told = [f"{t.rows} ({'out of memory' if t.rate is None else f'{t.rate:.3g}'})" for t in self.trials]
        return f"{self.rows}; tried, in images a second: {', '.join(told)}"


def find_batch(recipe: Recipe, device: str, clock: Callable[[], float] = time.perf_counter) -> FoundBatch:
    """The batch size of a recipe's model and profile on a device; `clock`: seconds.

    Raises:
        RunError: memory does not suffice for one row.
        BackboneError: the model cannot be loaded, or the device is absent.
    """
    from diffaug_datasets.models.backbone import Backbone
    from diffaug_datasets.models.kernels import put_to_work, spec_on

    profile = recipe.profile
    uncompiled = profile if profile.is_exact else profile.model_copy(update={"compile": "never"})
    backbone = Backbone.load(spec_on(recipe.backbone, profile, device), device)
    put_to_work(backbone, uncompiled, 1)
    steps = int(getattr(recipe.method_config, "num_inference_steps", USUAL_STEPS))
    trials = tuple(_trials(backbone, steps, clock))
    fits = [trial for trial in trials if trial.rate is not None]
    if not fits:
        raise RunError(
            f"--find-batch: {device} has no memory for one image at {backbone.width} x {backbone.height} pixels; see "
            "which switches of `profile` help with --memory."
        )
    best = fits[0]
    for trial in fits[1:]:
        if (trial.rate or 0) >= LEAST_GAIN * (best.rate or 0):
            best = trial
    return FoundBatch(best.rows, trials)


def _trials(backbone: "Backbone", steps: int, clock: Callable[[], float]) -> Iterator[Trial]:
    """Batches of 1, 2, 4, ... rows, until one does not fit or gains nothing."""
    rows, before = 1, 0.0
    while rows <= LARGEST.get(backbone.device.type, LARGEST["cpu"]):
        rate = _rate(backbone, rows, steps, clock)
        yield Trial(rows, rate)
        if rate is None or rate < LEAST_GAIN * before:
            return
        rows, before = 2 * rows, rate


def _rate(backbone: "Backbone", rows: int, steps: int, clock: Callable[[], float]) -> float | None:
    """Images a second at so many rows; None where memory does not suffice."""
    import torch

    is_cuda = backbone.device.type == "cuda"
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(backbone.device)
    try:
        with torch.inference_mode():
            _step(backbone, rows)  # kernels are chosen at the first call of a shape
            step, pictures = (_seconds(backbone, rows, work, clock) for work in (_step, _pictures))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    if is_cuda:
        total = torch.cuda.get_device_properties(backbone.device).total_memory
        if torch.cuda.max_memory_reserved(backbone.device) > MOST_SHARE * total:
            return None
    return rows / max(1e-9, steps * step + pictures)


def _seconds(
    backbone: "Backbone", rows: int, work: Callable[["Backbone", int], None], clock: Callable[[], float]
) -> float:
    import torch

    begin = clock()
    work(backbone, rows)
    if backbone.device.type == "cuda":
        torch.cuda.synchronize(backbone.device)
    return clock() - begin


def _step(backbone: "Backbone", rows: int) -> None:
    """Both branches of guidance."""
    import torch

    branches = 2 * rows if backbone.model.facts.guidance == "cfg" else rows
    first = float(backbone.model.facts.timeline.labels(backbone.model.facts.samplers[0], 4)[0])
    states = torch.zeros(branches, *backbone.latent_shape, device=backbone.device)
    backbone.said(states, first, backbone.prompts(["a photo"] * branches))


def _pictures(backbone: "Backbone", rows: int) -> None:
    """To latents and back."""
    import torch

    pictures = torch.zeros(rows, 3, backbone.height, backbone.width)
    backbone.decode_float(backbone.encode(pictures))
