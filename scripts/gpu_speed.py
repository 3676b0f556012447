"""What a device does with a pipeline: one number after the other, each a line of JSON. `check_gpu.py` calls it.

Every measure is a function of a `Bench` that gives a dictionary; `measures` runs them, the cheapest first, until the
time is over. On a CPU the same code runs, and what only a GPU has is None.
"""

import gc
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_fits import bare_loop, our_loop
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch.utils.flop_counter import FlopCounterMode

from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.profiles import Compile, Profile
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.denoising import Conditions, denoise
from diffaug_datasets.models.kernels import put_to_work
from diffaug_datasets.models.quick_fits import LOOK

PROMPT = "a photo of a blue box"
REPEATS = 3


@dataclass(frozen=True)
class Bench:
    """Where and how large: a pipeline's folder, a device, pixels of a side, sampling steps, batches, matrix side."""

    pipeline: Path
    device: str
    pixels: int
    steps: int
    batches: tuple[int, ...]
    matrix: int
    work: Path
    learning: tuple[int, ...]

    @property
    def is_gpu(self) -> bool:
        """Whether it has kernels that the host does not wait for."""
        return self.device.startswith("cuda")

    def load(self, profile: Profile, dtype: str = "bfloat16", rows: int = 4, device: str | None = None) -> Backbone:
        """The pipeline in a profile."""
        spec = BackboneSpec(id=str(self.pipeline), dtype=dtype, height=self.pixels, width=self.pixels)
        made = Backbone.load(spec, device or self.device)
        put_to_work(made, profile, rows)
        return made

    def seconds(
        self, work: Callable[[], object], repeats: int = REPEATS, warm: Callable[[], object] | None = None
    ) -> float:
        """Seconds of a call, the best of several after one that warms up: itself, or a shorter one."""
        (warm or work)()
        found = []
        for _ in range(repeats):
            self.wait()
            begin = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - begin)
        return min(found)

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def peak(self) -> float | None:
        """GiB that tensors took at most since the last time this was asked."""
        if not self.is_gpu:
            return None
        found = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return round(found, 2)


