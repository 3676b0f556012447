"""What `plan --memory` says a plan needs, against what was at most in memory: resident on a CPU, and counted by tensor.

    python scripts/measure_memory.py [--model FOLDER] [--batch 16] [--side 256] [--only resident | counted]

resident: the packaged model, and another folder where one is given, make a batch and take training steps in a process
of their own; the peak of its resident memory, libraries and weights and all, against the whole estimate. Blocks that
are freed go back to the system at once (glibc by itself keeps many, and `--keep` lets it).
counted: Stable Diffusion 1.5's shape at 512 px on torch's meta device, where nothing is computed; the peak of all
tensors that are alive, as a GPU's allocator counts them (attention without its matrix, as GPUs compute it), against the
estimate without weights, context and spare. PASS: every estimate is 1 to 2 times what was there at most.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffaug_datasets.core.learning import ConceptConfig
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.profiles import Profile
from diffaug_datasets.models.adapters import attach
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.concepts import train_concepts
from diffaug_datasets.models.kernels import put_to_work
from diffaug_datasets.models.latents import ConceptExample
from diffaug_datasets.planning.cards import CONTEXT_BYTES, SPARE, Shape, Work, need, shape_of

LEAST, MOST = 1.0, 2.0
LEARNED = 8
CASES: tuple[tuple[str, dict[str, bool]], ...] = (
    ("exact", {}),
    ("vae_slicing", {"vae_slicing": True}),
    ("fit", {}),
    ("fit, checkpointing", {"checkpointing": True}),
)
UNET: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


def estimated(shape: Shape, work: Work, profile: Profile, *, is_fit: bool) -> float:
    """Bytes that a plan is said to need."""
    found = need(shape, work, profile)
    return float(found.fit if is_fit else found.generate)


def activations(shape: Shape, work: Work, profile: Profile, *, is_fit: bool) -> float:
    """The same beside the weights, without context and spare."""
    unet, vae, text = shape.parameters
    said = (estimated(shape, work, profile, is_fit=is_fit) - CONTEXT_BYTES) / SPARE
    return said - (unet + vae) * work.bytes - text * 4


def own_bytes(key: str) -> int:
    """A line of this process's memory in bytes, `VmRSS` or `VmHWM`."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that were resident at most while it ran."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    work()
    return own_bytes("VmHWM")


def resident(model: str, case: str, batch: int, side: int) -> None:
    """Print the peak and the estimate of one case, in this process."""
    words = dict(CASES)[case]
    profile, is_fit = Profile.model_validate(words), case.startswith("fit")
    torch.set_num_threads(1)
    spec = BackboneSpec(id=model, height=side, width=side)
    backbone = Backbone.load(spec)
    put_to_work(backbone, profile, batch)
    work = Work(side, side, batch, 4, LEARNED if is_fit else 0, side if is_fit else None)
    with tempfile.TemporaryDirectory() as folder:
        run = (lambda: fitted(backbone, side, Path(folder))) if is_fit else (lambda: made(backbone, batch))
        peak = peak_of(run)
    print(json.dumps({"peak": peak, "estimate": estimated(shape_of(spec), work, profile, is_fit=is_fit)}))


@torch.no_grad()
def made(backbone: Backbone, batch: int) -> None:
    """One guided step of a batch, and its pictures."""
    cond = backbone.prompts(["a photo of a coat"] * (2 * batch))
    latents = torch.randn(2 * batch, *backbone.latent_shape)
    backbone.decode_float(backbone.eps(latents, 500, cond)[:batch])


def fitted(backbone: Backbone, side: int, folder: Path) -> None:
    """Two training steps."""
    picture = Image.new("RGB", (side, side), (90, 120, 150))
    examples = [ConceptExample(lambda: picture, 0, str(i)) for i in range(LEARNED)]
    config = ConceptConfig(steps=2, batch=LEARNED, resolution=side)
    train_concepts(backbone, examples, {0: "coat"}, config, workdir=folder)


