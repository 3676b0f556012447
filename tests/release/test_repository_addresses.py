"""Addresses as people have them: with passwords and signatures, which nobody may read, and with odd signs in names."""

import json
import logging
import re
import shlex
import threading
import traceback
from base64 import b64encode
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fsspec
import pytest
from command_line import Command
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from diffaug_datasets import load
from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.release.publishing import preview, publish
from diffaug_datasets.release.repository import Repository
from diffaug_datasets.release.targets import AddressTarget
from diffaug_datasets.run.store import Run

SECRETS = ("alice", "hunter2", "SIGNATURE")
ODD = ("a::b", "a b%20#1", "what?", "[1]*", "é路", "it's", 'say "so" $HOME', "~")


class Vault(LocalFileSystem):
    """A store behind a login, kept in a folder; it tells the whole address whenever it refuses."""

    protocol = "vault"
    folder = ""
    refuses = False

    @classmethod
    def _strip_protocol(cls, path: str) -> Any:
        place = str(path)
        if place.startswith("vault://"):
            place = f"{cls.folder}/{place.partition('://')[2].partition('/')[2]}"
        return place.partition("?")[0].rstrip("/")

    def pipe_file(self, path: str, value: bytes, **more: Any) -> None:
        if self.refuses:
            raise PermissionError("vault://alice:hunter2@host/share?sig=SIGNATURE: alice may not, hunter2 is wrong")
        super().pipe_file(path, value, **more)


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of the store that carries all that may not be told."""
    fsspec.register_implementation("vault", Vault, clobber=True)
    monkeypatch.setattr(Vault, "folder", str(tmp_path / "vault"))
    return "vault://alice:hunter2@host/share?sig=SIGNATURE"


def telling(text: str) -> list[str]:
    return [word for word in SECRETS if word in text]


def test_passwords_and_signatures_are_told_nobody(
    vault: str, finished: Run, diffaug: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Not in files, lines, logs or errors, of what succeeds and of what does not."""
    caplog.set_level(logging.DEBUG)
    row = finished.plan.rows[0].row_id
    said = [
        diffaug("publish", finished.folder, vault, "--dry-run"),
        diffaug("publish", finished.folder, vault),
        diffaug("publish", finished.folder, vault, "--json"),
        diffaug("verify", vault, "--sample", 1, "--device", "cpu"),
        diffaug("verify", vault, "--json"),
        diffaug("regen", vault, row, "--device", "cpu"),
    ]
    assert [answer.code for answer in said] == [0] * 6, said
    assert len(load(vault)) == 20
    assert 'load("vault://host/share"' in (tmp_path / "vault" / "share" / "README.md").read_text()
    said += [
        diffaug("verify", vault, "--config", "none"),
        diffaug("verify", vault.replace("share", "empty")),
        diffaug("build", vault.replace("share", "empty")),
        diffaug("publish", finished.folder, vault.replace("vault:", "nowhere:")),
        diffaug("publish", finished.folder, vault, "--private"),
        diffaug("status", vault),
        diffaug("plan", "fashion_1shot_genie", "--source", vault, "--dry-run"),
    ]
    assert [answer.code for answer in said[6:]] == [2] * 7, said
    monkeypatch.setattr(Vault, "refuses", True)
    said.append(diffaug("publish", finished.folder, vault.replace("share", "new")))
    assert "cannot be written (vault://host/share: *** may not, *** is wrong)" in said[-1].sentence
    told = "".join(answer.out + answer.err for answer in said)
    for work in (
        lambda: publish(finished, vault.replace("share", "new")),
        lambda: publish(finished, vault.replace("vault:", "nowhere:")),
        lambda: load(vault, "none"),
        lambda: load(vault.replace("share", "empty")),
    ):
        with pytest.raises(PublishError) as broken:
            work()
        told += "".join(traceback.format_exception(broken.value)) + repr(broken.value)
    told += repr(AddressTarget(vault)) + repr(Repository.open(vault)) + repr(publish(finished, "memory://x"))
    monkeypatch.setattr(Vault, "refuses", False)
    told += repr(publish(finished, vault)) + preview(finished, vault).target + caplog.text
    assert telling(told) == [], [line for line in told.splitlines() if telling(line)]
    files = [*(tmp_path / "vault").rglob("*"), *finished.folder.rglob("*")]
    assert [path for path in files if path.is_file() and telling(path.read_bytes().decode("latin-1"))] == []


