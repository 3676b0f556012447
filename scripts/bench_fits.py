"""Steps a second of concept learning over those of a bare peft loop that learns the same, in one process.

    python scripts/bench_fits.py [--steps 6] [--rounds 3] [--device cpu]

The loop is torch, diffusers and peft alone: token rows through the text encoder, LoRA beside the U-Net's attention,
noise, loss, clipping, AdamW. It and the profiles exact and fast take turns on the packaged model, with the same images
a step; CPU time counts on a CPU, seconds on a GPU. PASS: fast has at least 0.95 of the loop's steps a second.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from transformers import CLIPTextModel, CLIPTokenizer

from diffaug_datasets.core.learning import ConceptConfig, OnStep
from diffaug_datasets.core.models import BackboneSpec, find_backbone
from diffaug_datasets.core.profiles import Profile
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.concepts import train_concepts
from diffaug_datasets.models.kernels import put_to_work, spec_on
from diffaug_datasets.models.latents import ConceptExample

LEAST = 0.95
IMAGES, BATCH, RANK = 20, 8, 10


def now(device: str) -> float:
    """CPU seconds of this process, or seconds once the GPU has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def bare_loop(
    device: str, latents: torch.Tensor, dtype: torch.dtype, model: str = "tiny", batch: int = BATCH, rank: int = RANK
) -> Callable[[int], float]:
    """Seconds that so many steps of the loop take; everything else is made before."""
    folder = find_backbone(BackboneSpec(id=model)).folder
    local = {"local_files_only": True}
    unet = UNet2DConditionModel.from_pretrained(
        folder / "unet", torch_dtype=dtype, use_safetensors=True, trust_remote_code=False, **local
    )
    text = CLIPTextModel.from_pretrained(
        folder / "text_encoder", use_safetensors=True, trust_remote_code=False, **local
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    schedule = DDPMScheduler.from_pretrained(folder / "scheduler")
    text = text.float()
    for network in (unet, text):
        network.requires_grad_(False).eval().to(device)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets))
    lora = [p for p in unet.parameters() if p.requires_grad]
    for parameter in lora:
        parameter.data = parameter.data.float()
    table = text.get_input_embeddings().weight.requires_grad_(True)
    optimiser = torch.optim.AdamW([{"params": [table], "lr": 1e-4}, {"params": lora, "lr": 1e-4}])
    length = text.config.max_position_embeddings
    ids = tokenizer("a photo of a coat", padding="max_length", max_length=length, return_tensors="pt").input_ids
    shown = latents.to(device)

    def run(steps: int) -> float:
        begin = now(device)
        for _ in range(steps):
            x0 = shown[torch.randint(len(shown), (batch,), device=device)]
            eps, t = torch.randn_like(x0), torch.randint(1000, (batch,), device=device)
            states = text(input_ids=ids.to(device).expand(batch, -1)).last_hidden_state
            noised = schedule.add_noise(x0, eps, t).to(dtype)
            said = unet(noised, t, encoder_hidden_states=states.to(dtype), return_dict=False)[0]
            loss = (said.float() - eps).square().mean()
            loss.backward()
            for group in optimiser.param_groups:
                torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return now(device) - begin

    return run


def our_loop(
    device: str, latents: torch.Tensor, profile: Profile, model: str = "tiny", batch: int = BATCH, rank: int = RANK
) -> tuple[Callable[..., float], torch.dtype]:
    """The same of `train_concepts`, checkpoints and all; the time between its first step and its last."""
    backbone = Backbone.load(spec_on(BackboneSpec(id=model), profile, device), device)
    put_to_work(backbone, profile, batch)
    examples = [ConceptExample(latent, i % 2) for i, latent in enumerate(latents)]

    def run(steps: int, progress: OnStep | None = None) -> float:
        every, side = max(2, steps // 2), 8 * latents.shape[-1] if model != "tiny" else None
        cfg = ConceptConfig(steps=steps, batch=batch, rank=rank, checkpoint_every=every, lr_lora=1e-4, resolution=side)
        with tempfile.TemporaryDirectory() as folder:
            begin = now(device)
            train_concepts(backbone, examples, {0: "coat", 1: "bag"}, cfg, workdir=Path(folder), progress=progress)
            return now(device) - begin

    return run, backbone.dtype


def main() -> None:
    """Take turns, print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    latents = torch.randn(IMAGES, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    exact, _ = our_loop(given.device, latents, Profile())
    fast, dtype = our_loop(given.device, latents, Profile(name="fast"))
    loops = {"bare": bare_loop(given.device, latents, dtype), "exact": exact, "fast": fast}
    short, long = given.steps, 3 * given.steps  # what a fit does once is in both
    spent: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(given.rounds + 1):
        for name, loop in loops.items():
            few = loop(short)
            spent[name].append(loop(long) - few)
    rates = {name: [(long - short) / seconds for seconds in each[1:]] for name, each in spent.items()}
    for name in ("exact", "fast"):
        ratios = [ours / bare for ours, bare in zip(rates[name], rates["bare"], strict=True)]
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"{name}: {statistics.median(ratios):.3f} of the bare loop's steps a second ({shown})")
        fine = statistics.median(ratios) >= LEAST
    print(
        f"bare loop: {statistics.median(rates['bare']):.2f} steps a second, batches of {BATCH}, {given.device}, {dtype}"
    )
    print("PASS" if fine else "FAIL")
    raise SystemExit(not fine)


if __name__ == "__main__":
    main()
