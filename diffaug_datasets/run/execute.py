"""Make what a run lacks, whoever runs it: fits, shards, then selection and `run.json`."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TextIO

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.method import FitUnit
from diffaug_datasets.core.plan import Shard
from diffaug_datasets.run.assembly import Assembled, assemble, current
from diffaug_datasets.run.engines import accelerate, local, ranks, ray_cluster, slurm
from diffaug_datasets.run.engines.local import OnProgress
from diffaug_datasets.run.engines.ray_cluster import Ray
from diffaug_datasets.run.engines.slurm import Slurm
from diffaug_datasets.run.live_card import live_card
from diffaug_datasets.run.progress import following, loss
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Heed, Worker, WorkerOptions, growing_waits


def generate(
    run: Run | str | os.PathLike[str],
    *,
    workers: int = 0,
    device: str = "auto",
    fits_from: Sequence[str | os.PathLike[str]] = (),
    allow_mixed_stack: bool = False,
    progress: TextIO | None = None,
) -> Assembled:
    """Make everything that a run still lacks: what rows need first, then the images. Needs the extra `generate`.

    Killed at any point, the same call goes on: finished fits and shards stay, images of a shard that was not finished
    are made again. Several calls, processes or machines share one folder.
    Rows that failed have no image and are in the answer's `failed`; it is no error here, however many they are.

    Args:
        run: a run, or its folder.
        workers: processes on this machine; 0 means one per GPU, or one per CPU core.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        fits_from: other run folders whose equal fits are taken over, and their images where filters alone differ.
        allow_mixed_stack: go on although another device or other versions began the run.
        progress: where to show how far it is, such as `sys.stderr`; by default nowhere.

    Returns:
        What the run holds now: files, counts per class, failed rows, seconds of work.

    Raises:
        RunError: the folder is no run, read-only, full or was begun on another stack; a device that is not there.
        BackboneError: the diffusion model cannot be loaded.
        PlanError: a folder of `fits_from` holds no plan.

    >>> from diffaug_datasets import generate, plan
    >>> run = plan("fashion_5shot_txt2img", "runs/shirts", per_class=2, config={"num_inference_steps": 2})
    >>> done = generate(run, workers=1)
    >>> sum(count.written for count in done.counts), len(done.failed)
    (20, 0)
    """
    options = WorkerOptions(device, allow_mixed_stack=allow_mixed_stack, fits_from=tuple(map(Path, fits_from)))
    run = run if isinstance(run, Run) else Run.open(run)
    try:
        with shown_on(progress, run) as on_progress:
            done = execute(run, options, workers, on_progress)
    except KeyboardInterrupt:
        if progress is not None and leads() and (sentence := loss(run)):
            progress.write(f"  {sentence}\n")
            progress.flush()
        raise
    assert done is not None  # only those who ask for fits alone get nothing
    return done


@contextmanager
def shown_on(stream: TextIO | None, run: Run, only_fits: bool = False) -> Iterator[OnProgress]:
    """A function to call meanwhile, which shows on a stream how far a run is; only of the process that leads."""
    if stream is None or not leads():
        yield lambda: None
        return
    with following(run, stream, only_fits) as on_progress:
        yield on_progress


def leads() -> bool:
    """Whether this process speaks for the run: the only one, or the first under `accelerate launch` or `srun`."""
    return accelerate.rank() == 0 if accelerate.launched() else ranks.leads()


def execute(
    run: Run,
    options: WorkerOptions,
    workers: int = 0,
    on_progress: OnProgress = lambda: None,
    heed: Heed | None = None,
) -> Assembled | None:
    """Run workers until nothing is missing, then assemble; None if only fits were asked for.

    `workers` 0 means one per GPU, or one per CPU core that the planned threads leave room for, never more than units.
    `on_progress` is called a few times a second; `heed` as `Worker` says, where one works in this process.
    A run that lacks nothing is answered at once, from its files alone.
    Under `accelerate launch` or `srun` this process is one worker and the first to hold the lease assembles.

    Raises:
        RunError: the folder is read-only, full or was begun on another stack; a device that is not there.
        PlanError: a folder of `fits_from` holds no plan.
    """
    _check_fits_from(options)
    if not options.split_batches:  # whose processes wait for one another
        done = made_before(run)
        if done or (options.only_fits and _are_intact(run, run.plan.fits)):
            return None if options.only_fits else done
    _check_place(run)
    with live_card(run, options.progress):
        return _made(run, resolved(options), workers, on_progress, heed)


def _made(
    run: Run, options: WorkerOptions, workers: int, on_progress: OnProgress, heed: Heed | None
) -> Assembled | None:
    """What workers make, assembled."""
    if not accelerate.launched():
        options, workers = ranks.placed(options, _gpus(options.device)), workers or int(ranks.in_step() > 1)
    if options.split_batches and not accelerate.launched():
        raise RunError(
            "--split-batches: this process is alone; run it under `accelerate launch` with several processes (without "
            "GPUs: `accelerate launch --multi_gpu --num_processes 2 -m diffaug_datasets fit ... --device cpu`)."
        )
    if accelerate.launched():
        worker = accelerate.worker_of(run, options)
        worker.work()
    else:
        run.sweep()
        worker = Worker(run, options, heed)
        most_at_once = max(1, *(len(units) for _, units in run.units()))  # a worker more would only look on
        count = min(workers or default_workers(run, options), most_at_once)
        if count == 1:
            with local.watched(on_progress):
                worker.work()
        else:
            local.work_in_processes(run, options, count, on_progress)
    on_progress()
    return None if options.only_fits else assemble_once(run, worker)


def submit(run: Run, options: WorkerOptions, workers: int, engine: Slurm) -> slurm.Job:
    """Submit workers to Slurm; the run is made whole by them, wherever this process goes.

    Raises:
        RunError: the folder may not be written; what `slurm.submit` refuses.
        PlanError: a folder of `fits_from` holds no plan.
    """
    _check_fits_from(options)
    _check_place(run)
    return slurm.submit(run, options, workers, engine)


def await_job(run: Run, job: slurm.Job, on_progress: OnProgress = lambda: None) -> Assembled:
    """What a run holds once its job has made it whole; `on_progress` is called a few times a second.

    Raises:
        RunError: the job is over and the run is not whole; with what its tasks said.
    """
    slurm.follow(job, on_progress, lambda: current(run) is not None)
    on_progress()
    if done := made_before(run):
        return done
    raise slurm.failure(job)


def execute_by_ray(
    run: Run, options: WorkerOptions, workers: int, engine: Ray, on_progress: OnProgress = lambda: None
) -> Assembled:
    """What a run holds once the actors of a Ray cluster have made it whole; as `execute`.

    Raises:
        RunError: the folder may not be written; what `ray_cluster.work` refuses or gives up.
        PlanError: a folder of `fits_from` holds no plan.
    """
    _check_fits_from(options)
    _check_place(run)
    run.sweep()
    with live_card(run, options.progress):
        ray_cluster.work(run, options, workers, engine, on_progress)
    on_progress()
    if done := current(run):
        return done
    raise RunError(
        f"{run.where}: the cluster has made every unit, and this machine does not see the finished run; put it on a "
        "disk that all nodes and this machine share."
    )


def _check_fits_from(options: WorkerOptions) -> None:
    """Raises PlanError where a folder of `fits_from` holds no plan, also of a run that lacks nothing."""
    for folder in options.fits_from:
        Run.open(folder)


def _check_place(run: Run) -> None:
    """Raises RunError where the run's folder may not be written."""
    if not os.access(run.folder, os.W_OK):
        raise RunError(f"{run.where}: is read-only for this user; a run folder must be writable.")
    run.check_writable()


