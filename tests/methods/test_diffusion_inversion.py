"""Diffusion Inversion end to end: plans, and a finished run rendered again from its columns by diffusers alone."""

import json
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

import diffaug_datasets
from diffaug_datasets.core.method import FitUnit, PlanSpec
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.methods import diffusion_inversion
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.shards import read_stream
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions

PIPELINE = Path(diffaug_datasets.__file__).parent / "assets" / "tiny" / "pipeline"
LEARNING = {"vectors": 3, "steps": 3, "batch": 4, "group": 7, "lr": 0.5}
CONFIG = {"num_inference_steps": 6, "interpolation": 0.3, "noise": 0.5, "embeddings": LEARNING}


def table(*counts: int) -> SourceTable:
    names = tuple(f"class {i}" for i in range(len(counts)))
    sources = tuple(Source(f"{i:02d}{j:02d}" * 16, i, f"{i}/{j}") for i, n in enumerate(counts) for j in range(n))
    return SourceTable("toy", "train", names, names, "bird", sources)


def rows(counts: tuple[int, ...], per_class: int, **config: Any) -> list[Any]:
    spec = PlanSpec(seed=0, backbone="m", per_class=per_class)
    return list(diffusion_inversion.plan(diffusion_inversion.Config(**config), table(*counts), spec))


