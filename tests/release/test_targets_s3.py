"""Publishing to S3 over HTTP (moto's server on loopback): receipts, `run.json` last, broken pushes, loading back."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from object_stores import BUCKET, ObjectStore, object_store

from diffaug_datasets import load
from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.release.layout import read_release
from diffaug_datasets.release.publishing import preview, publish
from diffaug_datasets.release.repository import AddressFiles
from diffaug_datasets.run.store import Run

CONFIG = "fashion_1shot_genie"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("aws")) as found:
        yield found


@pytest.fixture
def address(store: ObjectStore, tmp_path: Path) -> str:
    """A place of this test's own; the log begins here."""
    store.log.clear()
    return f"s3://{BUCKET}/{tmp_path.name}"


def tree(address: str) -> dict[str, bytes]:
    """Relative path -> bytes of everything there."""
    files, root = fsspec.core.url_to_fs(address)
    files.invalidate_cache()
    return {path.removeprefix(root).lstrip("/"): files.cat_file(path) for path in files.find(root)}


def test_everything_arrives_and_run_json_last(store: ObjectStore, address: str, finished: Run) -> None:
    done = publish(finished, address)
    writes = store.writes()
    files = tree(address)
    release = read_release(files[f"{done.folder}/run.json"], "run.json")
    named = {f.path: (f.sha256, f.size) for f in release.files} | {f.file: (f.sha256, f.size) for f in release.beside}
    for name, (sha256, size) in named.items():
        assert json.loads(files[f"{done.folder}/{name}.receipt.json"]) == {"sha256": sha256, "size": size}
        assert len(files[f"{done.folder}/{name}"]) == size
    assert {path for path in files if path.endswith(".partial")} == set()
    last = f"{address.removeprefix(f's3://{BUCKET}/')}/{done.folder}/run.json"
    assert (writes[-2].method, writes[-2].copied, writes[-2].key) == ("PUT", True, last)
    assert (writes[-1].method, writes[-1].key) == ("POST", f"/{BUCKET}"), "more than the removal of the partial file"
    copies = [one.key for one in writes if one.copied]
    assert copies.index(last) == len(copies) - 1 == len(files) - 1
    for key in copies[:-1]:
        if f"{key}.receipt.json" in copies:
            assert copies.index(key) < copies.index(f"{key}.receipt.json"), "a receipt came before its file"


def test_a_reader_gets_what_lies_there_now(address: str) -> None:
    """Also where the same process looked before, and what it got then stays as it was."""
    files, root = fsspec.core.url_to_fs(address)
    files.pipe_file(f"{root}/README.md", b"one")
    first = AddressFiles(address).local("README.md")
    assert AddressFiles(address).local("README.md") == first
    files.pipe_file(f"{root}/README.md", b"two")
    assert AddressFiles(address).local("README.md").read_bytes() == b"two"
    assert first.read_bytes() == b"one"


@pytest.mark.full
def test_another_plan_takes_the_place_of_one_that_was_loaded(address: str, finished: Run, other_plan: Run) -> None:
    publish(finished, address)
    assert load(address, CONFIG).to_dict() == load(finished.folder).to_dict()
    publish(other_plan, address)
    assert load(address, CONFIG)["row_id"][:] == load(other_plan.folder)["row_id"][:]


@pytest.mark.parametrize("after", [13, *(pytest.param(n, marks=pytest.mark.full) for n in (0, 1, 2, 40, 56))])
def test_a_push_that_died_is_completed(store: ObjectStore, address: str, finished: Run, after: int) -> None:
    store.left = after
    try:
        with pytest.raises(PublishError, match=r"cannot be (written|read) \("):
            publish(finished, address)
    finally:
        store.left = None
    assert not any(path.endswith("run.json") for path in tree(address))
    publish(finished, address)
    assert load(address, CONFIG).to_dict() == load(finished.folder).to_dict()
    sent = Counter(one.key for one in store.writes() if one.method == "PUT" and not one.copied)
    again = {key.removesuffix(".partial").removesuffix(".receipt.json") for key, n in sent.items() if n > 1}
    assert len(again) <= 1, f"sent again though they had arrived: {again}"
    store.log.clear()
    assert publish(finished, address).sent == 0
    names = {one.key.rsplit("/", 1)[-1].removesuffix(".partial") for one in store.writes() if one.method == "PUT"}
    assert names == {"README.md", "croissant.json", "run.json"}


def test_a_bucket_that_is_not_there_is_one_sentence(store: ObjectStore, finished: Run) -> None:
    with pytest.raises(PublishError, match="s3://no-such-shelf/fashion: "):
        load("s3://no-such-shelf/fashion")
    with pytest.raises(PublishError, match="s3://no-such-shelf/fashion: cannot be written"):
        publish(finished, "s3://no-such-shelf/fashion")
    assert not any("no-such-shelf" in one.key and one.status < 300 and one.method == "PUT" for one in store.log)


def test_missing_credentials_are_one_sentence(
    store: ObjectStore, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    for act in (publish, preview):
        with pytest.raises(PublishError, match=r"(?i)credentials"):
            act(finished, f"s3://{BUCKET}/other")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
