"""Concept learning: what is trained and what is not, exact resume after SIGKILL, files that plain diffusers reads."""

import multiprocessing
import os
import signal
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sd_tiny
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from held_out import held_out_loss
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import kstest
from torch import Tensor

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.learning import ConceptConfig, OnStep, TextualInversionConfig
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.models.adapters import LoadedConcepts, attach, detach, load_concepts
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.concepts import (
    ConceptTraining,
    TrainedConcepts,
    collected,
    min_snr_weights,
    train_concepts,
    trainable,
    unlearned_concepts,
)
from diffaug_datasets.models.latents import ConceptExample, Latents
from diffaug_datasets.models.training import StepDraw, StepDraws
from diffaug_datasets.numerics.sampling import ddim_sample
from diffaug_datasets.numerics.schedule import ddim_timesteps

NAMES = {0: "bird", 3: "photo of"}
CFG = ConceptConfig(steps=6, batch=2, rank=4, lr_lora=1e-2, lr_embedding=5e-2, checkpoint_every=2, tokens_per_class=2)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8))


EXAMPLES = [ConceptExample(picture(i), (0, 3)[i % 2]) for i in range(5)]


def train(
    backbone: Backbone, workdir: Path, cfg: ConceptConfig = CFG, progress: OnStep | None = None
) -> TrainedConcepts:
    return train_concepts(backbone, EXAMPLES, NAMES, cfg, workdir=workdir, metaclass="bird", progress=progress)


def saved_bytes(learned: TrainedConcepts, folder: Path) -> dict[str, bytes]:
    learned.concepts.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def answers(backbone: Backbone) -> list[Tensor]:
    """Everything that concepts could change."""
    xt = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    cond = backbone.prompts(["a photo of a bird", "photo"])
    return [cond, backbone.eps(xt, 481, cond), *backbone.unet.state_dict().values()]


@pytest.fixture(scope="module")
def learned(_loaded: Backbone, tmp_path_factory: pytest.TempPathFactory) -> TrainedConcepts:
    return train(_loaded, tmp_path_factory.mktemp("learned"))


def test_prompts_and_identity() -> None:
    cfg = ConceptConfig()
    assert cfg.prompt(3) == "a photo of a <class_3>"
    assert cfg.prompt(3, "bird") == "a photo of a <class_3> bird"
    assert "checkpoint_every" not in cfg.identity()
    with pytest.raises(ValueError, match=r"must contain \{token\} exactly once"):
        ConceptConfig(prompt_template="a photo")


def test_what_is_learned(learned: TrainedConcepts, backbone: Backbone) -> None:
    start = unlearned_concepts(backbone, NAMES, CFG, metaclass="bird").tokens
    assert {token: rows.shape for token, rows in learned.concepts.tokens.items()} == {
        "<class_0>": (2, sd_tiny.WIDTH),
        "<class_3>": (2, sd_tiny.WIDTH),
    }
    assert all(not torch.equal(rows, start[token]) for token, rows in learned.concepts.tokens.items())
    sides = {key: matrix for key, matrix in learned.concepts.lora.items() if ".lora_B." in key}
    assert len(sides) == 2 * 4 * 16  # SD 1.5's 16 transformer blocks, self and cross attention, four projections
    # The middle block sees one place here, which can only attend to itself: its query and key change nothing, and their
    # gradient is 0 but for rounding, so what AdamW makes of it means nothing. All others are moved by steps of `lr`.
    idle = {key for key in sides if ".mid_block." in key and ".attn1." in key and (".to_q." in key or ".to_k." in key)}
    assert len(idle) == 2
    assert all(float(matrix.abs().max()) > CFG.lr_lora / 2 for key, matrix in sides.items() if key not in idle)
    assert len(learned.losses) == CFG.steps
    assert learned.measured()["init"] == "bird"