class Alive(TorchDispatchMode):
    """Bytes of all tensors that are alive, but for the weights of networks, and those at most."""

    def __init__(self, *networks: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen = {weight.untyped_storage()._cdata for network in networks for weight in network.parameters()}

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = call(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf.untyped_storage())
        return made

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Attention gives what it gives without the matrix that the meta device would make."""

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            made = torch.empty_like(q)
            ctx.save_for_backward(q, k, v, made)
            return made

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: ARG004
            return tuple(torch.empty_like(one) for one in ctx.saved_tensors[:3])

    def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return Attention.apply(q, k, v)  # type: ignore[no-any-return]

    with patch("torch.nn.functional.scaled_dot_product_attention", attended):
        yield


def counted(batch: int) -> Iterator[tuple[str, float, float]]:
    """Case, peak and estimate of Stable Diffusion 1.5 in bfloat16 at 512 px."""
    shape, side = Shape(), 512
    with torch.device("meta"), as_on_a_gpu():
        for case, words in (*CASES[:2], ("vae_tiling", {"vae_tiling": True}), *CASES[2:]):
            profile, is_fit = Profile.model_validate(words), case.startswith("fit")
            with torch.device("meta"):
                unet = UNet2DConditionModel(**UNET).to(torch.bfloat16).eval().requires_grad_(False)
                vae = AutoencoderKL(**VAE).to(torch.bfloat16).eval().requires_grad_(False)
            if profile.vae_slicing:
                vae.enable_slicing()
            if profile.checkpointing:
                unet.enable_gradient_checkpointing()
            work = Work(side, side, batch, 2, LEARNED if is_fit else 0, side if is_fit else None)
            peak = learned_on_meta(unet, side) if is_fit else made_on_meta(unet, vae, batch, side, words)
            yield case, peak, activations(shape, work, profile, is_fit=is_fit)


def made_on_meta(unet: Any, vae: Any, batch: int, side: int, words: dict[str, bool]) -> float:
    """Peak of a guided step and of its pictures; of tiles, one that is decoded."""
    rows, latent = 2 * batch, side // 8
    seen = latent if not words.get("vae_tiling") else min(latent, 64)
    with torch.no_grad(), Alive(unet, vae) as alive:
        states = torch.empty(rows, 77, 768, dtype=torch.bfloat16)
        said = unet(torch.empty(rows, 4, latent, latent, dtype=torch.bfloat16), 500, encoder_hidden_states=states)[0]
        vae.decode(said[:batch, :, :seen, :seen], return_dict=False)
    return float(alive.most)


def learned_on_meta(unet: Any, side: int) -> float:
    """Peak of a training step of LoRA."""
    attach(unet, 10, 0)
    if unet.is_gradient_checkpointing:
        unet.train()
    for name, weight in unet.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.to("meta")
    with Alive(unet) as alive:
        states = torch.empty(LEARNED, 77, 768, dtype=torch.bfloat16, requires_grad=True)
        latents = torch.empty(LEARNED, 4, side // 8, side // 8, dtype=torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
            said = unet(latents, 500, encoder_hidden_states=states)[0]
        said.float().square().mean().backward()
    return float(alive.most)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="another folder in diffusers format")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--keep", action="store_true", help="leave the C library's allocator as it is")
    parser.add_argument("--only", choices=("resident", "counted"))
    parser.add_argument("--case", nargs=2, metavar=("MODEL", "CASE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        resident(*given.case, given.batch, given.side)
        return
    ratios: list[float] = []
    if given.only != "counted":
        for model in ("tiny", *([given.model] if given.model else [])):
            for case, _ in CASES:
                peak, estimate = asked(model, case, given)
                ratios.append(told(f"{Path(model).name} at {given.side} px, {case}", peak, estimate))
    if given.only != "resident":
        for case, peak, estimate in counted(given.batch):
            ratios.append(told(f"Stable Diffusion 1.5 at 512 px, bfloat16, {case}", peak, estimate))
    is_fine = all(LEAST <= ratio <= MOST for ratio in ratios)
    print("PASS" if is_fine else "FAIL")
    raise SystemExit(not is_fine)


def asked(model: str, case: str, given: argparse.Namespace) -> Sequence[float]:
    """Peak and estimate of a case in a process of its own."""
    command = [sys.executable, __file__, "--batch", str(given.batch), "--side", str(given.side), "--case", model, case]
    allocator = {} if given.keep else {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | allocator)
    if done.returncode:
        raise SystemExit(f"{model}, {case}:\n{done.stderr[-2000:]}")
    line = json.loads(done.stdout.splitlines()[-1])
    return line["peak"], line["estimate"]


def told(name: str, peak: float, estimate: float) -> float:
    """Print a line; the ratio."""
    print(
        f"{name}: at most {peak / 2**20:,.0f} MiB, estimated {estimate / 2**20:,.0f}: {estimate / peak:.2f}", flush=True
    )
    return estimate / peak


if __name__ == "__main__":
    main()
