"""Doing a step on the Hub until it is done, whatever the network does.

A step looks at the state first and changes only what is missing, so it may be repeated after any failure: also where
the work was done and only the answer was lost.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from diffaug_datasets.core.errors import PublishError

T = TypeVar("T")
AGAIN = (408, 409, 412, 425, 429, 500, 502, 503, 504)
LONGEST, HOUR = 60.0, 3600.0
REFUSED = {
    401: "log in with `hf auth login`, or set HF_TOKEN",
    403: "use a token that may write there",
    404: "check the name and the revision, and that your token may see it",
}


@dataclass(frozen=True)
class Patience:
    """How often a step is tried, and who waits (seconds) in between."""

    tries: int = 8
    sleep: Callable[[float], None] = time.sleep

    def until_done(self, what: str, step: Callable[[], T]) -> T:
        """The result of a step that looks before it acts.

        Raises:
            PublishError: refused for good, or still failing after all tries; says what to do.
        """
        for number in range(self.tries):
            try:
                return step()
            except Exception as error:
                wait = _wait(error, number)
                if wait is None:
                    raise _said(what, error) from None
                if number + 1 == self.tries:
                    raise _said(what, error, self.tries) from None
                self.sleep(wait)
        raise AssertionError("unreachable")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _wait(error: BaseException, number: int) -> float | None:
    """Seconds until another try; None where there is no use in one."""
    if _is_offline(error):
        return None
    answer = _answer(error)
    if answer is not None:
        if answer.status_code not in AGAIN:
            return None
        asked = retry_after(answer.headers)
        return asked if asked is not None else _backoff(number)
    return _backoff(number) if any(_is_transport(e) for e in _chain(error)) else None


def _answer(error: BaseException) -> Any:
    """The answer of the server, None where the last thing that happened was that none came."""
    for found in _chain(error):
        answer = getattr(found, "response", None)
        if answer is not None or _is_transport(found):
            return answer
    return None


def _backoff(number: int) -> float:
    return min(LONGEST, 2.0**number)


def _is_transport(error: BaseException) -> bool:
    """A connection that broke, or hf_xet's word for the same, which comes as a plain error of Python."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    family = HfHubHTTPError.__mro__[1]  # of the HTTP library that this huggingface_hub uses
    return isinstance(error, (family, LocalEntryNotFoundError, ConnectionError, TimeoutError))


def _is_offline(error: BaseException) -> bool:
    """Whether a person told huggingface_hub to stay off the network."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    return any(isinstance(found, OfflineModeIsEnabled) for found in _chain(error))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait (RFC 9110 Retry-After, or `t` of RateLimit); at most an hour."""
    text = headers.get("Retry-After")
    if text is None:
        found = re.search(r"\bt=(\d+)", headers.get("RateLimit") or "")
        return min(HOUR, float(found[1])) if found else None
    if text.strip().isdecimal():
        return min(HOUR, float(text))
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    zoned = until if until.tzinfo else until.replace(tzinfo=UTC)
    return min(HOUR, max(0.0, (zoned - datetime.now(UTC)).total_seconds()))


def _said(what: str, error: BaseException, tries: int = 0) -> BaseException:
    """The sentence of an error of the Hub, alone: a library's own words name signed addresses. Ours stays as it is."""
    answer = _answer(error)
    if answer is None and not tries:
        return _refused(what, error)
    status = f"{answer.status_code}" if answer is not None else type(error).__name__
    if tries:
        return PublishError(
            f"{what}: still failing after {tries} tries (last answer: {status}); run the same command again, "
            "finished files are not sent twice."
        )
    way = REFUSED.get(answer.status_code, "put that right and run the same command again")
    return PublishError(f"{what}: refused with {status} ({_reason(answer)}); {way}.")


def _refused(what: str, error: BaseException) -> BaseException:
    """`huggingface_hub` raises ValueError for metadata that the Hub does not accept."""
    if _is_offline(error):
        return PublishError(f"{what}: HF_HUB_OFFLINE is set, so the Hub is out of reach; unset it and run this again.")
    if isinstance(error, ValueError) and "metadata" in str(error):
        return PublishError(
            f"{what}: the Hub does not accept the card ({' '.join(str(error).split())[:300]}); put it right."
        )
    return error


def _reason(answer: Any) -> str:
    return " ".join(str(answer.headers.get("X-Error-Message") or "no reason given").split())[:200]
