"""Where a run lies: a folder, or a prefix of an object store. Five verbs are enough for both.

`create` is the one that everything rests on: of any number who create the same key, exactly one is told True. A folder
does it by a hard link of a finished temporary file, an object store by a PUT under `If-None-Match: *`. There are places
that take such a request and overwrite all the same; `probe` finds them out before anything is made there.
"""

import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from diffaug_datasets.core.errors import RunError, shown, without_secrets
from diffaug_datasets.core.files import claim, is_temporary, sync_folder, temporary_path, write_synced

Content = bytes | Path
"""Bytes, or the file that holds them."""
T = TypeVar("T")
log = logging.getLogger("diffaug_datasets")
SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?=[^/])(.*)", re.DOTALL)  # `Path` makes one slash of two
PROBES = "leases/.probe"
HICCUPS = 5  # tries in vain before it is said
RETRY_SECONDS = 180.0  # a store that answers no more for longer than this is given up
LONGEST_WAIT = 10.0  # seconds between two tries
CONNECT, ANSWER = "5s", "60s"
STATUS = re.compile(r"\b(?:status(?: code)?:?|error:?)\s*(4\d\d|5\d\d)\b", re.IGNORECASE)
WORKED_OUT = (408, 409, 425, 429, 500, 502, 503, 504)  # of HTTP: another try may change it
REFUSALS = (401, 403)
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # the first one that is set counts
VARIABLES = {  # scheme -> where a client finds keys and endpoint
    **dict.fromkeys(
        ("s3", "s3a"),
        "keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN beside temporary ones), the "
        "region from AWS_DEFAULT_REGION",
    ),
    "gs": "keys come from the file that GOOGLE_APPLICATION_CREDENTIALS names",
    **dict.fromkeys(("az", "abfs", "abfss"), "keys come from AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"),
}
TRIES = 5  # of making a file whose folder somebody takes away


@dataclass(frozen=True)
class Entry:
    """Something that is there: its key, its size in bytes, when the place says that it was last written (Unix).

    `tag`: what a store knows its content by, mostly an MD5; '' in a folder.
    """

    key: str
    size: int
    written: float
    tag: str = ""


class Place(Protocol):
    """A folder or a prefix. Keys are relative, with slashes. Every verb raises RunError where the place fails."""

    @property
    def shown(self) -> str:
        """Its name as it may be printed."""

    def create(self, key: str, content: Content, *, durable: bool = True) -> bool:
        """Write what is not there yet, whole; False, and nothing changed, where the key is taken."""

    def put(self, key: str, content: Content) -> None:
        """Write over what is there; of a folder's file a reader may see the old and the new mixed for a moment."""

    def get(self, key: str) -> bytes | None:
        """What is there; None where nothing is."""

    def fetch(self, key: str, path: Path) -> bool:
        """Write what is there into a new file, piece by piece; False where nothing is there."""

    def list(self, prefix: str) -> list[Entry]:
        """Everything below a prefix that ends in a slash (or is empty), sorted by key."""

    def delete(self, key: str) -> None:
        """Take it away; nothing where it is gone already."""


def scheme_of(place: "str | os.PathLike[str]") -> str | None:
    """`s3` of `s3://bucket/run`; None of a path."""
    match = ADDRESS.match(os.fspath(place))
    return match[1].lower() if match else None


def from_anywhere(place: Path) -> Path:
    """A place for a process that began in another folder: a path made absolute, an address as it is."""
    return place if scheme_of(place) else place.resolve()


def address_of(place: "str | os.PathLike[str]") -> str:
    """The address as it is written, also where `Path` made one slash of its two; without one at the end.

    Raises:
        RunError: it holds a user or a password, or is of a kind where no run can be kept.
    """
    text = os.fspath(place)
    match = ADDRESS.match(text)
    if match is None or match[1].lower() not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        kind = match[1] if match else text
        raise RunError(
            f"run folder: got an address ({kind}://...), expected a folder on a disk of this machine, or {known}."
        )
    address = f"{match[1].lower()}://{match[2].rstrip('/')}"
    if shown(address) != address:
        raise RunError(
            f"{shown(address)}: the address holds a user, a password or a query; keys come from the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ...), so leave them out."
        )
    return address


def probe(place: Place) -> None:
    """Find out whether the place keeps the promise of `create`.

    Raises:
        RunError: it cannot be written, or it overwrites what was to be created only if absent.
    """
    key = f"{PROBES}-{secrets.token_hex(8)}"
    first, second = b"first", b"second"
    try:
        won = place.create(key, first, durable=False), place.create(key, second, durable=False)
        found = place.get(key)
    finally:
        with suppress(RunError):  # what went wrong above is what is said
            place.delete(key)
    if won != (True, False) or found != first:
        raise RunError(
            f"{place.shown}: overwrites what was to be made only if it is absent (it ignores If-None-Match), so two "
            "workers would take the same unit; use a store that honours conditional writes, or a folder."
        )


