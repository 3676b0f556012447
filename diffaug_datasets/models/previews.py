"""Pictures for the eye while concepts are learned: a few classes, the same noise each time, beside the fit.

They are no part of the fit: nothing reads them but the report, training ends at the same bits without them, and they
count among no fit's evaluations.
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
from diffaug_datasets.core.temporary import write_bytes
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.pixels import to_uint8
from diffaug_datasets.numerics.sampling import ddim_sample
from diffaug_datasets.numerics.schedule import ddim_timesteps

FOLDER = "previews"
LEAST, MOST, CLASSES, STEPS, SCALE, SIDE = 3, 12, 4, 10, 7.5, 256
# A training step costs about three evaluations an image; pictures may cost a twentieth of them.
TRAINING_COST, SHARE = 3, 20


def shown_classes(labels: Sequence[int]) -> tuple[int, ...]:
    """A few classes spread evenly over all."""
    known = sorted(set(labels))
    count = min(CLASSES, len(known))
    return tuple(known[i * len(known) // count] for i in range(count))


def moments(cfg: ConceptConfig, classes: int) -> tuple[int, ...]:
    """After how many steps to look at so many classes: at every checkpoint, or at twelve of them.

    At fewer where looking would cost more than a twentieth of the training, at none where three are too many. With
    fewer than three checkpoints, at thirds of the way.
    """
    ends = [*range(cfg.checkpoint_every, cfg.steps, cfg.checkpoint_every), cfg.steps]
    if len(ends) < LEAST:
        ends = [cfg.steps * (i + 1) // LEAST for i in range(LEAST)]
    cost = SHARE * classes * STEPS * 2
    count = next((n for n in range(min(MOST, len(ends)), LEAST - 1, -1) if n * cost <= _training_cost(cfg)), 0)
    return tuple(step for step in dict.fromkeys(ends[(i + 1) * len(ends) // count - 1] for i in range(count)) if step)


def _training_cost(cfg: ConceptConfig) -> int:
    return TRAINING_COST * cfg.steps * cfg.batch


@dataclass(frozen=True)
class Previews:
    """What is drawn of a training run: class id -> token ids of its prompt; PNG files named by step and class."""

    backbone: Backbone
    cfg: ConceptConfig
    ids: Mapping[int, Int[Tensor, " s"]]
    folder: Path

    def __call__(self, done: int) -> None:
        """Draw the classes if so many steps are a moment to look."""
        if self.ids and done in moments(self.cfg, len(self.ids)):
            with self.backbone.uncounted():
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
            write_bytes(self.folder / FOLDER / f"step-{done:06d}-class-{label}.png", buffer.getvalue())

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
