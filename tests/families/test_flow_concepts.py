"""Concepts and inversions on the transformer families: LoRA that plain diffusers loads, and ways back to an image."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flow_pictures
import numpy as np
import pytest
import torch
from flow_both import LEVEL, Both, both, drawn, far, mostly_full, sources
from safetensors.torch import load_file

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.learning import ConceptConfig
from diffaug_datasets.models.adapters import LORA_FILE, LoadedConcepts, load_concepts
from diffaug_datasets.models.concepts import train_concepts
from diffaug_datasets.models.denoising import Conditions, denoise, invert, psnr, reconstructed
from diffaug_datasets.models.latents import ConceptExample

__all__ = ["both"]  # a fixture
pytestmark = pytest.mark.xdist_group("flow_families")
STEPS = 4
INVERTED = [one for one in mostly_full("sd3", "pixart") if "flux" not in getattr(one, "values", ())]


@contextmanager
def lent_to(pipe: Any, file: Path) -> Iterator[None]:
    """The LoRA of a file in a pipeline, by diffusers' loader, or summed up where its class has none (PixArt)."""
    if hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(file)
        yield
        pipe.unload_lora_weights()
        return
    plain = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    matrices = load_file(file)
    for key in [key for key in matrices if ".lora_A." in key]:
        module = pipe.transformer.get_submodule(key.removeprefix("transformer.").removesuffix(".lora_A.weight"))
        module.weight.data += matrices[key.replace(".lora_A.", ".lora_B.")] @ matrices[key]
    yield
    pipe.transformer.load_state_dict(plain)


def learned(it: Both, folder: Path) -> LoadedConcepts:
    """The concepts of two classes after a few large steps, written to a folder and read again."""
    cfg = ConceptConfig(rank=2, steps=3, batch=2, lr_lora=0.05, checkpoint_every=3)
    examples = [ConceptExample(picture, i % 2) for i, picture in enumerate(sources().values())]
    trained = train_concepts(it.backbone, examples, {0: "bird", 1: "house"}, cfg, workdir=folder, metaclass="thing")
    assert len(trained.losses) == 3 and trained.init == "words"
    trained.concepts.save(folder)
    return load_concepts(folder)


@pytest.mark.parametrize("name", mostly_full("sd3"))
def test_learned_lora_is_what_diffusers_loads(both: Callable[[str], Both], name: str, tmp_path: Path) -> None:
    it = both(name)
    concepts, noise = learned(it, tmp_path), drawn(it.backbone.latent_shape, 4)[None]
    scale = 2.0 if name == "flux" else 3.0

    def ours(prompt: str) -> np.ndarray[Any, Any]:
        latents = denoise(it.backbone, noise, Conditions([prompt], [""], [scale]), it.sampler, STEPS, [0])
        return it.backbone.decode_float(latents)[0].permute(1, 2, 0).numpy()

    before = ours("a photo of a bcd bird thing")
    it.backbone.use_concepts(concepts)
    try:
        after = ours("a photo of a <class_0> thing")
    finally:
        it.backbone.use_concepts(None)
    words = bytes(concepts.tokens["<class_0>"].tolist()).decode()
    with lent_to(it.pipe, tmp_path / LORA_FILE):
        theirs = flow_pictures.picture(it.pipe, name, f"a photo of a {words} thing", noise, STEPS, scale)
    assert words == "bbb bird"
    assert far(after, theirs) < LEVEL, name
    assert far(before, after) > 3 * LEVEL
    again = ours("a photo of a bcd bird thing")
    assert np.array_equal(before, again)


@pytest.mark.parametrize("name", INVERTED)
def test_an_inverted_image_comes_back(both: Callable[[str], Both], name: str) -> None:
    it = both(name)
    images = [flow_pictures.pixels(picture)[0] for picture in list(sources().values())[:2]]
    prompts = ["a photo of a bird", "a red house"]
    shown = [it.backbone.decode_float(it.backbone.encode(image[None]))[0] for image in images]
    found = {}
    for way in ("ddim", "edict"):
        inverted = invert(it.backbone, images, prompts, steps=8, batch=2, inverter=way)
        back = reconstructed(it.backbone, inverted, prompts, steps=8, batch=2, inverter=way)
        found[way] = min(psnr(a, b) for a, b in zip(shown, back, strict=True))
        assert all(bool(latent.isfinite().all()) for latent in inverted)
    # A random network is rough, so Euler's way back is poor on some; a pair of latents comes back on any.
    assert found["ddim"] > 10 and found["edict"] > 45, found


def test_concepts_of_another_kind_of_model_are_refused(both: Callable[[str], Both]) -> None:
    it = both("sd3")
    with pytest.raises(BackboneError, match="was learned for a text encoder, and this model reads words"):
        it.backbone.use_concepts(LoadedConcepts({"<class_0>": torch.zeros(1, 16)}))
    with pytest.raises(BackboneError, match=r"names <class_1>, which is not learned"):
        it.backbone.prompt("a <class_1>")
