"""Publishing to the Hub: what lies there afterwards, what a reader sees meanwhile, and what stays of earlier pushes."""

import hashlib
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from hub.clients import loopback_hub
from hub.server import LoopbackHub
from hub.store import Entry, git_sha1
from huggingface_hub import DatasetCard, HfApi
from small_release import Waits

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.files import sha256_file
from diffaug_datasets.release import targets
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.layout import read_release
from diffaug_datasets.release.publishing import preview, publish
from diffaug_datasets.run.store import Run

NAME = "org/fashion"


def folder_of(run: Run) -> str:
    """Where a run's files lie in a repository."""
    return f"data/{run.plan.header.name}/{run.plan.id[:16]}"


def edit(old: str, new: str) -> str:
    """A person changes the README on the Hub; the text that is there now."""
    api = HfApi()
    text = Path(api.hf_hub_download(NAME, "README.md", repo_type="dataset")).read_text("utf-8")
    changed = text.replace(old, new)
    assert changed != text
    api.upload_file(path_or_fileobj=changed.encode(), path_in_repo="README.md", repo_id=NAME, repo_type="dataset")
    return changed


def head_of(hub: LoopbackHub, revision: str = "main") -> dict[str, object]:
    """The YAML head of the card."""
    return DatasetCard(hub.files(NAME, revision)["README.md"].decode()).data.to_dict()


def test_the_layout(hub: LoopbackHub, finished: Run) -> None:
    done = publish(finished, NAME)
    files, place = hub.files(NAME), folder_of(finished)
    release = read_release(files[f"{place}/run.json"], "run.json")
    assert done.commit == hub.repo(NAME).heads["main"] == hub.repo(NAME).tags[done.tag]
    assert len(hub.calls("commit")) == 1
    names = {f"{place}/{name}" for name in (*(f.path for f in release.files), *(f.file for f in release.beside))}
    assert set(files) == names | {f"{place}/run.json", "README.md", "croissant.json", ".gitattributes"}
    shards = [files[f"{place}/{file.path}"] for file in release.files]
    stored = json.loads((finished.folder / "run.json").read_text())["files"]
    assert shards == [(finished.folder / file["path"]).read_bytes() for file in stored]
    assert [file.sha256 for file in release.files] == [file["sha256"] for file in stored]


def test_nothing_published_names_a_place_of_the_machine(hub: LoopbackHub, finished: Run) -> None:
    publish(finished, NAME)
    telling = [str(finished.folder.parent), str(Path.home()), f"{socket.gethostname()}:", hub.token]
    for path, data in hub.files(NAME).items():
        for word in telling:
            assert word.encode() not in data, f"{path} has {word}"


def test_the_provenance_has_every_planned_row(hub: LoopbackHub, finished: Run, tmp_path: Path) -> None:
    publish(finished, NAME)
    path = tmp_path / "rows.parquet"
    path.write_bytes(hub.files(NAME)[f"{folder_of(finished)}/provenance.parquet"])
    rows = pq.read_table(path).to_pylist()
    assert [row["row_id"] for row in rows] == [row.row_id for row in (*finished.plan.real, *finished.plan.rows)]
    assert {row["status"] for row in rows} == {"kept"}
    stored = {}
    for shard in (*finished.plan.real_shards(), *finished.plan.shards()):
        table = finished.table(shard)
        stored |= dict(zip(table["row_id"].to_pylist(), table["pixel_sha256"].to_pylist(), strict=True))
    assert {row["row_id"]: row["pixel_sha256"] for row in rows} == stored


def test_runs_and_configs_share_a_repository(
    hub: LoopbackHub, finished: Run, other_plan: Run, other_config: Run
) -> None:
    first = publish(finished, NAME)
    before = hub.files(NAME)
    publish(other_config, NAME)
    second = publish(other_plan, NAME)
    files = hub.files(NAME)
    configs = head_of(hub)["configs"]
    names = [config["config_name"] for config in configs]
    base = ["fashion_1shot_genie", "fashion_1shot_seed1_genie"]
    assert names == [f"{name}{end}" for name in base for end in ("", "_synthetic", "_provenance")]
    assert [bool(config.get("default")) for config in configs] == [True, *[False] * 5]
    listed = {path for config in configs for split in config["data_files"] for path in split["path"]}
    assert listed <= set(files)
    assert not any(path.startswith(folder_of(finished)) for path in listed), "the card still names the old plan"
    assert {run: any(path.startswith(folder_of(run)) for path in listed) for run in (other_plan, other_config)} == {
        other_plan: True,
        other_config: True,
    }
    assert hub.files(NAME, first.tag) == before, "the old plan's tag moved"
    assert not any(path.startswith(folder_of(finished)) for path in files), "the old plan still lies there"
    assert second.tag != first.tag
    assert files["README.md"].count(b"<!-- diffaug: begin") == 2


def test_publishing_twice_changes_nothing_and_sends_nothing(hub: LoopbackHub, finished: Run) -> None:
    first = publish(finished, NAME)
    seen = len(hub.writes())
    assert publish(finished, NAME).commit == first.commit
    assert len(hub.writes()) == seen


