"""DiffuseMix against diffusers' own InstructPix2Pix pipeline and the authors' arithmetic, and what is refused."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pix2pix_tiny
import pytest
import torch
from PIL import Image

import diffaug_datasets
from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.core.method import Generated
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.numerics.fractals import Bits, fractal, sampled_system
from diffaug_datasets.planning.catalogue import config_recipe, merged
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.run.assembly import assemble
from diffaug_datasets.run.context import sources_in
from diffaug_datasets.run.rebuild import Regenerator
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Worker

PACKAGED = Path(diffaug_datasets.__file__).parent / "assets" / "tiny" / "pipeline"
SIDE, N, RAMP = 48, 4, 20
STYLES = ("snowy", "mosaic")
pytestmark = pytest.mark.xdist_group("diffusemix")


def small_recipe(method: str, **changes: Any) -> Recipe:
    """Fashion at 2 shots in few steps; batches of 3, so the last one is ragged."""
    small = {"per_class": 2, "batch_size": 3, "include_test": False, "config": {"num_inference_steps": N}}
    return config_recipe(f"fashion_2shot_{method}", **merged(small, changes))


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pix2pix_tiny.build(tmp_path_factory.mktemp("pix2pix") / "editor", PACKAGED)


@pytest.fixture(scope="module")
def fractals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fractals")
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


def run_of(folder: Path, editor: Path, **config: Any) -> Run:
    """Ten rows over an editing backbone of 48 px."""
    settings = {"editor": "instruct", "num_inference_steps": N, "guidance_scale": 4.0, "styles": list(STYLES)}
    backbone = {"id": str(editor), "height": SIDE, "width": SIDE}
    scores = {"encoder": None, "judge": None}
    changes = {"per_class": 1, "backbone": backbone, "scores": scores, "config": settings | config}
    return write_run(prepare(small_recipe("diffusemix", **changes)), folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, editor: Path, fractals: Path) -> Run:
    run = run_of(tmp_path_factory.mktemp("run") / "run", editor, fractals=str(fractals), blend_width=RAMP)
    Worker(run).work()
    assemble(run)
    return run


@pytest.fixture(scope="module")
def worker(finished: Run) -> Worker:
    return Worker(finished)


def generate(worker: Worker, rows: Sequence[PlanRow], **changes: Any) -> list[Generated]:
    config = worker.run.recipe.method_config.model_copy(update=changes)
    with torch.inference_mode():
        return worker.run.recipe.method_definition.generate(rows, config, worker.context)


def picture(run: Run, row: PlanRow) -> Image.Image:
    """The real image of a row, by its bytes."""
    records = [record for shard in run.plan.real_shards() for record in run.table(shard).to_pylist()]
    [data] = [r["image"]["bytes"] for r in records if r["source_ids"] == list(row.source_ids)]
    return Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE))


def combined(original: Image.Image, edit: Image.Image, side: str, ramp: int) -> "np.ndarray[Any, Any]":
    """The authors' `combine_images`, and the two halves that the paper adds: a mask that rises along an axis."""
    half = [0.0] * (SIDE // 2 - ramp // 2) + list(np.linspace(0, 1, ramp)) + [1.0] * (SIDE // 2 - ramp // 2)
    line = np.array(half if side in ("right", "bottom") else half[::-1])
    mask = np.tile(line, (SIDE, 1)) if side in ("left", "right") else np.tile(line[:, None], (1, SIDE))
    a, b = (np.asarray(image, dtype=np.float64) for image in (original, edit))
    return (1 - mask[..., None]) * a + mask[..., None] * b


@torch.no_grad()
def test_pictures_are_those_of_the_pipeline_under_a_fractal(worker: Worker, editor: Path, fractals: Path) -> None:
    pipe, run = pix2pix_tiny.pipeline(editor), worker.run
    rows = list({row.draw.split('"mask":"')[1][:4]: row for row in run.plan.rows}.values())
    assert len(rows) >= 3, "of four halves most are met"
    overlays = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in fractals.iterdir()}
    decoded: list[torch.Tensor] = []
    decode = worker.context.backbone.decode_float
    worker.context.backbone.decode_float = lambda z: decode(decoded.append(z.clone()) or z)  # type: ignore[method-assign,func-returns-value]
    made = generate(worker, rows)
    worker.context.backbone.decode_float = decode  # type: ignore[method-assign]
    for i, (row, image) in enumerate(zip(rows, made, strict=True)):
        original = picture(run, row)
        style = next(style for style in STYLES if style in str(row.prompt))
        name = run.plan.header.prompt_names[row.label]
        assert row.prompt == f"a photo of a {name} {style}"
        assert row.source_labels == (row.label,) and row.soft_label.classes == (row.label,)
        settings = {"num_inference_steps": N, "guidance_scale": 4.0, "image_guidance_scale": 1.5}
        streams = {kind: torch.Generator().manual_seed(row.seed or 0) for kind in ("latent", "pil")}
        edits = [
            pipe(row.prompt, image=original, generator=stream, output_type=kind, **settings).images[0]
            for kind, stream in streams.items()
        ]
        torch.testing.assert_close(decoded[0][i], edits[0], rtol=1e-4, atol=1e-4)
        drawn = json_of(row.draw)
        half = combined(original, edits[1], drawn["mask"], round(RAMP * SIDE / 256))
        overlay = Image.open(overlays[drawn["fractal"]]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        wanted = 0.8 * half + 0.2 * np.asarray(overlay, dtype=np.float64)
        assert np.abs(image.pixels.numpy() * 255 - wanted).max() < 1.01


def json_of(text: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def test_a_rows_bits_do_not_depend_on_its_neighbours(worker: Worker) -> None:
    first, second, third = worker.run.plan.rows[:3]
    [alike, _], [same, other] = generate(worker, [first, second]), generate(worker, [first, third])
    assert torch.equal(alike.pixels, same.pixels) and not torch.equal(same.pixels, other.pixels)


def test_rows_regenerate_bit_equal(finished: Run) -> None:
    tables = [finished.table(shard) for shard in finished.plan.real_shards()]
    rebuild = Regenerator(finished.recipe, finished.plan, finished.folder / "fits", sources_in(tables))
    rows = [row for shard in finished.plan.shards() for row in finished.table(shard).to_pylist()]
    for row in rows[::4]:
        rebuilt = rebuild({key: value for key, value in row.items() if key != "image"})
        assert rebuilt.equal and rebuilt.data == row["image"]["bytes"]


@pytest.mark.parametrize(
    ("guidance", "of_image", "branches"), [(4.0, 1.5, 3), (1.0, 1.5, 3), (4.0, 1.0, 3), (1.0, 1.0, 1)]
)
def test_declared_cost_is_counted(worker: Worker, guidance: float, of_image: float, branches: int) -> None:
    row = worker.run.plan.rows[0].model_copy(update={"guidance_scale": guidance})
    before = worker.context.backbone.rows_evaluated
    generate(worker, [row], image_guidance_scale=of_image)
    counted = worker.context.backbone.rows_evaluated - before
    config = worker.run.recipe.method_config.model_copy(update={"image_guidance_scale": of_image})
    assert counted == branches * N == worker.run.recipe.method_definition.evaluations(config, row)


def test_a_row_without_guidance_has_its_bits_beside_a_guided_one(worker: Worker) -> None:
    plain, guided = (worker.run.plan.rows[0].model_copy(update={"guidance_scale": w}) for w in (1.0, 4.0))
    alone, beside = (generate(worker, rows, image_guidance_scale=1.0) for rows in ([plain] * 2, [plain, guided]))
    assert torch.equal(alone[0].pixels, beside[0].pixels) and not torch.equal(beside[0].pixels, beside[1].pixels)


def test_every_image_has_every_style_once_before_one_comes_again() -> None:
    rows = prepare(small_recipe("diffusemix", per_class=4, config={"styles": list(STYLES)})).plan.rows
    pairs = [(row.source_ids[0], row.prompt) for row in rows]
    assert len(set(pairs)) == len(pairs) == 40
    masks = {json_of(row.draw)["mask"] for row in rows}
    assert masks == {"left", "right", "top", "bottom"}
    of_code = prepare(small_recipe("diffusemix", per_class=4, config={"flips": False})).plan.rows
    assert {json_of(row.draw)["mask"] for row in of_code} == {"right", "bottom"}


def test_what_cannot_edit_is_refused_at_plan(editor: Path, tmp_path: Path) -> None:
    with pytest.raises(DiffAugError, match="does not edit by instruction"):
        prepare(small_recipe("diffusemix", config={"editor": "instruct"}))
    with pytest.raises(DiffAugError, match="only edits by instruction"):
        prepare(small_recipe("txt2img", backbone={"id": str(editor)}))
    v_editor = pix2pix_tiny.build(tmp_path / "v", PACKAGED, "v_prediction")
    with pytest.raises(DiffAugError, match="predicts 'v_prediction'"):
        prepare(small_recipe("diffusemix", backbone={"id": str(v_editor)}, config={"editor": "instruct"}))


def test_a_folder_of_fractals_counts_by_its_pictures(fractals: Path, tmp_path: Path) -> None:
    def plan_id(folder: Path) -> str:
        return prepare(small_recipe("diffusemix", config={"fractals": str(folder)})).plan.id

    copied = tmp_path / "copied"
    copied.mkdir()
    for path in fractals.iterdir():
        (copied / f"named-{path.name}").write_bytes(path.read_bytes())
    assert plan_id(copied) == plan_id(fractals) != prepare(small_recipe("diffusemix")).plan.id
    Image.new("RGB", (4, 4), "red").save(copied / "more.png")
    assert plan_id(copied) != plan_id(fractals)
    with pytest.raises(DiffAugError, match="no folder with PNG or JPEG pictures"):
        plan_id(tmp_path / "nowhere")


def test_fractals_follow_from_their_seed_and_from_contractions() -> None:
    """The recipe's sum of singular values, measured on the matrices themselves."""
    for seed in range(40):
        system = sampled_system(Bits(seed))
        values = np.linalg.svd(system.matrices, compute_uv=False)
        count, total = len(values), float((values @ [1, 2]).sum())
        assert 2 <= count <= 8 and values.max() <= 1 + 1e-6
        assert (5 + count) / 2 - 1e-6 <= total <= (6 + count) / 2 + 1e-6
    pictures = [fractal(seed, 24, 32) for seed in range(8)]
    assert pictures[0].shape == (24, 32, 3) and len({p.tobytes() for p in pictures}) == 8
    assert np.array_equal(fractal(3, 24, 32), pictures[3])
    assert min(len(np.unique(p.reshape(-1, 3), axis=0)) for p in pictures) > 8
