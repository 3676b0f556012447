"""The embedded default as shipped: sizes, loading, tokens, data and the quality of encoder and judge."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, CLIPModel, CLIPTokenizer

import diffaug_datasets

TINY = Path(diffaug_datasets.__file__).parent / "assets" / "tiny"
NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
PHRASES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
COUNTS = {"pool": 200, "test": 100, "retrieval": 500}


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    loaded = StableDiffusionPipeline.from_pretrained(TINY / "pipeline", local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rows = pq.read_table(TINY / "fashion" / "test.parquet")["image"].to_pylist()
    return [Image.open(io.BytesIO(row["bytes"])) for row in rows]


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.array(pq.read_table(TINY / "fashion" / "test.parquet")["label"].to_pylist())


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_sizes_are_within_the_limits() -> None:
    assert size(TINY / "pipeline") <= 15e6
    assert size(TINY / "encoder") + size(TINY / "judge") <= 5e6


def test_weights_are_safetensors_only() -> None:
    kinds = {p.suffix for p in TINY.rglob("*") if p.is_file()}
    assert kinds == {".safetensors", ".json", ".parquet", ".md", ""}
    assert sum(1 for _ in TINY.rglob("*.safetensors")) == 5


def test_pipeline_runs_with_its_defaults(pipe: StableDiffusionPipeline) -> None:
    assert {m.dtype for m in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    image = pipe("a photo of a coat", num_inference_steps=2, guidance_scale=4).images[0]
    assert image.size == (32, 32)


def test_schedule_is_that_of_stable_diffusion_1(pipe: StableDiffusionPipeline) -> None:
    assert isinstance(pipe.scheduler, DDIMScheduler)
    config = pipe.scheduler.config
    assert (config.beta_schedule, config.beta_start, config.beta_end) == ("scaled_linear", 0.00085, 0.012)
    assert (config.num_train_timesteps, config.steps_offset, config.prediction_type) == (1000, 1, "epsilon")
    assert not config.set_alpha_to_one and not config.clip_sample


def test_samples_are_dark_at_the_border_and_lit_inside(pipe: StableDiffusionPipeline) -> None:
    prompts = [f"a photo of a {p}" for p in PHRASES]
    images = pipe(prompts, num_inference_steps=10, guidance_scale=4, output_type="np",
                  generator=torch.Generator().manual_seed(0)).images  # fmt: skip
    assert images[:, :2].mean() < 0.1 < images[:, 10:22, 10:22].mean()


def test_tokenizer_keeps_known_words_whole(pipe: StableDiffusionPipeline) -> None:
    text = "A photo of an ankle boot flying over water with trees in the background garment item clothing"
    assert pipe.tokenizer.tokenize(text) == [f"{word}</w>" for word in text.lower().split()]


def test_tokenizer_falls_back_to_bytes(pipe: StableDiffusionPipeline) -> None:
    ids = pipe.tokenizer("zyzzyva é", add_special_tokens=False).input_ids
    assert len(ids) > 2
    assert pipe.tokenizer.unk_token_id not in ids


def test_tokenizer_takes_new_tokens() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(TINY / "pipeline" / "tokenizer", local_files_only=True)
    assert tokenizer.add_tokens("<class_0>") == 1
    assert "<class_0>" in tokenizer.tokenize("a photo of a <class_0> in dark tones.")
    assert len(tokenizer("", padding="max_length").input_ids) == tokenizer.model_max_length


def test_few_shot_data_is_balanced_and_disjoint() -> None:
    hashes: dict[str, set[str]] = {}
    for name, count in COUNTS.items():
        rows = pq.read_table(TINY / "fashion" / f"{name}.parquet").to_pydict()
        assert np.bincount(rows["label"]).tolist() == [count] * 10
        hashes[name] = {hashlib.sha256(image["bytes"]).hexdigest() for image in rows["image"]}
        assert len(hashes[name]) == 10 * count
        assert all(image["path"] is None for image in rows["image"])
    assert len(set.union(*hashes.values())) == 10 * sum(COUNTS.values())


def test_parquet_declares_image_and_class_names(pictures: list[Image.Image]) -> None:
    metadata = json.loads(pq.read_schema(TINY / "fashion" / "pool.parquet").metadata[b"huggingface"])
    features = metadata["info"]["features"]
    assert features["image"]["_type"] == "Image"
    assert features["label"]["names"] == NAMES
    assert {(p.size, p.mode) for p in pictures} == {((32, 32), "RGB")}


@torch.no_grad()
def test_judge_knows_the_test_set(pictures: list[Image.Image], labels: np.ndarray) -> None:
    judge = AutoModelForImageClassification.from_pretrained(TINY / "judge", local_files_only=True).eval()
    processor = AutoImageProcessor.from_pretrained(TINY / "judge", local_files_only=True)
    assert [judge.config.id2label[n] for n in range(10)] == NAMES
    predicted = judge(**processor(pictures, return_tensors="pt")).logits.argmax(1).numpy()
    assert (predicted == labels).mean() >= 0.9


@torch.no_grad()
def test_encoder_is_far_above_chance(pictures: list[Image.Image], labels: np.ndarray) -> None:
    encoder = CLIPModel.from_pretrained(TINY / "encoder", local_files_only=True).eval()
    tokenizer = CLIPTokenizer.from_pretrained(TINY / "encoder", local_files_only=True)
    pixels = AutoImageProcessor.from_pretrained(TINY / "encoder", local_files_only=True)(pictures, return_tensors="pt")
    text = tokenizer([f"a photo of a {p}" for p in PHRASES], padding=True, return_tensors="pt")
    predicted = encoder(**text, **pixels).logits_per_image.argmax(1).numpy()
    assert (predicted == labels).mean() >= 0.7


def test_suffixes_name_a_defined_property() -> None:
    content = json.loads((TINY / "suffixes.json").read_text(encoding="utf-8"))
    assert content["schema"] == 1
    assert all(s["text"].endswith(".") and s["direction"] in {"up", "down"} for s in content["suffixes"])
    assert {s["property"] for s in content["suffixes"]} == set(content["properties"])
    assert len({(s["property"], s["direction"]) for s in content["suffixes"]}) == len(content["suffixes"]) == 6