def test_every_image_takes_its_turn_and_partners_are_others_of_its_class() -> None:
    planned = rows((4, 3), 40)
    for label, n in ((0, 4), (1, 3)):
        own = [row for row in planned if row.label == label]
        assert set(Counter(row.source_ids[0] for row in own).values()) <= {40 // n, 40 // n + 1}
        assert all(row.source_ids[0] != row.source_ids[1] for row in own)
        assert len({row.source_ids for row in own}) == n * (n - 1)
        assert {row.source_labels for row in own} == {(label, label)}


def test_one_image_has_no_partner_and_none_has_no_row() -> None:
    planned = rows((2, 1, 0), 3)
    assert Counter(row.label for row in planned) == {0: 3, 1: 3}
    alone = [row for row in planned if row.label == 1]
    assert {row.fallback for row in alone} == {"no_partner"}
    assert {json.loads(row.draw)["alpha"] for row in alone} == {0.0}
    assert {row.fallback for row in rows((1,), 3, interpolation=0.0)} == {None}


def test_a_group_is_a_fit_and_a_row_names_its_sources_groups() -> None:
    cfg = diffusion_inversion.Config.model_validate({"embeddings": {"group": 3}})
    spec = PlanSpec(seed=0, backbone="m", per_class=20, size=(256, 256))
    units = fits(cfg, table(4, 3), spec)
    assert [len(unit.content["images"]) for unit in units] == [3, 3, 1]
    home = {image: unit.name for unit in units for image in unit.content["images"]}
    for row in diffusion_inversion.plan(cfg, table(4, 3), spec):
        named = [home[f"{source}/{row.label}"] for source in row.source_ids]
        assert row.adapters == tuple(dict.fromkeys(named))
    other = fits(cfg, table(4, 3), PlanSpec(seed=0, backbone="m", per_class=20, size=(128, 128)))
    assert {unit.name for unit in units}.isdisjoint(unit.name for unit in other)


def test_a_group_that_no_row_names_is_not_learned_and_the_others_stay_whole() -> None:
    cfg = diffusion_inversion.Config.model_validate({"embeddings": {"group": 3}})
    spec = PlanSpec(seed=0, backbone="m", per_class=20)
    few = PlanSpec(seed=0, backbone="m", per_class=20, targets=(1,))
    assert fits(cfg, table(4, 3), few) == fits(cfg, table(4, 3), spec)[1:]  # the second group mixes both classes


def fits(cfg: diffusion_inversion.Config, real: SourceTable, spec: PlanSpec) -> tuple[FitUnit, ...]:
    """The fits of the rows that are planned."""
    return diffusion_inversion.fits(cfg, real, spec, list(diffusion_inversion.plan(cfg, real, spec)))


def test_a_group_of_one_class_ends_where_the_class_does() -> None:
    cfg = diffusion_inversion.Config.model_validate({"embeddings": {"group": 3, "by_class": True}})
    spec = PlanSpec(seed=0, backbone="m", per_class=20, size=(256, 256))
    units = fits(cfg, table(4, 0, 2), spec)
    groups = [unit.content["images"] for unit in units]
    assert [len(group) for group in groups] == [3, 1, 2]
    assert [{name.split("/")[1] for name in group} for group in groups] == [{"0"}, {"0"}, {"2"}]
    one, plain = table(3), diffusion_inversion.Config.model_validate({"embeddings": {"group": 3}})
    assert fits(plain, one, spec) == fits(cfg, one, spec)


def test_shared_embeddings_make_a_class_one_group_and_their_prompts_are_part_of_it() -> None:
    cfg = diffusion_inversion.Config.model_validate({"embeddings": {"group": 3, "clusters": 2, "start": "prompt"}})
    spec = PlanSpec(seed=0, backbone="m", per_class=20)
    units = fits(cfg, table(4, 0, 2), spec)
    assert [len(unit.content["images"]) for unit in units] == [4, 2]
    assert [unit.content["prompts"] for unit in units] == [
        {"0": "a photo of a class 0 bird"},
        {"2": "a photo of a class 2 bird"},
    ]
    plain = diffusion_inversion.Config.model_validate({"embeddings": {"group": 3}})
    assert not any("prompts" in unit.content for unit in fits(plain, table(4, 0, 2), spec))


def test_guidance_away_from_the_empty_prompt_needs_its_length() -> None:
    with pytest.raises(ValueError, match=r"set embeddings\.start to prompt too"):
        diffusion_inversion.Config.model_validate({"unconditional": "empty"})


@torch.no_grad()
def test_conditions_that_start_at_a_prompt_and_are_not_tuned_draw_what_the_pipeline_draws(tmp_path: Path) -> None:
    """No step of learning, no noise, no partner: DDIM under the class prompt, guided away from the empty one."""
    learning = {"start": "prompt", "clusters": 1, "steps": 0}
    config = {
        "num_inference_steps": 6,
        "interpolation": 0,
        "noise": 0,
        "embeddings": learning,
        "unconditional": "empty",
    }
    small = {"per_class": 1, "batch_size": 5, "include_test": False, "config": config}
    run = write_run(prepare(config_recipe("fashion_2shot_diffinversion", **small)), tmp_path / "run")
    execute(run, WorkerOptions(), workers=1)
    pipe = StableDiffusionPipeline.from_pretrained(PIPELINE, safety_checker=None, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = ddim()
    names = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    for row in stored(run)[:3]:
        noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(row["seed"]))
        prompt = f"a photo of a {names[row['label']]}"
        about = {"latents": noise, "num_inference_steps": 6, "guidance_scale": 2.0, "output_type": "np"}
        wanted = 255 * pipe(prompt, **about).images[0]
        ours = np.asarray(Image.open(BytesIO(row["image"]["bytes"])).convert("RGB"), dtype=float)
        assert np.abs(ours - wanted.round()).max() <= 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    small = {"per_class": 1, "batch_size": 5, "include_test": False, "config": CONFIG}
    run = write_run(prepare(config_recipe("fashion_2shot_diffinversion", **small)), tmp_path_factory.mktemp("di"))
    execute(run, WorkerOptions(), workers=1)
    return run


def ddim() -> Any:
    """What the default sampler follows."""
    return DDIMScheduler.from_pretrained(PIPELINE / "scheduler")


def pndm() -> Any:
    """What Stable Diffusion 1.x ships: PLMS without the Runge-Kutta start."""
    return PNDMScheduler.from_pretrained(PIPELINE / "scheduler", skip_prk_steps=True)


def rendered(
    row: dict[str, Any], fits: Path, flaw: str = "", solver: Callable[[], Any] = ddim
) -> "np.ndarray[Any, Any]":
    """The picture that the row's columns and fits describe; a `flaw` renders it wrongly on purpose."""
    draw, first = json.loads(row["draw"]), load_file(fits / row["adapters"][0] / "image_embeddings.safetensors")
    known = {
        key: c for name in row["adapters"] for key, c in load_file(next((fits / name).glob("*.safetensors"))).items()
    }
    own, partner = (known[f"{source}/{row['label']}"] for source in row["source_ids"])
    noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(draw["embedding_seed"]))
    lam = 0.0 if flaw == "noise" else 0.5
    share = 0.7 if flaw == "partner" else 0.3
    cond = ((1 - share) * own + share * partner + lam * noise)[None]
    mean = torch.stack(list((known if flaw == "group" else first).values())).mean(0)[None]
    mean = torch.zeros_like(mean) if flaw == "mean" else mean
    unet, vae = (
        kind.from_pretrained(PIPELINE / part) for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
    )
    scheduler = solver()
    scheduler.set_timesteps(6)
    xt = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(row["seed"]))[None]
    w = 1.0 if flaw != "scale" else 2.0
    with torch.no_grad():
        for t in scheduler.timesteps:
            seen, unseen = (unet(xt, t, encoder_hidden_states=c).sample for c in (cond, mean))
            xt = scheduler.step((1 + w) * seen - w * unseen, t, xt).prev_sample
        pixels = vae.decode(xt / vae.config.scaling_factor).sample[0]
    return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()


