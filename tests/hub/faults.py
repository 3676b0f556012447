"""Breaking requests: the n-th of a kind is answered with an error, dropped, cut short, or done but never answered."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

ANSWERS = (408, 409, 412, 429, 500, 502, 503, 504)
WAYS = (*ANSWERS, "drop", "late")
Way = int | str


@dataclass
class Fault:
    """`way`: a status, `drop` (no answer), `late` (done, no answer) or `cut` (half a body).

    `kind` is a pattern over the kinds of request (`commit`, `lfs_put`, ...); the first `skip` of them go through, the
    next `times` break.
    """

    kind: str
    way: Way
    skip: int = 0
    times: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    seen: int = 0

    def hits(self, kind: str) -> bool:
        """Whether this request is one to break."""
        if not re.fullmatch(self.kind, kind):
            return False
        self.seen += 1
        return self.skip < self.seen <= self.skip + self.times

    @property
    def struck(self) -> int:
        """How many requests it broke."""
        return max(0, min(self.seen - self.skip, self.times))


@dataclass
class Call:
    """One request of the log; status 0: no answer was sent (yet)."""

    kind: str
    method: str
    path: str
    writes: bool
    status: int = 0
    size: int = 0
