"""What the engine costs beyond the network: time of whole runs over the time of the bare network calls inside them.

    python scripts/bench_engine.py [--per-class 8] [--repeats 3] [--methods txt2img genie]

Numerator: from the first batch to the last receipt of runs of every method on the embedded models, in one process and
thread: sources, samplers, inversion, choice of levels, XMP, PNG, digests, receipts. Concepts, LoRA and embeddings are
learned before. Denominator: the same network calls (U-Net, VAE, text encoder, the method's image encoder), same shapes,
dtype and threads, each with the gradient that went back through it, on random inputs. The two take turns; CPU time of
the process counts, all its threads, so that other work on the machine does not; medians are printed, for every method
too. What tokenisers, resizing and LoRA beside the projections take is the engine's. PASS: at most 1.05 times the bare
calls.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from diffusers import StableDiffusionPipeline

from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.models import BackboneSpec, find_backbone
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.encoders import Encoder
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Worker, WorkerOptions

STEPS = 25
MOST = 1.05
LEARNED = ("concepts", "image_embeddings", "lora")
LEARNING = {
    "lora": {"epochs": 5, "warmup": 1},
    "concepts": {"steps": 5, "batch": 8, "lr_lora": 1e-3, "lr_embedding": 1e-3},
    "embeddings": {"steps": 20, "batch": 8},
}


class Blank(NamedTuple):
    """Stands for a tensor of floats or token ids in a call that was noted; `with_gradient`: one went back to it."""

    shape: torch.Size
    dtype: torch.dtype
    with_gradient: bool

    def filled(self) -> torch.Tensor:
        """Normal draws, or the first token everywhere: what was learned beside the words is no longer installed."""
        draw = torch.randn if self.dtype.is_floating_point else torch.zeros
        return draw(self.shape, dtype=self.dtype)


class Call(NamedTuple):
    """A network's call: what it was given, by place and by name, tensors as blanks."""

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Calls:
    """The network calls of every run, by its name; `run` is the one at work."""

    made: dict[str, list[Call]] = field(default_factory=dict)
    run: str = ""

    def follow(self, module: torch.nn.Module) -> None:
        """Note every call of this module from now on."""
        module.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.run:
            call = Call(module, tuple(map(blank, args)), {name: blank(value) for name, value in kwargs.items()})
            self.made.setdefault(self.run, []).append(call)


def blank(value: Any) -> Any:
    """What is kept of an argument: of floats and of rows of token ids shape, dtype and need of a gradient."""
    if not isinstance(value, torch.Tensor) or value.ndim < (1 if value.is_floating_point() else 2):
        return value
    return Blank(value.shape, value.dtype, torch.is_grad_enabled() and value.requires_grad)


load, load_encoder = Backbone.load, Encoder.load


@cache
def backbone(spec: BackboneSpec, device: str) -> Backbone:
    """One pipeline for all runs of the process, as one worker has one; stands in for `Backbone.load`."""
    return load(spec, device)


@cache
def encoder(name: str, device: str) -> Encoder:
    """One image encoder for all; stands in for `Encoder.load`."""
    return load_encoder(name, device)


def networks(model: Backbone) -> list[torch.nn.Module]:
    """What calls are counted of: the backbone's networks, and the halves of the packaged image encoder."""
    seen = encoder("tiny", "cpu")._model
    halves = (seen.vision_model, seen.visual_projection, seen.text_model, seen.text_projection)
    return [model.unet, model.vae.encoder, model.vae.decoder, model.text_encoder, *halves]


def plan_runs(folder: Path, per_class: int, methods: Sequence[str]) -> list[Run]:
    """A planned run of every method that asks the diffusion model, or of those that are named."""
    runs = []
    for name, method in sorted(discover_methods().items()):
        if methods and name not in methods:
            continue
        if "num_inference_steps" not in method.Config.model_fields:
            continue  # retrieval calls no network here
        fields = method.Config.model_fields
        learning = {key: LEARNING[key] for key in LEARNING if key in fields and fields[key].default is not None}
        config = {"num_inference_steps": STEPS, **learning}
        scores = {"encoder": None, "judge": None}
        given = {"per_class": per_class, "config": config, "scores": scores, "include_test": False}
        try:
            prepared = prepare(config_recipe(f"fashion_5shot_{method.SLUG}", **given))
        except DiffAugError as error:  # a method that edits by a model of its own, which is not packaged
            print(f"{name} is left out: {error}", flush=True)
            continue
        runs.append(write_run(prepared, folder / name))
    return runs


def learn(run: Run) -> None:
    """Make what is learned and nothing else."""
    worker = Worker(run)
    for unit in run.plan.fits:
        if unit.kind in LEARNED and not worker.is_intact(unit.name):
            worker.make(unit)


def engine_seconds(runs: Sequence[Run], calls: Calls) -> dict[str, float]:
    """Seconds of every run, from first batch to last receipt; finished work is removed first."""
    calls.made.clear()
    spent = {}
    for run in runs:
        forget(run)
        calls.run = run.folder.name
        begin = time.process_time()
        execute(Run.open(run.folder), WorkerOptions(device="cpu"), workers=1)
        spent[run.folder.name] = time.process_time() - begin
        calls.run = ""
    return spent


