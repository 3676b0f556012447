"""One machine: a worker in this process, or several processes that share the run folder unit by unit."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from diffaug_datasets.core.errors import DiffAugError, RunError
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Worker, WorkerOptions

Tick = Callable[[], None]
WATCH_SECONDS = 0.2


def execute(run: Run, options: WorkerOptions, workers: int, tick: Tick) -> Worker | None:
    """Run workers until nothing is missing; `tick` is called a few times a second to show progress.

    Gives the worker of this process, which has its models loaded; None where the work was done in others.

    Raises:
        RunError: a worker failed, or all of them died.
    """
    run.sweep()
    worker = Worker(run, options) if workers == 1 else None
    if worker:
        _in_this_process(worker, tick)
    else:
        _in_processes(run, options, workers, tick)
    tick()
    return worker


def _in_this_process(worker: Worker, tick: Tick) -> None:
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            tick()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        worker.work()
    finally:
        over.set()
        watcher.join()


def _in_processes(run: Run, options: WorkerOptions, workers: int, tick: Tick) -> None:
    spawn = multiprocessing.get_context("spawn")
    errors = spawn.SimpleQueue()
    children = [
        spawn.Process(target=_child, args=(run.folder, device_of(options, i), os.getpid(), errors), daemon=True)
        for i in range(workers)
    ]
    with _deaf_to_ctrl_c():
        for child in children:
            child.start()
    while any(child.is_alive() for child in children):
        tick()
        time.sleep(WATCH_SECONDS)
    if not errors.empty():
        raise RunError(str(errors.get()))
    if all(child.exitcode for child in children):
        raise RunError(f"all {workers} workers died (exit code {children[0].exitcode}); run it again to continue.")


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started here ignore SIGINT, which a terminal sends to all: they end when their parent ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def device_of(options: WorkerOptions, number: int) -> WorkerOptions:
    """The options of worker `number`: on CUDA the workers take the devices in turn."""
    if not options.device.startswith("cuda"):
        return replace(options, number=number)
    import torch

    return replace(options, number=number, device=f"cuda:{number % torch.cuda.device_count()}")


def _child(folder: Path, options: WorkerOptions, parent: int, errors: "multiprocessing.SimpleQueue[str]") -> None:
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    try:
        Worker(Run.open(folder), options).work()
    except DiffAugError as error:
        errors.put(str(error))


def _die_with(parent: int) -> None:
    """A worker whose parent was killed stops too; its unit becomes free."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
