"""How bytes come in before a commit: the question how, and the LFS protocol in one part or several."""

import hashlib
import re

from hub.server import Handler, Refusal, route
from hub.store import git_sha1

LARGE = (".arrow", ".parquet", ".safetensors", ".png")
PART = 1 << 16
MULTIPART = 4 * PART


@route("preupload", "POST", r"{repo}/preupload/(?P<revision>[^/]+)", writes=True)
def preupload(self: Handler, type: str, id: str, revision: str) -> None:
    """For each file whether it is large, and the id of what lies there now: how clients find unchanged files."""
    tree = self.at(self.repo(type, id, write=True), revision).tree
    answers = []
    for file in self.json()["files"]:
        path = file["path"]
        large = path.endswith(LARGE)
        there = tree.get(path)
        oid = (there.sha256 if large else there.oid) if there else None
        mode = "lfs" if large else "regular"
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    self.send(200, {"files": answers, "commitOid": self.at(self.repo(type, id), revision).sha})


@route("lfs_batch", "POST", r"/(?:(?:dataset|space)s/)?[^/]+/[^/]+\.git/info/lfs/objects/batch", writes=True)
def lfs_batch(self: Handler) -> None:
    """Where to put each object; nothing to do for those that are here."""
    self.may_write()
    objects = [_actions(self, item["oid"], item["size"]) for item in self.json()["objects"]]
    self.send(200, {"transfer": "multipart", "objects": objects}, kind="application/vnd.git-lfs+json")


def _actions(self: Handler, oid: str, size: int) -> dict[str, object]:
    if not re.fullmatch(r"[0-9a-f]{64}", oid):
        raise Refusal(422, message="not a sha256")
    if self.hub.blobs.has(oid):
        return {"oid": oid, "size": size}
    put, verify = f"{self.hub.url}/lfs/{oid}", {"href": f"{self.hub.url}/lfs/{oid}/verify"}
    if size <= MULTIPART:
        return {"oid": oid, "size": size, "actions": {"upload": {"href": put}, "verify": verify}}
    parts = {f"{i + 1:05d}": f"{put}/part/{i + 1}" for i in range(-(-size // PART))}
    upload = {"href": f"{put}/complete", "header": {"chunk_size": str(PART), **parts}}
    return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}


@route("lfs_put", "PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", writes=True)
def lfs_put(self: Handler, oid: str) -> None:
    """A whole object."""
    _keep(self, oid, self.received)
    self.send(200, b"")


@route("lfs_part", "PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/part/(?P<number>\d+)", writes=True)
def lfs_part(self: Handler, oid: str, number: str) -> None:
    """One part of an object."""
    self.hub.blobs.put(f"{oid}.{int(number):05d}", self.received)
    self.send(200, b"", {"ETag": f'"{git_sha1(self.received)}"'})


@route("lfs_complete", "POST", r"/lfs/(?P<oid>[0-9a-f]{64})/complete", writes=True)
def lfs_complete(self: Handler, oid: str) -> None:
    """All parts are there."""
    paths = [self.hub.blobs.root / "blobs" / f"{oid}.{p['partNumber']:05d}" for p in self.json()["parts"]]
    _keep(self, oid, b"".join(path.read_bytes() for path in paths))
    self.send(200, {})


def _keep(self: Handler, oid: str, data: bytes) -> None:
    if hashlib.sha256(data).hexdigest() != oid:
        raise Refusal(400, message="the bytes have another digest")
    self.hub.blobs.put(oid, data)


@route("lfs_verify", "POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify")
def lfs_verify(self: Handler, oid: str) -> None:
    """Whether an object came in whole."""
    if not self.hub.blobs.has(oid):
        raise Refusal(404, message="no such object")
    self.send(200, {})