def test_what_people_write_stays(hub: LoopbackHub, finished: Run, other_plan: Run, other_config: Run) -> None:
    publish(finished, NAME)
    edit("# fashion\n", "# Our fashion\n\nRead this first.\n")
    edit("license: mit\n", "license: apache-2.0\nlanguage: en\n")
    edit("- synthetic\n", "- synthetic\n- ours\n")
    edit("<!-- diffaug: end fashion_1shot_genie -->", "<!-- diffaug: end fashion_1shot_genie -->\n\nAnd this last.")
    publish(other_plan, NAME)
    publish(other_config, NAME)
    card = DatasetCard(hub.files(NAME)["README.md"].decode())
    assert card.text.startswith("\n# Our fashion\n\nRead this first.\n")
    assert "\nAnd this last.\n" in card.text
    assert (card.data["license"], card.data["language"]) == ("apache-2.0", "en")
    assert card.data["tags"].count("ours") == card.data["tags"].count("synthetic") == 1
    assert other_plan.plan.id[:16] in card.text
    assert finished.plan.id[:16] not in card.text


def test_an_edit_between_reading_and_committing_is_merged(
    hub: LoopbackHub, finished: Run, other_plan: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card is read, a person saves theirs, then our commit arrives: the server says 412, and both stay."""
    publish(finished, NAME)
    merge, seen = targets.dataset_card, []

    def slowly(old: str | None, *words: object) -> str:
        merged = merge(old, *words)
        seen.append(merged)
        if len(seen) == 2:  # the first time is before any byte goes
            edit("# fashion\n", "# Edited meanwhile\n")
        return merged

    monkeypatch.setattr(targets, "dataset_card", slowly)
    publish(other_plan, NAME, retry=Waits().retry)
    assert [call.status for call in hub.calls("commit")[-2:]] == [412, 200]
    body = hub.files(NAME)["README.md"].decode()
    assert "# Edited meanwhile\n" in body
    assert other_plan.plan.id[:16] in body


def test_many_files_go_in_several_commits_and_the_card_last(
    hub: LoopbackHub, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "ONE_COMMIT", 5)
    publish(finished, NAME)
    commits = list(hub.repo(NAME).commits.values())[1:]
    assert len(commits) > 2
    for commit in commits[:-1]:
        assert "README.md" not in commit.tree
        assert f"{folder_of(finished)}/run.json" not in commit.tree
    assert {"README.md", f"{folder_of(finished)}/run.json"} <= set(commits[-1].tree)


def test_a_private_repository(hub: LoopbackHub, finished: Run) -> None:
    publish(finished, NAME, PublishOptions(private=True))
    assert hub.repo(NAME).private
    publish(finished, NAME, PublishOptions(private=True))


def test_a_public_repository_does_not_pass_for_a_private_one(hub: LoopbackHub, finished: Run, other_plan: Run) -> None:
    publish(finished, NAME)
    before = len(hub.writes())
    with pytest.raises(PublishError, match="is there already, and public; make it private in its settings"):
        publish(other_plan, NAME, PublishOptions(private=True))
    assert len(hub.writes()) == before


def test_a_branch(hub: LoopbackHub, finished: Run) -> None:
    publish(finished, NAME, PublishOptions(revision="next"))
    assert "README.md" in hub.files(NAME, "next")
    assert set(hub.files(NAME)) == {".gitattributes"}


def test_a_pull_request_is_opened_once(hub: LoopbackHub, finished: Run, waits: Waits) -> None:
    hub.breaks("open_request", "late")
    hub.breaks("commit", 403)
    with pytest.raises(PublishError, match="refused with 403"):
        publish(finished, NAME, PublishOptions(create_pr=True), waits.retry)
    done = publish(finished, NAME, PublishOptions(create_pr=True), waits.retry)
    assert (done.revision, done.tag) == ("refs/pr/1", "")
    assert list(hub.repo(NAME).requests) == [1]
    card = hub.files(NAME, "refs/pr/1")["README.md"].decode()
    assert preview(finished, NAME, PublishOptions(create_pr=True)).card == card
    assert set(hub.files(NAME)) == {".gitattributes"}
    assert not hub.repo(NAME).tags


@pytest.mark.parametrize("ended", ["closed", "merged"])
def test_a_request_that_is_closed_is_not_written_to(hub: LoopbackHub, finished: Run, ended: str) -> None:
    first = publish(finished, NAME, PublishOptions(create_pr=True))
    assert publish(finished, NAME, PublishOptions(create_pr=True)).revision == first.revision
    hub.repo(NAME).ended[1] = ended
    commit = hub.repo(NAME).heads["refs/pr/1"]
    second = publish(finished, NAME, PublishOptions(create_pr=True))
    assert (first.revision, second.revision) == ("refs/pr/1", "refs/pr/2")
    assert hub.repo(NAME).heads["refs/pr/1"] == commit
    assert "README.md" in hub.files(NAME, "refs/pr/2")


@pytest.mark.parametrize("name", ["plan.json", "train-00001-of-00004.arrow", "run.json"])
def test_a_file_with_other_bytes_is_sent_again(hub: LoopbackHub, finished: Run, name: str) -> None:
    """What lies at the right path is not therefore right: small files in git, large ones by LFS."""
    publish(finished, NAME)
    whole, path = hub.files(NAME), f"{folder_of(finished)}/{name}"
    HfApi().upload_file(path_or_fileobj=b"other" + whole[path], path_in_repo=path, repo_id=NAME, repo_type="dataset")
    assert hub.files(NAME) != whole
    assert publish(finished, NAME).sent == 1
    assert hub.files(NAME) == whole


def test_parquet_and_back(hub: LoopbackHub, finished: Run, other_config: Run) -> None:
    publish(finished, NAME)
    publish(finished, NAME, PublishOptions(file_format="parquet"))
    files, place = hub.files(NAME), folder_of(finished)
    shards = sorted(path for path in files if path.startswith(f"{place}/train-"))
    assert [path[-8:] for path in shards] == [".parquet"] * 4
    assert not any(path.endswith(".arrow") for path in files)
    before = len(hub.writes())
    with pytest.raises(PublishError, match="reads one format a repository"):
        publish(other_config, NAME)
    assert hub.files(NAME) == files
    assert len(hub.writes()) == before, "bytes were sent before it was refused"


def test_both_modes_give_the_same_repository(finished: Run, tmp_path: Path) -> None:
    found = []
    for mode in ("lfs", "xet"):
        with loopback_hub(tmp_path / mode, xet=mode == "xet") as hub:
            publish(finished, NAME)
            found.append(hub.files(NAME))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("target", "options", "reason"),
    [
        ("fashion", PublishOptions(), "got the target 'fashion', expected org/name"),
        ("../up/fashion", PublishOptions(), "expected org/name"),
        (NAME, PublishOptions(create_pr=True, revision="x"), "leave --revision out"),
        ("memory://a", PublishOptions(private=True), "are for the Hub alone"),
        ("hf://datasets/org/fashion", PublishOptions(), "give a Hub dataset as org/name"),
        ("nowhere://a", PublishOptions(), "no place that fsspec reaches"),
    ],
)
def test_targets_that_cannot_be(finished: Run, target: str, options: PublishOptions, reason: str) -> None:
    with pytest.raises(PublishError, match=reason):
        publish(finished, target, options)


def test_a_wrong_token_is_one_sentence(
    hub: LoopbackHub, finished: Run, monkeypatch: pytest.MonkeyPatch, waits: Waits
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_but_still_secret")
    with pytest.raises(PublishError, match=r"refused with 401 .*; log in with `hf auth login`") as refused:
        publish(finished, NAME, retry=waits.retry)
    assert "hf_wrong" not in str(refused.value)
    assert not waits.seconds
    assert not hub.repos


def test_a_damaged_or_unfinished_run_does_not_go_out(hub: LoopbackHub, copied: Callable[[], Run]) -> None:
    run = copied()
    shard = run.shard_path("synthetic-00001")
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.unlink()
    shard.write_bytes(data)
    with pytest.raises(PublishError, match=r"synthetic-00001.arrow: missing or not the file that run\.json names"):
        publish(run, NAME)
    (run.folder / "run.json").unlink()
    with pytest.raises(PublishError, match="not finished; `diffaug generate"):
        publish(run, NAME)
    assert not hub.log


def test_a_readme_that_cannot_be_read_is_left_alone(hub: LoopbackHub, finished: Run, other_plan: Run) -> None:
    publish(finished, NAME)
    text = b"---\nlicense: [mit\n---\n# Broken\n"
    hub.blobs.put(git_sha1(text), text)
    tree = hub.repo(NAME).at("main").tree | {"README.md": Entry(len(text), git_sha1(text))}
    hub.repo(NAME).commit("main", tree, "past every check")
    before = hub.files(NAME)
    with pytest.raises(PublishError, match=r"README\.md: its YAML head cannot be read"):
        publish(other_plan, NAME)
    assert hub.files(NAME) == before


def test_the_published_recipe_plans_the_same(hub: LoopbackHub, finished: Run, tmp_path: Path) -> None:
    from diffaug_datasets.core.recipe import Recipe
    from diffaug_datasets.planning.prepare import prepare

    publish(finished, NAME)
    path = tmp_path / "recipe.yaml"
    path.write_bytes(hub.files(NAME)[f"{folder_of(finished)}/recipe.yaml"])
    assert prepare(Recipe.from_yaml(path)).plan.id == finished.plan.id
    assert yaml.safe_load(path.read_text())["source"] is None
    plan = hub.files(NAME)[f"{folder_of(finished)}/plan.parquet"]
    assert hashlib.sha256(plan).hexdigest() == sha256_file(finished.folder / "plan.parquet")


def test_an_older_plan_without_a_tag_gets_one_before_it_goes(hub: LoopbackHub, finished: Run, other_plan: Run) -> None:
    """As where it came in by a pull request, which a person merged."""
    publish(finished, NAME)
    before, tags = hub.files(NAME), hub.repo(NAME).tags
    [tag] = list(tags)
    tags.clear()
    publish(other_plan, NAME)
    assert hub.files(NAME, tag) == before
