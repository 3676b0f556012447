"""Released pickles: every known form becomes safetensors that plain diffusers loads; nothing in a pickle is run."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import sd_tiny
import torch
from command_line import Command
from safetensors.torch import load_file, save_file

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.models import released
from diffaug_datasets.models.adapters import load_concepts
from diffaug_datasets.models.released import read_released

WIDTH = sd_tiny.WIDTH


def vectors(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


ONE, TWO = vectors(WIDTH), vectors(2, WIDTH)
FORMS: dict[str, Any] = {
    "textual inversion": {"<cat-toy>": ONE},
    "da_fusion": {"<cat>": ONE[None], "<traffic light>": TWO},
    "diff_mix": {
        "learned_embeds_dict": {"<class_0>": ONE, "<class_1>": TWO[1]},
        "name2placeholder": {"Laysan albatross": "<class_0>", "crane": "<class_1>"},
        "placeholder2name": {"<class_0>": "Laysan albatross", "<class_1>": "crane"},
    },
    "gal et al.": {"string_to_token": {"*": 265}, "string_to_param": {"*": TWO}, "name": "my-style", "step": 99},
    "a parameter in half precision": {"<x>": torch.nn.Parameter(ONE.half())},
}
TOKENS = {
    "textual inversion": {"<cat-toy>": ONE[None]},
    "da_fusion": {"<cat>": ONE[None], "<traffic light>": TWO},
    "diff_mix": {"<class_0>": ONE[None], "<class_1>": TWO[1:]},
    "gal et al.": {"my-style": TWO},
    "a parameter in half precision": {"<x>": ONE.half().float()[None]},
}


def parameters(content: dict[str, torch.Tensor]) -> torch.nn.ParameterDict:
    return torch.nn.ParameterDict({name: torch.nn.Parameter(rows) for name, rows in content.items()})


FORMS["the first code's ParameterDict"] = {
    "string_to_token": {"*": torch.tensor(265)},
    "string_to_param": parameters({"*": TWO}),
}
FORMS["a ParameterDict with names"] = {"string_to_param": parameters({"<a>": ONE, "<b>": TWO})}
TOKENS["the first code's ParameterDict"] = {"<learned_embeds>": TWO}
TOKENS["a ParameterDict with names"] = {"<a>": ONE[None], "<b>": TWO}


def saved(folder: Path, content: Any, **options: Any) -> Path:
    torch.save(content, folder / "learned_embeds.bin", **options)
    return folder / "learned_embeds.bin"


@pytest.mark.parametrize("form", FORMS)
def test_plain_diffusers_loads_what_comes_out(form: str, sd_folder: Path, tmp_path: Path, diffaug: Command) -> None:
    out = tmp_path / "out"
    legacy = form == "textual inversion"  # as torch before 1.6 wrote it
    file = saved(tmp_path, FORMS[form], _use_new_zipfile_serialization=not legacy)
    said = diffaug("convert", file, out)
    assert said.code == 0, said.err
    expected = TOKENS[form]
    found = load_concepts(out).tokens
    assert found.keys() == expected.keys() and all(torch.equal(found[t], expected[t]) for t in found)
    pipe = sd_tiny.pipeline(sd_folder)
    files = sorted((out / "tokens").iterdir()) if len(expected) > 1 else [out / "learned_embeds.safetensors"]
    assert len(files) == len(expected)
    for path in files:
        pipe.load_textual_inversion(path)
    table = pipe.text_encoder.get_input_embeddings().weight
    for token, rows in expected.items():
        names = [token, *(f"{token}_{i}" for i in range(1, len(rows)))]
        assert torch.equal(table[pipe.tokenizer.convert_tokens_to_ids(names)], rows)
    assert f"{len(expected)} token" in said.out and "load_textual_inversion" in said.out


def test_class_names_are_kept(tmp_path: Path) -> None:
    read_released(saved(tmp_path, FORMS["diff_mix"])).write(tmp_path / "out")
    names = json.loads((tmp_path / "out" / "names.json").read_text())
    assert names == {"<class_0>": "Laysan albatross", "<class_1>": "crane"}


def test_diffusion_inversions_map_becomes_a_condition_per_image(tmp_path: Path, diffaug: Command) -> None:
    """Column j, seen as 5 vectors of 768, is what the authors' module returns for image j."""
    weight = vectors(5 * 768, 3)
    expected = torch.nn.functional.linear(torch.eye(3), weight).view(-1, 5, 768)
    said = diffaug("convert", saved(tmp_path, {"emb.weight": weight}), tmp_path / "out")
    found = load_file(tmp_path / "out" / "image_embeddings.safetensors")
    assert sorted(found) == ["0", "1", "2"]
    assert all(torch.equal(found[str(j)], expected[j]) for j in range(3))
    assert "3 images, 5 vectors of 768 numbers each" in said.out


