"""Concept fits over more images than memory holds: the same bits, whatever is kept, and memory that does not grow."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffaug_datasets.core.learning import ConceptConfig
from diffaug_datasets.models import concepts, latents
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.concepts import TrainedConcepts, train_concepts
from diffaug_datasets.models.latents import ConceptExample, Latents

NAMES = {0: "crane", 1: "bus"}
CFG = ConceptConfig(steps=4, batch=3, rank=2, lr_lora=1e-2, lr_embedding=1e-2, checkpoint_every=2)
FLAT = 20 << 20  # bytes by which a process may differ from another
SIZES = (160, 1600)
STEPS, BATCH = 100, 16  # of all sizes alike, for a process grows in its first steps whatever it is shown
# What is kept must fit in a tenth of what all latents of the larger run take.
MEASURED = """
import resource, sys, tempfile
from pathlib import Path
sys.path.insert(0, {here!r})
import test_streamed_fits
from diffaug_datasets.core.models import BackboneSpec, TINY
from diffaug_datasets.models import latents
from diffaug_datasets.models.backbone import Backbone

latents.LATENT_BYTES = 1 << 20
with tempfile.TemporaryDirectory() as folder:
    test_streamed_fits.learned_of(Backbone.load(BackboneSpec(id=TINY), "cpu"), {count}, Path(folder))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
"""


def picture(number: int, side: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8))


def examples(count: int) -> list[ConceptExample]:
    return [ConceptExample(partial(picture, i), i % 2, f"picture {i}") for i in range(count)]


def learned_of(backbone: Backbone, count: int, folder: Path) -> TrainedConcepts:
    """A fit over so many images at 96 x 96, every one of them read, once or more often."""
    seen = {"steps": STEPS, "batch": BATCH, "resolution": 96, "checkpoint_every": 1000}
    cfg = CFG.model_copy(update=seen)
    return train_concepts(backbone, examples(count), NAMES, cfg, workdir=folder)


def test_what_is_kept_changes_no_bit(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = train_concepts(backbone, examples(7), NAMES, CFG, workdir=tmp_path / "kept")
    monkeypatch.setattr(latents, "LATENT_BYTES", 1)
    streamed = train_concepts(backbone, examples(7), NAMES, CFG, workdir=tmp_path / "streamed")
    pixels = [backbone.preprocess(picture(i), "lanczos") for i in range(7)]
    before = torch.stack(
        [torch.cat([backbone.encode(way[None]) for way in (image, image.flip(-1))]) for image in pixels]
    )

    class Upfront(Latents):
        """All images, both ways, encoded before the first step."""

        def __call__(self, images: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
            return before[images, mirrored.long()]

    monkeypatch.setattr(concepts, "Latents", Upfront)
    upfront = train_concepts(backbone, examples(7), NAMES, CFG, workdir=tmp_path / "upfront")
    assert kept.losses == streamed.losses == upfront.losses and len(set(kept.losses)) == CFG.steps
    for one in (streamed, upfront):
        for ours, theirs in zip(kept.concepts.files().values(), one.concepts.files().values(), strict=True):
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_an_image_is_read_when_a_step_shows_it(backbone: Backbone, tmp_path: Path) -> None:
    """Of thousands of images a step reads those that it shows, and so does a fit that goes on."""
    read: list[int] = []

    def opened(number: int) -> Image.Image:
        read.append(number)
        return picture(number)

    many = [replace(one, image=partial(opened, i)) for i, one in enumerate(examples(20_000))]
    seen = CFG.model_copy(update={"steps": 2})
    first = train_concepts(backbone, many, NAMES, seen, workdir=tmp_path)
    assert len(set(read)) <= 2 * CFG.batch + 1
    read.clear()
    again = train_concepts(backbone, many, NAMES, seen, workdir=tmp_path)
    assert again.losses == first.losses
    assert read == [0], "the first one says whether the checkpoint was begun here"


def test_other_images_never_take_a_checkpoint(backbone: Backbone, tmp_path: Path) -> None:
    short = CFG.model_copy(update={"steps": 1})
    pictures = [ConceptExample(picture(i), i % 2) for i in range(3)]
    train_concepts(backbone, pictures, NAMES, short, workdir=tmp_path)
    train_concepts(backbone, [*pictures[:2], ConceptExample(picture(9), 0)], NAMES, short, workdir=tmp_path)
    train_concepts(backbone, pictures, NAMES, short, workdir=tmp_path, resize="bilinear")
    assert len(list((tmp_path / "concept-checkpoint").iterdir())) == 3


@pytest.mark.full
@pytest.mark.timeout(2400)
def test_peak_memory_does_not_grow_with_the_images() -> None:
    """Ten times the images, each of them read, in a process of its own; kept, the latents alone would be larger."""
    peaks = []
    assert max(SIZES) <= STEPS * BATCH
    for count in SIZES:
        code = MEASURED.format(here=str(Path(__file__).parent), count=count)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    all_latents = SIZES[1] * 4 * 24 * 24 * 4 * 2
    assert all_latents > FLAT and peaks[1] - peaks[0] < FLAT, [peak >> 20 for peak in peaks]
