"""A transformer family's tiny pipeline as diffusers drives it and as we do, and what an engine lends a method."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import flow_pictures
import flow_tiny
import numpy as np
import pytest
import torch
from PIL import Image

from diffaug_datasets.core.family import ModelFacts
from diffaug_datasets.core.method import PlanSpec, find_method
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.model_folder import check_backbone

STEPS, LEVEL = 5, 0.5  # half a grey level, of pixels that are not rounded
FAMILIES = tuple(flow_tiny.MAKERS)


def mostly_full(*quick: str) -> list[Any]:
    """All families as parameters; those that are not named here are slow ones."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.full) for name in FAMILIES]


class Lent:
    """What the engine lends a method, as far as these ask for it."""

    def __init__(self, backbone: Backbone, pictures: dict[str, Image.Image]) -> None:
        self.backbone, self._pictures = backbone, pictures

    def source(self, source_id: str) -> Image.Image:
        return self._pictures[source_id]

    def noise(self, rows: Sequence[PlanRow]) -> torch.Tensor:
        return torch.stack([drawn(self.backbone.latent_shape, row.seed or 0) for row in rows])

    def use_concepts(self, name: str) -> None:
        raise AssertionError(name)


def drawn(shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@cache
def sources() -> dict[str, Image.Image]:
    generator = torch.Generator().manual_seed(5)
    levels = [torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8) for _ in range(4)]
    size = (flow_pictures.SIDE, flow_pictures.SIDE)
    return {
        f"{i:064x}": Image.fromarray(x.numpy()).resize(size, Image.Resampling.BICUBIC) for i, x in enumerate(levels)
    }


@cache
def table() -> SourceTable:
    listed = tuple(Source(name, i % 2, f"{i}") for i, name in enumerate(sources()))
    return SourceTable("t", "train", ("bird", "house"), ("bird", "house"), "", listed)


class Both:
    """A family's tiny pipeline as diffusers drives it and as we do."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.pipe = name, flow_pictures.pipeline(folder)
        spec = BackboneSpec(id=str(folder), height=flow_pictures.SIDE, width=flow_pictures.SIDE)
        facts = check_backbone(spec)
        assert facts is not None
        self.facts: ModelFacts = facts
        self.backbone = Backbone.load(spec)
        self.lent = Lent(self.backbone, sources())
        self.spec = PlanSpec(seed=3, backbone="b", per_class=2, timeline=facts.timeline)

    def planned(self, method: str, **config: object) -> tuple[Any, list[PlanRow]]:
        module = find_method(method)
        cfg = module.Config(num_inference_steps=STEPS, **config)
        return cfg, list(module.plan(cfg, table(), self.spec))

    def made(self, method: str, rows: Sequence[PlanRow], cfg: Any) -> list[np.ndarray[Any, Any]]:
        return [image.pixels.numpy() for image in find_method(method).generate(rows, cfg, self.lent)]

    @property
    def sampler(self) -> str:
        """That of its own pipeline."""
        return "dpm" if self.facts.samplers[0] == "dpm" else "ddim"


_MADE: dict[str, Both] = {}


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Both]:
    """By name, one of each for the whole run, whichever modules ask for it."""

    def made(name: str) -> Both:
        if name not in _MADE:
            folder = tmp_path_factory.mktemp("flows") / name
            _MADE[name] = Both(name, flow_tiny.build(folder, flow_tiny.MAKERS[name]))
        return _MADE[name]

    return made


def far(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """The largest difference in grey levels."""
    return float(np.abs(ours.astype(np.float64) - theirs).max() * 255)
