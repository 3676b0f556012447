"""Other processes that make cells of the same bench, each `python -m diffaug_datasets bench-worker` of its own.

They get the bench by their standard input, which keeps addresses with passwords out of files and command lines, share
its cells by leases, and end with the process that started them.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.evaluate.runs import Doing
from diffaug_datasets.evaluate.suite import Bench
from diffaug_datasets.run.engines.local import interpreter


@contextmanager
def helping(spec: Bench, folder: Path, doing: Doing, cache: Path | None, cells: int) -> Iterator[None]:
    """Meanwhile `doing.workers` - 1 more processes work on a bench, as far as there are cells for them.

    Raises:
        RunError: no process can be started.
    """
    count = min(doing.workers, cells) - 1
    children: list[subprocess.Popen[bytes]] = []
    try:
        if count > 0 and doing.parent is None:
            python = interpreter()
            if python is None:
                raise RunError(f"{doing.workers} workers: this program has no Python interpreter to start them with.")
            line = [python, "-m", "diffaug_datasets", "bench-worker", str(folder), doing.device, str(cache or "")]
            text = spec.model_dump_json(by_alias=True, exclude_unset=True).encode()
            for _ in range(count):
                child = subprocess.Popen([*line, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
                children.append(child)
                if child.stdin is not None:
                    child.stdin.write(text)
                    child.stdin.close()
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()