def stored(run: Run) -> list[dict[str, Any]]:
    return [row for s in run.plan.shards() for row in read_stream(str(run.shard_path(s.name))).to_pylist()]


def difference(run: Run, row: dict[str, Any], flaw: str = "", solver: Callable[[], Any] = ddim) -> float:
    ours = np.asarray(Image.open(BytesIO(row["image"]["bytes"])).convert("RGB"), dtype=float)
    return float(np.abs(ours - rendered(row, run.folder / "fits", flaw, solver)).max())


def test_a_row_is_what_diffusers_draws_from_its_columns(finished: Run) -> None:
    assert all(difference(finished, row) <= 1 for row in stored(finished)[:4])


@pytest.mark.parametrize("flaw", ["noise", "partner", "mean", "scale"])
def test_the_comparison_sees_a_flaw(finished: Run, flaw: str) -> None:
    assert difference(finished, stored(finished)[0], flaw) > 3


def test_the_authors_sampler_is_the_one_of_diffusers(tmp_path: Path) -> None:
    """PNDM, which evaluates its first step twice; six steps of DDIM give another picture."""
    small = {"per_class": 1, "batch_size": 5, "include_test": False, "config": {**CONFIG, "sampler": "plms"}}
    run = write_run(prepare(config_recipe("fashion_2shot_diffinversion", **small)), tmp_path / "run")
    execute(run, WorkerOptions(), workers=1)
    some = stored(run)[:4]
    assert all(difference(run, row, solver=pndm) <= 1 for row in some)
    assert max(difference(run, row, solver=ddim) for row in some) > 3


@pytest.mark.parametrize(("sampler", "scale", "wanted"), [("ddim", 2, 20), ("plms", 2, 22), ("plms", 1, 11)])
def test_the_cost_of_a_row(sampler: str, scale: float, wanted: int) -> None:
    cfg = {"sampler": sampler, "guidance_scale": scale, "num_inference_steps": 10}
    [row] = rows((1,), 1, **cfg)
    assert diffusion_inversion.evaluations(diffusion_inversion.Config.model_validate(cfg), row) == wanted


def test_plms_needs_two_steps() -> None:
    with pytest.raises(ValueError, match="PLMS needs 2 or more"):
        diffusion_inversion.Config(sampler="plms", num_inference_steps=1)


def test_guidance_leads_away_from_the_mean_of_the_first_sources_group_alone(finished: Run) -> None:
    mixed = next(row for row in stored(finished) if len(row["adapters"]) == 2)
    assert difference(finished, mixed) <= 1
    assert difference(finished, mixed, "group") > 1


def test_pictures_come_back_at_the_size_of_a_smaller_source(tmp_path: Path) -> None:
    quick = {**CONFIG, "num_inference_steps": 2, "embeddings": {**LEARNING, "steps": 1}}
    small = {"per_class": 1, "batch_size": 10, "include_test": False, "config": quick}
    small |= {"backbone": {"height": 64, "width": 64}, "scores": {"encoder": None, "judge": None}}
    run = write_run(prepare(config_recipe("fashion_1shot_diffinversion", **small)), tmp_path / "run")
    execute(run, WorkerOptions(), workers=1)
    assert {(row["width"], row["height"]) for row in stored(run)} == {(32, 32)}
    assert {row["fallback"] for row in stored(run)} == {"no_partner"}
