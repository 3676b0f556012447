"""The command line: parse, call the library, print. What a person got wrong becomes one sentence here, nowhere else."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn, Protocol, runtime_checkable

import typer

from diffaug_datasets.cli import expert_verbs as expert_verbs
from diffaug_datasets.cli.screen import note, say
from diffaug_datasets.cli.verbs import app
from diffaug_datasets.core.errors import EXTRAS, DiffAugError, install

DISK_ERRORS = (  # that a person can do something about
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)
INTERRUPTED = (
    "diffaug: interrupted; what is finished stays (of a run: whole shards and fits), and the same command continues."
)
GREETING = """\
diffaug: reproducible, diffusion-augmented datasets for image classification

See it work, in a minute, without a network or a GPU:
  diffaug demo --short                       plan, generate, report

A run of your own:
  diffaug new photos -o mine.yaml            looks at a folder, writes a recipe
  diffaug run mine.yaml --run runs/mine      makes its images; repeat to go on

Then:
  diffaug measure runs/mine                  how near the real images it is
  diffaug bench runs/mine                    whether it helps a classifier
  diffaug publish runs/mine org/name         the Hub, with all that it rests on

Every verb: diffaug --help. One verb, with an example: diffaug VERB --help.
Something is not as it should be: diffaug doctor."""
GRACE_SECONDS = 5.0  # after Ctrl-C, until the process ends whatever holds it up


class Line(Protocol):
    """What the parser made of a line up to a mistake."""

    command_path: str


@runtime_checkable
class UsageMistake(Protocol):
    """An error of the parser (no such verb, a missing argument), whichever click typer brings along."""

    ctx: "Line | None"

    def format_message(self) -> str:
        """What is wrong with the line, in words."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and leave with its code: 0, 1 (a result that is not good), 2 (a mistake), 3 (nothing of what
    was asked for could be checked), 130 (Ctrl-C).
    """
    _hold_stdin()
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    words = [word for word in given if word != "--debug"]
    try:
        with _ctrl_c():
            code = app(words, prog_name="diffaug", standalone_mode=False) if words else _greet()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = _nobody_reads()
    except Exception as error:
        sentence = _sentence(error)
        if debug or sentence is None:
            raise
        note(f"diffaug: {' '.join(sentence.split())}")
        code = 2
    if code == 130:
        note(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _greet() -> int:
    say(GREETING)
    return 0


def _nobody_reads() -> int:
    """Whoever read our output has closed it, as `head` does; nothing is left to say, not even at the end of Python."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())
    return 1  # as typer does where a pipe breaks earlier


@contextmanager
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C unwinds; where a library swallows the exception, it ends the process, which loses nothing either."""
    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # by whoever started us
    if is_ignored or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        last_resort = threading.Timer(GRACE_SECONDS, _leave)
        last_resort.daemon = True
        last_resort.start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave() -> None:
    note(INTERRUPTED)
    os._exit(130)


def _sentence(error: Exception) -> str | None:
    """What to tell a person, or None where the fault is ours."""
    if isinstance(error, DiffAugError):
        return str(error)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        place = error.filename or "the disk"
        return f"{place}: {error.strerror}; check the path, its rights and the free space, then run it again."
    if isinstance(error, ModuleNotFoundError) and (extra := EXTRAS.get((error.name or "").split(".")[0])):
        return f"this needs {error.name}, which is not installed; run {install(extra)}."
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # of Python, and of torch
        return "memory ran out; give fewer --workers or a smaller batch_size, and run it again: what is finished stays."
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "`~`: this user has no home and HOME is not set; set HOME, or write paths without `~`."
    if isinstance(error, typer.Abort):
        return "interrupted."
    return _told(error) if isinstance(error, UsageMistake) else None


def _told(mistake: UsageMistake) -> str:
    """The parser's words as one sentence, and the help that has more."""
    words = mistake.format_message().rstrip(".").replace(". Did you mean ", "; did you mean ")
    more = f"see `{mistake.ctx.command_path if mistake.ctx else 'diffaug'} --help`."
    return f"{words} {more.capitalize()}" if words.endswith("?") else f"{words}; {more}"


def _hold_stdin() -> None:
    """Where the caller closed standard input, no file that we open may take its number."""
    try:
        os.fstat(0)
    except OSError:
        os.open(os.devnull, os.O_RDONLY)
