"""Does everything hold on this device, and how fast is it: speed, then one against two processes, SIGKILL and resume.

    python scripts/check_gpu.py [--size full|small] [--methods NAME ...] [--profile exact|fast] [--budget 540]
                                [--only speed|methods] [--measures NAME ...]

Builds a pipeline shaped like Stable Diffusion 1.5 with random weights and a folder of drawn pictures. First what
`gpu_speed.py` and `gpu_engine.py` measure, a line of JSON after each. Then, for every method that is named (three
unless told), a run with one worker in this process (images/s and peak memory of tensors are its), with two worker
processes, and in processes that SIGKILL themselves midway before it is taken up again. All three must leave the same
bytes in shards and fits. No measure and no method is begun once the budget, in seconds, is spent; what was left out is
said. `full` is 512 px, 25 steps and the real sizes, the default where there is a GPU; `small` is 64 px, two steps and
few weights, which a CPU does too. Both run in bfloat16, the methods in the profile exact unless told. The last line
says PASS or FAIL, and the exit status is 0 or 1.
"""

import argparse
import gc
import json
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffaug_datasets.core.files import sha256_file
from diffaug_datasets.core.method import Method, discover_methods, find_method
from diffaug_datasets.core.profiles import Profile, ProfileName
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.cards import need, shape_of, work_of
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.run.engines.local import device_of
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.stacks import stack
from diffaug_datasets.run.store import Receipt, Run
from diffaug_datasets.run.worker import Worker, WorkerOptions

sys.path.insert(0, str(Path(__file__).resolve().parent))
from gpu_engine import engine_rates
from gpu_speed import MEASURES, Measure, measures, shares
from gpu_speed import Bench as Speed

PRELOAD = ["torch", "diffusers", "transformers", "peft", "diffaug_datasets.models.concepts"]
CLASSES = ("red ball", "blue box", "green ring")
METHODS = ("txt2img", "genie", "diff_mix")  # from noise, from a source, and with something learned
FOR_METHODS = 0.3  # of the budget, kept for them
WIDTHS = (6, 8, 10, 10, 13, 13, 18)


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    name: str
    pixels: int
    steps: int
    concept_steps: int
    per_class: int
    batch: int
    shard: int


SIZES = {"full": Size("full", 512, 25, 20, 4, 4, 4), "small": Size("small", 64, 2, 3, 4, 2, 4)}


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--size", choices=SIZES, default="full" if gpu else "small")
    parser.add_argument("--methods", nargs="+", choices=sorted(discover_methods()), default=list(METHODS))
    parser.add_argument("--budget", type=float, default=540.0, help="seconds")
    parser.add_argument("--only", choices=("speed", "methods"), help="one half alone")
    parser.add_argument("--profile", choices=("exact", "fast"), default="exact", help="of the methods' runs")
    names = ["engine", *(measure.__name__ for measure in MEASURES)]
    parser.add_argument("--measures", nargs="+", choices=names, default=[], help="of speed, these alone")
    parser.add_argument("--device", default="cuda:0" if gpu else "cpu")
    parser.add_argument("--pixels", type=int, help="instead of the size's own")
    parser.add_argument("--steps", type=int, help="sampling steps, instead of the size's own")
    return parser.parse_args()


