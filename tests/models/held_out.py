"""How well concepts explain images that they were not learned from."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from torch import Generator, Tensor

from diffaug_datasets.core.identity import uint63
from diffaug_datasets.core.learning import ConceptConfig
from diffaug_datasets.core.method import Resize
from diffaug_datasets.models.adapters import LoadedConcepts
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.concepts import at_resolution, unlearned_concepts
from diffaug_datasets.models.latents import ConceptExample, Latents
from diffaug_datasets.numerics.schedule import add_noise


def held_out_loss(
    backbone: Backbone,
    concepts: LoadedConcepts | None,
    examples: Sequence[ConceptExample],
    names: Mapping[int, str],
    cfg: ConceptConfig,
    *,
    n_noise: int = 8,
    seed: int = 0,
    metaclass: str = "",
    resize: Resize = "lanczos",
) -> dict[int, float]:
    """Mean squared error on eps under the class prompt, by class; None for `concepts` = tokens at their start, no LoRA.

    Every image is seen at `cfg.resolution` and at `n_noise` levels spread over the schedule, one batch per image;
    levels and noises are the same for all concepts. The backbone is left without concepts.
    """
    backbone.use_concepts(concepts or unlearned_concepts(backbone, names, cfg, metaclass=metaclass))
    losses: dict[int, list[float]] = {}
    for j, example in enumerate(examples):
        with at_resolution(backbone, cfg.resolution):
            [latent] = Latents(backbone, [example], resize)(torch.tensor([0]), torch.tensor([False]))
        generator = torch.Generator().manual_seed(uint63(f"{seed}|held out|{j}"))
        cond = backbone.prompt(cfg.prompt(example.class_id, metaclass))
        losses.setdefault(example.class_id, []).append(_denoising_error(backbone, latent, cond, n_noise, generator))
    backbone.use_concepts(None)
    return {class_id: fmean(values) for class_id, values in sorted(losses.items())}


@torch.no_grad()
def _denoising_error(backbone: Backbone, x0: Tensor, cond: Tensor, n: int, generator: Generator) -> float:
    offset = float(torch.rand(1, generator=generator))
    t = [int((k + offset) / n * backbone.schedule.num_train_timesteps) for k in range(n)]
    eps = torch.randn(n, *x0.shape, generator=generator)
    xt = add_noise(backbone.schedule, x0.expand(n, *x0.shape), eps, t)
    found = backbone.eps(xt, t, cond.expand(n, *cond.shape)).cpu()
    return float((found - eps).square().mean())
