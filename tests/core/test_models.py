"""What a text of a recipe is: a place of this machine, a name, or a model of some revision."""

from pathlib import Path

import pytest

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.models import (
    DEFAULT_ID,
    DEFAULT_REVISION,
    BackboneSpec,
    ModelKind,
    Place,
    find_backbone,
    find_model,
    folder_digest,
    local_path,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `org/model` in a Hub cache, which knows the branch `main` and holds two configurations."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--model"
    snapshot = repository / "snapshots" / COMMIT
    for path, text in (
        (repository / "refs" / "main", COMMIT),
        (snapshot / "config.json", "{}"),
        (snapshot / "model_index.json", "{}"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return snapshot


KINDS: tuple[ModelKind, ...] = ("encoder", "judge", "captioner", "summariser")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_is_found_in_one_way(cached: Path, tmp_path: Path, kind: ModelKind) -> None:
    backbone = find_backbone(BackboneSpec(id="org/model"))
    for text in ("org/model", f"org/model@{COMMIT}", "org/model@main"):
        model = find_model(text, kind)
        assert (model.id, model.revision, model.folder) == (backbone.id, backbone.revision, cached)
        assert model.name == backbone.name == "org/model@0123456789ab" and not model.is_local
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    own = find_model(str(tmp_path / "mine"), kind)
    assert own.name == f"mine@{folder_digest(tmp_path / 'mine')[:12]}" and own.is_local
    other = find_model(f"org/model@{'f' * 40}", kind)
    assert (other.folder, other.revision) == (None, "f" * 40)


def test_what_this_machine_does_not_know_is_not_pinned(cached: Path) -> None:
    for model in (find_backbone(BackboneSpec(id="org/other")), find_model("org/other", "encoder")):
        assert model.folder is None
        with pytest.raises(BackboneError, match=rf"{model.kind} 'org/other' is not pinned: revision is None.*40-digit"):
            _ = model.name


@pytest.mark.parametrize("kind", KINDS)
def test_only_encoders_and_judges_are_packaged(kind: ModelKind) -> None:
    if kind in ("encoder", "judge"):
        assert find_model("tiny", kind).name.startswith(f"diffaug-tiny-{kind}@")
    else:
        with pytest.raises(BackboneError, match=f"{kind} 'tiny' is neither a folder nor a Hub id: give one of these"):
            find_model("tiny", kind)


def test_a_backbone_that_moved_is_found_under_its_new_id() -> None:
    model = find_backbone(BackboneSpec(id="runwayml/stable-diffusion-v1-5"))
    assert (model.id, model.revision) == (DEFAULT_ID, DEFAULT_REVISION)


@pytest.mark.parametrize("text", ["", "s3://bucket/x", "org/name", "org/name@refs/convert/parquet", "tiny"])
def test_names_stay(tmp_path: Path, text: str) -> None:
    assert Place(packaged=("tiny",), bare=False).absolute(text, tmp_path) == text
    assert local_path(text) is None


@pytest.mark.parametrize("text", ["x", "./x", "../x", "a/b/c", "m.csv", "org/m.csv", "a\0b"])
def test_paths_are_absolute_even_where_nothing_lies(tmp_path: Path, text: str) -> None:
    made = Place(bare=True, files=(".csv",)).absolute(text, tmp_path)
    assert made == (text if "\0" in text else str((tmp_path / text).resolve()))