class Signed(SimpleHTTPRequestHandler):
    """Files for whoever shows user, password and signature with every request."""

    def do_GET(self) -> None:
        login = "Basic " + b64encode(b"alice:hunter2").decode()
        asked = urlsplit(self.path)
        if self.headers.get("Authorization") != login or parse_qs(asked.query) != {"sig": ["SIGNATURE"]}:
            self.send_error(403)
        else:
            super().do_GET()

    do_HEAD = do_GET

    def log_message(self, *words: object) -> None:
        """Nothing."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Where a server gives out a folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Signed, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_signed_web_address_is_read(web: str, finished: Run, tmp_path: Path, diffaug: Command) -> None:
    publish(finished, f"file://{tmp_path}/fashion")
    address = f"http://alice:hunter2@{web}/fashion/?sig=SIGNATURE"
    assert load(address)["row_id"][:] == load(finished.folder)["row_id"][:]
    said = [diffaug("verify", address), diffaug("verify", address.replace("SIGNATURE", "SIGNATURES"))]
    assert [answer.code for answer in said] == [0, 2], said
    assert said[0].out.startswith(f"http://{web}/fashion/: fashion_1shot_genie")
    assert "403" in said[1].sentence
    assert telling(said[0].out + said[0].err + said[1].err) == []
    refused = diffaug("publish", finished.folder, address.replace("fashion", "new"))
    assert "cannot be" in refused.sentence
    assert telling(refused.err) == []


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_names_with_odd_signs(kind: str, finished: Run, tmp_path: Path, diffaug: Command) -> None:
    """They lie where the address says, are loaded from there, and the card's own lines hold the same words."""
    for name in ODD:
        address = f"file://{tmp_path}/{name}/set" if kind == "file" else f"memory://{tmp_path.name}/{name}/set"
        if kind == "memory" and "::" in name:
            assert "puts one file system into another" in diffaug("publish", finished.folder, address).sentence
            continue
        done = publish(finished, address)
        if kind == "file":
            assert (tmp_path / name / "set" / done.folder / "run.json").is_file(), name
            assert [path.name for path in tmp_path.iterdir()] == [name]
        assert len(load(address)) == 20, name
        assert diffaug("verify", address).code == 0
        assert publish(finished, address).sent == 0, name
        if kind == "file":
            card = (tmp_path / name / "set" / "README.md").read_text("utf-8")
            words = [shlex.split(line) for line in re.findall(r"^\$ diffaug (.*)$", card, re.M)]
            assert {line[1] for line in words} == {address}
            [line] = re.findall(r"^train = load\((.*), check=True\)$", card, re.M)
            assert json.loads(f"[{line}]")[0] == address
            (tmp_path / name).rename(tmp_path.with_name(f"{tmp_path.name} {ODD.index(name)}"))
    MemoryFileSystem.store.clear()


def test_a_place_of_this_machine_may_be_relative(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diffaug: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for address, place in {"file://shelf/a": "shelf/a", "local://b": "b", "file://~/c": "home/c"}.items():
        publish(finished, address)
        assert (tmp_path / place / "README.md").is_file()
        assert len(load(address)) == 20
    assert len(load("~/c")) == 20


def test_a_card_in_another_encoding_is_left_alone(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"# caf\xe9\n")
    with pytest.raises(PublishError, match=r"README\.md is no UTF-8 text; put it right or remove it"):
        publish(finished, f"file://{tmp_path}")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["README.md"]
