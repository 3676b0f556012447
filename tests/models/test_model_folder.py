"""Damaged model folders, by a seeded fuzzer: a plan or the load refuses in one sentence with the path, or it works."""

import json
import random
import shutil
import struct
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.weight_headers import read_header
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.encoders import Encoder, Judge
from diffaug_datasets.models.model_folder import check_backbone, check_model

ASSETS = Path(str(files("diffaug_datasets"))) / "assets" / "tiny"
ODD_VALUES: tuple[Any, ...] = (None, True, -1, 0, 1, 3, 2**40, 0.5, float("nan"), "x", "", [], [1], ["x"], {}, {"a": 1})


def garbled_json(path: Path, draw: random.Random) -> None:
    """One value is another, one key is gone, or the text is cut, empty, of another kind or not text."""
    content = json.loads(path.read_text("utf-8"))
    place = content["model"] if path.name == "tokenizer.json" else content
    key = draw.choice(sorted(place))
    kind = draw.randrange(8)
    if kind < 4:
        place[key] = draw.choice(ODD_VALUES)
    elif kind == 4:
        del place[key]
    whole = json.dumps(content)
    others = {5: whole[: draw.randrange(len(whole))], 6: draw.choice(("", "[]", "null", "7", '"x"', "[" * 100_000))}
    path.write_bytes(bytes(draw.randrange(256) for _ in range(40)) if kind == 7 else others.get(kind, whole).encode())


def garbled_weights(path: Path, draw: random.Random) -> None:
    """Cut, grown, a header of other lengths, dtypes, shapes or places, a lost tensor, another shape, or no file."""
    data, kind = path.read_bytes(), draw.randrange(9)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = draw.choice(sorted(set(header) - {"__metadata__"}))
    if kind == 0:
        path.write_bytes(data[: draw.choice((0, 3, 8, 50, len(data) // 2, len(data) - 1))])
    elif kind == 1:
        path.write_bytes(data + b"x")
    elif kind == 2:
        path.write_bytes(struct.pack("<Q", draw.choice((0, 2, 2**20, 2**63))) + data[8:])
    elif kind == 3:
        path.rename(path.with_suffix(".bin"))
    elif kind < 7:
        changes: dict[str, tuple[Any, ...]] = {
            "dtype": ("F16", "I32", "F8_E4M3", "Q4", 3, None),
            "shape": ([], [7], [-1, 4], [2**62, 2**62], "x", None),
            "data_offsets": ([0, 4], [8, 2], [0], "ab", None, [0, 2**60]),
        }
        key = draw.choice(sorted(changes))
        header[name][key] = draw.choice(changes[key])
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    else:
        weights = load_file(path)
        lost = weights.pop(name)
        if kind == 8 and lost.ndim:
            weights[name] = lost[: len(lost) // 2].clone() if len(lost) > 1 else lost.repeat(3, *[1] * (lost.ndim - 1))
        save_file(weights, path)


def damage(folder: Path, draw: random.Random) -> str:
    """One file of the folder damaged or removed; returns which."""
    path = draw.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    if draw.random() < 0.1:
        path.unlink()
    else:
        (garbled_json if path.suffix == ".json" else garbled_weights)(path, draw)
    return path.relative_to(folder).as_posix()


def refused(check: Callable[[], object], folder: Path, damaged: str) -> bool:
    """Whether a check refuses, which must be one sentence with the path; any other exception ends the test."""
    try:
        check()
    except BackboneError as error:
        assert "\n" not in str(error) and str(folder) in str(error) and len(str(error)) < 800, damaged
        assert str(error).endswith((".", "`backbone: tiny`.")), damaged
        return True
    return False


def use_backbone(folder: Path) -> None:
    """Load it, and take a step from a picture to a picture."""
    backbone = Backbone.load(BackboneSpec(id=str(folder), height=32, width=32))
    latents = backbone.encode(torch.zeros(1, 3, 32, 32))
    backbone.decode_float(backbone.eps(latents, 500, backbone.prompts(["a bird"])))


def use_encoder(folder: Path) -> None:
    """Load it, and look at a picture and a text."""
    encoder = Encoder.load(str(folder))
    encoder.image_features([PICTURE], batch_shape=2)
    encoder.text_features(["a bird"])


def use_judge(folder: Path) -> None:
    """Load it, and ask it about a picture."""
    judge = Judge.load(str(folder))
    assert judge.probabilities([PICTURE], batch_shape=2).shape == (1, len(judge.class_names))


PICTURE = Image.effect_noise((40, 30), 60).convert("RGB")
KINDS: dict[str, tuple[str, Callable[[Path], object], Callable[[Path], object]]] = {
    "backbone": ("pipeline", lambda folder: check_backbone(BackboneSpec(id=str(folder))), use_backbone),
    "encoder": ("encoder", lambda folder: check_model(str(folder), "encoder"), use_encoder),
    "judge": ("judge", lambda folder: check_model(str(folder), "judge"), use_judge),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_one_sentence_or_harmless(kind: str, tmp_path: Path) -> None:
    packaged, check, use = KINDS[kind]
    at_plan = at_load = 0
    for seed in range(80):
        folder = Path(shutil.copytree(ASSETS / packaged, tmp_path / str(seed)))
        damaged = f"seed {seed}: {damage(folder, random.Random(seed))}"
        if refused(lambda: check(folder), folder, damaged):  # noqa: B023
            at_plan += 1
        else:
            at_load += refused(lambda: use(folder), folder, damaged)  # noqa: B023
        shutil.rmtree(folder)
    assert at_plan > 25, "plans look at too little"
    assert at_plan + at_load < 80, "some damage is harmless, such as a key that says what is the default anyway"


def test_headers_are_those_of_safetensors() -> None:
    for path in ASSETS.rglob("*.safetensors"):
        weights = load_file(path)
        header = read_header(path)
        assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
            n: e.shape for n, e in header.items()
        }