def build_pipeline(folder: Path, size: Size, device: str) -> Path:
    """The tests' small pipeline; for `full` its networks are written over by ones of Stable Diffusion 1.5's sizes."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import sd_tiny

    sd_tiny.build(folder)
    if size.name == "full":
        settings = folder / "tokenizer" / "tokenizer_config.json"
        text = settings.read_text(encoding="utf-8").replace(f": {sd_tiny.LENGTH}", ": 77")
        settings.write_text(text, encoding="utf-8")
        words = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
        with torch.device(device):
            torch.manual_seed(0)
            for name, network in full_networks(words):
                network.save_pretrained(folder / name)
    return folder


def full_networks(words: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Text encoder, U-Net and VAE with random weights, one by one; `words`: the small text encoder's settings."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    sizes |= {"max_position_embeddings": 77, "projection_dim": 768}
    text = CLIPTextModel(CLIPTextConfig(**{**words, **sizes}))
    # A fresh text encoder's embeddings are so small that all prompts look alike.
    text.get_input_embeddings().weight.data.normal_()
    yield "text_encoder", text
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    yield "unet", unet.to(torch.bfloat16)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512, **blocks)
    yield "vae", vae.to(torch.bfloat16)


def build_controlnet(pipeline: Path, device: str) -> None:
    """A random ControlNet for the pipeline's U-Net, beside the pipeline."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    with torch.device(device):
        torch.manual_seed(0)

        unet = UNet2DConditionModel.from_pretrained(
            pipeline / "unet", use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
        ControlNetModel.from_unet(unet).save_pretrained(pipeline.with_name("controlnet"))


def draw_pictures(folder: Path, pixels: int, numbers: range) -> Path:
    """Three classes of drawn pictures, one a number."""
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in numbers:
            noise = np.random.default_rng([number, i]).integers(0, 160, (8, 8, 3), dtype=np.uint8)
            noise[2:6, 2:6, number] = 255
            Image.fromarray(noise).resize((pixels, pixels), Image.Resampling.BICUBIC).save(folder / name / f"{i}.png")
    return folder


def recipe(method: Method, pipeline: Path, pictures: Path, size: Size, profile: ProfileName) -> Recipe:
    """A small recipe of a method; of these parameters it gets those that its `Config` has."""
    concepts = {"steps": size.concept_steps, "batch": 2, "checkpoint_every": 1}
    known = {"num_inference_steps": size.steps, "inversion_steps": size.steps, "encoder": "tiny", "concepts": concepts}
    known |= {"suffixes": ["in the snow", "at night"], "split_ratio": 0.5}
    known["embeddings"] = {"steps": size.concept_steps, "batch": 2, "checkpoint_every": 1}
    known["lora"] = {"epochs": size.concept_steps, "batch": 2, "warmup": 0, "checkpoint_every": 1}
    known["editor"] = "noised"  # the model that is built edits by no instruction
    known |= {"pool": str(pictures.with_name("pool")), "duplicates": {"hash_distance": None, "cosine": None}}
    known |= {"strength": 0.5, "strengths": [0.5, 1.0], "controlnet": str(pipeline.with_name("controlnet"))}
    return Recipe(
        builder="imagefolder",
        source=str(pictures),
        method=method.NAME,
        config={key: value for key, value in known.items() if key in method.Config.model_fields},
        per_class=size.per_class,
        batch_size=size.batch,
        shard_rows=size.shard,
        include_test=False,
        profile=Profile(name=profile),
        backbone={"id": str(pipeline), "dtype": "bfloat16", "height": size.pixels, "width": size.pixels},
    )


@dataclass(frozen=True)
class KillAt:
    """Kills its own process at the first event of that name whose step or unit is this."""

    name: str
    of: int | str

    def install(self) -> None:
        """From now on in this process."""
        event = Run.event

        def watched(run: Run, **content: Any) -> None:
            if content["event"] == self.name and self.of in (content.get("step"), content.get("unit")):
                os.kill(os.getpid(), signal.SIGKILL)
            event(run, **content)

        Run.event = watched  # type: ignore[method-assign]


def work(folders: Sequence[Path], options: WorkerOptions, kill: KillAt | None = None) -> None:
    """What a worker process does: make what the runs lack, one run after the other."""
    if kill:
        kill.install()
    for folder in folders:
        try:
            Worker(Run.open(folder), options).work()
        except Exception:
            traceback.print_exc()


class Bench:
    """Three run folders a method: `one` and `two` for as many workers, `killed` for the one that is killed.

    `planned`: method -> GiB that `plan --memory` says it needs of a card, its context included.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.options = folder, WorkerOptions(device=device)
        self.planned: dict[str, float] = {}
        self.context: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
        if not device.startswith("cuda"):
            # Its server loads the libraries once. A process that uses CUDA must not be forked.
            self.context = multiprocessing.get_context("forkserver")
            self.context.set_forkserver_preload(PRELOAD)

    def plan(self, recipe: Recipe) -> None:
        """Write a method's run folders."""
        prepared = prepare(recipe)
        shape = shape_of(recipe.backbone)
        self.planned[recipe.method] = need(shape, work_of(prepared, shape), recipe.profile).most / 2**30
        for kind in ("one", "two", "killed"):
            write_run(prepared, self.folder / kind / recipe.method)

    def finish(self, kind: str, method: str) -> Run:
        """Make in this process what a run still lacks, and assemble it."""
        run = Run.open(self.folder / kind / method)
        execute(run, self.options, workers=1)
        return run

    def start(self, methods: Sequence[str], kind: str, options: WorkerOptions, kill: KillAt | None = None) -> Any:
        """A process that works on these runs."""
        folders = [self.folder / kind / method for method in methods]
        child = self.context.Process(target=work, args=(folders, options, kill))
        child.start()
        return child

    def pair(self, methods: Sequence[str]) -> None:
        """Two processes at once make all the runs `two`: each takes the units that the other does not hold."""
        children = [self.start(methods, "two", device_of(self.options, number)) for number in range(2)]
        for child in children:
            child.join()

    def kill_and_resume(self, method: str) -> tuple[Run, int]:
        """SIGKILL while something is learned and inside the second shard, then resume; the run and how many kills."""
        kinds = {unit.kind for unit in Run.open(self.folder / "killed" / method).plan.fits}
        codes = []
        learning = [KillAt("fit", 2)] if kinds & {"concepts", "lora", "image_embeddings"} else []
        for point in (*learning, KillAt("batch", "synthetic-00001")):
            child = self.start([method], "killed", self.options, point)
            child.join()
            codes.append(child.exitcode)
        return self.finish("killed", method), codes.count(-signal.SIGKILL)


def receipts(run: Run) -> dict[str, Receipt]:
    """Unit -> receipt, of all fits and synthetic shards that are done."""
    units = [unit.name for _, units in run.units() for unit in units]
    return {name: receipt for name in units if (receipt := run.receipt(name)) is not None}


def digests(run: Run) -> dict[str, str]:
    """File -> sha256, read from the disk, of all fits and synthetic shards that are done."""
    found = [(run.receipt_path(name).parent, receipt) for name, receipt in receipts(run).items()]
    paths = [folder / file.file for folder, receipt in found for file in receipt.files]
    return {str(path.relative_to(run.folder)): sha256_file(path) for path in paths}


def images_a_second(run: Run) -> float:
    """Of all shards but the first, which has the loading of the model in it."""
    done = [receipts(run)[shard.name] for shard in run.plan.shards()[1:]]
    return sum(receipt.rows for receipt in done) / sum(receipt.seconds for receipt in done)


def measured(bench: Bench, method: str) -> tuple[Run, str]:
    """The run `one`, made in this process, and the GiB that its tensors took at most."""
    device = bench.options.device
    if not device.startswith("cuda"):
        return bench.finish("one", method), "-"
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return bench.finish("one", method), f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f}"


