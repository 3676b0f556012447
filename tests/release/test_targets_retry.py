"""Whatever breaks while publishing: the repository ends as after an unbroken push, no finished byte is sent twice."""

import time
from collections import Counter
from pathlib import Path

import pytest
from hub.clients import loopback_hub
from hub.faults import ANSWERS, WAYS, Way
from hub.server import LoopbackHub
from small_release import Waits

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.release.targets import Retry, retry_after
from diffaug_datasets.run.store import Run

NAME = "org/fashion"
KINDS = ("repo_info", "create", "refs", "tree", "preupload", "lfs_batch", "lfs_put", "lfs_verify")
KINDS += ("validate_yaml", "resolve", "commit", "tag")
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def unbroken(finished: Run, other_plan: Run, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The repository after two pushes that nothing disturbed."""
    with loopback_hub(tmp_path_factory.mktemp("unbroken")) as hub:
        publish(finished, NAME)
        publish(other_plan, NAME)
        return hub.files(NAME)


def puts(hub: LoopbackHub) -> Counter[str]:
    """How often each object came in whole; an answer that was lost leaves no trace but the object itself."""
    return Counter(call.path for call in hub.calls("lfs_put|lfs_complete") if call.status == 200)


def in_order(hub: LoopbackHub) -> bool:
    """Whether each commit's card names only files that this commit has."""
    for commit in hub.repo(NAME).commits.values():
        if "README.md" in commit.tree:
            text = hub.blobs.read(commit.tree["README.md"]).decode()
            named = {line.strip(" -") for line in text.splitlines() if line.strip().startswith("- data/")}
            if not named <= set(commit.tree):
                return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_request_breaks_in_every_way(
    kind: str, hub: LoopbackHub, finished: Run, other_plan: Run, unbroken: Files, waits: Waits
) -> None:
    """One after the other: the first request of the kind meets the first way, its repetition the next."""
    faults = [hub.breaks(kind, way) for way in WAYS]
    retry = Retry(tries=len(WAYS) + 1, sleep=waits)
    first = publish(finished, NAME, retry=retry)
    second = publish(other_plan, NAME, retry=retry)
    assert hub.files(NAME) == unbroken
    assert hub.repo(NAME).tags == {first.tag: first.commit, second.tag: second.commit}
    assert max(puts(hub).values()) == 1
    assert in_order(hub)
    assert [fault.way for fault in faults if not fault.struck] == []


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["lfs", "xet"])
def test_every_single_request_breaks(
    mode: str, way: Way, tmp_path: Path, finished: Run, other_plan: Run, unbroken: Files, waits: Waits
) -> None:
    with loopback_hub(tmp_path / "whole", xet=mode == "xet") as hub:
        publish(finished, NAME)
        publish(other_plan, NAME)
        requests = len(hub.log)
    for number in range(requests):
        with loopback_hub(tmp_path / str(number), xet=mode == "xet") as hub:
            fault = hub.breaks(".*", way, skip=number)
            publish(finished, NAME, retry=waits.retry)
            publish(other_plan, NAME, retry=waits.retry)
            assert fault.struck == 1
            assert hub.files(NAME) == unbroken, f"request {number} of {requests}"
            assert len(hub.repo(NAME).tags) == 2
            assert in_order(hub)


def test_a_push_that_died_sends_only_what_is_left(hub: LoopbackHub, finished: Run, waits: Waits) -> None:
    hub.breaks("lfs_put", 403, skip=3, times=100)
    with pytest.raises(PublishError, match="refused with 403"):
        publish(finished, NAME, retry=waits.retry)
    sent = puts(hub)
    assert 3 <= len(sent) < 7
    assert set(hub.files(NAME)) == {".gitattributes"}, "something half was visible"
    hub.faults.clear()
    publish(finished, NAME, retry=waits.retry)
    assert set(puts(hub)) > set(sent)
    assert max(puts(hub).values()) == 1