def made_before(run: Run) -> Assembled | None:
    """`run.json` of a run that lacks nothing. Needs no torch."""
    done = current(run)
    units: list[FitUnit | Shard] = [*run.plan.real_shards(), *run.plan.fits, *run.plan.shards()]
    return done if done and _are_intact(run, units) else None


def _are_intact(run: Run, units: Sequence[FitUnit | Shard]) -> bool:
    """Receipts first: of a run that is half done no file is read."""
    return all(run.receipt(unit.name) for unit in units) and all(run.intact(unit.name) for unit in units)


def assemble_once(run: Run, worker: Worker) -> Assembled:
    """One process assembles; the others wait for it and read its result."""
    for wait in growing_waits():
        with run.lease("assembly") as mine:
            if done := current(run):
                return done
            if mine:
                run.refresh()  # what others have made since this process looked
                worker.measure_quality()
                done = assemble(run)
                mine.done = True
                return done
        time.sleep(wait)
    raise AssertionError("unreachable")


def resolved(options: WorkerOptions) -> WorkerOptions:
    """Options with a device that is there. Raises RunError as `resolve_device`."""
    return replace(options, device=resolve_device(options.device))


def resolve_device(device: str) -> str:
    """`auto` as CUDA where it is, else CPU.

    Raises:
        RunError: CUDA is asked for and absent, or has no such device.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RunError(f"--device {device}: torch {torch.__version__} sees no GPU here; use --device cpu or auto.")
    count = torch.cuda.device_count() if device.startswith("cuda:") else 0
    if device.startswith("cuda:") and int(device[5:]) >= count:
        raise RunError(f"--device {device}: torch sees {count} GPUs here, cuda:0 to cuda:{count - 1}.")
    return device


def _gpus(device: str) -> int:
    """GPUs that this process sees, where the device is some GPU."""
    if device != "cuda":
        return 0
    import torch

    return torch.cuda.device_count()


def default_workers(run: Run, options: WorkerOptions) -> int:
    """As many as the devices serve at once, one where one GPU is named; never more than units that can be made at once.

    One, in this process, where no Python interpreter can be started for others.
    """
    if not local.interpreter():
        return 1
    if options.device == "cuda":
        import torch

        served = torch.cuda.device_count()
    elif options.device.startswith("cuda"):
        served = 1
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        served = cores // run.recipe.threads
    units = run.plan.fits if options.only_fits else run.plan.shards()
    return max(1, min(served, len(units)))


def emptied(assembled: Assembled) -> str:
    """A sentence if filters left a class without a single image, else an empty string."""
    lost = [count for count in assembled.counts if count.written and not count.kept]
    if not lost:
        return ""
    return (
        f"the filters left no image of {len(lost)} of {len(assembled.counts)} classes, such as {lost[0].name!r} (of "
        f"{lost[0].written} written); give the filters a min_keep, or loosen them, in a run of its own; with "
        "--fits-from it takes these images over."
    )


def over_budget(run: Run, assembled: Assembled) -> str:
    """A sentence if more rows failed than the recipe accepts, else an empty string."""
    planned, failed = len(run.plan.rows), len(assembled.failed)
    if failed <= Fraction(str(run.recipe.failure_budget)) * planned:  # 0.29 of 100 are 29, not 28.999...
        return ""
    return (
        f"{failed} of {planned} rows failed, above the budget of {run.recipe.failure_budget:.1%}; "
        f"first reason: {assembled.failed[0].reason}."
    )
