"""The HTTP server: finds the route of a request, breaks it where a fault says so, and keeps a log."""

import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from hub.faults import Call, Fault, Way
from hub.store import Blobs, Commit, Repo

REPO = r"/api/(?P<type>model|dataset|space)s/(?P<id>[^/]+/[^/]+)"


class Refusal(Exception):
    """An answer that is not a success."""

    def __init__(
        self, status: int, code: str = "", message: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        told = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.status, self.message, self.headers = status, message, {**told, **(headers or {})}


class Route(NamedTuple):
    """A kind of request: its name, method, path pattern, whether it changes anything, and who answers it."""

    kind: str
    method: str
    path: str
    writes: bool
    answer: Callable[..., None]


ROUTES: list[Route] = []


def route(
    kind: str, method: str, path: str, writes: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register who answers a kind of request."""

    def register(answer: Callable[..., None]) -> Callable[..., None]:
        ROUTES.append(Route(kind, method, path.replace("{repo}", REPO), writes, answer))
        return answer

    return register


class LoopbackHub:
    """A Hub at `url` while the context is open; `xet` decides how large files travel.

    `token` is the one that may write; `user` is its owner, who is a member of `org`.
    """

    def __init__(
        self, root: Path, *, xet: bool = False, token: str = "hf_loopback_secret", user: str = "tester"
    ) -> None:
        self.blobs, self.xet, self.token, self.user = Blobs(root), xet, token, user
        self.repos: dict[tuple[str, str], Repo] = {}
        self.log: list[Call] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """What a client in a process of its own needs to talk to this Hub and no other."""
        quiet = {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_XET_TELEMETRY_ENABLED": "0"}
        mode = {"HF_HUB_DISABLE_XET": "0" if self.xet else "1", "HF_HUB_OFFLINE": "0"}
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HOME": str(home), **quiet, **mode}

    def breaks(self, kind: str, way: Way, *, skip: int = 0, times: int = 1, **headers: str) -> Fault:
        """Break requests of a kind; see `Fault`. `Retry_After="1"` becomes a header."""
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(kind, way, skip, times, told))
        return self.faults[-1]

    def calls(self, kind: str = ".*") -> list[Call]:
        """The requests of a kind, in order."""
        return [call for call in self.log if re.fullmatch(kind, call.kind)]

    def writes(self) -> list[Call]:
        """The requests that change something."""
        return [call for call in self.log if call.writes]

    def repo(self, name: str) -> Repo:
        """A dataset repository."""
        return self.repos["dataset", name]

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Path -> bytes of a dataset at a revision."""
        commit = self.repo(name).at(revision)
        assert commit is not None, f"{name} has no {revision}"
        return {path: self.blobs.read(entry) for path, entry in commit.tree.items()}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: ClassVar[LoopbackHub]

    def log_message(self, *_: object) -> None:
        """Standard error stays clean; `LoopbackHub.log` has it all."""

    def do_GET(self) -> None:
        """Answer any method."""
        parts = urlsplit(self.path)
        self.place, self.query = parts.path, parse_qs(parts.query)
        self.received, self.cut = b"", False
        found, words = self._find()
        kind, writes = (found.kind, found.writes) if found else ("unknown", False)
        self.call = Call(kind, self.command, self.place, writes)
        with self.hub.lock:  # before any answer: who has the answer finds the call in the log
            self.hub.log.append(self.call)
        try:
            self._work(found, words, self._fault(kind))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

    def _find(self) -> tuple[Route | None, dict[str, str]]:
        for found in ROUTES:
            if found.method == self.command or (self.command == "HEAD" and found.method == "GET"):
                match = re.fullmatch(found.path, self.place)
                if match:
                    return found, {name: unquote(word) for name, word in match.groupdict().items() if word is not None}
        return None, {}

    def _fault(self, kind: str) -> Fault | None:
        with self.hub.lock:
            return next((fault for fault in self.hub.faults if fault.hits(kind)), None)

    def _work(self, found: Route | None, words: dict[str, str], fault: Fault | None) -> None:
        self.received = self._body()
        self.call.size = len(self.received)
        way = fault.way if fault else None
        if way == "drop":
            self._hang_up()
            return
        if isinstance(way, int):
            self.send(way, {"error": "broken on purpose"}, fault.headers if fault else None)
            return
        self.cut = way == "cut"
        wire = self.wfile
        if way == "late":
            self.wfile = open(os.devnull, "wb")  # noqa: SIM115, PTH123
        self._answer(found, words)
        if way == "late":
            self.wfile.close()
            self.wfile, self.call.status = wire, 0
            self._hang_up()

    def _answer(self, found: Route | None, words: dict[str, str]) -> None:
        try:
            if found is None:
                raise Refusal(404, message=f"no route {self.command} {self.place}")
            found.answer(self, **words)
        except Refusal as refusal:
            self.send(refusal.status, {"error": refusal.message}, refusal.headers)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def json(self) -> Any:
        """The request's body."""
        return json.loads(self.received or b"{}")

    def send(
        self, status: int, content: Any = b"", headers: Mapping[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        """Answer with JSON or bytes."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.call.status = status
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[: len(data) // 2] if self.cut else data)
        if self.cut:
            self.wfile.flush()
            self._hang_up()

    def may_write(self) -> None:
        """Refuse whoever has no token."""
        if not self.known():
            raise Refusal(401, message="Invalid username or password.")

    def known(self) -> bool:
        """Whether the request carries the token."""
        return self.headers.get("Authorization", "") == f"Bearer {self.hub.token}"

    def repo(self, type: str, id: str, write: bool = False) -> Repo:
        """The repository that a path names."""
        if write:
            self.may_write()
        found = self.hub.repos.get((type, id))
        if found is None or (found.private and not self.known()):
            raise Refusal(404 if self.known() else 401, "RepoNotFound", "Repository not found")
        return found

    def at(self, repo: Repo, revision: str) -> Commit:
        """The commit that a revision names."""
        found = repo.at(revision)
        if found is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found


from hub import reading, uploading, writing  # noqa: E402, F401
