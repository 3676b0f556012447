"""ALIA's plans: pairs of images and domains, and the presets' domains; its edits by InstructPix2Pix against diffusers'.

Pictures of its edits by noise: `tests/run/test_published.py`.
"""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pix2pix_tiny
import pytest
import torch
from PIL import Image

import diffaug_datasets
from diffaug_datasets.core.errors import BackboneError, RecipeError
from diffaug_datasets.core.method import PlanSpec
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.methods import alia
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.run.worker import Worker

PACKAGED = Path(diffaug_datasets.__file__).parent / "assets" / "tiny" / "pipeline"
INSTRUCT = {
    "editor": "instruct",
    "prompt": "put the {name}",
    "suffixes": ["on a branch", "in the water"],
    "num_inference_steps": 4,
    "guidance_scale": 5.0,
    "image_guidance_scale": 1.2,
}
DOMAINS = ("on a branch.", "in the water.", "flying.")


def table(*counts: int) -> SourceTable:
    names = tuple(f"class {i}" for i in range(len(counts)))
    sources = tuple(Source(f"{i:02d}{j:02d}" * 16, i, f"{i}/{j}") for i, n in enumerate(counts) for j in range(n))
    return SourceTable("toy", "train", names, names, "bird", sources)


def planned(
    counts: tuple[int, ...], per_class: int, domains: tuple[str, ...] = DOMAINS, **config: Any
) -> list[PlanRow]:
    spec = PlanSpec(seed=0, backbone="m", per_class=per_class, suffixes=domains)
    return list(alia.plan(alia.Config(**config), table(*counts), spec))


def test_every_pair_of_image_and_domain_comes_once_before_any_repeats() -> None:
    rows = [(row.source_ids[0], row.prompt) for row in planned((4, 0), 15)]
    assert len(set(rows[:12])) == 12 and set(rows[12:]) <= set(rows[:12])
    assert Counter(prompt for _, prompt in rows[:12]) == {f"a photo of a class 0 bird {text}": 4 for text in DOMAINS}
    assert len({source for source, _ in rows[:4]}) == 4 and len({prompt for _, prompt in rows[:4]}) > 1


def test_strength_and_sampler_are_the_authors() -> None:
    [row] = planned((1,), 1)
    assert (row.num_inference_steps, row.start_step, row.guidance_scale) == (50, 20, 7.5)
    assert row.strength == pytest.approx(0.6)
    assert alia.evaluations(alia.Config(), row) == 2 * 31  # PLMS takes its first step twice


def test_without_domains_no_plan() -> None:
    with pytest.raises(RecipeError, match=r"config\.suffixes: no shipped list fits .* `diffaug captions` writes"):
        planned((1,), 1, ())


def test_domains_come_from_a_list_a_file_or_the_recipe() -> None:
    shipped = prepare(config_recipe("fashion_5shot_alia", per_class=3)).plan.rows
    assert all(row.prompt and row.prompt.startswith("a photo of a ") and row.prompt.endswith(".") for row in shipped)
    texts = prepare(config_recipe("fashion_5shot_alia", per_class=3, config={"suffixes": ["outdoors"]})).plan.rows
    assert all(row.prompt and row.prompt.endswith(" outdoors") for row in texts)
    assert len(config_recipe("alia@cub_full_code").method_config.requirements.suffixes) == 7


def test_a_sampled_source_has_a_seed_of_its_own() -> None:
    """The authors' pipeline draws the latent; each row has its own draw, and no row has one at the mode."""
    rows = planned((2,), 4, encode="sample")
    assert len({row.draw for row in rows}) == 4 and all("posterior_seed" in row.draw for row in rows)
    assert {row.draw for row in planned((2,), 4)} == {"{}"}


@torch.no_grad()
def test_instructed_edits_are_those_of_the_pipeline(tmp_path: Path) -> None:
    """Its latents and its pictures, brought back to the size of their sources."""
    editor = pix2pix_tiny.build(tmp_path / "editor", PACKAGED)
    backbone = {"id": str(editor), "height": 48, "width": 48}
    scores = {"encoder": None, "judge": None}
    small = {"per_class": 1, "batch_size": 2, "include_test": False, "backbone": backbone, "scores": scores}
    worker = Worker(write_run(prepare(config_recipe("fashion_2shot_alia", **small, config=INSTRUCT)), tmp_path / "run"))
    run, context = worker.run, worker.context
    rows, decoded, decode = run.plan.rows[:2], [], context.backbone.decode_float
    context.backbone.decode_float = lambda z: (decoded.append(z.clone()), decode(z))[1]  # type: ignore[method-assign]
    before = context.backbone.rows_evaluated
    with torch.inference_mode():
        made = alia.generate(rows, run.recipe.method_config, context)  # type: ignore[arg-type]
    cost = sum(alia.evaluations(run.recipe.method_config, row) for row in rows)  # type: ignore[arg-type]
    assert context.backbone.rows_evaluated - before == cost == 2 * 3 * 4
    pipe = pix2pix_tiny.pipeline(editor)
    settings = {"num_inference_steps": 4, "guidance_scale": 5.0, "image_guidance_scale": 1.2}
    for row, latent, image in zip(rows, decoded[0], made, strict=True):
        name = run.plan.header.prompt_names[row.label]
        assert row.prompt in {f"put the {name} {text}" for text in ("on a branch", "in the water")}
        assert (row.start_step, row.strength, row.source_labels) == (0, 1.0, (row.label,))
        source = _picture(worker, row)
        wanted = [
            pipe(
                row.prompt,
                image=source.resize((48, 48), Image.Resampling.BILINEAR),
                generator=torch.Generator().manual_seed(row.seed or 0),
                output_type=kind,
                **settings,
            ).images[0]
            for kind in ("latent", "pil")
        ]
        torch.testing.assert_close(latent, wanted[0], rtol=1e-4, atol=1e-4)
        restored = np.asarray(wanted[1].resize(source.size, Image.Resampling.BILINEAR), dtype=int)
        assert np.abs(image.pixels.numpy().astype(int) - restored).max() <= 1


def _picture(worker: Worker, row: PlanRow) -> Image.Image:
    """The real image of a row, by its bytes."""
    records = [r for shard in worker.run.plan.real_shards() for r in worker.run.table(shard).to_pylist()]
    [data] = [r["image"]["bytes"] for r in records if r["source_ids"] == list(row.source_ids)]
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_each_way_of_editing_asks_for_its_own_kind_of_model(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="does not edit by instruction, as this method does: name an Instruct"):
        prepare(config_recipe("fashion_2shot_alia", config=INSTRUCT))
    editor = pix2pix_tiny.build(tmp_path / "editor", PACKAGED)
    with pytest.raises(BackboneError, match="only edits by instruction"):
        prepare(config_recipe("fashion_2shot_alia", backbone={"id": str(editor)}))
    recipe = config_recipe("alia@waterbirds_full_code")
    assert recipe.backbone.id == "timbrooks/instruct-pix2pix" and recipe.method_config.requirements.editor
