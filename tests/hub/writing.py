"""Requests that change a repository: create, validate a card, commit, branches, tags, pull requests."""

import base64
import json
import re
from typing import Any

import yaml

from hub.server import Handler, Refusal, route
from hub.store import Entry, Repo, Tree, git_sha1

ATTRIBUTES = b"*.arrow filter=lfs diff=lfs merge=lfs -text\n*.parquet filter=lfs diff=lfs merge=lfs -text\n"
LICENCES = ("mit", "apache-2.0", "other", "unknown", "cc", "openrail", "creativeml-openrail-m", "afl-3.0", "bsd")
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")


@route("create", "POST", "/api/repos/create", writes=True)
def create(self: Handler) -> None:
    """A new repository with one commit; 409 with its address where it exists."""
    self.may_write()
    wanted = self.json()
    kind = wanted.get("type") or "model"
    name = f"{wanted.get('organization') or self.hub.user}/{wanted['name']}"
    url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{name}"
    with self.hub.lock:
        if (kind, name) in self.hub.repos:
            self.send(409, {"error": "You already created this repo", "url": url})
            return
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        repo = self.hub.repos[kind, name] = Repo(kind, name, private)
        repo.commit("main", {".gitattributes": _regular(self, ATTRIBUTES)}, "initial commit")
    self.send(200, {"url": url, "name": name})


def _regular(self: Handler, data: bytes) -> Entry:
    oid = git_sha1(data)
    self.hub.blobs.put(oid, data)
    return Entry(len(data), oid)


@route("validate_yaml", "POST", "/api/validate-yaml")
def validate_yaml(self: Handler) -> None:
    """400 where the metadata of a card is not what the Hub accepts."""
    errors = [{"message": text} for text in _card_errors(self.json()["content"])]
    self.send(400 if errors else 200, {"errors": errors, "warnings": []})


def _card_errors(content: str) -> list[str]:
    head = re.match(r"\A---\r?\n(.*?)\r?\n---", content, re.S)
    try:
        found = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError as error:
        return [str(error)]
    if found is not None and not isinstance(found, dict):
        return ["metadata must be a mapping"]
    return [text for key, value in (found or {}).items() if (text := _key_error(key, value))]


def _key_error(key: str, value: Any) -> str:
    lists = ("tags", "task_categories", "source_datasets", "annotations_creators", "size_categories", "configs")
    if key in lists and not isinstance(value, list):
        return f'"{key}" must be an array'
    if key == "license" and not all(_licence(item) for item in (value if isinstance(value, list) else [value])):
        return f'"license" must be one of the known identifiers, got {value!r}'
    if key == "size_categories" and not set(value) <= set(SIZES):
        return f'"size_categories" must be one of {SIZES}'
    if key == "configs":
        names = [config.get("config_name") for config in value]
        defaults = sum(bool(config.get("default")) for config in value)
        if len(set(names)) != len(names) or defaults > 1:
            return '"configs" must have distinct names and at most one default'
    return ""


def _licence(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(LICENCES)


@route("commit", "POST", r"{repo}/commit/(?P<revision>[^/]+)", writes=True)
def commit(self: Handler, type: str, id: str, revision: str) -> None:
    """A commit, whole or not at all; 412 where `parentCommit` is not the head."""
    repo = self.repo(type, id, write=True)
    operations = [json.loads(line) for line in self.received.splitlines() if line.strip()]
    header = next(item["value"] for item in operations if item["key"] == "header")
    with self.hub.lock:
        if revision not in repo.heads:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if header.get("parentCommit") and header["parentCommit"] != repo.heads[revision]:
            raise Refusal(412, message="The expected parent commit is not the head; please refresh and try again")
        tree = dict(self.at(repo, revision).tree)
        for item in operations:
            tree = _applied(self, tree, item["key"], item["value"])
        answer: dict[str, Any] = {}
        if "create_pr" in self.query:
            number = repo.propose(header["summary"])
            revision, answer = (
                f"refs/pr/{number}",
                {"pullRequestUrl": f"{self.hub.url}/datasets/{id}/discussions/{number}"},
            )
        made = repo.commit(revision, tree, header["summary"])
    url = f"{self.hub.url}/{type}s/{id}/commit/{made.sha}"
    self.send(200, {"success": True, "commitOid": made.sha, "commitUrl": url, "hookOutput": "", **answer})


def _applied(self: Handler, tree: Tree, key: str, value: dict[str, Any]) -> Tree:
    if key == "file":
        data = base64.b64decode(value["content"]) if value.get("encoding") == "base64" else value["content"].encode()
        return {**tree, value["path"]: _regular(self, data)}
    if key == "lfsFile":
        entry = self.hub.blobs.entry(value["oid"])
        if entry is None:
            raise Refusal(400, message=f"LFS pointer pointed to a file that does not exist: {value['path']}")
        return {**tree, value["path"]: entry}
    if key == "deletedFile":
        if value["path"] not in tree:
            raise Refusal(404, "EntryNotFound", "A file with this name doesn't exist")
        return {path: entry for path, entry in tree.items() if path != value["path"]}
    if key == "deletedFolder":
        return {path: entry for path, entry in tree.items() if not path.startswith(value["path"].rstrip("/") + "/")}
    return tree


@route("branch", "POST", r"{repo}/branch/(?P<branch>[^/]+)", writes=True)
def branch(self: Handler, type: str, id: str, branch: str) -> None:
    """A branch from a starting point; 409 where it exists."""
    repo = self.repo(type, id, write=True)
    with self.hub.lock:
        if branch in repo.heads:
            raise Refusal(409, message="Reference already exists")
        repo.heads[branch] = self.at(repo, self.json().get("startingPoint") or "main").sha
    self.send(200, {})


@route("tag", "POST", r"{repo}/tag/(?P<revision>[^/]+)", writes=True)
def tag(self: Handler, type: str, id: str, revision: str) -> None:
    """A tag at a revision; 409 where it exists."""
    repo = self.repo(type, id, write=True)
    name = self.json()["tag"]
    with self.hub.lock:
        if name in repo.tags:
            raise Refusal(409, message="Tag reference exists already")
        repo.tags[name] = self.at(repo, revision).sha
    self.send(200, {})


@route("open_request", "POST", "{repo}/discussions", writes=True)
def open_request(self: Handler, type: str, id: str) -> None:
    """A pull request without a change yet."""
    repo = self.repo(type, id, write=True)
    with self.hub.lock:
        number = repo.propose(self.json()["title"])
    self.send(200, {"num": number, "pullRequest": True})
