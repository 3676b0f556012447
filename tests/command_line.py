"""What the command line answers, as tests look at it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What a command line gave back."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one sentence of a refusal: exit code 2, a line on stderr after what was being done, no traceback."""
        assert self.code == 2, self
        lines = [line for line in self.err.splitlines(keepends=True) if not line.endswith(" ...\n")]
        assert len(lines) == 1 and lines[0].startswith("diffaug: ") and lines[0].endswith("\n"), self
        assert "Traceback" not in self.out + self.err, self
        return lines[0].removeprefix("diffaug: ").rstrip("\n")


Command = Callable[..., Answer]
