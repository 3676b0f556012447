"""One machine: a worker in this process, or several processes that share the run folder unit by unit.

Each is a command line of its own, `python -m diffaug_datasets worker`, so that it depends on nothing that the program
around us is or has loaded: a script, a notebook, standard input. It ends when the pipe from its parent closes.
"""

import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.spawn import get_executable
from pathlib import Path

from pydantic import TypeAdapter

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Worker, WorkerOptions

OnProgress = Callable[[], None]
WATCH_SECONDS = 0.2
SENTENCE = "diffaug: "
log = logging.getLogger("diffaug_datasets")


@contextmanager
def watched(on_progress: OnProgress) -> Iterator[None]:
    """Call a function a few times a second, from a thread, while this process works."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            on_progress()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def work_in_processes(run: Run, options: WorkerOptions, workers: int, on_progress: OnProgress) -> None:
    """Run workers, each a process of its own, until nothing is missing; `on_progress` is called a few times a second.

    Raises:
        RunError: all workers failed, or no process can be started for them.
    """
    python = interpreter()
    if python is None:
        raise RunError(
            f"{workers} workers are processes of their own, and this program has no Python interpreter to start them "
            "with; take one worker, name an interpreter with multiprocessing.set_executable, or run "
            f"`diffaug generate {run.where}`."
        )
    theirs, ours = _pipe()
    children: list[_Child] = []
    try:
        with _deaf_to_ctrl_c():
            for number in range(workers):
                children.append(_started(python, run.where, device_of(options, number), theirs))
        while any(child.process.poll() is None for child in children):
            on_progress()
            for child in children:
                child.listen()
            time.sleep(WATCH_SECONDS)
    finally:
        for child in children:
            child.process.kill()
            child.process.wait()
        os.close(ours)
        os.close(theirs)
    _judge(children)


def interpreter() -> str | None:
    """The Python that workers are started with: this one, or what `multiprocessing.set_executable` names.

    None in a program that is frozen or embeds Python, and names none.
    """
    named = os.fsdecode(get_executable() or "")
    is_program = getattr(sys, "frozen", False) and named == sys.executable
    return None if is_program or not named else named


@dataclass
class _Child:
    """A worker process, and what it has said: its sentence, if it ended in one, and its last other line."""

    process: "subprocess.Popen[bytes]"
    sentence: str = ""
    last: str = ""
    rest: bytes = b""

    def listen(self) -> None:
        """Pass on what it wrote since the last call, except its sentence."""
        assert self.process.stdout is not None
        while part := self.process.stdout.read(65536):
            *lines, self.rest = (self.rest + part).split(b"\n")
            for line in lines:
                self._take(line.decode("utf-8", "replace"))

    def _take(self, line: str) -> None:
        if line.startswith(SENTENCE):
            self.sentence = line.removeprefix(SENTENCE)
            return
        self.last = line.strip() or self.last
        if sys.stderr is not None:
            sys.stderr.write(line + "\n")

    def failure(self) -> str:
        """What to say of its end; empty where it ended well."""
        self.listen()
        if self.rest:
            self._take(self.rest.decode("utf-8", "replace"))
        code = self.process.returncode
        if code == 0 or self.sentence:
            return self.sentence
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return (
                f"a worker was killed (SIGKILL, exit code {code}), probably because memory ran out; give fewer "
                "--workers or a smaller batch_size, and run it again: what is finished stays."
            )
        if code < 0:
            return f"a worker was ended by signal {-code} ({signal.strsignal(-code)}); run it again to continue."
        return f"a worker ended with exit code {code} ({self.last or 'it said nothing'})."


def _pipe() -> tuple[int, int]:
    """An end to read from and one to write to, neither of them a number of standard input or output."""
    ends = os.pipe()
    return ends if min(ends) > 2 else _pipe()  # closed standard streams: what is in their place now stays there


def _started(python: str, place: str, options: WorkerOptions, pipe: int) -> _Child:
    options_json = json.dumps(asdict(options), default=str)
    line = [python, "-P", "-m", "diffaug_datasets", "worker", place, str(pipe), options_json]
    try:
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(pipe,),
            env=_environment(),
            bufsize=0,
        )
    except OSError as error:
        raise RunError(f"{python}: cannot be started as a worker ({error.strerror}); give --workers 1.") from None
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    return _Child(process)


def _environment() -> Mapping[str, str]:
    """Ours, with the folders that this process imports from: methods of somebody else's may lie there."""
    folders = dict.fromkeys(os.path.abspath(folder) for folder in sys.path)  # noqa: PTH100  # "" is the current one
    flags = {"PYTHONUTF8": sys.flags.utf8_mode, "PYTHONNOUSERSITE": sys.flags.no_user_site}
    given = {name: "1" for name, value in flags.items() if value}
    given |= {"PYTHONPATH": os.pathsep.join(folders), "PYTHONIOENCODING": "utf-8:backslashreplace"}
    return {**os.environ, **given}


def _judge(children: Sequence[_Child]) -> None:
    """One worker that ended well has seen that nothing is missing; where none did, say why, each reason once."""
    failures = [failure for child in children if (failure := child.failure())]
    reasons = list(dict.fromkeys(failures))
    if len(failures) < len(children):
        for reason in reasons:
            log.warning("%s The other workers made what it left.", reason)
    elif len(reasons) == 1:
        raise RunError(reasons[0])
    else:
        raise RunError(f"all {len(children)} workers failed: {' '.join(reasons)}")


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
    """The options of worker `number`: on `cuda` the workers take the devices in turn, a named one is for all."""
    if options.device != "cuda":
        return replace(options, number=number)
    import torch

    return replace(options, number=number, device=f"cuda:{number % torch.cuda.device_count()}")


def work_for_parent(folder: Path | str, pipe: int, options_json: str) -> None:
    """What a worker process does: its part of a run, until nothing is missing or its parent is gone.

    Raises:
        RunError: as `Worker.work`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=die_with_parent, args=(pipe,), daemon=True).start()
    Worker(Run.open(folder), TypeAdapter(WorkerOptions).validate_json(options_json)).work()


def die_with_parent(pipe: int) -> None:
    """A worker whose parent was killed stops too; its unit becomes free.

    The pipe closes with the parent, unless some other child of it holds the other end; then the parent's id changes.
    """
    parent = os.getppid()
    while os.getppid() == parent and not select.select([pipe], [], [], 1)[0]:
        pass
    os._exit(1)
