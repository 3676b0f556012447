"""Do the parity tests catch what they are for: one planted fault of every kind in every method, and of every option.

    python scripts/mutate_parity.py [--methods genie diffmix ...] [--kinds sign step scale label] [--options encode ...]

Copies the package and its tests into a temporary folder, checks that a method's parity test passes there, then changes
one place of the source after the other: a sign, a step offset, a scale, a label rule. An option has faults of its own,
each with the test that is there for it. A fault counts as caught where the test fails in a comparison; any other
exception is shown by its name. Prints a line per method or option as it is done; the exit status is 1 where a fault is
missed, or where its place is no longer in the source. Methods or options alone: name those and not the others.
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
BRANCHES = Fault("models/backbone.py", "joined([uncond, cond])", "joined([cond, uncond])")
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
LATENT = Fault("families/parts/unets.py", "0.0)) * config.scaling_factor", "0.0)) * config.scaling_factor * 1.01")
LORA = Fault("models/adapters.py", "weight.float().cpu() + change", "weight.float().cpu() + 2 * change")
PIXELS = Fault("models/backbone.py", "(2 * levels - 1)", "(2 * levels - 0.98)")
OTHER_TOKEN = "cfg.concepts.prompt(9 - label, table.metaclass)"
OTHER_TARGET = "cfg.concepts.prompt(9 - target, table.metaclass)"


def other_class(method: str) -> Fault:
    """Sources of another class than the row's."""
    return Fault(f"methods/{method}.py", "own_source(key, groups[label]", "own_source(key, groups[9 - label]")


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
    "timix": (
        GUIDANCE,
        FIRST_STEP,
        SCALE,
        Fault("methods/diff_mix.py", "cfg.concepts.prompt(target, table.metaclass)", OTHER_TARGET),
    ),
    "tiaug": (BRANCHES, NOISED_AT, PIXELS, other_class("diff_aug")),
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
        Fault("methods/genie.py", "num_train_timesteps * self._share(", "num_train_timesteps * 0.99 * self._share("),
        Fault("methods/genie.py", "else groups) - {target}", "else {target})"),
    ),
    "genieada": (
        Fault("numerics/selection.py", "z_levels.double() - source", "z_levels.double() + source"),
        Fault("numerics/selection.py", "abs(values[k] - values[k - 1]))", "abs(values[k] - values[k - 1])) - 1"),
        Fault("numerics/selection.py", "@ line / length", "@ line / length**2"),
        Fault("methods/genie_ada.py", 'endswith(f"/{row.label}")', 'endswith(f"/{row.source_labels[0]}")'),
    ),
    "diffii": (
        Fault("numerics/interpolation.py", "of_a * a.double() - of_b", "of_a * a.double() + of_b"),
        Fault("models/denoising.py", "chosen(step < switch,", "chosen(step <= switch,"),
        Fault("numerics/interpolation.py", "u * lengths[arc]", "u * lengths[arc] * 0.99"),
        Fault(
            "methods/diff_ii.py",
            "cfg.concepts.prompt(label, table.metaclass)",
            "cfg.concepts.prompt(9 - label, table.metaclass)",
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
        Fault(
            "methods/diffusion_inversion.py",
            "cfg.num_inference_steps, [0] * len(rows)",
            "cfg.num_inference_steps, [1] * len(rows)",
        ),
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


SAMPLED = "tests/run/test_published.py::test_a_source_is_sampled_as_the_pipeline_of_diffusers_does[{}]"
SEEDS = "tests/methods/test_plans.py::test_a_sampled_source_has_a_seed_of_its_own[{}]"
EACH = "tests/methods/test_plans.py::test_each_image_is_edited_as_often_as_any_other[{}]"
EMBEDDINGS = "tests/models/test_concepts_image_embeddings.py::{}"
PROMPTS = "tests/methods/test_txt2img_prompts.py::{}"
ENDS = "tests/numerics/test_sampling_final.py::test_alpha_bar_0_is_what_diffusers_0_19_did[{}]"
REACHED = "tests/run/test_published.py::test_where_sampling_ends_reaches_the_latents[{}]"
GIF_ENDS = "tests/methods/test_gif.py::test_a_sampled_source_and_another_end_reach_the_latents"
INVERTERS = "tests/numerics/test_inverting.py::{}"
LORA_STARTS = "tests/models/test_concepts.py::test_lora_starts_as_peft_does[{}]"
DREAM_DA = "tests/run/test_published.py::test_dream_da_under_each_class_s_own_lora"
INSTRUCTED = "tests/methods/test_alia.py::test_instructed_edits_are_those_of_the_pipeline"
SUBJECT = "tests/methods/test_saspa.py::test_pictures_of_a_subject_are_the_pipeline_s"
# Option -> the test that is there for it, and a fault.
OPTIONS: dict[str, tuple[tuple[str, Fault], ...]] = {
    "encode": (
        (
            SAMPLED.format("realguidance"),
            Fault("models/backbone.py", "mode + deviation *", "mode - deviation *"),
        ),
        (SAMPLED.format("dafusion"), Fault("families/parts/unets.py", "found.std.float()", "found.var.float()")),
        (SEEDS.format("real_mix"), Fault("methods/_editing.py", 'key.seed("posterior")', 'key.seed("noise")')),
        (
            SEEDS.format("diff_aug"),
            Fault("methods/_editing.py", '"seed": key.seed("noise"), **cfg.drawn(key)', '"seed": key.seed("noise")'),
        ),
        (
            SEEDS.format("da_fusion"),
            Fault("methods/da_fusion.py", " | cfg.drawn(key)", ""),
        ),
        (SEEDS.format("alia"), Fault("methods/alia.py", " | cfg.drawn(key)", "")),
        (SEEDS.format("dream_da"), Fault("methods/dream_da.py", " | cfg.drawn(key)", "")),
        (GIF_ENDS, Fault("methods/gif.py", ".to(turned) if seeds else None", ".to(turned) * 0 if seeds else None")),
    ),
    "final": (
        (ENDS.format("50-10"), Fault("numerics/sampling.py", "return process.pair(0)", "return process.pair(1)")),
        (
            ENDS.format("14-0"),
            Fault("numerics/sampling.py", "LEAST_FOR_SECOND_ORDER else 2)", "LEAST_FOR_SECOND_ORDER else 1)"),
        ),
        (REACHED.format("txt2img"), Fault("methods/_editing.py", "steps, starts, cfg.final)", "steps, starts)")),
        (
            REACHED.format("genie"),
            Fault(
                "models/denoising.py", "cfg.num_inference_steps, start, cfg.final)", "cfg.num_inference_steps, start)"
            ),
        ),
        (REACHED.format("saspa"), Fault("methods/saspa.py", "steps, starts, cfg.final,", "steps, starts, None,")),
        (REACHED.format("dreamda"), Fault("methods/dream_da.py", "cfg.eta, cfg.final)", "cfg.eta)")),
        (GIF_ENDS, Fault("methods/gif.py", "steps, starts, cfg.final,", "steps, starts, None,")),
    ),
    "lora_start": (
        (
            LORA_STARTS.format("gaussian-gaussian"),
            Fault("models/adapters.py", "normal_(0, 1 / rank", "normal_(0, 2 / rank"),
        ),
        (
            LORA_STARTS.format("uniform-True"),
            Fault("models/adapters.py", "bound = 1 / math.sqrt(columns)", "bound = 1 / math.sqrt(3 * columns)"),
        ),
    ),
    "inverter": (
        (
            INVERTERS.format("test_edict_by_hand"),
            Fault("numerics/inverting.py", "x = MIXING * x + (1 - MIXING) * y", "x = MIXING * y + (1 - MIXING) * x"),
        ),
        (
            INVERTERS.format("test_exact_inverters_come_back[10-edict-epsilon]"),
            Fault(
                "numerics/inverting.py", "y = (y - (1 - MIXING) * x) / MIXING", "y = (y + (1 - MIXING) * x) / MIXING"
            ),
        ),
        (
            INVERTERS.format("test_exact_inverters_come_back[10-bdia-epsilon]"),
            Fault("numerics/inverting.py", "now, down + beyond - up", "now, down + beyond + up"),
        ),
        (
            INVERTERS.format("test_bdia_is_ddim_where_the_network_is_constant"),
            Fault("numerics/inverting.py", "now, up + before - down", "now, up + before - up"),
        ),
        (
            INVERTERS.format("test_midpoint_comes_back_far_better_than_ddim[epsilon]"),
            Fault("numerics/inverting.py", "middle = (t + to) / 2", "middle = t"),
        ),
    ),
    "sources": (
        (EACH.format("img2img"), Fault("methods/_editing.py", "key.k % len(images)", "key.k % 2")),
        (EACH.format("da_fusion"), Fault("methods/da_fusion.py", "groups[label], cfg.sources", "groups[label]")),
        (
            EACH.format("real_guidance"),
            Fault("methods/real_guidance.py", "groups[label], cfg.sources", "groups[label]"),
        ),
    ),
    "resize": (
        (
            "tests/models/test_backbone_pixels.py::test_the_long_side_is_torchvisions[512]",
            Fault("models/backbone.py", "int(height * columns / rows)", "int(columns * (height / rows))"),
        ),
        (
            "tests/models/test_backbone_pixels.py::test_the_long_side_is_torchvisions[224]",
            Fault("models/backbone.py", "int(width * rows / columns)", "round(width * rows / columns)"),
        ),
    ),
    "embeddings": (
        (
            EMBEDDINGS.format("test_the_start_of_a_group_is_that_of_a_linear_map_of_so_many_inputs[16]"),
            Fault("models/concepts.py", "1 / math.sqrt(n)", "2 / math.sqrt(n)"),
        ),
        (
            EMBEDDINGS.format("test_a_fixed_order_shows_the_images_as_a_loader_that_does_not_shuffle"),
            Fault("models/training.py", "torch.arange(len(self.labels))", "torch.arange(len(self.labels)).flip(0)"),
        ),
    ),
    "conditions": (
        (
            EMBEDDINGS.format("test_images_of_a_cluster_share_an_embedding_and_classes_never_do"),
            Fault("models/concepts.py", "min(cfg.clusters, len(own))", "min(1, len(own))"),
        ),
        (
            EMBEDDINGS.format("test_the_gradient_of_a_shared_embedding_is_that_of_all_its_images"),
            Fault("models/concepts.py", "self.embeddings[self.owners[j]]", "2 * self.embeddings[self.owners[j]]"),
        ),
        (
            EMBEDDINGS.format("test_embeddings_that_start_at_a_prompt_are_its_hidden_states"),
            Fault("models/concepts.py", "backbone.prompt(text).clone()", 'backbone.prompt("").clone()'),
        ),
        (
            "tests/methods/test_diffusion_inversion.py::"
            "test_conditions_that_start_at_a_prompt_and_are_not_tuned_draw_what_the_pipeline_draws",
            Fault("methods/diffusion_inversion.py", 'mean = ctx.backbone.prompts([""] * len(rows))', "mean = mean / 2"),
        ),
    ),
    "prompts": (
        (
            PROMPTS.format("test_a_row_takes_one_of_clips_templates_and_the_rest_of_it_stays"),
            Fault("methods/txt2img.py", 'key.choice("prompt", prompts)', "prompts[0]"),
        ),
        (
            PROMPTS.format("test_texts_of_ones_own_are_for_all_classes_or_by_label"),
            Fault("core/prompts.py", "return prompts[label]", "return next(iter(prompts.values()))"),
        ),
    ),
    "lora": (
        (
            DREAM_DA,
            Fault(
                "methods/dream_da.py",
                "ctx.fit(row.adapters[0]) if cfg.lora",
                "ctx.fit(rows[0].adapters[0]) if cfg.lora",
            ),
        ),
        (DREAM_DA, Fault("methods/dream_da.py", '_loras.part(lora, "unet") for', "{} for")),
        (DREAM_DA, Fault("methods/dream_da.py", "_editing.posterior_noise(rows, cfg, ctx)", "None")),
        (
            "tests/methods/test_datadream.py::test_training_is_the_authors[text_to_image]",
            Fault("models/few_shot.py", 'self.cfg.lr_schedule == "constant"', 'self.cfg.lr_schedule == "cosine"'),
        ),
        (
            "tests/methods/test_dream_da.py::test_lora_is_learned_for_each_class_or_for_all",
            Fault("methods/_loras.py", 'if scope == "class"', 'if scope == "dataset"'),
        ),
    ),
    "editor": (
        (INSTRUCTED, Fault("models/pix2pix.py", "image_scale * (image - nothing)", "image_scale * (nothing - image)")),
        (INSTRUCTED, Fault("methods/_editing.py", "told.scale, cfg.image_guidance_scale", "told.scale, 1.0")),
        (INSTRUCTED, Fault("methods/alia.py", "self.columns(0, 1.0) if", "self.steps(0.5) if")),
        (
            "tests/methods/test_alia.py::test_a_sampled_source_has_a_seed_of_its_own",
            Fault("methods/alia.py", " | cfg.drawn(key)", ""),
        ),
    ),
    "subject": (
        (SUBJECT, Fault("models/subjects.py", '"proj_layer.dense2") + x', '"proj_layer.dense2")')),
        (SUBJECT, Fault("models/subjects.py", "x * torch.sigmoid(1.702 * x)", "x * torch.sigmoid(x)")),
        (SUBJECT, Fault("models/subjects.py", "self._attended(asked, seen,", "self._attended(asked, 0 * seen,")),
        (SUBJECT, Fault("models/subjects.py", "BEGIN = 2", "BEGIN = 1")),
        (SUBJECT, Fault("models/subjects.py", "REPEATS = 20", "REPEATS = 1")),
        (SUBJECT, Fault("methods/saspa.py", "ctx.source(row.source_ids[1])", "ctx.source(row.source_ids[0])")),
    ),
    "later": (
        (
            "tests/methods/test_plans.py::test_golden_plan_ids[img2img]",
            Fault("core/settings.py", "return bool(getattr(self, key) ==", "return bool(getattr(self, key) !="),
        ),
    ),
}


class Failures:
    """A pytest plugin that keeps the names of the exceptions that tests end with."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_exception_interact(self, call: Any) -> None:
        """Called by pytest for every exception outside a skip."""
        self.names.append(call.excinfo.typename)


def run_test(folder: Path, test: str, answer: Any) -> None:
    """In a process of its own: a test on the copy; sends the exceptions' names."""
    import pytest

    os.chdir(folder)
    sys.path[:0] = [str(folder), str(folder / "tests")]
    os.environ.update(ENVIRONMENT)
    sys.dont_write_bytecode = True
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    failures = Failures()
    code = pytest.main(["-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", test], plugins=[failures])
    import diffaug_datasets

    is_copy = Path(diffaug_datasets.__file__).is_relative_to(folder)
    answer.send(failures.names or ([] if code == 0 and is_copy else [f"pytest ended with {int(code)}"]))


def verdict(folder: Path, test: str, context: Any) -> list[str]:
    """Names of the exceptions of a test in the copy; none where it passes."""
    ours, theirs = context.Pipe()
    child = context.Process(target=run_test, args=(folder, test, theirs))
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


def tried(folder: Path, test: str, fault: Fault, context: Any) -> str:
    """`caught`, `MISSED`, or what else happened."""
    before = plant(folder, fault)
    names = verdict(folder, test, context)
    (folder / "diffaug_datasets" / fault.file).write_text(before, encoding="utf-8")
    return "caught" if names == ["AssertionError"] else ", ".join(names) or "MISSED"


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=FAULTS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--options", nargs="+", choices=OPTIONS)
    given = parser.parse_args()
    every = given.methods is None and given.options is None
    given.methods, given.options = (
        (list(FAULTS), list(OPTIONS)) if every else (given.methods or [], given.options or [])
    )
    return given


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
            test = OWN_TESTS.get(slug, TEST.format(slug))
            clean = verdict(folder, test, context)
            faults = [FAULTS[slug][KINDS.index(kind)] for kind in given.kinds]
            found = [tried(folder, test, fault, context) for fault in faults]
            print(line((slug, ", ".join(clean) or "passes", *found)), flush=True)
            held = held and not clean and set(found) == {"caught"}
        for name in given.options:
            tests = dict.fromkeys(test for test, _ in OPTIONS[name])
            clean = [failure for test in tests for failure in verdict(folder, test, context)]
            found = [tried(folder, test, fault, context) for test, fault in OPTIONS[name]]
            print(line((name, ", ".join(clean) or "passes", *found)), flush=True)
            held = held and not clean and set(found) == {"caught"}
    print("PASS: every fault is caught" if held else "FAIL")
    raise SystemExit(not held)


if __name__ == "__main__":
    main()
