"""Doing a step on the Hub until it is done, whatever the network does; what is in vain is said in one sentence."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.release.repository import http_error

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")
TRY_AGAIN = (408, 409, 412, 425, 429, 500, 502, 503, 504)  # HTTP status of answers that another try may change
LONGEST_BACKOFF, LONGEST_WAIT = 60.0, 3600.0  # seconds, of our own and where the server asks for it
ADVICE = {
    401: "log in with `hf auth login`, or set HF_TOKEN",
    403: "use a token that may write there",
    404: "check the name and the revision, and that your token may see it",
}


@dataclass(frozen=True)
class Retry:
    """How often a step is tried, and who waits (seconds) in between.

    A step looks at the state first and changes only what is missing, so it may be repeated after any failure: also
    where the work was done and only the answer was lost.
    """

    tries: int = 8
    sleep: Callable[[float], None] = time.sleep

    def until_done(self, what: str, step: Callable[[], T]) -> T:
        """The result of a step that looks before it acts.

        Raises:
            PublishError: refused for good, or still failing after all tries; says what to do.
        """
        for number in range(1, self.tries + 1):
            try:
                return step()
            except Exception as error:
                wait = _seconds_to_wait(error, number)
                if wait is None:
                    raise _refusal(what, error) from None
                if number == self.tries:
                    refused = _answered(error)
                    status = type(error).__name__ if refused is None else refused.response.status_code
                    raise PublishError(
                        f"{what}: still failing after {number} tries (last answer: {status}); run the same command "
                        "again, finished files are not sent twice."
                    ) from None
                self.sleep(wait)
        raise AssertionError("unreachable")


def _seconds_to_wait(error: BaseException, number: int) -> float | None:
    """Seconds until another try after this one, counted from 1; None where there is no use in one."""
    backoff = min(LONGEST_BACKOFF, 2.0 ** (number - 1))
    if _is_offline(error):
        return None
    if (refused := _answered(error)) is None:
        return backoff if any(_is_transport(e) for e in _causes(error)) else None
    if refused.response.status_code not in TRY_AGAIN:
        return None
    asked = retry_after(refused.response.headers)
    return backoff if asked is None else asked


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait (RFC 9110 Retry-After, or `t` of RateLimit); at most an hour."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # a lazy module

    text = headers.get("Retry-After")
    if text is None:
        limit = parse_ratelimit_headers(headers)
        return min(LONGEST_WAIT, float(limit.reset_in_seconds)) if limit else None
    if text.strip().isdecimal():
        return min(LONGEST_WAIT, float(text))
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    zoned = until if until.tzinfo else until.replace(tzinfo=UTC)
    return min(LONGEST_WAIT, max(0.0, (zoned - datetime.now(UTC)).total_seconds()))


def _refusal(what: str, error: BaseException) -> BaseException:
    """The sentence of an error of the Hub, alone: a library's own words name signed addresses. Ours stays as it is."""
    if (refused := _answered(error)) is not None:
        status = refused.response.status_code
        told = " ".join(str(refused.response.headers.get("X-Error-Message") or "no reason given").split())[:200]
        advice = ADVICE.get(status, "put that right and run the same command again")
        return PublishError(f"{what}: refused with {status} ({told}); {advice}.")
    if _is_offline(error):
        return PublishError(f"{what}: HF_HUB_OFFLINE is set, so the Hub is out of reach; unset it and run this again.")
    if isinstance(error, ValueError) and "metadata" in str(error):  # what huggingface_hub raises for a refused card
        told = " ".join(str(error).split())[:300]
        return PublishError(f"{what}: the Hub does not accept the card ({told}); put it right.")
    return error


def _answered(error: BaseException) -> "HfHubHTTPError | None":
    """The error that holds the server's answer; None where the last thing that happened was that none came."""
    from huggingface_hub.errors import HfHubHTTPError

    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return cause
        if _is_transport(cause):
            return None
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, then what it came of, back to the first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_transport(error: BaseException) -> bool:
    """A connection that broke, or hf_xet's word for the same, which comes as a plain error of Python."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    return isinstance(error, (http_error(), LocalEntryNotFoundError, ConnectionError, TimeoutError))


def _is_offline(error: BaseException) -> bool:
    """Whether a person told huggingface_hub to stay off the network."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    return any(isinstance(cause, OfflineModeIsEnabled) for cause in _causes(error))