def check(bench: Bench, method: str) -> tuple[bool, list[str]]:
    """Whether a method holds, and the cells of its line. The runs `two` are there already."""
    one, memory = measured(bench, method)
    two = Run.open(bench.folder / "two" / method)
    killed, kills = bench.kill_and_resume(method)
    made, processes = receipts(one), len({receipt.worker for receipt in receipts(two).values()})
    failed = sum(len(receipt.failed) for receipt in made.values())
    same, resumed = (digests(run) == digests(one) for run in (two, killed))
    words = [f"{'equal' if fine else 'DIFFER'}, {n}" for fine, n in ((same, processes), (resumed, kills))]
    counts = [str(sum(receipt.rows for receipt in made.values())), str(failed), f"{images_a_second(one):.2f}"]
    memories = [memory, f"{bench.planned[method]:.2f}"]
    return same and resumed and kills > 0 and not failed, [method, *counts, *memories, *words]


def columns(cells: Sequence[str]) -> str:
    """One line of the table."""
    return cells[0].ljust(20) + "".join(cell.rjust(width) for cell, width in zip(cells[1:], WIDTHS, strict=True))


def heading(size: Size, device: str) -> str:
    """What runs here: device, versions, sizes."""
    found = stack(device)
    versions = ", ".join(f"{name} {version}" for name, version in found.items() if name != "device")
    shape = f"{size.name} Stable Diffusion 1.5 shape, random weights, bfloat16"
    work = f"{size.pixels} px, {size.steps} steps, batches of {size.batch}, {size.concept_steps} steps of learning"
    return f"device: {device}, {found['device']}\npython {platform.python_version()}, {versions}\n{shape}; {work}"