def test_training_leaves_the_backbone_as_it_was(backbone: Backbone, tmp_path: Path) -> None:
    before, state = answers(backbone), torch.random.get_rng_state()
    parameters = dict(backbone.unet.named_parameters())
    train(backbone, tmp_path, CFG.model_copy(update={"steps": 2}))
    assert all(torch.equal(a, b) for a, b in zip(answers(backbone), before, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)
    after = dict(backbone.unet.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is parameter and not parameter.requires_grad for name, parameter in parameters.items())


def test_an_interrupted_training_leaves_the_backbone_as_it_was(backbone: Backbone, tmp_path: Path) -> None:
    before = answers(backbone)

    def stop(step: int, total: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(backbone, tmp_path, progress=stop)
    assert all(torch.equal(a, b) for a, b in zip(answers(backbone), before, strict=True))


def test_none_restores_the_base_to_the_bit(backbone: Backbone, learned: TrainedConcepts) -> None:
    before = answers(backbone)
    backbone.use_concepts(learned.concepts)
    backbone.use_concepts(learned.concepts)
    changed = answers(backbone)
    assert torch.equal(changed[0], before[0])
    assert not torch.equal(changed[1], before[1])
    assert not torch.equal(backbone.prompt("a <class_0>"), backbone.prompt("a <class_3>"))
    backbone.use_concepts(None)
    assert all(torch.equal(a, b) for a, b in zip(answers(backbone), before, strict=True))
    with pytest.raises(BackboneError, match=r"prompt 'a <class_0>' names <class_0>, which is not learned: install"):
        backbone.prompt("a <class_0>")


def test_installing_forgets_encoded_prompts(backbone: Backbone, learned: TrainedConcepts) -> None:
    backbone.use_concepts(unlearned_concepts(backbone, NAMES, CFG))
    first = backbone.prompt("a <class_0>")
    backbone.use_concepts(learned.concepts)
    assert not torch.equal(backbone.prompt("a <class_0>"), first)


def test_without_steps_nothing_changes(backbone: Backbone, tmp_path: Path) -> None:
    still = train(backbone, tmp_path, CFG.model_copy(update={"steps": 0})).concepts
    before = answers(backbone)
    backbone.use_concepts(still)
    assert all(torch.equal(a, b) for a, b in zip(answers(backbone), before, strict=True))
    rows = unlearned_concepts(backbone, NAMES, CFG, metaclass="bird").tokens["<class_3>"]
    assert torch.equal(still.tokens["<class_3>"], rows)


def test_starts(backbone: Backbone) -> None:
    table = backbone.text_encoder.get_input_embeddings().weight
    ids = backbone.tokenizer("photo of", add_special_tokens=False).input_ids

    def start(init: int | str, metaclass: str = "") -> Tensor:
        cfg = ConceptConfig(init=init, tokens_per_class=2)
        return unlearned_concepts(backbone, NAMES, cfg, metaclass=metaclass).tokens["<class_3>"]

    assert torch.equal(start("{name}"), table[ids].mean(0).expand(2, -1))
    assert torch.equal(start("auto", "bird"), start("{metaclass}", "bird"))
    assert torch.equal(start("auto"), start("thing"))
    assert torch.equal(start(7), table[[7, 7]])
    assert torch.equal(start("{metaclass}", "bird"), table[backbone.tokenizer("bird").input_ids[1:-1]].expand(2, -1))
    with pytest.raises(BackboneError, match=r"got vocabulary id 42170, but this model has 522 tokens: 0 to 521"):
        start(42170)
    with pytest.raises(BackboneError, match=r"'\{metaclass\}' gives no token for class 'bird': name a word"):
        start("{metaclass}")


def test_text_alone_can_be_learned(backbone: Backbone, tmp_path: Path) -> None:
    inverted = train(backbone, tmp_path, CFG.model_copy(update={"rank": 0, "steps": 2}))
    assert list(inverted.concepts.files()) == ["learned_embeds.safetensors"]
    inverted.concepts.save(tmp_path)
    assert load_concepts(tmp_path).lora == {}


def test_lora_alone_can_be_learned(backbone: Backbone, tmp_path: Path) -> None:
    learned = train(backbone, tmp_path, CFG.model_copy(update={"lr_embedding": 0.0})).concepts
    start = unlearned_concepts(backbone, NAMES, CFG, metaclass="bird").tokens
    assert all(torch.equal(rows, start[token]) for token, rows in learned.tokens.items())
    assert any(matrix.any() for key, matrix in learned.lora.items() if ".lora_B." in key)


def test_many_tokens_stand_for_a_class(backbone: Backbone, tmp_path: Path) -> None:
    """17 fill this model's prompt of 24; 64 leave eleven of the usual 77 to the template, start and end left out."""
    learned = train(backbone, tmp_path, CFG.model_copy(update={"tokens_per_class": 17, "steps": 1})).concepts
    backbone.use_concepts(learned)
    table = backbone.text_encoder.get_input_embeddings().weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert int((backbone.text.ids("a photo of a <class_3> bird") >= len(table)).sum()) == 17
    backbone.use_concepts(None)
    assert ConceptConfig(tokens_per_class=64).tokens_per_class == 64
    with pytest.raises(ValueError, match="less than or equal to 64"):
        ConceptConfig(tokens_per_class=65)


def test_concepts_are_learned_at_a_size_of_their_own(
    backbone: Backbone, learned: TrainedConcepts, tmp_path: Path
) -> None:
    """The U-Net sees squares of that size while it learns; pictures are made at the backbone's size as before."""
    seen: list[tuple[int, ...]] = []
    own = backbone.latent_shape
    hook = backbone.unet.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[1:])))
    smaller = train(backbone, tmp_path / "a", CFG.model_copy(update={"resolution": backbone.height // 2})).concepts
    hook.remove()
    assert set(seen) == {(own[0], own[1] // 2, own[2] // 2)}
    assert backbone.latent_shape == own
    same = train(backbone, tmp_path / "b", CFG.model_copy(update={"resolution": backbone.height})).concepts
    token = "<class_3>"
    assert torch.equal(same.tokens[token], learned.concepts.tokens[token])
    assert not torch.equal(smaller.tokens[token], same.tokens[token])


def test_a_size_is_a_multiple_of_the_latents() -> None:
    assert ConceptConfig(resolution=224).identity() == {**ConceptConfig().identity(), "resolution": 224}
    for side in (0, 220):
        with pytest.raises(ValueError, match="resolution"):
            ConceptConfig(resolution=side)


def test_learning_lowers_the_loss_on_what_it_has_seen(backbone: Backbone, tmp_path: Path) -> None:
    cfg = CFG.model_copy(update={"steps": 15, "batch": 4, "flip": 0.0})
    learned = train(backbone, tmp_path, cfg)
    before = held_out_loss(backbone, None, EXAMPLES, NAMES, cfg, metaclass="bird")
    after = held_out_loss(backbone, learned.concepts, EXAMPLES, NAMES, cfg, metaclass="bird")
    assert after[0] < before[0]
    assert after[3] < before[3]
    assert before == held_out_loss(backbone, None, EXAMPLES, NAMES, cfg, metaclass="bird")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _dying(backbone: Backbone, workdir: Path, at_step: int, at_sync: int) -> None:
    """Train until a step has ended, or until a checkpoint is about to be synced, and die there."""
    syncs = 0

    def fsync(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        if syncs == at_sync:
            _die()

    os.fsync = fsync  # type: ignore[assignment]
    train(backbone, workdir, progress=lambda step, total, loss: _die() if step == at_step else None)
    os._exit(0)


def killed(backbone: Backbone, workdir: Path, at_step: int = 0, at_sync: int = 0) -> None:
    child = multiprocessing.get_context("fork").Process(target=_dying, args=(backbone, workdir, at_step, at_sync))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


def test_killed_anywhere_and_called_again_gives_the_same_bytes(
    backbone: Backbone, learned: TrainedConcepts, tmp_path: Path
) -> None:
    expected = saved_bytes(learned, tmp_path / "expected")
    # Before any checkpoint; after one; in the middle of replacing it (syncs come in pairs: file, folder); at the end.
    killed(backbone, tmp_path, at_step=1)
    killed(backbone, tmp_path, at_step=3)
    killed(backbone, tmp_path, at_sync=1)
    killed(backbone, tmp_path, at_sync=2)
    killed(backbone, tmp_path, at_step=6)
    steps: list[int] = []
    again = train(backbone, tmp_path, progress=lambda step, total, loss: steps.append(step))
    assert steps == []
    assert saved_bytes(again, tmp_path / "again") == expected
    assert again.losses == learned.losses


def test_resume_goes_on_where_the_checkpoint_ends(backbone: Backbone, learned: TrainedConcepts, tmp_path: Path) -> None:
    killed(backbone, tmp_path, at_step=5)
    steps: list[int] = []
    again = train(backbone, tmp_path, progress=lambda step, total, loss: steps.append(step))
    assert steps == [5, 6]
    assert saved_bytes(again, tmp_path / "again") == saved_bytes(learned, tmp_path / "expected")


def test_other_settings_never_take_a_checkpoint_and_a_damaged_one_is_named(backbone: Backbone, tmp_path: Path) -> None:
    short = CFG.model_copy(update={"steps": 1})
    train(backbone, tmp_path, short)
    train(backbone, tmp_path, short.model_copy(update={"seed": 1}))
    files = sorted((tmp_path / "concept-checkpoint").iterdir())
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(BackboneError, match=r"is damaged \(.*\): delete it and the concepts are learned anew"):
        train(backbone, tmp_path, short)


@pytest.mark.parametrize(("vectors", "n"), [(1, 3), (2, 25)])
def test_files_give_plain_diffusers_the_sameencode_both_ways(
    backbone: Backbone, sd_folder: Path, tmp_path: Path, vectors: int, n: int
) -> None:
    train(backbone, tmp_path / "work", CFG.model_copy(update={"tokens_per_class": vectors, "steps": 2})).concepts.save(
        tmp_path
    )
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    prompts = ["a photo of a <class_3> bird", "<class_0> bird on a photo"]

    # The reference: diffusers and files, nothing of ours.
    pipe = sd_tiny.pipeline(sd_folder)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    for token, rows in load_file(tmp_path / "learned_embeds.safetensors").items():
        pipe.load_textual_inversion({token: rows})
    pipe.load_lora_weights(tmp_path)
    expected = pipe(prompts, latents=noise, num_inference_steps=n, guidance_scale=7.5, output_type="latent").images

    def ours(concepts: LoadedConcepts) -> Tensor:
        backbone.use_concepts(concepts)
        cond, uncond, scale = backbone.prompts(prompts), backbone.prompts([""] * 2), torch.full((2,), 7.5)
        labels = ddim_timesteps(backbone.schedule, n)

        def eps(xt: Tensor, t: int, step: int) -> Tensor:
            return backbone.guided_eps(xt, t, cond, uncond, scale)

        return ddim_sample(eps, noise, backbone.schedule, labels, [0, 0])

    size, concepts = float(expected.abs().max()), load_concepts(tmp_path)
    assert float((ours(concepts) - expected).abs().max()) < 1e-4 * size
    if n == 3:
        assert float((ours(LoadedConcepts(concepts.tokens)) - expected).abs().max()) > 1e-3 * size


def loss_of_diffusers(folder: Path, concepts: Path, prompts: list[str], draw: StepDraw, size: int) -> float:
    """The reference: diffusers, its LoRA layers and files; no fusing, nothing of ours but the weights and the draws."""
    pipe = sd_tiny.pipeline(folder)
    for token, rows in load_file(concepts / "learned_embeds.safetensors").items():
        pipe.load_textual_inversion({token: rows})
    pipe.load_lora_weights(concepts)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    errors = []
    for j, (image, is_mirrored, t) in enumerate(zip(draw.images.tolist(), draw.mirrored.tolist(), draw.t, strict=True)):
        resized = picture(image).resize((size, size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)).float().permute(2, 0, 1)[None] / 127.5 - 1
        pixels = pixels.flip(-1) if is_mirrored else pixels
        x0 = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        eps, label = draw.eps[j][None], torch.tensor([t])
        xt = DDPMScheduler(**betas).add_noise(x0, eps, label)
        cond, _ = pipe.encode_prompt(prompts[image], "cpu", 1, do_classifier_free_guidance=False)
        errors.append(torch.nn.functional.mse_loss(pipe.unet(xt, label, encoder_hidden_states=cond).sample, eps))
    return float(torch.stack(errors).mean())


@pytest.mark.parametrize("fault", ["", "target", "scale", "token"])
def test_the_loss_is_the_one_of_plain_diffusers(
    backbone: Backbone, sd_folder: Path, tmp_path: Path, fault: str
) -> None:
    """Textual inversion and unfused LoRA in the forward pass; with a fault planted the two differ."""
    latents = Latents(backbone, EXAMPLES, "bilinear")
    labels = [example.class_id for example in EXAMPLES]
    start = unlearned_concepts(backbone, NAMES, CFG, metaclass="bird")
    generator = torch.Generator().manual_seed(3)
    with trainable(backbone, start, CFG) as (rows, lora):
        for parameter in (*rows, *lora.values()):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        ids = {label: torch.stack([backbone.text.ids(CFG.prompt(label, "bird"))]) for label in NAMES}
        training = ConceptTraining(backbone, CFG, latents, labels, ids, rows, lora)
        draw = training.draws.step(4)
        collected(start, rows, lora).save(tmp_path)
        with torch.no_grad():
            training.latents = lambda *shown: latents(*shown) * (1.1 if fault == "scale" else 1.0)
            training.ids = training.ids.flip(0) if fault == "token" else training.ids
            ours = float(training.loss(replace(draw, eps=-draw.eps) if fault == "target" else draw))
    prompts = [CFG.prompt(label, "bird") for label in labels]
    with torch.no_grad():
        theirs = loss_of_diffusers(sd_folder, tmp_path, prompts, draw, backbone.height)
    assert (abs(ours - theirs) < 1e-6 * theirs) == (fault == "")


def test_concepts_of_another_model_are_refused_and_change_nothing(backbone: Backbone, learned: TrainedConcepts) -> None:
    before = answers(backbone)
    tokens, lora = learned.concepts.tokens, learned.concepts.lora
    key = min(lora)
    cases: list[tuple[LoadedConcepts, str]] = [
        (LoadedConcepts({"<class_0>": torch.zeros(1, 7)}), r"concept <class_0> has embeddings of shape \(1, 7\)"),
        (LoadedConcepts({"<class_0>": torch.zeros(1, 7)}, lora), r"it was learned on another backbone; use that one"),
        (LoadedConcepts(tokens, {"text_encoder.x.lora_A.weight": torch.zeros(1)}), r"LoRA key 'text_encoder.x.lora_A"),
        (LoadedConcepts(tokens, {key: lora[key]}), r"lacks its A or its B: the file is damaged; learn it"),
        (LoadedConcepts(tokens, {k: m[:, :3] for k, m in lora.items()}), r"has shape \(.*\), expected \(.*\): use the"),
        (LoadedConcepts(tokens, {f"unet.x{k[5:]}": m for k, m in lora.items()}), r"which this network has not: use"),
    ]
    for concepts, message in cases:
        with pytest.raises(BackboneError, match=message):
            backbone.use_concepts(concepts)
        assert all(torch.equal(a, b) for a, b in zip(answers(backbone), before, strict=True))


def test_refused_input(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"concept learning got no image: expected at least one of any class"):
        train_concepts(backbone, [], NAMES, CFG, workdir=tmp_path)
    with pytest.raises(BackboneError, match=r"got images of class 1, but names only of \[0, 3\]"):
        train_concepts(backbone, [ConceptExample(picture(0), 1)], NAMES, CFG, workdir=tmp_path)
    with pytest.raises(BackboneError, match=r"diverged \(gradients are not finite\): lower lr_lora and lr_embedding"):
        broken = ConceptExample(torch.full((4, 8, 8), float("nan")), 0)
        train_concepts(backbone, [broken], NAMES, CFG, workdir=tmp_path)
    with pytest.raises(BackboneError, match=r"holds no learned_embeds.safetensors: learn the concepts"):
        load_concepts(tmp_path)
    (tmp_path / "learned_embeds.safetensors").write_bytes(b"no")
    with pytest.raises(BackboneError, match=r"are damaged \(.*\): delete the folder and fit again"):
        load_concepts(tmp_path)


def draws(**changes: object) -> StepDraws:
    labels = (0,) * 9 + (1,)
    return StepDraws(ConceptConfig(batch=4).model_copy(update=changes), labels, (1, 2, 2), 1000)


def test_epochs_show_every_image_once() -> None:
    seen = torch.cat([draws().step(i).images for i in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_balanced_draws_show_every_class_alike() -> None:
    balanced = draws(class_balanced=True)
    seen = torch.cat([balanced.step(i).images for i in range(400)])
    assert abs(float((seen == 9).float().mean()) - 0.5) < 0.05


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_mirroring_and_levels(share: float) -> None:
    some: Callable[[int], object] = draws(flip=share, batch=50).step
    steps = [some(i) for i in range(40)]
    mirrored = torch.cat([step.mirrored for step in steps])  # type: ignore[attr-defined]
    labels = torch.tensor([t for step in steps for t in step.t], dtype=torch.float64)  # type: ignore[attr-defined]
    assert abs(float(mirrored.float().mean()) - share) < 0.05
    assert 470 < float(labels.mean()) < 530


def test_min_snr_weights(backbone: Backbone) -> None:
    weights = min_snr_weights(backbone.schedule, [1, 500, 999], 5.0)
    snr = [backbone.schedule.level(t) / (1 - backbone.schedule.level(t)) for t in (1, 500, 999)]
    torch.testing.assert_close(weights, torch.tensor([5 / snr[0], 1.0, 1.0]))
    assert torch.equal(min_snr_weights(backbone.schedule, [1], None), torch.ones(1))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_networks_train_float32_weights(sd_folder: Path, tmp_path: Path, dtype: str) -> None:
    half = Backbone.load(BackboneSpec.model_validate({"id": str(sd_folder), "dtype": dtype}))
    learned = train(half, tmp_path, CFG.model_copy(update={"steps": 1}))
    matrices = [*learned.concepts.lora.values(), *learned.concepts.tokens.values()]
    assert all(matrix.dtype == torch.float32 and bool(torch.isfinite(matrix).all()) for matrix in matrices)
    start = unlearned_concepts(half, NAMES, CFG, metaclass="bird").tokens
    assert all(not torch.equal(rows, start[token]) for token, rows in learned.concepts.tokens.items())
    half.use_concepts(learned.concepts)
    assert half.unet.dtype == half.dtype


def test_every_step_shows_some_of_the_templates(backbone: Backbone, tmp_path: Path) -> None:
    draws = StepDraws(ConceptConfig(batch=9), (0,) * 4, (4, 4, 4), 1000, prompts=3)
    seen = Counter(place for i in range(60) for place in draws.step(i).prompts.tolist())
    assert sorted(seen) == [0, 1, 2] and min(seen.values()) > 140
    one = StepDraws(ConceptConfig(batch=9), (0,) * 4, (4, 4, 4), 1000)
    assert torch.equal(one.step(5).eps, draws.step(5).eps)
    cfg = TextualInversionConfig(steps=3, batch=2, templates=("a photo of a {token}", "the {token} at night"))
    changed = cfg.model_copy(update={"templates": ("a photo of a {token}",)})
    examples, names = [ConceptExample(picture(0), 0), ConceptExample(picture(1), 0)], {0: "crane"}
    two = train_concepts(backbone, examples, names, cfg, workdir=tmp_path / "two")
    other = train_concepts(backbone, examples, names, changed, workdir=tmp_path / "one")
    assert not two.concepts.lora
    assert not torch.equal(two.concepts.tokens["<class_0>"], other.concepts.tokens["<class_0>"])


def test_the_textual_inversion_of_da_fusion() -> None:
    cfg = TextualInversionConfig()
    prompts = cfg.training_prompts(3, "bird")
    assert len(prompts) == len(set(prompts)) == 27
    assert prompts[0] == cfg.prompt(3, "bird") == "a photo of a <class_3>"
    assert (cfg.rank, cfg.steps, cfg.batch, cfg.lr_embedding, cfg.init) == (0, 1000, 4, 2e-3, "the")
    with pytest.raises(ValueError, match=r"must contain \{token\} exactly once"):
        TextualInversionConfig(templates=("a photo",))
    with pytest.raises(ValueError, match="expected one or more templates, or `objects`"):
        TextualInversionConfig(templates=())
    assert TextualInversionConfig(templates=tuple(cfg.texts)).identity() == cfg.identity()


@pytest.mark.parametrize(("start", "peft_start"), [("gaussian", "gaussian"), ("uniform", True)])
def test_lora_starts_as_peft_does(backbone: Backbone, start, peft_start) -> None:
    """A's spread and shape of distribution are those of peft's own; B is zero; another seed is another draw."""
    rank, unet = 8, backbone.unet

    def drawn(matrices: dict[str, Tensor]) -> Tensor:
        """Every A at a scale at which all are alike."""
        return torch.cat(
            [(m * (rank if start == "gaussian" else m.shape[1] ** 0.5)).flatten() for m in matrices.values()]
        )

    unet.add_adapter(LoraConfig(r=rank, init_lora_weights=peft_start, target_modules=["to_q", "to_k", "to_v"]))
    theirs = drawn({name: p.detach().clone() for name, p in unet.named_parameters() if "lora_A" in name})
    detach(unet)
    starts = []
    for seed in (0, 0, 1):
        starts.append({key: matrix.detach().clone() for key, matrix in attach(unet, rank, seed, start).items()})
        detach(unet)
    ours = drawn({key: m for key, m in starts[0].items() if "lora_A" in key})
    assert kstest(ours.numpy(), theirs.numpy()).pvalue > 0.01
    assert not any(m.any() for key, m in starts[0].items() if "lora_B" in key)
    assert all(torch.equal(m, starts[1][key]) for key, m in starts[0].items())
    assert not all(torch.equal(m, starts[2][key]) for key, m in starts[0].items())


def test_textual_inversion_does_not_hang_on_how_lora_starts() -> None:
    with_lora, without = ConceptConfig(rank=4), TextualInversionConfig()
    changed = {"lora_start": "uniform"}
    assert with_lora.identity() != with_lora.model_copy(update=changed).identity()
    assert without.identity() == without.model_copy(update=changed).identity()