class FolderPlace:
    """A folder of any file system that makes a name for one of several who ask."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def shown(self) -> str:
        """The folder."""
        return str(self.folder)

    def create(self, key: str, content: Content, *, durable: bool = True) -> bool:
        """As `Place.create`; `durable`: it survives a loss of power."""
        path = self.folder / key
        for left in reversed(range(TRIES)):
            try:
                with self._said(key):
                    return self._create(path, content, durable)
            except _FolderGone:
                if not left:
                    raise RunError(f"{path.parent}: is taken away as often as it is made; look who does.") from None
        raise AssertionError("unreachable")

    def _create(self, path: Path, content: Content, durable: bool) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(path)
        try:
            write_synced(temporary, content, sync=durable)
            created = claim(temporary, path)
        except FileNotFoundError:
            raise _FolderGone from None
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if created and durable:
            sync_folder(path.parent)
        return created

    def put(self, key: str, content: Content) -> None:
        """As `Place.put`: in place, so that network file systems show it to whoever opens the file."""
        path = self.folder / key
        data = content if isinstance(content, bytes) else content.read_bytes()
        with self._said(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)
            try:
                os.write(handle, data)
                os.ftruncate(handle, len(data))
            finally:
                os.close(handle)

    def get(self, key: str) -> bytes | None:
        """As `Place.get`."""
        with self._said(key):
            try:
                return (self.folder / key).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def fetch(self, key: str, path: Path) -> bool:
        """As `Place.fetch`."""
        content = self.get(key)
        if content is not None:
            path.write_bytes(content)
        return content is not None

    def list(self, prefix: str) -> list[Entry]:
        """As `Place.list`; unfinished files are left out."""
        with self._said(prefix):
            return sorted(self._below(self.folder / prefix), key=lambda entry: entry.key)

    def _below(self, folder: Path) -> Iterator[Entry]:
        try:
            found = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        for item in found:
            path = Path(item.path)
            if item.is_dir(follow_symlinks=False):
                yield from self._below(path)
            elif not is_temporary(path):
                with suppress(FileNotFoundError):  # gone since
                    seen = item.stat()
                    yield Entry(path.relative_to(self.folder).as_posix(), seen.st_size, seen.st_mtime)

    def delete(self, key: str) -> None:
        """As `Place.delete`; a folder that is empty then goes too."""
        path = self.folder / key
        with self._said(key):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()

    @contextmanager
    def _said(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.folder}: cannot keep {key} here ({error.strerror or error}); free space or check rights."
            ) from None


class _FolderGone(Exception):
    """Somebody removed the folder between its making and its use."""


class ObjectPlace:
    """A prefix of an object store, through obstore. Keys and endpoint come from the usual environment variables.

    `seconds`: for how long a store that is out of order is asked again.
    """

    def __init__(self, address: str, seconds: float | None = None) -> None:
        self.address = address_of(address)
        self.store = _store(self.address)
        self._seconds = RETRY_SECONDS if seconds is None else seconds
        self._is_said = False

    @property
    def shown(self) -> str:
        """The address."""
        return self.address

    def create(self, key: str, content: Content, *, durable: bool = True) -> bool:  # noqa: ARG002
        """As `Place.create`. An answer that went lost is made good by looking at what is there."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        tries = 0

        def put() -> bool:
            nonlocal tries
            tries += 1
            try:
                self._obstore.put(self.store, key, content, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return tries > 1 and isinstance(content, bytes) and self.get(key) == content
            return True

        return self._tried(key, put)

    def put(self, key: str, content: Content) -> None:
        """As `Place.put`; readers see the old object or the new one."""
        self._tried(key, lambda: self._obstore.put(self.store, key, content))

    def get(self, key: str) -> bytes | None:
        """As `Place.get`."""

        def get() -> bytes | None:
            try:
                return bytes(self._obstore.get(self.store, key).bytes())
            except FileNotFoundError:
                return None

        return self._tried(key, get)

    def fetch(self, key: str, path: Path) -> bool:
        """As `Place.fetch`."""

        def fetch() -> bool:
            try:
                found = self._obstore.get(self.store, key)
            except FileNotFoundError:
                return False
            with path.open("wb") as sink:
                for part in found.stream(min_chunk_size=8 << 20):
                    sink.write(part)
            return True

        return self._tried(key, fetch)

    def list(self, prefix: str) -> list[Entry]:
        """As `Place.list`."""

        def listed() -> list[Entry]:
            pages = self._obstore.list(self.store, prefix=prefix or None, chunk_size=1000)
            found = [item for page in pages for item in page]
            return sorted(
                (
                    Entry(str(i["path"]), int(i["size"]), i["last_modified"].timestamp(), (i["e_tag"] or "").strip('"'))
                    for i in found
                ),
                key=lambda entry: entry.key,
            )

        return self._tried(prefix, listed)

    def delete(self, key: str) -> None:
        """As `Place.delete`."""

        def delete() -> None:
            with suppress(FileNotFoundError):
                self._obstore.delete(self.store, key)

        self._tried(key, delete)

    @property
    def _obstore(self) -> Any:
        import obstore

        return obstore

    def _tried(self, key: str, step: Callable[[], T]) -> T:
        """The step's result, tried again while the store is out of order.

        Raises:
            RunError: it is refused, or fails for longer than `RETRY_SECONDS`.
        """
        tries = Retrying(
            before_sleep=self._say_once,
            stop=stop_after_delay(self._seconds),
            retry=retry_if_exception_type(_OutOfOrder),
            wait=wait_random_exponential(multiplier=min(0.2, self._seconds / 20), max=LONGEST_WAIT),
            reraise=True,
        )
        try:
            value: T = tries(self._judged, key, step)
            return value
        except _OutOfOrder as error:
            raise RunError(
                f"{self.address}: does not answer ({error}) for {self._seconds:.0f} s; {self._endpoint}; once it does, "
                "the same command goes on."
            ) from None

    def _say_once(self, tried: RetryCallState) -> None:
        """A word to whoever waits, once it is more than a hiccup."""
        if not self._is_said and tried.attempt_number >= HICCUPS:
            self._is_said = True
            error = tried.outcome and tried.outcome.exception()
            log.warning(
                "%s: does not answer (%s); trying for %.0f s; %s.", self.address, error, self._seconds, self._endpoint
            )

    @property
    def _endpoint(self) -> str:
        """Where requests go, and by whose word."""
        if not self.address.startswith("s3"):
            return "requests go to the endpoint of its kind"
        name = next((name for name in ENDPOINTS if os.environ.get(name)), None)
        if name is None:
            return "requests go to Amazon's endpoint, unless AWS_ENDPOINT_URL names another"
        return f"requests go to {shown(os.environ[name])} by {name}"

    def _judged(self, key: str, step: Callable[[], T]) -> T:
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            return step()
        except (PermissionDeniedError, UnauthenticatedError):
            raise self._refusal(key) from None
        except FileNotFoundError:
            raise RunError(f"{self.address}: no such bucket; make it, or check AWS_ENDPOINT_URL.") from None
        except BaseError as error:
            raise self._failure(error, key) from None

    def _refusal(self, key: str) -> RunError:
        scheme = self.address.partition(":")[0]
        return RunError(
            f"{self.address}: refuses {key or 'a listing'} to these keys (403); {VARIABLES[scheme]}; {self._endpoint}; "
            "give ones that may read, write and list there."
        )

    def _failure(self, error: Exception, key: str) -> Exception:
        """What to say of an error of the client; its own words hold headers and addresses, and are not passed on."""
        match = STATUS.search(str(error))
        if match is not None and int(match[1]) in REFUSALS:
            return self._refusal(key)
        if match is None:
            return _OutOfOrder("no answer")
        if int(match[1]) in WORKED_OUT:
            return _OutOfOrder(f"status {match[1]}")
        return RunError(f"{self.address}: the store answers {match[1]} to a request of ours; it cannot keep a run.")


class _OutOfOrder(Exception):
    """The store answered nothing, or that it cannot now."""


def _store(address: str) -> Any:
    """The client of an address; where an endpoint is named that is no https, http is allowed."""
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    endpoint = next(filter(None, map(os.environ.get, ENDPOINTS)), "")
    is_s3 = address.startswith("s3")
    options: Mapping[str, Any] = {
        "client_options": {"timeout": ANSWER, "connect_timeout": CONNECT, "allow_http": endpoint.startswith("http:")},
        "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
        **({"endpoint": endpoint, "virtual_hosted_style_request": False} if is_s3 and endpoint else {}),
    }
    try:
        return from_url(address, **options)
    except (BaseError, ValueError, TypeError) as error:
        reason = without_secrets(str(error).splitlines()[0], address)[:120]
        raise RunError(f"{address}: is no address of a store ({reason}); give one such as s3://bucket/run.") from None


def place_of(place: "str | os.PathLike[str]") -> Place:
    """The place that a path or an address names."""
    return FolderPlace(Path(place)) if scheme_of(place) is None else ObjectPlace(os.fspath(place))
