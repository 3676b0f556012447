"""Requests that change nothing: who am I, repositories, trees, files, refs."""

import re
import time
from urllib.parse import parse_qs

from hub.server import Handler, Refusal, route
from hub.store import Commit, Entry, Repo, git_sha1, now

REVISION = r"(?P<revision>[^/]+)"


@route("whoami", "GET", "/api/whoami-v2")
def whoami(self: Handler) -> None:
    """The owner of the token."""
    self.may_write()
    access = {"accessToken": {"role": "write"}}
    self.send(200, {"type": "user", "name": self.hub.user, "orgs": [{"name": "org"}], "auth": access})


@route("resolve", "GET", rf"/(?:(?P<type>dataset|space)s/)?(?P<id>[^/]+/[^/]+)/resolve/{REVISION}/(?P<path>.+)")
def resolve(self: Handler, id: str, revision: str, path: str, type: str = "model") -> None:
    """The bytes of a file, or a range of them."""
    repo = self.repo(type, id)
    commit = self.at(repo, revision)
    found = commit.tree.get(path)
    headers = {"X-Repo-Commit": commit.sha}
    if found is None:
        raise Refusal(404, "EntryNotFound", "Entry not found", headers)
    headers["ETag"] = f'"{found.sha256 or found.oid}"'
    if found.sha256:
        headers |= {"X-Linked-Etag": f'"{found.sha256}"', "X-Linked-Size": str(found.size)}
    if found.xet and self.hub.xet:
        token = f"{self.hub.url}/api/{type}s/{id}/xet-read-token/{commit.sha}"
        headers |= {"X-Xet-Hash": found.xet, "Link": f'<{token}>; rel="xet-auth"'}
    _serve(self, found, headers)


def _serve(self: Handler, entry: Entry, headers: dict[str, str]) -> None:
    start, end, status = 0, entry.size, 200
    if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
        start, end, status = int(wanted[1]), min(entry.size, int(wanted[2] or entry.size) + 1), 206
        if start >= entry.size:
            raise Refusal(416, headers={"Content-Range": f"bytes */{entry.size}"})
        headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{entry.size}"}
    data = b"" if self.command == "HEAD" else self.hub.blobs.read(entry, start, end)
    told = {"Accept-Ranges": "bytes", "Content-Length": str(end - start), **headers}
    self.send(status, data, told, "application/octet-stream")


@route("refs", "GET", "{repo}/refs")
def refs(self: Handler, type: str, id: str) -> None:
    """Branches, tags and pull requests."""
    repo = self.repo(type, id)
    branches = {name: sha for name, sha in repo.heads.items() if not name.startswith("refs/")}
    requests = {name: sha for name, sha in repo.heads.items() if name.startswith("refs/")}
    listed = {"branches": _refs(branches, "refs/heads/"), "tags": _refs(repo.tags, "refs/tags/")}
    self.send(200, {**listed, "converts": [], "pullRequests": _refs(requests, "")})


def _refs(found: dict[str, str], start: str) -> list[dict[str, str]]:
    return [{"name": name, "ref": start + name, "targetCommit": sha} for name, sha in found.items()]


@route("commits", "GET", rf"{{repo}}/commits/{REVISION}")
def commits(self: Handler, type: str, id: str, revision: str) -> None:
    """The history of a revision, newest first."""
    repo = self.repo(type, id)
    found: Commit | None = self.at(repo, revision)
    listed = []
    while found:
        listed.append({"id": found.sha, "title": found.title, "message": "", "date": found.date, "authors": []})
        found = repo.commits.get(found.parent or "")
    self.send(200, listed)


@route("tree", "GET", rf"{{repo}}/tree/{REVISION}(?:/(?P<path>.*))?")
def tree(self: Handler, type: str, id: str, revision: str, path: str = "") -> None:
    """The files below a folder, in pages."""
    commit = self.at(self.repo(type, id), revision)
    listed = _listed(commit, path.strip("/"), self.query.get("recursive", ["false"])[0].lower() == "true")
    if path and not listed:
        raise Refusal(404, "EntryNotFound", f"{path} does not exist")
    if "expand" in self.query:
        last = {"lastCommit": {"id": commit.sha, "title": commit.title, "date": commit.date}}
        listed = [{**item, **last} for item in listed]
    first, size = int(self.query.get("cursor", ["0"])[0]), int(self.query.get("limit", ["1000"])[0])
    headers = {}
    if first + size < len(listed):
        words = {name: found[0] for name, found in self.query.items()} | {"cursor": str(first + size)}
        rest = "&".join(f"{name}={word}" for name, word in words.items())
        headers["Link"] = f'<{self.hub.url}{self.place}?{rest}>; rel="next"'
    self.send(200, listed[first : first + size], headers)


