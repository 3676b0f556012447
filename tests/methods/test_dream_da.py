"""DreamDA: sources in turn, draws that are the row's own, a bottleneck that is left as it was, fine-tuning as a fit."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.method import PlanSpec
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.methods import dream_da
from diffaug_datasets.models.bottleneck import BottleneckNoise, perturbed
from diffaug_datasets.numerics.cycle import cycle_sample
from diffaug_datasets.numerics.schedule import Schedule, add_noise, ddim_timesteps
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.run.worker import Worker

pytestmark = pytest.mark.xdist_group("dream_da")
STEPS = {"num_inference_steps": 4, "strength": 0.75}


def table(*counts: int) -> SourceTable:
    names = tuple(f"class {i}" for i in range(len(counts)))
    sources = tuple(Source(f"{i:02d}{j:02d}" * 16, i, f"{i}/{j}") for i, n in enumerate(counts) for j in range(n))
    return SourceTable("toy", "train", names, names, "bird", sources)


def planned(counts: tuple[int, ...], per_class: int, **config: Any) -> list[PlanRow]:
    spec = PlanSpec(seed=0, backbone="m", per_class=per_class)
    return list(dream_da.plan(dream_da.Config(**config), table(*counts), spec))


def test_every_image_takes_its_turn() -> None:
    rows = planned((3, 0, 1), 7)
    assert Counter(row.label for row in rows) == {0: 7, 2: 7}
    assert sorted(Counter(row.source_ids[0] for row in rows if row.label == 0).values()) == [2, 2, 3]
    assert {(row.start_step, row.num_inference_steps, row.guidance_scale) for row in rows} == {(20, 100, 7.5)}
    assert {row.prompt for row in rows} == {"A photo of a class 0.", "A photo of a class 2."}


def test_a_row_takes_one_of_the_prompts() -> None:
    rows = planned((3,), 40, prompts=("a {name} asleep", "a {metaclass}: {name}"))
    assert {row.prompt for row in rows} == {"a class 0 asleep", "a bird: class 0"}
    with pytest.raises(RecipeError, match="prompts: got \\[\\], value error, expected one or more prompts"):
        Recipe.from_dict({"builder": "toy", "method": "dream_da", "config": {"prompts": []}})


def test_classes_that_are_learned_are_called_by_their_token() -> None:
    rows = planned((3, 2), 2, fine_tuning={"steps": 5})
    assert {row.prompt for row in rows} == {"A photo of a <class_0>.", "A photo of a <class_1>."}
    assert len({row.adapters for row in rows}) == 1 and rows[0].adapters[0].startswith("concepts-")


def test_lora_is_learned_for_each_class_or_for_all() -> None:
    def units(**config: Any) -> list[list[str]]:
        planned = prepare(config_recipe("fashion_2shot_dreamda", per_class=1, config=config)).plan
        assert {row.adapters[0] for row in planned.rows} == {unit.name for unit in planned.fits}
        assert {row.prompt for row in planned.rows} >= {"A photo of a bag.", "A photo of a coat."}
        return [list(unit.content["prompts"].values()) for unit in planned.fits]

    alone, together = units(lora={}), units(lora={}, scope="dataset")
    assert len(alone) == 10 and [texts for texts in alone if "bag" in texts[0]] == [["A photo of a bag."]]
    assert len(together) == 1 and len(together[0]) == 10
    settings = dream_da.DiffusersLora()
    assert (settings.rank, settings.epochs, settings.batch, settings.lr) == (4, 100, 16, 1e-4)
    with pytest.raises(RecipeError, match="lora and fine_tuning are two ways to learn the classes; set one of them"):
        units(lora={}, fine_tuning={})


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """Of a run of two rows per class."""
    small = {"per_class": 2, "batch_size": 3, "include_test": False, "config": STEPS}
    recipe = config_recipe("fashion_2shot_dreamda", **small, scores={"encoder": None, "judge": None})
    return Worker(write_run(prepare(recipe), tmp_path_factory.mktemp("dreamda") / "run"))


def made(worker: Worker, rows: Sequence[PlanRow], **changes: Any) -> list[torch.Tensor]:
    config: Any = worker.run.recipe.method_config.model_copy(update=changes)
    with torch.inference_mode():
        return [image.pixels for image in dream_da.generate(rows, config, worker.context)]


def test_a_row_never_depends_on_its_neighbours(worker: Worker) -> None:
    """Nor on which of them are guided, start later, or are the same row again."""
    row, *others = worker.run.plan.rows[:3]
    odd = [others[0].model_copy(update={"guidance_scale": 1.0}), others[1].model_copy(update={"start_step": 3})]
    early = others[1].model_copy(update={"start_step": 0})
    first = made(worker, [row, *others])[0]
    for neighbours in (others[::-1], odd, [early, row]):
        assert torch.equal(made(worker, [row, *neighbours])[0], first)


def test_without_noise_and_under_the_source_s_prompt_the_source_comes_back(worker: Worker) -> None:
    """The rests are its own; with noise in the bottleneck, or another seed, it is another picture."""
    ctx, row = worker.context, worker.run.plan.rows[0].model_copy(update={"prompt": "", "guidance_scale": 1.0})
    image = ctx.backbone.preprocess(ctx.source(row.source_ids[0]), "bicubic")
    with torch.inference_mode():
        wanted = ctx.backbone.decode_float(ctx.backbone.encode(image[None]))[0].permute(1, 2, 0)
    assert (made(worker, [row], perturbation=0.0)[0] - wanted).abs().max() < 2e-3
    noisy, other = (made(worker, [r])[0] for r in (row, row.model_copy(update={"seed": 1})))
    assert (noisy - wanted).abs().max() > 0.02 and (noisy - other).abs().max() > 0.02


def test_the_network_is_left_as_it_was(worker: Worker) -> None:
    backbone = worker.context.backbone
    xt, cond = torch.zeros(1, *backbone.latent_shape), backbone.prompts(["a bag"])
    with torch.inference_mode():
        before = backbone.eps(xt, 500, cond)
        generators = [torch.Generator().manual_seed(3)]
        with pytest.raises(KeyboardInterrupt), perturbed(backbone, BottleneckNoise(generators, 3.0)):
            assert not torch.equal(backbone.eps(xt, 500, cond), before)
            raise KeyboardInterrupt
        assert torch.equal(backbone.eps(xt, 500, cond), before)


def test_noise_has_the_deviation_that_is_asked_for() -> None:
    """Both branches get draws of their own; a call of b rows gets the second."""
    h = torch.zeros(4, 32, 16, 16)
    noise = BottleneckNoise([torch.Generator().manual_seed(s) for s in (1, 2)], 3.0)
    both = noise.added(h)
    assert both.std().item() == pytest.approx(3, rel=0.02) and abs(both.mean().item()) < 0.05
    assert torch.equal(noise.added(h[:2]), both[2:]) and not torch.equal(both[:2], both[2:])


def test_equal_networks_give_the_data_back_and_rows_wait_for_their_start() -> None:
    schedule = Schedule.from_betas("scaled_linear", 0.00085, 0.012)
    x0, eps = (torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1))
    labels, start = ddim_timesteps(schedule, 10), [2, 6]
    xt = add_noise(schedule, x0, eps, [labels[s] for s in start])
    given = (x0, xt, lambda _: torch.ones_like(x0), schedule, labels, start, 1.0)
    same = cycle_sample((lambda x, t, i: torch.tanh(x), lambda x, t, i: torch.tanh(x)), *given)
    assert (same - x0).abs().max() < 1e-12
    other = cycle_sample((lambda x, t, i: x, lambda x, t, i: x + (t > labels[6])), *given)
    assert torch.equal(other[1], x0[1]) and (other[0] - x0[0]).abs().min() > 0.01
    with pytest.raises(ValueError, match="start steps"):
        cycle_sample((lambda x, t, i: x,) * 2, *given[:5], [2, 10], 1.0)


@pytest.mark.full
def test_a_run_under_lora_rests_on_a_fit_per_class(tmp_path: Path) -> None:
    learning = {"epochs": 1, "batch": 2, "rank": 2}
    small = {"per_class": 1, "include_test": False, "config": {**STEPS, "lora": learning}}
    run = write_run(prepare(config_recipe("fashion_2shot_dreamda", **small)), tmp_path / "run")
    Worker(run).work()
    rows = [row for shard in run.plan.shards() for row in run.table(shard).to_pylist()]
    assert len(rows) == 10 and {row["adapters"][0].partition("-")[0] for row in rows} == {"lora"}


@pytest.mark.full
def test_a_fine_tuned_run_rests_on_its_concepts(tmp_path: Path) -> None:
    learning = {"steps": 2, "batch": 2, "rank": 4}
    small = {"per_class": 1, "include_test": False, "config": {**STEPS, "fine_tuning": learning}}
    run = write_run(prepare(config_recipe("fashion_2shot_dreamda", **small)), tmp_path / "run")
    Worker(run).work()
    rows = [row for shard in run.plan.shards() for row in run.table(shard).to_pylist()]
    assert len(rows) == 10 and {row["prompt"] for row in rows} == {f"A photo of a <class_{c}>." for c in range(10)}
