"""Fits in the profile fast: the weights of exact but for rounding, resumed to the bit, and nothing waited for."""

from pathlib import Path

import pytest
import torch
from outside_calls import OutsideCalls

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.learning import ConceptConfig
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.profiles import Profile
from diffaug_datasets.models import quick_fits
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.concepts import TrainedConcepts, train_concepts
from diffaug_datasets.models.kernels import put_to_work
from diffaug_datasets.models.latents import ConceptExample
from diffaug_datasets.models.quick_fits import QuickDescent, optimiser_of

CFG = ConceptConfig(steps=4, batch=2, rank=2, checkpoint_every=2, lr_lora=1e-3, lr_embedding=1e-3)
NAMES = {0: "bird", 1: "house"}

pytestmark = pytest.mark.xdist_group("profiles")


@pytest.fixture(scope="module")
def fast(sd_folder: Path) -> Backbone:
    made = Backbone.load(BackboneSpec(id=str(sd_folder)))
    put_to_work(made, Profile(name="fast", compile="never", checkpointing=True), 2)
    return made


def learned(model: Backbone, folder: Path, cfg: ConceptConfig = CFG, progress: object = None) -> TrainedConcepts:
    given = torch.Generator().manual_seed(0)
    examples = [ConceptExample(torch.randn(model.latent_shape, generator=given), i % 2) for i in range(4)]
    return train_concepts(model, examples, NAMES, cfg, workdir=folder, progress=progress)  # type: ignore[arg-type]


def test_fast_learns_what_exact_learns(backbone: Backbone, fast: Backbone, tmp_path: Path) -> None:
    """With activations computed again on the way back, too."""
    exact, quick = learned(backbone, tmp_path / "exact"), learned(fast, tmp_path / "fast")
    assert torch.allclose(torch.tensor(exact.losses), torch.tensor(quick.losses), atol=1e-4)
    for mine, theirs in ((quick.concepts.tokens, exact.concepts.tokens), (quick.concepts.lora, exact.concepts.lora)):
        assert mine.keys() == theirs.keys()
        assert all(torch.allclose(mine[key], theirs[key], atol=2e-4) for key in mine)


def test_a_killed_fit_goes_on_to_the_same_bits(fast: Backbone, tmp_path: Path) -> None:
    whole = learned(fast, tmp_path / "whole")

    def killed(done: int, *_: object) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learned(fast, tmp_path / "killed", progress=killed)
    assert list((tmp_path / "killed").rglob("*.safetensors"))
    again = learned(fast, tmp_path / "killed")
    assert again.losses == whole.losses
    assert all(torch.equal(again.concepts.lora[key], whole.concepts.lora[key]) for key in whole.concepts.lora)


def test_prompts_are_encoded_once_where_tokens_stay(
    fast: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = CFG.model_copy(update={"lr_embedding": 0.0, "steps": 3})
    calls: list[int] = []
    encode = fast.text.encode
    monkeypatch.setattr(fast.text, "encode", lambda ids: (calls.append(len(ids)), encode(ids))[1])
    frozen = learned(fast, tmp_path / "frozen", cfg)
    drawn = 2  # of previews, whose prompts are encoded as they stand
    assert calls.count(1) == len(NAMES)
    assert len(calls) - len(NAMES) <= 3 * drawn
    assert max(float(matrix.abs().max()) for key, matrix in frozen.concepts.lora.items() if "lora_B" in key) > 0


def test_a_step_reads_nothing_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """But that the optimiser of torch counts its steps on the CPU."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.SGD([{"params": [weight]}], lr=0.1)
    quick = QuickDescent(optimiser, torch.float32, "it", "its rate")
    with OutsideCalls() as calls:
        quick.take((weight**2).sum(), 1.0)
    assert calls.names["mul"] > 0
    assert not any(calls.names[name] for name in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal"))
    with OutsideCalls() as looked:
        quick.look()
    assert looked.names["is_nonzero"] or looked.names["_local_scalar_dense"]


def test_what_diverges_is_seen_at_the_next_look() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    quick = QuickDescent(torch.optim.SGD([weight], lr=0.1), torch.float32, "it", "its rate")
    quick.take((weight * float("inf")).sum() * 0)
    with pytest.raises(BackboneError, match="it diverged"):
        quick.look()


def test_eight_bit_moments_need_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(quick_fits, "import_module", absent)
    with pytest.raises(BackboneError, match="adamw8bit needs bitsandbytes, which is not installed"):
        optimiser_of([{"params": [torch.nn.Parameter(torch.ones(1))]}], "adamw8bit")
