"""What a step costs beside its network: tensor operations, and those of them that make the host wait for a GPU.

    python scripts/count_calls.py

Counts what torch is asked outside the U-Net while a batch of four is denoised under a small random pipeline, for both
profiles and three samplers, where rows begin together and where they do not. PASS: at most 20 a step in fast, none of
which waits.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.profiles import Profile
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.denoising import Conditions, denoise
from diffaug_datasets.models.kernels import put_to_work

sys.path.extend(str(Path(__file__).resolve().parents[1] / "tests" / part) for part in ("", "models"))
import sd_tiny
from outside_calls import WAITING, calls_a_step

FEW, MANY, MOST = 10, 13, 20
SAMPLERS = ("ddim", "dpm", "plms")  # of a variance-preserving schedule, without the noise of few-step models


def main() -> None:
    """Count and print."""
    torch.set_num_threads(1)
    folder = sd_tiny.build(Path(tempfile.mkdtemp(prefix="diffaug-calls-")) / "pipeline")
    conditions = Conditions(["a coat"] * 4, [""] * 4, [7.5] * 4)
    fine = True
    print("profile  sampler  starts    calls a step  that wait")
    for name in ("exact", "fast"):
        backbone = Backbone.load(BackboneSpec(id=str(folder)))
        if name == "fast":
            put_to_work(backbone, Profile(name="fast", compile="never"), 4)
        for sampler in SAMPLERS:
            for word, starts in (("together", [0] * 4), ("apart", [0, 0, 3, 5])):

                def run(n: int, to: Backbone = backbone, by: Any = sampler, begin: Sequence[int] = starts) -> None:
                    denoise(to, torch.ones(4, *to.latent_shape), conditions, by, n, begin)

                names = calls_a_step(run, (backbone.unet,), FEW, MANY)
                calls, waits = (sum(names.values()) / (MANY - FEW), sum(names[w] for w in WAITING) / (MANY - FEW))
                print(f"{name:8} {sampler:8} {word:8} {calls:13.1f} {waits:10.1f}")
                fine = fine and (name == "exact" or (calls <= MOST and waits == 0))
    print("PASS" if fine else "FAIL")
    raise SystemExit(not fine)


if __name__ == "__main__":
    main()
