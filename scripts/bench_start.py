"""How soon `generate` makes its first batch, against what cannot be left out: importing libraries, loading the model.

    python scripts/bench_start.py [--rounds 3]

A run of three rows is planned before. Two kinds of processes take turns: one imports torch, diffusers and transformers
and loads the pipeline's networks by `from_pretrained`, the other is `diffaug generate` up to the moment that its first
batch is denoised. CPU time counts. PASS: at most 1.3 times the bare one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from diffaug_datasets.core.models import BackboneSpec, find_backbone
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare, write_run

MOST = 1.3
SPENT = "import os, resource; u = resource.getrusage(resource.RUSAGE_SELF); print('SPENT', u.ru_utime + u.ru_stime)"
BARE = """
import sys, torch
torch.set_num_threads(1)
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
folder = sys.argv[1]
for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"), (CLIPTextModel, "text_encoder")):
    kind.from_pretrained(f"{folder}/{part}", local_files_only=True, use_safetensors=True)
CLIPTokenizer.from_pretrained(f"{folder}/tokenizer")
"""
OURS = """
import sys
from diffaug_datasets.models import denoising
def first(*given):
    {spent}
    sys.stdout.flush()
    os._exit(0)
denoising.denoise = first
from diffaug_datasets.cli import main
sys.argv = ["diffaug", "generate", sys.argv[1], "--workers", "1"]
main()
"""


def cpu_seconds(code: str, argument: str) -> float:
    """CPU seconds that a process says it took when it was at the place."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SPENT")]
    if not lines:
        raise SystemExit(f"a process ended before its place:\n{done.stderr[-2000:]}")
    return float(lines[-1].split()[1])


def main() -> None:
    """Take turns, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    pipeline = find_backbone(BackboneSpec(id="tiny")).folder
    recipe = config_recipe("fashion_2shot_txt2img", per_class=1, include_test=False)
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        run = write_run(prepare(recipe), Path(name) / "run")
        ours = OURS.format(spent=SPENT)
        for _ in range(rounds):
            bare, begun = cpu_seconds(BARE + SPENT, str(pipeline)), cpu_seconds(ours, str(run.folder))
            ratios.append(begun / bare)
            print(f"bare import and load {bare:.1f} s, first batch after {begun:.1f} s of CPU time", flush=True)
    ratio = statistics.median(ratios)
    print(f"first batch over bare import and load: median {ratio:.2f} of {[round(r, 2) for r in ratios]}")
    print("PASS" if ratio <= MOST else "FAIL")
    raise SystemExit(ratio > MOST)


if __name__ == "__main__":
    main()