def matrix_rate(bench: Bench) -> dict[str, object]:
    """TFLOP/s of a product of two square bfloat16 matrices."""
    a, b = (torch.randn(bench.matrix, bench.matrix, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = bench.seconds(lambda: a @ b)
    return {"matrix_tflops": round(2 * bench.matrix**3 / seconds / 1e12, 4)}


def unet_rates(bench: Bench) -> dict[str, object]:
    """TFLOP/s of a guided U-Net call: exact, fast without compiling, and compiled."""
    found: dict[str, object] = {}
    choices: list[tuple[str, Profile]] = [("exact", Profile()), ("eager", Profile(name="fast", compile="never"))]
    compiled: Compile = "always" if bench.is_gpu else "auto"
    choices.append(("compiled", Profile(name="fast", compile=compiled)))
    rows = bench.batches[-1]
    for name, profile in choices:
        model = bench.load(profile, rows=rows)
        xt = torch.randn(rows, *model.latent_shape, device=bench.device)
        cond, scale = model.prompts([PROMPT] * rows), torch.full((rows,), 7.5)
        with torch.inference_mode():
            if "flop" not in found:
                with FlopCounterMode(display=False) as counter:
                    model.guided_eps(xt, 500, cond, cond, scale)
                found["flop"] = counter.get_total_flops()
            seconds = bench.seconds(lambda: model.guided_eps(xt, 500, cond, cond, scale))  # noqa: B023
        found[f"{name}_tflops"] = round(float(str(found["flop"])) / seconds / 1e12, 4)
        found[f"{name}_kernels"] = model.kernels
    return found


def image_rates(bench: Bench) -> dict[str, object]:
    """Images a second from noise to pixels by batch size: exact, fast, and diffusers' pipeline at the same batch."""
    found: dict[str, object] = {}
    local = {"local_files_only": True, "safety_checker": None}
    for rows in bench.batches:
        for name in ("exact", "fast"):
            model = bench.load(Profile(name="fast" if name == "fast" else "exact"), rows=rows)
            seconds = bench.seconds(lambda: drawn(bench, model, rows), 1, lambda: drawn(bench, model, rows, 2))  # noqa: B023
            found[f"{name}_{rows}"] = round(rows / seconds, 3)
        pipe = StableDiffusionPipeline.from_pretrained(
            bench.pipeline, torch_dtype=torch.bfloat16, use_safetensors=True, trust_remote_code=False, **local
        )
        pipe = pipe.to(bench.device)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        asked = {"height": bench.pixels, "width": bench.pixels, "guidance_scale": 7.5, "output_type": "pt"}

        def plain(steps: int) -> None:
            pipe([PROMPT] * rows, num_inference_steps=steps, **asked)  # noqa: B023

        seconds = bench.seconds(lambda: plain(bench.steps), 1, lambda: plain(2))
        found[f"diffusers_{rows}"] = round(rows / seconds, 3)
        found[f"peak_gib_{rows}"] = bench.peak()
        gc.collect()
    return found


@torch.inference_mode()
def drawn(bench: Bench, model: Backbone, rows: int, steps: int | None = None) -> torch.Tensor:
    """Images [b 3 H W] of a prompt."""
    noise = torch.randn(rows, *model.latent_shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    conditions = Conditions([PROMPT] * rows, [""] * rows, [7.5] * rows)
    return model.decode_float(denoise(model, noise, conditions, "ddim", steps or bench.steps, [0] * rows))


def host_syncs(bench: Bench) -> dict[str, object]:
    """How often the host waits for the GPU in a batch of fast, once a batch was seen."""
    if not bench.is_gpu:
        return {"host_syncs_a_step": None}
    model = bench.load(Profile(name="fast", compile="never"))
    drawn(bench, model, 4)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            drawn(bench, model, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"host_syncs_a_batch": len(seen), "host_syncs_a_step": round(len(seen) / bench.steps, 2)}


def concept_rates(bench: Bench) -> dict[str, object]:
    """Steps a second of concept learning and of a bare peft loop, and peaks, also with activations computed again."""
    found: dict[str, object] = {}
    for side in bench.learning:
        latents, shape = torch.randn(4, 4, side // 8, side // 8), (str(bench.pipeline), 2, 4)
        for word in ("bare", "fast", "again"):
            bench.peak()
            if word == "bare":
                loop = bare_loop(bench.device, latents, torch.bfloat16, *shape)
                loop(LOOK)
                found[f"steps_a_second_{side}_bare"] = round(2 * LOOK / loop(2 * LOOK), 3)
            else:
                profile = Profile(name="fast", compile="never", checkpointing=word == "again")
                loop = our_loop(bench.device, latents, profile, *shape)[0]
                found[f"steps_a_second_{side}_{word}"] = _steady(bench, loop, 3 if word == "fast" else 2)
            found[f"peak_gib_{side}_{word}"] = bench.peak()
            del loop
            gc.collect()
    return found


def _steady(bench: Bench, loop: Callable[..., float], looks: int) -> float:
    """Steps a second of a fit from its first look at the losses to its last: what it does once is not in it."""
    seen: list[tuple[int, float]] = []

    def look(done: int, _total: int, _loss: float) -> None:
        bench.wait()
        seen.append((done, time.perf_counter()))

    loop(looks * LOOK, look)
    inside = [(done, when) for done, when in seen if done >= LOOK]
    return round((inside[-1][0] - inside[0][0]) / (inside[-1][1] - inside[0][1]), 3)


def pixels_apart(bench: Bench) -> dict[str, object]:
    """Grey levels between a CPU and this device, both in float32 and exact, of two images in two steps."""
    few = Bench(**{**vars(bench), "steps": 2})
    here = few.load(Profile(), "float32", rows=2)
    there = few.load(Profile(), "float32", rows=2, device="cpu")
    one, other = (drawn(few, model, 2).cpu() * 255 for model in (here, there))
    gap = (one.round() - other.round()).abs()
    return {"levels_apart_most": float(gap.max()), "levels_apart_mean": round(float(gap.mean()), 5)}


def half_failures(bench: Bench) -> dict[str, object]:
    """Images of float16 that are not finite, of four."""
    images = drawn(bench, bench.load(Profile(), "float16"), 4)
    return {"float16_not_finite": int((~images.isfinite().flatten(1).all(1)).sum())}


Measure = Callable[[Bench], dict[str, object]]
MEASURES: tuple[Measure, ...] = (
    matrix_rate,
    host_syncs,
    half_failures,
    pixels_apart,
    unet_rates,
    concept_rates,
    image_rates,
)


def measures(bench: Bench, until: float, chosen: Sequence[Measure]) -> Iterator[dict[str, object]]:
    """Run the measures in order while `until`, of `time.monotonic`, is ahead; print each as a line of JSON."""
    for measure in chosen:
        if time.monotonic() > until:
            found: dict[str, object] = {"left_out": "the time was over"}
        else:
            begin = time.monotonic()
            try:
                found = measure(bench)
            except (RuntimeError, ValueError, MemoryError) as error:
                found = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            found["seconds"] = round(time.monotonic() - begin, 1)
        line: dict[str, Any] = {"measure": measure.__name__, **found}
        print(json.dumps(line), flush=True)
        gc.collect()
        if bench.is_gpu:
            torch.cuda.empty_cache()
        yield line


def shares(lines: list[dict[str, Any]]) -> dict[str, object]:
    """What is asked of a card: the share of the matrix rate in fast, fast over diffusers at the largest batch, seconds
    of a run over those of its bare calls, and steps a second of a fit over those of a bare loop, at their worst.
    """
    known = {key: value for line in lines for key, value in line.items()}
    rate, best = known.get("matrix_tflops"), max(known.get("compiled_tflops", 0), known.get("eager_tflops", 0))
    largest = max((int(key.split("_")[1]) for key in known if key.startswith("diffusers_")), default=0)
    ours, theirs = known.get(f"fast_{largest}"), known.get(f"diffusers_{largest}")
    engine = [value for key, value in known.items() if key.endswith("_engine_over_bare")]
    fits = [
        value / known[key.replace("_fast", "_bare")]
        for key, value in known.items()
        if key.startswith("steps_a_second") and key.endswith("_fast")
    ]
    return {
        "share_of_matrix_rate": round(best / rate, 3) if rate else None,
        "fast_over_diffusers": round(ours / theirs, 3) if ours and theirs else None,
        "engine_over_bare": max(engine, default=None),
        "fit_over_bare": round(min(fits), 3) if fits else None,
    }