def forget(run: Run) -> None:
    """Remove shards and computed fits, not the learned ones."""
    for path in [*run.folder.glob("shards/synthetic-*"), run.folder / "run.json"]:
        path.unlink(missing_ok=True)
    for fit in run.plan.fits:
        if fit.kind not in LEARNED:
            shutil.rmtree(run.fit_folder(fit.name), ignore_errors=True)


def bare_seconds(calls: Calls) -> dict[str, float]:
    """Seconds of the same calls on random inputs, one after the other, for every run."""
    torch.set_num_threads(1)
    return {run: one_after_another(made) for run, made in calls.made.items()}


def one_after_another(made: Sequence[Call]) -> float:
    """Seconds of calls, without what making their inputs takes."""
    blanks = {value for call in made for value in (*call.args, *call.kwargs.values()) if isinstance(value, Blank)}
    drawn = {value: value.filled() for value in blanks}

    def given(value: Any) -> Any:
        if not isinstance(value, Blank):
            return value
        return drawn[value].detach().requires_grad_(value.with_gradient)

    begin = time.process_time()
    for call in made:
        args = [given(value) for value in call.args]
        kwargs = {name: given(value) for name, value in call.kwargs.items()}
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        wanted = [tensor for tensor in tensors if tensor.requires_grad]
        with torch.inference_mode(not wanted):
            said = call.module(*args, **kwargs)
            if wanted:
                torch.autograd.grad(first_tensor(said).sum(), wanted)
    return time.process_time() - begin


def first_tensor(said: Any) -> torch.Tensor:
    """The output of a network that answers with one tensor or several."""
    return said if isinstance(said, torch.Tensor) else said[0]


def loop_images_per_second(images: int) -> float:
    """A plain diffusers pipeline, one image after the other."""
    torch.set_num_threads(1)
    folder = find_backbone(BackboneSpec(id="tiny")).folder
    pipe = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
    pipe.set_progress_bar_config(disable=True)
    begin = time.process_time()
    for i in range(images):
        generator = torch.Generator().manual_seed(i)
        pipe("a photo of a coat", num_inference_steps=STEPS, guidance_scale=7.5, generator=generator)
    return images / (time.process_time() - begin)


def interleaved(repeats: int, *timed: Callable[[], Any]) -> list[list[Any]]:
    """Results of every function, run in turn."""
    results: list[list[Any]] = [[] for _ in timed]
    for done in range(repeats):
        for found, run in zip(results, timed, strict=True):
            found.append(run())
        engine, bare = (sum(results[i][done].values()) for i in (0, 1))
        print(f"round {done + 1} of {repeats}: engine {engine:.0f} s, bare calls {bare:.0f} s", flush=True)
    return results


def main() -> None:
    """Plan, learn, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-class", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loop-images", type=int, default=30)
    parser.add_argument("--methods", nargs="*", default=[], choices=sorted(discover_methods()))
    given = parser.parse_args()
    loaders = patch.object(Backbone, "load", backbone), patch.object(Encoder, "load", encoder)
    with tempfile.TemporaryDirectory() as folder, loaders[0], loaders[1]:
        runs = plan_runs(Path(folder), given.per_class, given.methods)
        model, calls = backbone(runs[0].recipe.backbone, "cpu"), Calls()
        for module in networks(model):
            calls.follow(module)
        for run in runs:
            learn(run)
        engine_seconds(runs, calls)
        spent, bare, loop = interleaved(
            given.repeats,
            lambda: engine_seconds(runs, calls),
            lambda: bare_seconds(calls),
            lambda: loop_images_per_second(given.loop_images),
        )
        ratio = report(runs, spent, bare, loop)
    print("PASS" if ratio <= MOST else "FAIL")
    raise SystemExit(ratio > MOST)


def report(
    runs: Sequence[Run], spent: list[dict[str, float]], bare: list[dict[str, float]], loop: list[float]
) -> float:
    """Print ratios of medians, method by method too; that of the engine over the bare calls."""
    totals = [sum(times.values()) for times in spent]
    rows = sum(len(run.plan.rows) for run in runs)
    ratios = [total / sum(base.values()) for total, base in zip(totals, bare, strict=True)]
    print(f"rows {rows} of {', '.join(run.folder.name for run in runs)}; {STEPS} steps; 1 process, 1 thread")
    print(f"engine over bare network calls: median {statistics.median(ratios):.3f} of {[round(r, 3) for r in ratios]}")
    for name in spent[0]:
        engine, base = (statistics.median(times[name] for times in found) for found in (spent, bare))
        print(f"  {name:20} engine {engine:6.1f} s, bare calls {base:6.1f} s, {engine / base:.3f}")
    if txt := next((run for run in runs if run.folder.name == "txt2img"), None):
        speeds = [len(txt.plan.rows) / times["txt2img"] / one for times, one in zip(spent, loop, strict=True)]
        print(f"txt2img images/s over a one-image StableDiffusionPipeline loop: median {statistics.median(speeds):.2f}")
    print(f"images/s, engine, all methods: {rows / statistics.median(totals):.2f}; loop: {statistics.median(loop):.2f}")
    return statistics.median(ratios)


if __name__ == "__main__":
    main()