class Bomb:
    """A pickle of it runs a command when it is opened without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_pickle_is_never_run(how: str, tmp_path: Path, diffaug: Command) -> None:
    content = {"<a>": ONE, "<b>": Bomb(tmp_path / "ran")}
    file = tmp_path / "learned_embeds.bin"
    if how == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps({"<b>": Bomb(tmp_path / "ran")}, protocol=2))
    said = diffaug("convert", file, tmp_path / "out")
    assert "system beside tensors, which might run code, so it is not opened" in said.sentence
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()
    with file.open("rb") as opened:  # the bomb is a real one
        torch.load(opened, weights_only=False) if how == "torch" else pickle.load(opened)  # noqa: S301
    assert (tmp_path / "ran").exists()


def test_a_parameter_dict_is_no_door_for_code(tmp_path: Path, diffaug: Command) -> None:
    """Neither beside it nor as an attribute of it; and torch's own class is never made."""
    held = parameters({"*": TWO})
    held.extra = Bomb(tmp_path / "ran")
    for content in (
        {"string_to_param": held},
        {"string_to_param": parameters({"*": TWO}), "x": Bomb(tmp_path / "ran")},
    ):
        said = diffaug("convert", saved(tmp_path, content), tmp_path / "out")
        assert "system beside tensors, which might run code, so it is not opened" in said.sentence
        assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()
    # private: what is read is seen before it is made into tokens
    found = released._unpickled(saved(tmp_path, {"string_to_param": parameters({"*": TWO})}))
    assert type(found["string_to_param"]) is released.Parameters


@pytest.mark.parametrize(("words", "token"), [((), "<bird-species>"), (("--token", "<sparrow>"), "<sparrow>")])
def test_what_web_uis_write_gets_a_name(
    words: tuple[str], token: str, tmp_path: Path, sd_folder: Path, diffaug: Command
) -> None:
    file, out = tmp_path / "bird-species.safetensors", tmp_path / "out"
    save_file({"emb_params": TWO}, file)
    said = diffaug("convert", file, out, *words)
    assert said.code == 0 and f"its token is {token}" in said.out
    assert torch.equal(load_concepts(out).tokens[token], TWO)
    pipe = sd_tiny.pipeline(sd_folder)
    pipe.load_textual_inversion(out / "learned_embeds.safetensors")
    assert token in pipe.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        (
            {"clip_l": vectors(768), "clip_g": vectors(1280)},
            (),
            "is an embedding of SDXL (clip_l and clip_g), which has two",
        ),
        ({"<a>": ONE, "<b>": TWO}, ("--token", "<c>"), "holds 2 tokens with names of their own, so drop --token <c>."),
        ({"emb_params": vectors(3, 8, 8)}, (), "'<x>' has shape (3, 8, 8)"),
        ({"emb_params": TWO}, ("--token", " "), "got a token named ' ', expected a short printable text."),
        (None, (), "x.safetensors: cannot be read as safetensors ("),
    ],
)
def test_safetensors_that_are_no_embedding(
    content: Any, words: tuple[str], said: str, tmp_path: Path, diffaug: Command
) -> None:
    file = tmp_path / "x.safetensors"
    save_file(content, file) if content else file.write_bytes(b"no safetensors at all")
    assert said in diffaug("convert", file, tmp_path / "out", *words).sentence
    assert not (tmp_path / "out").exists()