def test_a_server_that_never_recovers_is_one_sentence(hub: LoopbackHub, finished: Run, waits: Waits) -> None:
    hub.breaks("commit", 503, times=1000)
    with pytest.raises(
        PublishError, match=r"org/fashion: still failing after 8 tries \(last answer: 503\); run the same"
    ):
        publish(finished, NAME, retry=waits.retry)
    assert len(waits.seconds) == 7
    assert set(hub.files(NAME)) == {".gitattributes"}
    hub.faults.clear()
    publish(finished, NAME)
    assert max(puts(hub).values()) == 1


def test_the_commit_waits_as_long_as_the_server_asks(hub: LoopbackHub, finished: Run, waits: Waits) -> None:
    hub.breaks("commit", 429, Retry_After="17")
    hub.breaks("commit", 503)
    hub.breaks("commit", 429, RateLimit='"api";r=0;t=33')
    publish(finished, NAME, retry=waits.retry)
    assert waits.seconds == [17.0, 2.0, 33.0]


def test_a_real_wait(hub: LoopbackHub, finished: Run) -> None:
    hub.breaks("commit", 429, Retry_After="1")
    begin = time.monotonic()
    publish(finished, NAME)
    assert time.monotonic() - begin >= 1
    assert [call.status for call in hub.calls("commit")] == [429, 200]


def test_a_lost_answer_leaves_one_commit_and_one_tag(hub: LoopbackHub, finished: Run, waits: Waits) -> None:
    for kind in ("create", "commit", "tag"):
        hub.breaks(kind, "late")
    publish(finished, NAME, retry=waits.retry)
    assert [len(hub.calls(kind)) for kind in ("create", "commit", "tag")] == [1, 1, 1]
    assert len(hub.repo(NAME).commits) == 2


def test_a_network_that_breaks_while_the_card_is_read_does_not_lose_it(
    hub: LoopbackHub, finished: Run, other_plan: Run, waits: Waits
) -> None:
    """huggingface_hub tells a broken connection much like a missing file."""
    from huggingface_hub import HfApi

    publish(finished, NAME)
    text = hub.files(NAME)["README.md"] + b"\nBy hand.\n"
    HfApi().upload_file(path_or_fileobj=text, path_in_repo="README.md", repo_id=NAME, repo_type="dataset")
    hub.breaks("resolve", "drop", times=6)
    publish(other_plan, NAME, retry=waits.retry)
    assert b"\nBy hand.\n" in hub.files(NAME)["README.md"]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "12"}, 12.0),
        ({"Retry-After": "999999"}, 3600.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"RateLimit": '"api";r=0;t=40'}, 40.0),
        ({}, None),
    ],
)
def test_what_the_server_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_pull_requests_and_branches_break_too(hub: LoopbackHub, finished: Run, waits: Waits) -> None:
    for kind in ("discussions", "open_request", "branch"):
        for way in (*ANSWERS, "drop", "late"):
            hub.breaks(kind, way)
    retry = Retry(tries=40, sleep=waits)
    publish(finished, NAME, PublishOptions(create_pr=True), retry)
    publish(finished, NAME, PublishOptions(revision="next"), retry)
    assert list(hub.repo(NAME).requests) == [1]
    assert set(hub.repo(NAME).heads) == {"main", "next", "refs/pr/1"}
    request, branch = hub.files(NAME, "refs/pr/1"), hub.files(NAME, "next")
    assert {path for path in request if request[path] != branch.get(path)} == {"README.md"}, "they differ by the tag"


def test_offline_is_said_at_once(finished: Run, waits: Waits) -> None:
    """No Hub here: this process is told to stay off the network."""
    with pytest.raises(PublishError, match="org/fashion: HF_HUB_OFFLINE is set, so the Hub is out of reach; unset it"):
        publish(finished, NAME, retry=waits.retry)
    assert not waits.seconds
