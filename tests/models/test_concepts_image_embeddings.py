"""Image embeddings: loss and sampling against diffusers alone, exact resume, and pictures that resemble their source.

The reference side imports nothing of ours: U-Net and scheduler come from the folder through diffusers.
"""

import json
import os
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from PIL import Image
from sd_tiny import pipeline
from torch import Tensor

import diffaug_datasets
from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.learning import EmbeddingConfig
from diffaug_datasets.models import concepts
from diffaug_datasets.models.concepts import EmbeddingTraining, clusters_of, guided_by_mean, learn_embeddings, perturbed
from diffaug_datasets.models.denoising import sampled

if TYPE_CHECKING:
    from diffaug_datasets.models.backbone import Backbone

TOLERANCE = 1e-4
ASSETS = Path(diffaug_datasets.__file__).parent / "assets" / "tiny"
SHORT = EmbeddingConfig(vectors=3, steps=6, batch=2, lr=0.1, checkpoint_every=2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference_sample(folder: Path, kind: str, xt: Tensor, cond: Tensor, mean: Tensor, w: float, n: int) -> Tensor:
    """The paper's guidance, (1 + w) eps_c - w eps_u, with the group's mean for eps_u, under diffusers' sampler."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    if kind == "dpm":
        scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config, timestep_spacing="linspace")
    scheduler.set_timesteps(n)
    with torch.no_grad():
        for t in scheduler.timesteps:
            seen, unseen = (unet(xt, t, encoder_hidden_states=c).sample for c in (cond, mean))
            xt = scheduler.step((1 + w) * seen - w * unseen, t, xt).prev_sample
    return xt


@pytest.fixture(scope="module")
def group() -> Tensor:
    """The embeddings of five images [5 3 32]."""
    return normal(5, 3, 32, seed=1)


def sampling_error(backbone: "Backbone", folder: Path, group: Tensor, kind: str) -> float:
    noise, mean = normal(2, 3, 32, seed=2), group.mean(0).expand(2, -1, -1)
    theirs = 0.75 * group[:2] + 0.25 * group[2:4] + 0.1 * noise
    ours = torch.stack([perturbed(group[i], group[i + 2], 0.25, noise[i], 0.1) for i in range(2)])
    xt = normal(2, *backbone.latent_shape, seed=3)
    wanted = reference_sample(folder, kind, xt, theirs, mean, 1.0, 7)
    with torch.inference_mode():
        eps = guided_by_mean(backbone, ours, mean, torch.full((2,), 2.0))
        got = sampled(backbone, eps, xt, "dpm" if kind == "dpm" else "ddim", 7, [0, 0])
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("kind", ["ddim", "dpm"])
def test_sampling_is_the_papers(backbone: "Backbone", sd_folder: Path, group: Tensor, kind: str) -> None:
    assert sampling_error(backbone, sd_folder, group, kind) < TOLERANCE


def no_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = concepts.guided_by_mean
    plant = lambda b, cond, mean, scale: rule(b, cond, torch.zeros_like(mean), scale)  # noqa: E731
    monkeypatch.setitem(globals(), "guided_by_mean", plant)


def swapped_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = concepts.guided_by_mean
    monkeypatch.setitem(globals(), "guided_by_mean", lambda b, cond, mean, scale: rule(b, mean, cond, scale))


def other_share(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = concepts.perturbed
    monkeypatch.setitem(globals(), "perturbed", lambda own, k, alpha, noise, lam: rule(k, own, alpha, noise, lam))


def unscaled_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = concepts.perturbed
    monkeypatch.setitem(globals(), "perturbed", lambda own, k, alpha, noise, lam: rule(own, k, alpha, noise, 2 * lam))


@pytest.mark.parametrize("plant", [no_mean, swapped_guidance, other_share, unscaled_noise])
def test_the_comparison_sees_a_fault(
    monkeypatch: pytest.MonkeyPatch, backbone: "Backbone", sd_folder: Path, group: Tensor, plant: "object"
) -> None:
    plant(monkeypatch)  # type: ignore[operator]
    assert sampling_error(backbone, sd_folder, group, "ddim") > 10 * TOLERANCE


def test_loss_and_gradient_are_those_of_textual_inversion(backbone: "Backbone", sd_folder: Path) -> None:
    latents = normal(4, *backbone.latent_shape)
    training = EmbeddingTraining(backbone, SHORT, latents)
    draw = training.draws.step(0)
    loss = training.loss(draw)
    loss.backward()

    unet = UNet2DConditionModel.from_pretrained(sd_folder / "unet")
    scheduler = DDIMScheduler.from_pretrained(sd_folder / "scheduler")
    cond = torch.stack([training.embeddings[j].detach() for j in draw.images.tolist()]).requires_grad_()
    t = torch.tensor(draw.t)
    xt = scheduler.add_noise(latents[draw.images], draw.eps, t)
    theirs = torch.nn.functional.mse_loss(unet(xt, t, encoder_hidden_states=cond).sample, draw.eps)
    theirs.backward()

    assert loss.item() == pytest.approx(theirs.item(), rel=TOLERANCE)
    assert cond.grad is not None
    for place, j in enumerate(draw.images.tolist()):
        own = training.embeddings[j].grad
        assert own is not None
        assert (own - cond.grad[place]).abs().max() < TOLERANCE * cond.grad.abs().max()


def test_the_start_is_that_of_a_linear_map_of_one_hot_groups(backbone: "Backbone") -> None:
    torch.manual_seed(0)
    theirs = torch.nn.Linear(100, 3 * 32, bias=False).weight.detach()
    ours = torch.stack(list(EmbeddingTraining(backbone, SHORT, normal(60, *backbone.latent_shape)).embeddings)).detach()
    assert theirs.abs().max() == pytest.approx(0.1, rel=0.01)
    assert ours.abs().max() == pytest.approx(0.1, rel=0.01)
    assert ours.std() == pytest.approx(theirs.std().item(), rel=0.05)


@pytest.mark.parametrize("n", [16, 400])
def test_the_start_of_a_group_is_that_of_a_linear_map_of_so_many_inputs(backbone: "Backbone", n: int) -> None:
    torch.manual_seed(0)
    theirs = torch.nn.Linear(n, 3 * 32, bias=False).weight.detach()
    cfg = SHORT.model_copy(update={"start": "group"})
    found = EmbeddingTraining(backbone, cfg, normal(n, *backbone.latent_shape)).embeddings
    ours = torch.stack(list(found)).detach()
    assert ours.abs().max() == pytest.approx(theirs.abs().max().item(), rel=0.02)
    assert ours.std() == pytest.approx(theirs.std().item(), rel=0.05)


def test_a_fixed_order_shows_the_images_as_a_loader_that_does_not_shuffle(backbone: "Backbone") -> None:
    cfg = SHORT.model_copy(update={"order": "fixed", "batch": 3})
    training = EmbeddingTraining(backbone, cfg, normal(6, *backbone.latent_shape))
    loader = torch.utils.data.DataLoader(range(6), batch_size=3, shuffle=False)  # type: ignore[arg-type]
    theirs = [batch.tolist() for _ in range(2) for batch in loader]
    assert [training.draws.step(i).images.tolist() for i in range(4)] == theirs
    shuffled = EmbeddingTraining(backbone, SHORT.model_copy(update={"batch": 3}), normal(6, *backbone.latent_shape))
    assert [shuffled.draws.step(i).images.tolist() for i in range(4)] != theirs


def test_an_image_that_is_not_shown_does_not_move(backbone: "Backbone") -> None:
    training = EmbeddingTraining(backbone, SHORT, normal(5, *backbone.latent_shape))
    training.step(0)
    before = [c.detach().clone() for c in training.embeddings]
    training.step(1)
    shown = set(training.draws.step(1).images.tolist())
    moved = {j for j, c in enumerate(training.embeddings) if not torch.equal(c, before[j])}
    assert moved == shown


def pictures(backbone: "Backbone", n: int) -> list[Tensor]:
    return [normal(3, backbone.height, backbone.width, seed=i).clamp(-1, 1) for i in range(n)]


class Stopped(Exception):
    """A training that is cut short."""


@pytest.mark.parametrize("last", [1, 3, 5])
def test_interrupted_and_called_again_gives_the_same_bits(backbone: "Backbone", tmp_path: Path, last: int) -> None:
    images = pictures(backbone, 5)
    whole = learn_embeddings(backbone, images, SHORT, workdir=tmp_path / "whole")

    def stop(step: int, total: int, loss: float) -> None:
        if step == last:
            raise Stopped

    with pytest.raises(Stopped):
        learn_embeddings(backbone, images, SHORT, workdir=tmp_path / "cut", progress=stop)
    done: list[int] = []
    again = learn_embeddings(
        backbone, images, SHORT, workdir=tmp_path / "cut", progress=lambda step, total, loss: done.append(step)
    )
    assert done[0] == 2 * (last // 2) + 1
    assert again.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(again.embeddings, whole.embeddings, strict=True))


def test_what_is_refused(backbone: "Backbone", tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="got no image"):
        learn_embeddings(backbone, [], SHORT, workdir=tmp_path)
    with pytest.raises(BackboneError, match=r"image embeddings diverged .*lower embeddings\.lr"):
        spoilt = [torch.full((3, backbone.height, backbone.width), torch.nan)]
        learn_embeddings(backbone, spoilt, SHORT, workdir=tmp_path)


KILLED = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.learning import EmbeddingConfig
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.concepts import learn_embeddings

def kill(step, total, loss):
    if step == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

images = [torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(i)).clamp(-1, 1) for i in range(5)]
cfg = EmbeddingConfig(vectors=3, steps=6, batch=2, lr=0.1, checkpoint_every=2)
learn_embeddings(Backbone.load(BackboneSpec(id=sys.argv[1])), images, cfg, workdir=Path(sys.argv[2]), progress=kill)
"""


def test_a_killed_process_leaves_a_checkpoint_that_ends_at_the_same_bits(
    backbone: "Backbone", sd_folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(sd_folder), str(tmp_path / "killed"), "5"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    images = [normal(3, 64, 64, seed=i).clamp(-1, 1) for i in range(5)]
    begun: list[int] = []
    resumed = learn_embeddings(
        backbone, images, SHORT, workdir=tmp_path / "killed", progress=lambda step, total, loss: begun.append(step)
    )
    whole = learn_embeddings(backbone, images, SHORT, workdir=tmp_path / "whole")
    assert begun == [5, 6]
    assert all(torch.equal(a, b) for a, b in zip(resumed.embeddings, whole.embeddings, strict=True))


def test_an_embedding_brings_its_own_picture_back(tmp_path: Path) -> None:
    """On the trained model: of four sources each sample is nearest to the one that its embedding was learned from."""
    from diffaug_datasets.core.models import BackboneSpec
    from diffaug_datasets.models.backbone import Backbone

    trained = Backbone.load(BackboneSpec(id="tiny"))
    column = pq.read_table(ASSETS / "fashion" / "pool.parquet")["image"]
    data = [bytes(column[i].as_py()["bytes"]) for i in (210, 1000, 1610, 1810)]
    images = [trained.preprocess(Image.open(BytesIO(one)), "bicubic") for one in data]
    cfg = EmbeddingConfig(vectors=16, steps=40, batch=4, lr=0.3)
    learned = learn_embeddings(trained, images, cfg, workdir=tmp_path)
    cond = torch.stack(learned.embeddings)
    xt = normal(4, *trained.latent_shape)
    with torch.inference_mode():
        eps = guided_by_mean(trained, cond, cond.mean(0).expand_as(cond), torch.full((4,), 2.0))
        drawn = trained.decode_float(sampled(trained, eps, xt, "ddim", 15, [0] * 4))
    errors = torch.cdist(drawn.flatten(1), (torch.stack(images) / 2 + 0.5).flatten(1))
    assert errors.argmin(1).tolist() == [0, 1, 2, 3], json.dumps(errors.tolist())


def blobs(backbone: "Backbone", homes: list[int]) -> Tensor:
    """Latents around a far point for each home."""
    spots = normal(max(homes) + 1, *backbone.latent_shape, seed=7) * 5
    return torch.stack([spots[home] + 0.1 * normal(*backbone.latent_shape, seed=i) for i, home in enumerate(homes)])


def test_images_of_a_cluster_share_an_embedding_and_classes_never_do(backbone: "Backbone") -> None:
    cfg = SHORT.model_copy(update={"clusters": 2})
    homes, labels = [0, 1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 1, 1, 2]
    found = clusters_of(blobs(backbone, homes), labels, cfg)
    assert found == [0, 1, 0, 1, 2, 3, 4]
    assert clusters_of(blobs(backbone, homes), labels, SHORT.model_copy(update={"clusters": 1})) == [
        0,
        0,
        0,
        0,
        1,
        1,
        2,
    ]
    training = EmbeddingTraining(backbone, cfg, blobs(backbone, homes), labels)
    assert training.owners == found and len(training.embeddings) == 5


def test_the_gradient_of_a_shared_embedding_is_that_of_all_its_images(backbone: "Backbone", sd_folder: Path) -> None:
    latents = normal(4, *backbone.latent_shape)
    training = EmbeddingTraining(backbone, SHORT.model_copy(update={"clusters": 1, "batch": 4}), latents)
    draw = training.draws.step(0)
    training.loss(draw).backward()
    unet = UNet2DConditionModel.from_pretrained(sd_folder / "unet")
    scheduler = DDIMScheduler.from_pretrained(sd_folder / "scheduler")
    own = training.embeddings[0].detach().clone().requires_grad_()
    t = torch.tensor(draw.t)
    xt = scheduler.add_noise(latents[draw.images], draw.eps, t)
    seen = unet(xt, t, encoder_hidden_states=own.expand(4, -1, -1)).sample
    torch.nn.functional.mse_loss(seen, draw.eps).backward()
    ours = training.embeddings[0].grad
    assert ours is not None and own.grad is not None
    assert (ours - own.grad).abs().max() < TOLERANCE * own.grad.abs().max()


def test_embeddings_that_start_at_a_prompt_are_its_hidden_states(backbone: "Backbone", sd_folder: Path) -> None:
    cfg = SHORT.model_copy(update={"start": "prompt", "clusters": 1, "steps": 0})
    prompts, work = {0: "a photo of a bird", 3: "a photo of a car"}, sd_folder / "unused"
    made = learn_embeddings(backbone, pictures(backbone, 3), cfg, labels=[3, 0, 3], prompts=prompts, workdir=work)
    pipe = pipeline(sd_folder)
    for own, text in zip(made.embeddings, ("a photo of a car", "a photo of a bird", "a photo of a car"), strict=True):
        wanted, _ = pipe.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)
        assert (own - wanted[0]).abs().max() < TOLERANCE