BAD: dict[str, tuple[Any, str]] = {
    "a list": ([ONE], "holds no tensor by name; a learned_embeds file is a dictionary from tokens to tensors."),
    "nothing": ({}, "holds no tensor by name"),
    "no tensor": ({"<a>": "text", "step": 3}, "holds no tensor by name"),
    "an image": ({"<a>": vectors(3, 8, 8)}, r"'<a>' has shape (3, 8, 8) and dtype float32, expected numbers of shape"),
    "a number": ({"<a>": torch.tensor(1.0)}, "'<a>' has shape () and dtype float32"),
    "no width": ({"<a>": torch.zeros(3, 0)}, "'<a>' has shape (3, 0)"),
    "too many": ({"<a>": vectors(78, WIDTH)}, "n up to 77."),
    "integers": ({"<a>": torch.zeros(WIDTH, dtype=torch.int64)}, "dtype int64"),
    "a sparse one": ({"<a>": torch.eye(4).to_sparse()}, "'<a>' has shape (4, 4)"),
    "one that has no data": ({"<a>": torch.zeros(4, device="meta")}, "'<a>' has shape (4,)"),
    "far more than is stored": ({"<a>": torch.zeros(1).expand(2**40)}, "'<a>' has shape (1099511627776,)"),
    "not a number": ({"<a>": torch.tensor([1.0, float("nan")])}, "'<a>' holds values that are not finite"),
    "two models": ({"<a>": vectors(768), "<b>": vectors(1024)}, "its tensors have widths [768, 1024]"),
    "a number as a name": ({3: ONE}, "got a token named '3', expected a short printable text."),
    "an unprintable name": ({"<a\n>": ONE}, "expected a short printable text."),
    "a reserved name": ({"__metadata__": ONE}, "a token cannot be named __metadata__"),
    "another linear map": ({"emb.weight": vectors(100, 3)}, "emb.weight has shape (100, 3), expected (n times 768,"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_embedding_is_refused(case: str, tmp_path: Path) -> None:
    content, expected = BAD[case]
    with pytest.raises(BackboneError) as refusal:
        read_released(saved(tmp_path, content))
    assert expected in str(refusal.value)


def squeezed(file: Path) -> bytes:
    """The archive with a record that unpacks to far more than it takes."""
    buffer = io.BytesIO(file.read_bytes())
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("x/data/9", "w") as record:
        record.write(bytes(2**22))
    return buffer.getvalue()


def test_damaged_files_and_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = saved(tmp_path, FORMS["da_fusion"])
    half = tmp_path / "half.bin"
    half.write_bytes(whole.read_bytes()[:-200])
    other = tmp_path / "other.bin"
    other.write_bytes(b"no pickle at all")
    empty = tmp_path / "empty.bin"
    empty.write_bytes(b"")
    for path in (half, other, empty):
        with pytest.raises(BackboneError, match=r"cannot be read as tensors \(\w+: .*\); a learned_embeds file is"):
            read_released(path)
    for path in (tmp_path / "missing.bin", tmp_path):
        with pytest.raises(BackboneError, match="no such file; give a learned_embeds file"):
            read_released(path)
    bomb = tmp_path / "bomb.bin"
    bomb.write_bytes(squeezed(whole))
    assert bomb.stat().st_size < 2**15
    monkeypatch.setattr(released, "MOST_BYTES", 2**20)
    with pytest.raises(BackboneError, match=r"unpacks to 4,19\d,\d+ bytes, expected at most 1,048,576"):
        read_released(bomb)


def test_nothing_is_overwritten_and_names_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    released = read_released(saved(tmp_path, {"../../up": ONE, "/etc/passwd": ONE, "..": ONE}))
    written = released.write(tmp_path / "out")
    assert {path.parent for path in written} == {tmp_path / "out", tmp_path / "out" / "tokens"}
    assert [path.stem for path in written[1:]] == ["0000-up", "0001-etc-passwd", "0002"]
    before = {path: path.read_bytes() for path in written}
    with pytest.raises(BackboneError, match=r"learned_embeds.safetensors: is there already; give another folder"):
        released.write(tmp_path / "out")
    assert {path: path.read_bytes() for path in written} == before
