"""What the engine adds to the bare calls on a device: a run in fast against the same batches without a run around them.

`check_gpu.py` calls it. The run does all that it does beside the networks: seeds, sources, checks, WebP, digests,
receipts; its first shard, in which the model is loaded and compiled, does not count. The bare calls are those of VAE
and U-Net by the same loaded model, batch after batch, and no picture leaves the device.
"""

import time
from pathlib import Path

import torch
from gpu_speed import PROMPT, Bench

from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.denoising import Conditions, denoise
from diffaug_datasets.numerics.schedule import add_noise
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.run.kept import keeping_models
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Worker, WorkerOptions

CLASSES = 3  # of the pictures
BATCHES = 2  # of a shard
SHARDS = 6  # of a run, a multiple of the classes; all but the first count
SAMPLERS = {"txt2img": "ddim", "genie": "dpm"}


def engine_rates(bench: Bench, pictures: Path) -> dict[str, object]:
    """Seconds of a run over those of its bare calls, from noise and from sources; the run's images a second."""
    batch = bench.batches[min(1, len(bench.batches) - 1)]
    found: dict[str, object] = {"engine_batch": batch}
    with keeping_models():
        for method in SAMPLERS:
            run = write_run(prepare(recipe(bench, pictures, method, batch)), bench.work / f"engine-{method}")
            seconds, model = made(run, bench.device)
            count = BATCHES * (SHARDS - 1)
            row = run.plan.rows[0]
            bare(bench, model, row, batch, 1)
            found[f"{method}_engine_over_bare"] = round(seconds / bare(bench, model, row, batch, count), 4)
            found[f"{method}_engine"] = round(count * batch / seconds, 3)
    return found


def recipe(bench: Bench, pictures: Path, method: str, batch: int) -> Recipe:
    """A run of full batches: as many rows as the bare calls see."""
    return Recipe(
        builder="imagefolder",
        source=str(pictures),
        method=method,
        config={"num_inference_steps": bench.steps, "sampler": SAMPLERS[method]},
        per_class=batch * BATCHES * SHARDS // CLASSES,
        batch_size=batch,
        shard_rows=batch * BATCHES,
        include_test=False,
        profile="fast",
        scores={"encoder": None, "judge": None},
        backbone={"id": str(bench.pipeline), "dtype": "bfloat16", "height": bench.pixels, "width": bench.pixels},
    )


def made(run: Run, device: str) -> tuple[float, Backbone]:
    """Seconds from the second shard's beginning to the last one's receipt, and the model that made them."""
    seen: dict[tuple[str, int], float] = {}

    def heed(unit: str, done: int, _total: int) -> None:
        seen.setdefault((unit, done), time.perf_counter())

    worker = Worker(run, WorkerOptions(device=device), heed)
    worker.work()
    shards = [shard.name for shard in run.plan.shards()]
    if len(shards) != SHARDS:
        raise ValueError(f"got {len(shards)} shards, expected {SHARDS}")
    return seen[shards[-1], 1] - seen[shards[1], 0], worker.context.backbone


@torch.inference_mode()
def bare(bench: Bench, model: Backbone, row: PlanRow, batch: int, count: int) -> float:
    """Seconds of so many batches of VAE and U-Net calls as that row asks for."""
    texts = Conditions([PROMPT] * batch, [""] * batch, [row.guidance_scale or 1.0] * batch)
    start, sampler = row.start_step or 0, SAMPLERS[row.method]
    bench.wait()
    begin = time.perf_counter()
    for _ in range(count):
        xt = torch.randn(batch, *model.latent_shape, device=model.device)
        if row.source_ids:
            images = torch.rand(batch, 3, model.height, model.width, device=model.device) * 2 - 1
            xt = add_noise(model.schedule, model.encode(images), xt, [500] * batch)
        model.decode_float(denoise(model, xt, texts, sampler, bench.steps, [start] * batch))
    bench.wait()
    return time.perf_counter() - begin
