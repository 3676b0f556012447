"""Do the parity tests catch what they are for: one planted fault of every kind in every method.

    python scripts/mutate_parity.py [--methods genie diffmix ...] [--kinds sign step scale label]

Copies the package and its tests into a temporary folder, checks that a method's parity test passes there, then changes
one place of the source after the other: a sign, a step offset, a scale, a label rule. A fault counts as caught where
the test fails in a comparison; any other exception is shown by its name. Prints a line per method as it is done; the
exit status is 1 where a fault is missed, or where its place is no longer in the source.
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TEST = "tests/run/test_published.py::test_latents_and_labels[{}]"
OWN_TESTS = {
    "diffinversion": "tests/methods/test_diffusion_inversion.py",
    "diffusemix": "tests/methods/test_diffusemix.py::test_pictures_are_those_of_the_pipeline_under_a_fractal",
    "datadream": "tests/methods/test_datadream.py",
    "gif": "tests/methods/test_gif.py::test_latents_are_those_of_the_authors",
    "retrieval": "tests/methods/test_retrieval.py::test_the_nearest_images_are_those_that_a_plain_search_finds",
}
KINDS = ("sign", "step", "scale", "label")
PRELOAD = ["torch", "diffusers", "transformers", "peft", "pytest", "datasets"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Fault(NamedTuple):
    """In a file of the package, one text for another; the first stands there exactly once."""

    file: str
    old: str
    new: str


GUIDANCE = Fault("numerics/schedule.py", "uncond + w * (cond - uncond)", "uncond - w * (cond - uncond)")
BRANCHES = Fault("models/backbone.py", "torch.cat([uncond, cond])", "torch.cat([cond, uncond])")
NOISE = Fault("numerics/schedule.py", "signal * clean + noise * widened(eps)", "signal * clean - noise * widened(eps)")
LABELS = Fault("numerics/timesteps.py", "round(i * ((T - 1) / n))", "round(i * ((T - 9) / n))")
ALL_STEPS = Fault("methods/_editing.py", "starts, steps = [0] * len(rows)", "starts, steps = [1] * len(rows)")
NOISED_AT = Fault(
    "methods/_editing.py", "[labels[s] for s in starts]", "[labels[max(s - 1, 0)] + (not s) * -9 for s in starts]"
)
FIRST_STEP = Fault(
    "methods/_editing.py",
    "img2img_start(self.num_inference_steps, strength)",
    "(img2img_start(self.num_inference_steps, strength) or 2) - 1",
)
SCALE = Fault("methods/_editing.py", "self.guidance_scale,", "self.guidance_scale * 1.01,")
LATENT = Fault("models/backbone.py", "0.0)) * config.scaling_factor", "0.0)) * config.scaling_factor * 1.01")
LORA = Fault("models/adapters.py", "weight.float().cpu() + change", "weight.float().cpu() + 2 * change")
PIXELS = Fault("models/backbone.py", "(2 * levels - 1)", "(2 * levels - 0.98)")
OTHER_TOKEN = "cfg.concepts.prompt(9 - label, table.metaclass)"


def other_class(method: str) -> Fault:
    """Sources of another class than the row's."""
    return Fault(f"methods/{method}.py", "own_source(key, groups[label])", "own_source(key, groups[9 - label])")


def other_name(method: str) -> Fault:
    """The prompt names another class than the label."""
    return Fault(f"methods/{method}.py", "table.prompt_names[label]", "table.prompt_names[9 - label]")


