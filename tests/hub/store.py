"""What a Hub keeps: repos of commits over trees, blobs by digest, and the files that hf_xet left in its local store."""

import hashlib
import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HASH, HEADER, RECORD = 32, 48, 48
VERIFIED, HAS_SHA256 = 1 << 31, 1 << 30


def git_sha1(data: bytes, kind: bytes = b"blob") -> str:
    """The object id that git gives these bytes."""
    return hashlib.sha1(kind + b" %d\0" % len(data) + data).hexdigest()


def now() -> str:
    """The time as the Hub writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


@dataclass(frozen=True)
class Entry:
    """A file of a tree. `sha256` is set for LFS and Xet files, `xet` for files that came through hf_xet."""

    size: int
    oid: str
    sha256: str | None = None
    xet: str | None = None

    def told(self, path: str) -> dict[str, object]:
        """As listings show it."""
        found: dict[str, object] = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.sha256:
            found["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return found | ({"xetHash": self.xet} if self.xet else {})


Tree = dict[str, Entry]


@dataclass(frozen=True)
class Commit:
    """A tree with a parent and a title."""

    sha: str
    parent: str | None
    tree: Tree
    title: str
    date: str = field(default_factory=now)


@dataclass
class Repo:
    """One repository. `heads`: branch or `refs/pr/N` -> commit; `requests`: number -> title of a pull request;
    `ended`: number -> `closed` or `merged`, of those that are not open."""

    kind: str
    id: str
    private: bool = False
    heads: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    requests: dict[int, str] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag or the first digits of a commit name."""
        if sha := self.heads.get(revision) or self.tags.get(revision):
            return self.commits[sha]
        return next((c for sha, c in self.commits.items() if len(revision) >= 5 and sha.startswith(revision)), None)

    def commit(self, branch: str, tree: Tree, title: str) -> Commit:
        """A new head of a branch."""
        parent = self.heads.get(branch)
        text = json.dumps([parent, title, sorted((p, e.oid) for p, e in tree.items()), len(self.commits)])
        made = Commit(git_sha1(text.encode(), b"commit"), parent, tree, title)
        self.commits[made.sha] = made
        self.heads[branch] = made.sha
        return made

    def propose(self, title: str) -> int:
        """Open a pull request from the head of main."""
        number = len(self.requests) + 1
        self.requests[number] = title
        self.heads[f"refs/pr/{number}"] = self.heads["main"]
        return number


class Blobs:
    """Bytes by digest, and those that hf_xet keeps in its own store beside them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs").mkdir(parents=True, exist_ok=True)
        self._by_sha256: dict[str, tuple[str, int]] = {}

    @property
    def xet_url(self) -> str:
        """A store address that hf_xet understands: the real client works on a local folder."""
        return f"local://{self.root.resolve()}/cas"

    def has(self, digest: str) -> bool:
        """Whether these bytes came in whole."""
        return (self.root / "blobs" / digest).exists()

    def put(self, digest: str, data: bytes) -> None:
        """Keep bytes."""
        path = self.root / "blobs" / digest
        temporary = path.with_suffix(f".{time.monotonic_ns()}")
        temporary.write_bytes(data)
        temporary.replace(path)

    def entry(self, sha256: str) -> Entry | None:
        """The LFS or Xet file with these bytes; None if they never came."""
        xet, size = None, 0
        if self.has(sha256):
            size = (self.root / "blobs" / sha256).stat().st_size
        else:
            self._by_sha256 |= {found: (hash_, length) for found, hash_, length in self._xet_files()}
            if sha256 not in self._by_sha256:
                return None
            xet, size = self._by_sha256[sha256]
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return Entry(size, git_sha1(pointer.encode()), sha256, xet)

    def read(self, entry: Entry, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) of a file."""
        end = entry.size if end is None else end
        if end <= start:
            return b""
        digest = entry.sha256 or entry.oid
        if self.has(digest):
            with (self.root / "blobs" / digest).open("rb") as file:
                file.seek(start)
                return file.read(end - start)
        return self._read_xet(entry, start, end)

    def _read_xet(self, entry: Entry, start: int, end: int) -> bytes:
        import hf_xet

        expiry = int(time.time()) + 3600
        group = hf_xet.XetSession().new_download_stream_group(
            endpoint=self.xet_url, token="t", token_expiry_unix_secs=expiry
        )
        return b"".join(group.download_stream(hf_xet.XetFileInfo(entry.xet, entry.size), start=start, end=end))

    def _xet_files(self) -> Iterator[tuple[str, str, int]]:
        """(sha256, xet hash, size) of every file in hf_xet's shard files, which is where it writes them down."""
        for path in (self.root / "cas").rglob("shards/*.mdb"):
            yield from _shard_files(path.read_bytes())


def _shard_files(data: bytes) -> Iterator[tuple[str, str, int]]:
    place = HEADER
    while data[place : place + HASH] != b"\xff" * HASH:
        xet = _hex(data[place : place + HASH])
        flags, segments = struct.unpack("<II", data[place + HASH : place + HASH + 8])
        place += RECORD
        sizes = [struct.unpack_from("<I", data, place + RECORD * i + 36)[0] for i in range(segments)]
        place += RECORD * segments * (2 if flags & VERIFIED else 1)
        if flags & HAS_SHA256:
            yield _hex(data[place : place + HASH]), xet, sum(sizes)
            place += RECORD


def _hex(data: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", data))
