"""Inverters on the packaged U-Net: pairs come back to rounding, midpoint far better than DDIM."""

from typing import Any

import pytest
import torch
from PIL import Image

from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.denoising import from_inverted, invert, reconstructed

STEPS = 6


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return Backbone.load(BackboneSpec(id="tiny"))


@pytest.fixture(scope="module")
def images(tiny: Backbone) -> list[Any]:
    """Two pictures with edges and shades."""
    shades = torch.linspace(-1, 1, tiny.width).expand(3, tiny.height, tiny.width).clone()
    other = shades.transpose(1, 2).clone()
    shades[:, : tiny.height // 2] *= -1
    other[0, :, : tiny.width // 3] = 0.7
    return [shades, other]


PROMPTS = ("a photo of a shoe", "a photo of a bag")


def relative_error(tiny: Backbone, images: list[Any], inverter: Any) -> float:
    before = tiny.rows_evaluated
    states = invert(tiny, images, PROMPTS, steps=STEPS, batch=2, inverter=inverter)
    cond = tiny.prompts(PROMPTS)
    back = from_inverted(tiny, lambda x, t, _: tiny.eps(x, t, cond), torch.stack(states), STEPS, inverter)
    expected = {"ddim": 2 * STEPS, "midpoint": 4 * STEPS, "bdia": 2 * STEPS - 1, "edict": 4 * STEPS}
    assert tiny.rows_evaluated - before == len(images) * expected[inverter]
    clean = tiny.encode(torch.stack(images))
    return float((back - clean).norm() / clean.norm())


def test_what_comes_back(tiny: Backbone, images: list[Any]) -> None:
    errors = {name: relative_error(tiny, images, name) for name in ("ddim", "midpoint", "bdia", "edict")}
    assert errors["bdia"] < 1e-4 and errors["edict"] < 1e-4, errors
    assert errors["midpoint"] < errors["ddim"] / 3, errors


@pytest.mark.parametrize("inverter", ["bdia", "midpoint"])
def test_what_comes_back_ignores_how_many_there_are(tiny: Backbone, images: list[Any], inverter: Any) -> None:
    words: dict[str, Any] = {"steps": 3, "batch": 2, "inverter": inverter}
    both = invert(tiny, images, PROMPTS, **words)
    alone = invert(tiny, images[:1], PROMPTS[:1], **words)
    assert torch.equal(both[0], alone[0])
    assert both[0].shape == ((2, *tiny.latent_shape) if inverter == "bdia" else tiny.latent_shape)
    pictures = reconstructed(tiny, both, PROMPTS, **words)
    assert torch.equal(pictures[0], reconstructed(tiny, alone, PROMPTS[:1], **words)[0])
    Image.fromarray((pictures[0].permute(1, 2, 0) * 255).byte().numpy())  # a picture it is