FAULTS: dict[str, tuple[Fault, Fault, Fault, Fault]] = {
    "txt2img": (GUIDANCE, ALL_STEPS, SCALE, other_name("txt2img")),
    "realgen": (BRANCHES, LABELS, SCALE, other_name("real_gen")),
    "diffgen": (
        GUIDANCE,
        ALL_STEPS,
        LORA,
        Fault("methods/diff_gen.py", "cfg.concepts.prompt(label, table.metaclass)", OTHER_TOKEN),
    ),
    "img2img": (
        NOISE,
        FIRST_STEP,
        LATENT,
        other_class("img2img"),
    ),
    "realguidance": (NOISE, FIRST_STEP, SCALE, other_class("real_guidance")),
    "diffaug": (NOISE, NOISED_AT, LATENT, other_class("diff_aug")),
    "realmix": (
        NOISE,
        FIRST_STEP,
        PIXELS,
        Fault("methods/real_mix.py", "of_target = strength**gamma", "of_target = 1 - strength**gamma"),
    ),
    "diffmix": (
        BRANCHES,
        NOISED_AT,
        LORA,
        Fault(
            "methods/real_mix.py",
            "diff_mix_label(source.label, key.class_id,",
            "diff_mix_label(key.class_id, source.label,",
        ),
    ),
    "dafusion": (
        Fault("numerics/sampling.py", "(3 / 2, -1 / 2)", "(3 / 2, 1 / 2)"),
        Fault("numerics/sampling.py", "(gap if again else 0)", "0"),
        Fault("numerics/sampling.py", "(seen[i] + seen[first]) / 2", "(seen[i] + seen[first]) / 2.02"),
        other_class("da_fusion"),
    ),
    "genie": (
        Fault("numerics/sampling.py", "widened(x0) + weight * (", "widened(x0) - weight * ("),
        Fault(
            "numerics/timesteps.py",
            "if t - 1 <= num_train_timesteps * ratio",
            "if t - 80 <= num_train_timesteps * ratio",
        ),
        Fault("methods/genie.py", "int(1000 * ratio)", "int(990 * ratio)"),
        Fault("methods/genie.py", "s.label != target and", "s.label == target and"),
    ),
    "genieada": (
        Fault("numerics/selection.py", "z_levels.double() - source", "z_levels.double() + source"),
        Fault("numerics/selection.py", "abs(values[k] - values[k - 1]))", "abs(values[k] - values[k - 1])) - 1"),
        Fault("numerics/selection.py", "@ line / length", "@ line / length**2"),
        Fault("methods/genie_ada.py", 'endswith(f"/{row.label}")', 'endswith(f"/{row.source_labels[0]}")'),
    ),
    "diffii": (
        Fault("numerics/interpolation.py", "of_a * a.double() - of_b", "of_a * a.double() + of_b"),
        Fault("models/denoising.py", "(step < switch)", "(step <= switch)"),
        Fault("numerics/interpolation.py", "u * lengths[arc]", "u * lengths[arc] * 0.99"),
        Fault(
            "methods/diff_ii.py",
            "cfg.concepts.prompt(key.class_id, metaclass)",
            "cfg.concepts.prompt(9 - key.class_id, metaclass)",
        ),
    ),
    "dreamda": (
        Fault("numerics/cycle.py", "(widened(wanted) - widened(seen))", "(widened(wanted) + widened(seen))"),
        Fault("methods/dream_da.py", "[labels[s] for s in starts]", "[labels[s - 1] for s in starts]"),
        Fault("models/bottleneck.py", "self._scale * rows", "self._scale * 1.05 * rows"),
        Fault("methods/dream_da.py", "sorted(groups[label],", "sorted(groups[9 - label],"),
    ),
    "alia": (
        Fault("numerics/sampling.py", "(3 / 2, -1 / 2)", "(3 / 2, 1 / 2)"),
        FIRST_STEP,
        LATENT,
        Fault("methods/alia.py", "_pairs(groups[label], spec)", "_pairs(groups[9 - label], spec)"),
    ),
    "saspa": (
        Fault("numerics/edges.py", "(dx ^ dy) < 0, rising, falling", "(dx ^ dy) < 0, falling, rising"),
        Fault("methods/saspa.py", "starts, steps = [0] * len(rows)", "starts, steps = [1] * len(rows)"),
        Fault("models/controlnet.py", "conditioning_scale=scale", "conditioning_scale=scale * 1.05"),
        Fault("methods/saspa.py", "sorted(groups[label],", "sorted(groups[9 - label],"),
    ),
    "diffinversion": (
        Fault("models/concepts.py", "alpha * partner + lam * noise", "alpha * partner - lam * noise"),
        Fault("methods/diffusion_inversion.py", "[0] * len(rows))", "[1] * len(rows))"),
        Fault("methods/diffusion_inversion.py", "in sorted(group)]).mean(0)", "in sorted(group)]).mean(0) * 1.5"),
        Fault("methods/diffusion_inversion.py", "if source is not own]", "if source is own]"),
    ),
    "diffusemix": (
        Fault("models/pix2pix.py", "image_scale * (image - nothing)", "image_scale * (nothing - image)"),
        Fault("numerics/ancestral.py", "math.sqrt(end**2 - up**2) - sigma", "end - sigma"),
        Fault(
            "methods/diffusemix.py",
            "cfg.fractal_weight * levels.to(mixed)",
            "0.9 * cfg.fractal_weight * levels.to(mixed)",
        ),
        Fault("methods/diffusemix.py", "line.flip(0) if side in", "line if side in"),
    ),
    "datadream": (
        Fault(
            "models/few_shot.py",
            "return output + F.linear(",
            "return output - F.linear(",
        ),
        Fault("models/few_shot.py", "math.pi * (i - warmup)", "math.pi * (i + 1 - warmup)"),
        Fault("models/few_shot.py", "output + torch.bmm(inner,", "output + 1.1 * torch.bmm(inner,"),
        Fault("methods/datadream.py", "table.prompt_names[label]", "table.prompt_names[9 - label]"),
    ),
    "gif": (
        Fault("models/imagination.py", "b + step * of_b.sign()", "b - step * of_b.sign()"),
        Fault("methods/gif.py", "[max(start - 1, 0)]", "[start]"),
        Fault("models/imagination.py", "z + step * of_z.sign()", "z + 1.1 * step * of_z.sign()"),
        Fault("methods/gif.py", "table.prompt_names[key.class_id]", "table.prompt_names[9 - key.class_id]"),
    ),
    "retrieval": (
        Fault("numerics/nearest.py", "key=lambda pair: (-pair[0],", "key=lambda pair: (pair[0],"),
        Fault(
            "methods/retrieval.py",
            "entry(ctx.fit(row.adapters[0]), query, rank)",
            "entry(ctx.fit(row.adapters[0]), query, 2 - rank)",
        ),
        Fault("numerics/nearest.py", "append(Match(place, cosine))", "append(Match(place, cosine * 1.01))"),
        Fault("methods/retrieval.py", "table.prompt_names[label]", "table.prompt_names[9 - label]"),
    ),
}