def _listed(commit: Commit, folder: str, recursive: bool) -> list[dict[str, object]]:
    start, found, folders = f"{folder}/" if folder else "", [], set()
    for path, entry in sorted(commit.tree.items()):
        if not path.startswith(start):
            continue
        parts = path[len(start) :].split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            above = start + "/".join(parts[:depth])
            if above not in folders:
                folders.add(above)
                found.append({"type": "directory", "path": above, "size": 0, "oid": git_sha1(above.encode())})
        if recursive or len(parts) == 1:
            found.append(entry.told(path))
    return found


@route("paths_info", "POST", rf"{{repo}}/paths-info/{REVISION}")
def paths_info(self: Handler, type: str, id: str, revision: str) -> None:
    """Those of the named paths that exist; form-encoded by the clients."""
    as_json = "json" in self.headers.get("Content-Type", "")
    wanted = self.json() if as_json else parse_qs(self.received.decode())
    commit = self.at(self.repo(type, id), revision)
    last = {"lastCommit": {"id": commit.sha, "title": commit.title, "date": commit.date}}
    found = []
    for path in wanted.get("paths", []):
        if path in commit.tree:
            found.append({**commit.tree[path].told(path), **last})
        elif any(name.startswith(path.rstrip("/") + "/") for name in commit.tree):
            found.append({"type": "directory", "path": path.rstrip("/"), "size": 0, "oid": git_sha1(path.encode())})
    self.send(200, found)


@route("discussions", "GET", r"{repo}/discussions")
def discussions(self: Handler, type: str, id: str) -> None:
    """The pull requests, in one page."""
    found = [_told(self, self.repo(type, id), number) for number in self.repo(type, id).requests]
    self.send(200, {"discussions": found, "count": len(found), "start": 0, "numClosedDiscussions": 0})


@route("discussion", "GET", r"{repo}/discussions/(?P<number>\d+)")
def discussion(self: Handler, type: str, id: str, number: str) -> None:
    """One pull request."""
    repo = self.repo(type, id)
    if int(number) not in repo.requests:
        raise Refusal(404, message="no such discussion")
    more = {"events": [], "changes": {"base": "refs/heads/main"}, "filesWithConflicts": [], "diffUrl": ""}
    self.send(200, {**_told(self, repo, int(number)), **more, "repo": {"name": id, "type": type}})


def _told(self: Handler, repo: Repo, number: int) -> dict[str, object]:
    title = repo.requests[number]
    state = {"status": repo.ended.get(number, "open"), "isPullRequest": True, "createdAt": now()}
    return {"num": number, "title": title, "author": {"name": self.hub.user}, "repo": {"name": "", "type": ""}, **state}


@route("xet_token", "GET", r"{repo}/xet-(?P<mode>read|write)-token(?:/.+)?")
def xet_token(self: Handler, type: str, id: str, mode: str) -> None:
    """Where hf_xet reads and writes; it then works on its own."""
    self.repo(type, id, write=mode == "write")
    expiry = int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": self.hub.blobs.xet_url, "X-Xet-Access-Token": "xet"}
    content = {"accessToken": "xet", "exp": expiry, "casUrl": self.hub.blobs.xet_url}
    self.send(200, content, {**headers, "X-Xet-Token-Expiration": str(expiry)})


@route("repo_info", "GET", r"{repo}(?:/revision/(?P<revision>.+))?")
def repo_info(self: Handler, type: str, id: str, revision: str = "main") -> None:
    """What a repository is and which files it has."""
    repo = self.repo(type, id)
    commit = self.at(repo, revision)
    files = [{"rfilename": path} for path in sorted(commit.tree)]
    times = {"lastModified": commit.date, "createdAt": commit.date}
    facts = {"private": repo.private, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
    who = {"_id": "0" * 24, "id": id, "author": id.split("/")[0], "sha": commit.sha}
    self.send(200, {**who, **facts, **times, "siblings": files})
