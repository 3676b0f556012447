"""What a check of a set is, and the checks of rows that are made again; of runs and of published sets alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from diffaug_datasets.core.errors import DiffAugError, PublishError, install
from diffaug_datasets.run.rebuild import Closeness, Rebuilt, levels

Outcome = Literal["ok", "WRONG", "could not check"]
OK: Outcome = "ok"
WRONG: Outcome = "WRONG"
UNKNOWN: Outcome = "could not check"
SAMPLE = "sample"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `told` says what was found."""

    name: str
    outcome: Outcome
    told: str


@dataclass(frozen=True)
class Verification:
    """What is known of a published set: where it is, the name and plan of its config, and every check in its order."""

    where: str
    name: str
    plan_id: str
    checks: tuple[Check, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong; what could not be checked is not wrong."""
        return all(check.outcome != WRONG for check in self.checks)


class Wrong(Exception):
    """A check that failed, in words."""


class NotHere(Exception):
    """What keeps a check from being made here, in words."""


def tried(name: str, check: Callable[[], str]) -> Check:
    """The check's sentence, or what it raised."""
    try:
        return Check(name, OK, check())
    except NotHere as error:
        return Check(name, UNKNOWN, str(error))
    except (Wrong, DiffAugError) as error:
        return Check(name, WRONG, str(error))


def rebuilt(row_id: str, rebuild: Callable[[], tuple[Rebuilt, Closeness]]) -> tuple[Check, Closeness | None]:
    """A row made again; wrong is only what the set itself gets wrong, not what is missing here."""
    try:
        _, closeness = rebuild()
    except PublishError as error:
        return Check("rebuild", WRONG, str(error)), None
    except DiffAugError as error:
        return Check("rebuild", UNKNOWN, str(error)), None
    except ModuleNotFoundError as error:
        missing = f"row {row_id}: {error.name} is not installed; run {install('generate')}"
        return Check("rebuild", UNKNOWN, missing), None
    outcome = OK if closeness.is_good else UNKNOWN if closeness.is_unknown else WRONG
    return Check("rebuild", outcome, str(closeness)), closeness


def summed_up(checks: Sequence[Check], measured: Sequence[Closeness]) -> Check:
    """All rows of the sample in one sentence."""
    wrong = [check for check in checks if check.outcome == WRONG]
    unknown = [check for check in checks if check.outcome == UNKNOWN]
    within = [closeness for closeness in measured if closeness.is_within]
    if wrong:
        return Check(SAMPLE, WRONG, f"{len(wrong)} of {len(checks)} rows are not what they should be")
    left = f"; {len(unknown)} could not be checked" if unknown else ""
    if len(unknown) == len(checks):
        return Check(SAMPLE, UNKNOWN, f"none of {len(checks)} rows could be made again or compared")
    if within:
        most = max(closeness.largest or 0 for closeness in within)
        where = f"on {len(within)} of {len(checks)} rows ({within[0].why})"
        return Check(SAMPLE, OK, f"within tolerance: {levels(most)} {where}{left}")
    return Check(SAMPLE, OK, f"{len(checks) - len(unknown)} of {len(checks)} rows are bit-equal{left}")
