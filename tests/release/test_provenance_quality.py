"""Nearest test images and inversion PSNR: measured while a set is built, and recomputed here from the download alone.

The reference side uses transformers and diffusers with the packaged weights, and nothing of ours.
"""

import hashlib
import io
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DDIMScheduler
from huggingface_hub import DatasetCard
from PIL import Image
from run.published import DDIM, Published
from safetensors.torch import load_file
from small_release import made
from transformers import AutoImageProcessor, AutoModel

import diffaug_datasets
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.scores import FILE, measured_rows
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions

ASSETS = Path(diffaug_datasets.__file__).parent / "assets" / "tiny"
STEPS = 5
CONCEPTS = {"steps": 2, "batch": 4, "rank": 4, "lr_lora": 1e-3, "lr_embedding": 1e-3}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run that inverts and carries test images, and where it was published."""
    folder = tmp_path_factory.mktemp("measured")
    config = {"num_inference_steps": STEPS, "inversion_steps": STEPS, "concepts": CONCEPTS}
    run = made(folder / "run", "fashion_1shot_diffii", include_test=True, config=config)
    return run, folder / "shelf" / publish(run, f"file://{folder}/shelf").folder


def cells(place: Path) -> dict[str, list[str]]:
    """The rows of the card's table of quality, by measure; what is `the same` has its number in its name."""
    body = DatasetCard((place.parents[2] / "README.md").read_text()).text
    part = body.split("### Quality\n", 1)[1].split("\n### ", 1)[0]
    rows = [line.strip("|").split(" | ") for line in part.splitlines() if line.startswith("| ")][2:]
    return {f"{i} {row[0].strip()}": [cell.strip() for cell in row[1:]] for i, row in enumerate(rows)}


def rows_of(place: Path, split: str) -> list[dict[str, Any]]:
    paths = sorted(place.glob(f"{split}-*.arrow"))
    return [row for path in paths for row in pa.ipc.open_stream(path.read_bytes()).read_all().to_pylist()]


def features(rows: list[dict[str, Any]]) -> torch.Tensor:
    """Unit-norm features of the packaged encoder, out of transformers."""
    model, processor = (
        AutoModel.from_pretrained(ASSETS / "encoder"),
        AutoImageProcessor.from_pretrained(ASSETS / "encoder"),
    )
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]
    with torch.no_grad():
        found = model.get_image_features(**processor(images=pictures, return_tensors="pt"))
    return torch.nn.functional.normalize(getattr(found, "pooler_output", found), dim=1)


def test_nearest_test_images(shelf: tuple[Run, Path]) -> None:
    _, place = shelf
    synthetic, tests = [row for row in rows_of(place, "train") if row["is_synthetic"]], rows_of(place, "test")
    nearest = (features(synthetic) @ features(tests).T).max(1)
    provenance = {row["row_id"]: row for row in pq.read_table(place / "provenance.parquet").to_pylist()}
    for row, cosine, index in zip(synthetic, nearest.values.tolist(), nearest.indices.tolist(), strict=True):
        told = provenance[row["row_id"]]
        assert told["test_similarity"] == pytest.approx(cosine, abs=1e-4)
        assert told["nearest_test"] == hashlib.sha256(tests[index]["image"]["bytes"]).hexdigest()
    found = cells(place)
    assert float(found["6 cosine to the nearest test image, mean"][0]) == pytest.approx(
        float(nearest.values.mean()), abs=2e-4
    )
    assert float(found["7 the same, largest"][0]) == pytest.approx(float(nearest.values.max()), abs=2e-4)
    assert found["7 the same, largest"][1] == "packaged encoder"


@torch.no_grad()
def test_inversion_psnr(shelf: tuple[Run, Path]) -> None:
    """diffusers' own pipeline, from the published latents, tokens and LoRA, under the prompt of the class."""
    _, place = shelf
    [concepts] = (place / "fits").glob("concepts-*")
    reference = Published(ASSETS, 32, concepts)
    reference.pipe.scheduler = DDIMScheduler(**DDIM)
    expected = {}
    for path in (place / "fits").glob("inversions-*/inversions.safetensors"):
        for name, latent in load_file(path).items():
            source, label = name.split("/")
            prompt = f"a photo of a <class_{label}>"
            words = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "output_type": "pt"}
            image = reference.pipe(prompt, latents=latent[None], **words).images
            wanted = reference.pixels(source, "lanczos") / 2 + 0.5
            expected[source] = -10 * math.log10(float((image.double() - wanted.double()).square().mean()))
    rows = pq.read_table(place / "provenance.parquet").to_pylist()
    told = {row["source_ids"][0]: row["inversion_psnr"] for row in rows if row["inversion_psnr"] is not None}
    assert told == pytest.approx(expected, abs=0.01)
    assert {row["origin"] for row in rows if row["inversion_psnr"] is not None} == {"real"}
    [value, model] = cells(place)["8 PSNR in dB of real images, inverted and denoised again, mean"]
    assert float(value) == pytest.approx(sum(expected.values()) / len(expected), abs=0.01)
    assert model.startswith("diffaug-tiny@")


@pytest.mark.full
def test_it_is_measured_once_and_again_where_it_is_damaged(shelf: tuple[Run, Path], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(shelf[0].folder, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    before = (run.folder / FILE).read_bytes()
    (run.folder / FILE).write_bytes(before[:-1])
    assert measured_rows(run) == {}
    (run.folder / "run.json").unlink()
    execute(run, WorkerOptions(device="cpu"), workers=1)
    assert (run.folder / FILE).read_bytes() == before
    assert len(measured_rows(run)) == 10 + 10


def test_what_cannot_be_measured_is_absent(finished: Run) -> None:
    """A method without inversions, a run without test images."""
    assert not (finished.folder / FILE).exists()
    assert measured_rows(finished) == {}
