"""The Hub on loopback answers the real clients as the real one does."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

from hub.clients import loopback_hub
from hub.faults import ANSWERS
from hub.server import LoopbackHub

NAME = "org/birds"
CARD = b"---\nlicense: mit\n---\n# Birds\n"


@pytest.fixture(params=["lfs", "xet"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoopbackHub]:
    with loopback_hub(tmp_path, xet=request.param == "xet") as found:
        yield found


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    found = HfApi()
    found.create_repo(NAME, repo_type="dataset", exist_ok=True)
    return found


def push(api: HfApi, files: dict[str, bytes], **more: object) -> str:
    """One commit of some files; its id."""
    additions = [CommitOperationAdd(path, data) for path, data in files.items()]
    done = api.create_commit(NAME, additions, commit_message="some files", repo_type="dataset", **more)
    return str(done.oid)


def test_what_is_committed_comes_back(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    big = bytes(range(256)) * 1200
    files = {"README.md": CARD, "data/a.arrow": b"arrow bytes" * 1000, "data/b.parquet": big}
    push(api, files)
    for path, data in files.items():
        local = api.hf_hub_download(NAME, path, repo_type="dataset")
        assert Path(local).read_bytes() == data
    assert {path: data for path, data in hub.files(NAME).items() if path in files} == files
    listed = {item.path: item for item in api.list_repo_tree(NAME, "data", repo_type="dataset")}
    assert listed["data/b.parquet"].lfs.sha256 == hashlib.sha256(big).hexdigest()
    assert bool(listed["data/b.parquet"].xet_hash) == hub.xet
    assert bool(hub.calls("lfs_batch")) != hub.xet, "large files took the other way"
    with httpx2.Client(trust_env=False) as client:
        url = f"{hub.url}/datasets/{NAME}/resolve/main/data/b.parquet"
        part = client.get(url, headers={"Range": "bytes=1000-1999"})
        assert (part.status_code, part.content) == (206, big[1000:2000])
        assert client.get(url, headers={"Range": "bytes=999999-"}).status_code == 416


def test_revisions(hub: LoopbackHub, api: HfApi) -> None:
    first = push(api, {"a.txt": b"1"})
    api.create_tag(NAME, tag="v1", repo_type="dataset")
    api.create_branch(NAME, branch="next", repo_type="dataset")
    push(api, {"a.txt": b"2"}, revision="next")
    request = api.create_pull_request(NAME, title="Mine", repo_type="dataset")
    push(api, {"a.txt": b"3"}, revision=f"refs/pr/{request.num}")
    assert [hub.files(NAME, r)["a.txt"] for r in ("main", "v1", first, "next", "refs/pr/1")] == [
        *[b"1"] * 3,
        b"2",
        b"3",
    ]
    refs = api.list_repo_refs(NAME, repo_type="dataset", include_pull_requests=True)
    assert [ref.name for ref in (*refs.branches, *refs.tags, *refs.pull_requests)] == [
        "main",
        "next",
        "v1",
        "refs/pr/1",
    ]
    assert [item.title for item in api.get_repo_discussions(NAME, repo_type="dataset")] == ["Mine"]
    operations = [CommitOperationDelete("a.txt")]
    api.create_commit(NAME, operations, commit_message="gone", repo_type="dataset", parent_commit=first)
    assert "a.txt" not in hub.files(NAME)
    with pytest.raises(HfHubHTTPError) as stale:
        push(api, {"b.txt": b""}, parent_commit=first)
    assert stale.value.response.status_code == 412
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(NAME, "a.txt", repo_type="dataset")


def test_a_card_that_the_hub_refuses_commits_nothing(hub: LoopbackHub, api: HfApi) -> None:
    before = hub.files(NAME)
    for head in (b"tags: synthetic", b"license: [not-a-licence]", b"a: ["):
        with pytest.raises(ValueError, match="metadata"):
            push(api, {"README.md": b"---\n" + head + b"\n---\n", "data.arrow": b"x"})
    assert hub.files(NAME) == before
    assert not hub.calls("lfs_put")


def test_a_private_repository_is_hidden_from_others(hub: LoopbackHub) -> None:
    HfApi().create_repo("org/secret", repo_type="dataset", private=True)
    assert HfApi().repo_info("org/secret", repo_type="dataset").private
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=False).repo_info("org/secret", repo_type="dataset")
    with pytest.raises(HfHubHTTPError):
        HfApi(token=False).create_repo("org/other", repo_type="dataset")
    assert ("dataset", "org/other") not in hub.repos


@pytest.mark.parametrize("way", [*ANSWERS, "drop", "late"])
def test_requests_break_as_asked(way: int | str, tmp_path: Path) -> None:
    with loopback_hub(tmp_path) as hub:
        api = HfApi()
        api.create_repo(NAME, repo_type="dataset")
        fault = hub.breaks("commit", way, skip=1)
        push(api, {"a.txt": b"1"})
        with pytest.raises((HfHubHTTPError, httpx2.HTTPError)):
            push(api, {"a.txt": b"2"})
        assert fault.struck == 1
        assert hub.calls("commit")[-1].status == (way if isinstance(way, int) else 0)
        assert hub.files(NAME)["a.txt"] == (b"2" if way == "late" else b"1")
        push(api, {"a.txt": b"3"})
        assert hub.files(NAME)["a.txt"] == b"3"


def test_a_cut_download_goes_on_where_it_broke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with loopback_hub(tmp_path) as hub:
        api = HfApi()
        api.create_repo(NAME, repo_type="dataset")
        data = bytes(range(256)) * 4000
        push(api, {"data.arrow": data})
        fault = hub.breaks("resolve", "cut", skip=1)
        local = api.hf_hub_download(NAME, "data.arrow", repo_type="dataset")
        assert Path(local).read_bytes() == data
        assert fault.struck == 1


def test_bytes_that_are_not_what_their_name_says_are_refused(tmp_path: Path) -> None:
    with loopback_hub(tmp_path) as hub, httpx2.Client(trust_env=False) as client:
        url = f"{hub.url}/lfs/{'0' * 64}"
        assert client.put(url, content=io.BytesIO(b"other bytes").read()).status_code == 400
        assert not hub.blobs.has("0" * 64)
