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
        """The one sentence of a refusal: exit code 2, a line on stderr, no traceback."""
        assert self.code == 2, self
        assert self.err.startswith("diffaug: "), self
        assert self.err.count("\n") == 1, self
        assert "Traceback" not in self.out + self.err, self
        return self.err.removeprefix("diffaug: ").rstrip("\n")


Command = Callable[..., Answer]
