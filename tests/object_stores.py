"""An S3 server on loopback: moto behind real HTTP, with a log of its requests and errors on demand."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

BUCKET = "shelf"


@dataclass(frozen=True)
class Asked:
    """One request; `copied`: a PUT that copies another object."""

    method: str
    key: str
    copied: bool
    status: int


@dataclass
class ObjectStore:
    """A WSGI application around moto's. After `left` more requests that write, every request is answered with 503.

    `outage`: seconds from the first such answer until all is well again; None: until somebody mends it.
    """

    inner: Callable[..., Iterable[bytes]]
    log: list[Asked] = field(default_factory=list)
    left: int | None = None
    outage: float | None = None
    down_since: float | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, key = environ["REQUEST_METHOD"], unquote(environ["PATH_INFO"]).removeprefix(f"/{BUCKET}/")
        seen: list[int] = []

        def note(status: str, *rest: Any) -> Any:
            seen.append(int(status.split()[0]))
            return start(status, *rest)

        with self.lock:
            if self._refuses(method in ("PUT", "POST", "DELETE")):
                body = b"<?xml version='1.0'?><Error><Code>ServiceUnavailable</Code><Message>out</Message></Error>"
                note("503 Service Unavailable", [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
                answer: list[bytes] = [body]
            else:
                answer = list(self.inner(environ, note))
            self.log.append(Asked(method, key, "HTTP_X_AMZ_COPY_SOURCE" in environ, seen[0]))
        return answer

    def _refuses(self, writes: bool) -> bool:
        if self.left is None:
            return False
        if self.left > 0:
            self.left -= writes
            return False
        self.down_since = self.down_since or time.monotonic()
        if self.outage is not None and time.monotonic() - self.down_since > self.outage:
            self.left = self.outage = self.down_since = None
            return False
        return True

    def writes(self) -> list[Asked]:
        """The requests that changed something, in order."""
        return [one for one in self.log if one.method in ("PUT", "POST", "DELETE") and one.status < 300]


@contextmanager
def object_store(home: Path) -> Iterator[ObjectStore]:
    """A store with one bucket; `s3://` addresses of this process lead there, with credentials from the environment."""
    import s3fs
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *words: Any) -> None:
            """Say nothing."""

    store = ObjectStore(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=Quiet)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "loopback-id",
        "AWS_SECRET_ACCESS_KEY": "loopback-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(home / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "credentials"),
        "AWS_MAX_ATTEMPTS": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        patch.setattr(s3fs.S3FileSystem, "retries", 1)
        s3fs.S3FileSystem.clear_instance_cache()
        thread.start()
        if not (place := s3fs.S3FileSystem()).exists(BUCKET):  # moto keeps what an earlier store of this process held
            place.mkdir(BUCKET)
        yield store
        s3fs.S3FileSystem.clear_instance_cache()
        server.shutdown()
        thread.join()
