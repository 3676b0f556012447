"""A model's folder with one JSON file changed at random, many times: planned on, or refused in one sentence."""

import json
import random
from pathlib import Path

import torch

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.model_folder import check_backbone

STRANGE = (
    None,
    "",
    "x",
    -1,
    0,
    1,
    7,
    3.5,
    1e30,
    float("nan"),
    True,
    False,
    [],
    [1],
    [None],
    [[1]],
    {},
    {"a": 1},
    2**70,
)


def damaged(folder: Path, draw: random.Random) -> tuple[Path, str]:
    """Change one file of JSON; the file, and what became of it."""
    path = draw.choice(sorted(p for p in folder.rglob("*.json") if p.stat().st_size))
    if draw.random() < 0.1:
        text = path.read_text(encoding="utf-8")
        path.write_text(text[: draw.randrange(len(text))], encoding="utf-8")
        return path, "cut"
    content = json.loads(path.read_text(encoding="utf-8"))
    keys = sorted(key for key in content if len(content) < 200 or draw.random() < 0.02) or sorted(content)
    key = draw.choice(keys)
    if draw.random() < 0.2:
        del content[key]
        change = f"without {key}"
    else:
        content[key] = draw.choice([*STRANGE, *content.values()])
        change = f"{key} = {content[key]!r}"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path, change


def fuzzed(spec: BackboneSpec, seed: int, tries: int, load: bool) -> int:
    """How many damages of a spec's folder were let pass; whatever is raised is one sentence."""
    draw, passed, folder = random.Random(seed), 0, Path(spec.id)
    for _ in range(tries):
        before = {path: path.read_bytes() for path in folder.rglob("*.json")}
        what = damaged(folder, draw)
        try:
            check_backbone(spec)
            passed += 1
            if load:
                backbone = Backbone.load(spec)
                said = backbone.said(torch.ones(1, *backbone.latent_shape), 1, backbone.prompts(["a bird"]))
                assert bool(said.isfinite().all()), what
        except BackboneError as error:
            assert "\n" not in str(error) and str(error).endswith("."), (what, error)
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
        finally:
            for path, content in before.items():
                path.write_bytes(content)
    return passed
