"""GIF against diffusers, transformers and the authors' arithmetic on the same weights, picture and random numbers."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from gif_published import Gif
from PIL import Image, ImageOps

import diffaug_datasets
from diffaug_datasets.core.method import FitUnit
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.models.imagination import Guide, criteria, imagined
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.work import fit_evaluations
from diffaug_datasets.run.worker import Worker

ASSETS = Path(diffaug_datasets.__file__).parent / "assets" / "tiny"
N, STRENGTH, SCALE, EPSILON = 6, 0.7, 5.0, 1.5
CLASSES = (8, 1)
SETTINGS = {"num_inference_steps": N, "strength": STRENGTH, "guidance_scale": SCALE, "epsilon": EPSILON}
pytestmark = pytest.mark.xdist_group("gif")


def planned(folder: Path, per_class: int = 3, **config: Any) -> Run:
    """One image a class, so that all rows of a class are of one image: groups of 2 and 1."""
    changes = {"per_class": per_class, "batch_size": 4, "include_test": False, "config": {**SETTINGS, **config}}
    return write_run(
        prepare(config_recipe("fashion_1shot_gif", scores={"encoder": None, "judge": None}, **changes)), folder
    )


class Learned:
    """A planned run of which the fits of two classes are made."""

    def __init__(self, run: Run) -> None:
        self.run, self.ctx = run, Worker(run).context
        self.rows = [row for row in run.plan.rows if row.label in CLASSES]
        self.units = {unit.name: unit for unit in run.plan.fits if unit.name in {row.adapters[0] for row in self.rows}}
        self.cost: dict[str, int] = {}
        self.latents = {name: self.fit(name) for name in self.units}
        self.ctx.fit = self.latents.__getitem__  # type: ignore[method-assign,assignment]

    def fit(self, name: str) -> Mapping[str, torch.Tensor]:
        before = self.ctx.backbone.rows_evaluated
        recipe = self.run.recipe
        made = recipe.method_definition.fit(self.units[name], recipe.method_config, self.ctx)
        self.cost[name] = self.ctx.backbone.rows_evaluated - before
        return made.tensors["latents.safetensors"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    return Learned(planned(tmp_path_factory.mktemp("gif") / "run"))


def stream(seed: int | None) -> torch.Generator:
    return torch.Generator().manual_seed(seed or 0)


def picture(run: Run, row: PlanRow) -> Image.Image:
    records = [record for shard in run.plan.real_shards() for record in run.table(shard).to_pylist()]
    [data] = [r["image"]["bytes"] for r in records if r["source_ids"] == list(row.source_ids)]
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_latents_are_those_of_the_authors(learned: Learned) -> None:
    """Both groups of two classes, from the real picture to the moved latent."""
    run = learned.run
    reference = Gif(ASSETS, run.plan.header.prompt_names)
    held = 0
    for label in CLASSES:
        rows = sorted((row for row in learned.rows if row.label == label), key=lambda row: row.k)
        for group in (rows[:2], rows[2:]):
            real = picture(run, group[0])
            samples, z, b = [], [], []
            for row in group:
                draw, own = json.loads(row.draw), stream(json.loads(row.draw)["perturbation"])
                turned = real.rotate(draw["turn"])
                turned = ImageOps.mirror(turned) if draw["mirrored"] else turned
                name = ("trouser", "bag")[label == 8]
                assert str(row.prompt).endswith(name) and row.source_labels == (label,) and abs(draw["turn"]) <= 15
                noise = torch.randn(1, 4, 8, 8, generator=stream(row.seed))
                samples.append(reference.redrawn(turned, str(row.prompt), noise, N, STRENGTH, SCALE))
                z.append(torch.rand(4, generator=own))
                b.append(torch.randn(4, generator=own))
            before = torch.cat(samples)
            wanted = reference.imagined(real, before, torch.stack(z), torch.stack(b), EPSILON)
            for row, latent, start in zip(group, wanted, before, strict=True):
                ours = learned.latents[row.adapters[0]][row.row_id]
                torch.testing.assert_close(ours, latent, rtol=1e-4, atol=2e-4)
                held += int((ours - start).abs().max() <= EPSILON + 1e-3)
    assert held == 6


def test_a_sampled_source_and_another_end_reach_the_latents(learned: Learned, tmp_path: Path) -> None:
    """`encode: sample` takes the latent at the seed that a row records, and keeps every other draw."""
    run = planned(tmp_path / "run", encode="sample", updates=0)
    method, context, row = run.recipe.method_definition, Worker(run).context, run.plan.rows[0]
    plain = {**json.loads(row.draw)}
    assert plain.pop("posterior_seed") != row.seed
    assert plain in [json.loads(other.draw) for other in learned.run.plan.rows]
    unit = next(unit for unit in run.plan.fits if unit.name == row.adapters[0])
    changes: list[dict[str, Any]] = [{}, {"encode": "mode"}, {"final": "zero"}]
    found = []
    for change in changes:
        config = run.recipe.method_config.model_copy(update=change)
        content = unit.content
        if change.get("encode") == "mode":
            content["rows"] = [[*one[:3], json.dumps(plain)] for one in content["rows"]]
        made = method.fit(FitUnit.of(unit.kind, content), config, context)
        found.append(made.tensors["latents.safetensors"][row.row_id])
    sampled, mode, ended = found
    assert not torch.equal(sampled, mode) and not torch.equal(sampled, ended)


def test_the_picture_is_the_moved_latents(learned: Learned) -> None:
    rows, recipe = learned.rows[:2], learned.run.recipe
    with torch.inference_mode():
        made = recipe.method_definition.generate(rows, recipe.method_config, learned.ctx)
    reference = Gif(ASSETS, ("bag",))
    for row, image in zip(rows, made, strict=True):
        with torch.no_grad():
            wanted = reference.decoded(learned.latents[row.adapters[0]][row.row_id][None])[0]
        assert float((image.pixels.permute(2, 0, 1) - wanted).abs().max()) < 1e-4


def test_an_image_does_not_depend_on_what_was_made_before(learned: Learned) -> None:
    first, last = learned.units
    again = learned.fit(first)
    assert all(torch.equal(again[row], latent) for row, latent in learned.latents[first].items())
    assert not set(again) & set(learned.latents[last])


def test_cost_is_that_of_the_fits(learned: Learned) -> None:
    assert set(learned.cost.values()) == {3 * 2 * int(STRENGTH * N)}
    assert {fit_evaluations(unit) for unit in learned.units.values()} == set(learned.cost.values())
    recipe = learned.run.recipe
    assert {recipe.method_definition.evaluations(recipe.method_config, row) for row in learned.rows} == {0}


def test_updates_raise_what_they_climb_within_the_ball(learned: Learned) -> None:
    latents = torch.stack(list(learned.latents[next(iter(learned.units))].values()))
    texts = learned.ctx.text_features([f"This is a photo of a {name}" for name in ("bag", "coat", "shirt")])
    guide = Guide(learned.ctx.pixel_features, texts, texts[0])
    scale, bias = torch.rand(3, 4, generator=stream(1)), torch.randn(3, 4, generator=stream(2))
    totals = []
    for updates in (1, 12):
        near, found = imagined(
            learned.ctx.backbone, latents, guide, scale, bias, radius=0.3, step=0.03, updates=updates
        )
        totals.append(float(found.total.detach()))
        assert 0.29 < float((near - latents).abs().max()) <= 0.3 + 1e-6
    assert totals[1] > totals[0] + 1e-3
    still, _ = imagined(learned.ctx.backbone, latents, guide, scale, bias, radius=1e3, step=0.1, updates=0)
    assert torch.allclose(still, latents * (1 + scale[:, :, None, None]) + bias[:, :, None, None])


def test_criteria_by_hand() -> None:
    texts = torch.eye(3)
    real = torch.tensor([0.05, 0.02, 0.0])
    features = torch.tensor([[0.05, 0.0, 0.0], [0.0, 0.05, 0.0]])
    found = criteria(features, texts, real)
    p = [torch.softmax(100 * torch.tensor(row), 0) for row in ((0.05, 0.0, 0.0), (0.0, 0.05, 0.0), (0.05, 0.02, 0.0))]
    entropies = [float(-(q * q.log()).sum()) for q in p]
    assert float(found.consistency) == pytest.approx((float(p[0][0]) + float(p[1][0])) / 2)
    assert float(found.entropy) == pytest.approx((entropies[0] + entropies[1]) / 2 - entropies[2])
    target = torch.softmax(torch.tensor([0.025, 0.025, 0.0]), 0)
    each = [float((target * (target.log() - torch.log_softmax(row, 0))).sum()) for row in features]
    assert float(found.diversity) == pytest.approx(sum(each) / 2, rel=1e-3)
    assert float(found.diversity) > 0