class Failures:
    """A pytest plugin that keeps the names of the exceptions that tests end with."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_exception_interact(self, call: Any) -> None:
        """Called by pytest for every exception outside a skip."""
        self.names.append(call.excinfo.typename)


def run_test(folder: Path, slug: str, answer: Any) -> None:
    """In a process of its own: the method's parity test on the copy; sends the exceptions' names."""
    import pytest

    os.chdir(folder)
    sys.path[:0] = [str(folder), str(folder / "tests")]
    os.environ.update(ENVIRONMENT)
    sys.dont_write_bytecode = True
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    failures = Failures()
    chosen = OWN_TESTS.get(slug, TEST.format(slug))
    code = pytest.main(["-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", chosen], plugins=[failures])
    import diffaug_datasets

    is_copy = Path(diffaug_datasets.__file__).is_relative_to(folder)
    answer.send(failures.names or ([] if code == 0 and is_copy else [f"pytest ended with {int(code)}"]))


def verdict(folder: Path, slug: str, context: Any) -> list[str]:
    """Names of the exceptions of the method's parity test in the copy; none where it passes."""
    ours, theirs = context.Pipe()
    child = context.Process(target=run_test, args=(folder, slug, theirs))
    child.start()
    theirs.close()
    try:
        names: list[str] = ours.recv()
    except EOFError:
        names = ["the process died"]
    child.join()
    return names


def copy_package(folder: Path) -> Path:
    """The package as it is imported, its tests and their settings."""
    plain = shutil.ignore_patterns("__pycache__")
    for name in ("diffaug_datasets", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=plain)
    for name in ("builders", "cards"):
        shutil.copytree(ROOT / name, folder / "diffaug_datasets" / name, ignore=plain)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def plant(folder: Path, fault: Fault) -> str:
    """Write the fault into the copy; the text of the file before."""
    path = folder / "diffaug_datasets" / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise SystemExit(f"{fault.file}: {fault.old!r} stands there {text.count(fault.old)} times, expected once.")
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    return text


def tried(folder: Path, slug: str, fault: Fault, context: Any) -> str:
    """`caught`, `MISSED`, or what else happened."""
    before = plant(folder, fault)
    names = verdict(folder, slug, context)
    (folder / "diffaug_datasets" / fault.file).write_text(before, encoding="utf-8")
    return "caught" if names == ["AssertionError"] else ", ".join(names) or "MISSED"


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    return parser.parse_args()


def line(cells: Sequence[str]) -> str:
    """One line of the table."""
    return "".join(cell.ljust(16) for cell in cells).rstrip()


def main() -> None:
    """Copy, try, print."""
    given, context = arguments(), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    print(line(("method", "as it is", *given.kinds)), flush=True)
    held = True
    with tempfile.TemporaryDirectory() as name:
        folder = copy_package(Path(name).resolve())
        for slug in given.methods:
            clean = verdict(folder, slug, context)
            faults = [FAULTS[slug][KINDS.index(kind)] for kind in given.kinds]
            found = [tried(folder, slug, fault, context) for fault in faults]
            print(line((slug, ", ".join(clean) or "passes", *found)), flush=True)
            held = held and not clean and set(found) == {"caught"}
    print("PASS: every fault is caught" if held else "FAIL")
    raise SystemExit(not held)


if __name__ == "__main__":
    main()
