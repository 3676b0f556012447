"""Pictures for the eye while concepts are learned: a few classes, the same noise each time, beside the fit.

They are no part of the fit: nothing reads them but the report, and training ends at the same bits without them.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Generator, Tensor

from diffaug_datasets.core.concept_config import ConceptConfig
from diffaug_datasets.core.seeds import uint63
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.learned import write_whole
from diffaug_datasets.models.pixels import to_uint8
from diffaug_datasets.numerics.sampling import ddim_sample
from diffaug_datasets.numerics.schedule import ddim_timesteps

FOLDER = "previews"
MOMENTS, CLASSES, STEPS, SCALE, SIDE = 3, 4, 10, 7.5, 256
# A training step costs about three evaluations an image; pictures may cost a twentieth of them.
TRAINING_COST, SHARE = 3, 20


def moments(cfg: ConceptConfig) -> tuple[int, ...]:
    """After how many steps to look: at thirds of the way, at the checkpoint before where there are enough of them."""
    every = cfg.checkpoint_every if cfg.steps >= MOMENTS * cfg.checkpoint_every else 1
    before = [cfg.steps * (i + 1) // MOMENTS // every * every for i in range(MOMENTS - 1)]
    return tuple(step for step in dict.fromkeys([*before, cfg.steps]) if step)


def shown_classes(labels: Sequence[int], cfg: ConceptConfig) -> tuple[int, ...]:
    """A few classes spread evenly over all; none where looking would cost more than a twentieth of the training."""
    known = sorted(set(labels))
    count = min(CLASSES, len(known))
    chosen = tuple(known[i * len(known) // count] for i in range(count))
    cost = len(moments(cfg)) * count * STEPS * 2
    return chosen if SHARE * cost <= TRAINING_COST * cfg.steps * cfg.batch else ()


@dataclass(frozen=True)
class Previews:
    """What is drawn of a training run: class id -> token ids of its prompt; PNG files named by step and class."""

    backbone: Backbone
    cfg: ConceptConfig
    ids: Mapping[int, Int[Tensor, " s"]]
    folder: Path

    def __call__(self, done: int) -> None:
        """Draw the classes if so many steps are a moment to look."""
        if self.ids and done in moments(self.cfg):
            self._write(done)

    @torch.no_grad()
    def _write(self, done: int) -> None:
        (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
        for label, latent in zip(self.ids, self._latents(), strict=True):
            # One by one: decoding takes more memory than a training step's share of an image.
            pixels = torch.nan_to_num(self.backbone.decode_float(latent[None]))
            buffer = io.BytesIO()
            picture = Image.fromarray(to_uint8(pixels)[0].numpy())
            picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            picture.save(buffer, "PNG")
            write_whole(self.folder / FOLDER / f"step-{done:06d}-class-{label}.png", buffer.getvalue())

    def _latents(self) -> Float[Tensor, "b c h w"]:
        """Guided DDIM from noise that follows from the seed and the class; prompts as they stand now, never cached."""
        backbone, text = self.backbone, self.backbone.text
        cond = text.encode(torch.stack(list(self.ids.values())))
        uncond = text.encode(torch.stack([text.ids("")] * len(cond)))
        scale = torch.full((len(cond),), SCALE)

        def eps(xt: Tensor, t: int, _: int) -> Tensor:
            return backbone.guided_eps(xt, t, cond, uncond, scale)

        noise = torch.stack([self._noise(label) for label in self.ids]).to(backbone.device)
        labels = ddim_timesteps(backbone.schedule, STEPS)
        return ddim_sample(eps, noise, backbone.schedule, labels, [0] * len(cond))

    def _noise(self, label: int) -> Float[Tensor, "c h w"]:
        generator = Generator().manual_seed(uint63(f"{self.cfg.seed}|concepts|preview|{label}"))
        return torch.randn(self.backbone.latent_shape, generator=generator)
