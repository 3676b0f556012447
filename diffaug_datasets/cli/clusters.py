"""`generate` on a cluster: what its options ask for, and what is printed of a job."""

import sys
from collections.abc import Sequence

from diffaug_datasets.cli.screen import note, say
from diffaug_datasets.core.errors import RunError
from diffaug_datasets.run.assembly import Assembled
from diffaug_datasets.run.engines.ray_cluster import Ray
from diffaug_datasets.run.engines.slurm import Slurm, asked
from diffaug_datasets.run.execute import await_job, execute_by_ray, made_before, shown_on, submit
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions

Cluster = Slurm | Ray
ENGINES = ("local", "slurm", "ray")


def engine_of(
    name: str, *, slurm: Sequence[str], time: str | None, wait: bool, gpus: float | None, address: str | None
) -> Cluster | None:
    """The cluster that the options name; None for this machine.

    Raises:
        RunError: no such engine, an option of another one, or one that cannot be.
    """
    if name not in ENGINES:
        raise RunError(f"--engine: got {name!r}, expected {', '.join(ENGINES[:-1])} or {ENGINES[-1]}.")
    given = {
        "slurm": {"--slurm": bool(slurm), "--time": time is not None, "--wait": wait},
        "ray": {"--gpus": gpus is not None, "--address": address is not None},
    }
    for engine, options in given.items():
        if engine != name and (typed := [option for option, is_typed in options.items() if is_typed]):
            raise RunError(f"{typed[0]}: is for --engine {engine}, and the engine is {name}; leave one of them out.")
    if name == "slurm":
        return asked(slurm, time, wait)
    if gpus is not None and not (0 <= gpus <= 1 or gpus.is_integer()):
        raise RunError(f"--gpus: got {gpus:g}, expected a part of one GPU, such as 0.5, or a whole number of them.")
    return Ray(gpus, address) if name == "ray" else None


def made_there(run: Run, options: WorkerOptions, workers: int, cluster: Cluster) -> Assembled | None:
    """What a cluster made of a run; None where nobody waits for it."""
    if done := made_before(run):
        return done
    if isinstance(cluster, Slurm):
        return _by_slurm(run, options, workers, cluster)
    with shown_on(sys.stdout, run) as on_progress:
        return execute_by_ray(run, options, workers, cluster, on_progress)


def _by_slurm(run: Run, options: WorkerOptions, workers: int, engine: Slurm) -> Assembled | None:
    job = submit(run, options, workers, engine)
    logs = run.folder / job.logs.name
    say(f"job {job.id}: {job.tasks} {'worker' if job.tasks == 1 else 'workers'}, logs in {logs}")
    if run.where != str(run.folder):
        say("that folder, in the cache of this machine, must be one that all nodes see; XDG_CACHE_HOME moves the cache")
    if not engine.wait:
        say(f"how far it is: diffaug status {run.where}; to end it: scancel {job.id}")
        return None
    try:
        with shown_on(sys.stdout, run) as on_progress:
            return await_job(run, job, on_progress)
    except KeyboardInterrupt:
        note(f"diffaug: job {job.id} goes on; to end it: scancel {job.id}")
        raise