def speed_bench(size: Size, pipeline: Path, device: str, folder: Path) -> Speed:
    """How large what is measured is."""
    is_full = size.name == "full"
    batches, matrix, sides = ((4, 16, 64), 8192, (224, 512)) if is_full else ((2,), 256, (64,))
    return Speed(pipeline, device, size.pixels, size.steps, batches, matrix, folder, sides)


def chosen(names: Sequence[str], pictures: Path) -> list[Measure]:
    """The measures of these names, all where none is given, in their order."""

    def engine(bench: Speed) -> dict[str, object]:
        return engine_rates(bench, pictures)

    return [measure for measure in (*MEASURES[:-1], engine, MEASURES[-1]) if not names or measure.__name__ in names]


def checked(bench: Bench, methods: Sequence[str], until: float) -> Iterator[bool]:
    """Print a line per method as soon as it is known; whether it holds. None is begun after `until`."""
    begin = time.monotonic()
    bench.pair(methods)
    print(f"two processes made the runs of {len(methods)} methods in {time.monotonic() - begin:.0f} s", flush=True)
    heads = ("method", "rows", "failed", "images/s", "peak GiB", "planned GiB", "2 processes", "SIGKILL, resumed")
    print(columns(heads), flush=True)
    for method in methods:
        if time.monotonic() > until:
            print(f"{method.ljust(20)} left out: the time was over", flush=True)
            continue
        try:
            holds, cells = check(bench, method)
            print(columns(cells), flush=True)
        except Exception as error:
            traceback.print_exc()
            print(f"{method.ljust(20)} {type(error).__name__}: {error}", flush=True)
            holds = False
        yield holds


def main() -> None:
    """Plan, run, compare; print the table."""
    given = arguments()
    size, begin = SIZES[given.size], time.monotonic()
    size = replace(size, pixels=given.pixels or size.pixels, steps=given.steps or size.steps)
    print(heading(size, given.device), flush=True)
    with tempfile.TemporaryDirectory() as name:
        pipeline = build_pipeline((folder := Path(name)) / "pipeline", size, given.device)
        pictures, bench = draw_pictures(folder / "pictures", size.pixels, range(2)), Bench(folder, given.device)
        draw_pictures(folder / "pool", size.pixels, range(2, 7))
        build_controlnet(pipeline, given.device)
        for method in given.methods:
            bench.plan(recipe(find_method(method), pipeline, pictures, size, given.profile))
        held, lines = [], []
        if given.only != "methods":
            share = 1.0 if given.only else 1 - FOR_METHODS
            speed = speed_bench(size, pipeline, given.device, folder)
            lines = list(measures(speed, begin + share * given.budget, chosen(given.measures, pictures)))
            print(json.dumps({"measure": "shares", **shares(lines)}), flush=True)
        if given.only != "speed":
            held = list(checked(bench, given.methods, begin + given.budget))
        held += ["failed" not in line for line in lines]
    verdict = "PASS" if all(held) else "FAIL"
    what = "methods and measures" if lines else "methods"
    print(f"{verdict}: {sum(held)} of {len(held)} {what} hold, {time.monotonic() - begin:.0f} s")
    raise SystemExit(verdict == "FAIL")


if __name__ == "__main__":
    main()
