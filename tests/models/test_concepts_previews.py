"""Pictures drawn while concepts are learned: when, of which classes, and that the fit never notices."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from test_concepts import CFG, saved_bytes, train

from diffaug_datasets.core import training_looks
from diffaug_datasets.core.learning import ConceptConfig
from diffaug_datasets.core.training_looks import moments, shown_classes
from diffaug_datasets.models import concepts
from diffaug_datasets.models.backbone import Backbone

SHORT = CFG.model_copy(update={"steps": 3, "tokens_per_class": 1})


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (300, 500, (100, 200, 300)),  # too few checkpoints: thirds of the way
        (1000, 100, tuple(range(100, 1001, 100))),
        (1000, 300, (300, 600, 900, 1000)),
        (35_000, 500, tuple(500 * n for n in (5, 11, 17, 23, 29, 35, 40, 46, 52, 58, 64, 70))),  # twelve of seventy
        (0, 500, ()),
    ],
)
def test_every_checkpoint_is_shown_or_twelve_of_them(steps: int, every: int, expected: tuple[int, ...]) -> None:
    assert moments(ConceptConfig(steps=steps, checkpoint_every=every), 4) == expected


def test_looking_costs_at_most_a_twentieth_of_the_training() -> None:
    enough = ConceptConfig(
        steps=200, batch=8, checkpoint_every=20
    )  # a look: 4 classes, 10 guided steps, 80 evaluations
    assert moments(enough, 4) == (60, 120, 200)
    assert moments(enough, 2) == (20, 60, 100, 120, 160, 200)
    assert moments(enough, 1) == tuple(range(20, 201, 20))
    assert moments(enough.model_copy(update={"steps": 199}), 4) == ()


def test_a_few_classes_are_shown() -> None:
    assert shown_classes(range(200)) == (0, 50, 100, 150)
    assert shown_classes([7, 7, 7]) == (7,)
    assert shown_classes([3, 3, 1]) == (1, 3)


def drawn(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "previews").glob("*"))}


def test_the_fit_has_the_same_bytes_with_and_without(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(backbone, tmp_path / "plain", SHORT)
    assert not (tmp_path / "plain" / "previews").exists()
    monkeypatch.setattr(training_looks, "PREVIEW_SHARE", 0)
    monkeypatch.setattr(concepts, "PREVIEW_STEPS", 2)
    state = torch.random.get_rng_state()
    seen = train(backbone, tmp_path / "seen", SHORT)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert seen.losses == plain.losses
    assert saved_bytes(seen, tmp_path / "b") == saved_bytes(plain, tmp_path / "a")
    pictures = drawn(tmp_path / "seen")
    assert list(pictures) == [f"step-{step:06d}-class-{label}.png" for step in (1, 2, 3) for label in (0, 3)]
    assert len(set(pictures.values())) == 6  # classes differ, and learning changes them
    with Image.open(tmp_path / "seen" / "previews" / "step-000003-class-0.png") as picture:
        assert picture.size == (64, 64)
    # Drawn again after the end, from the weights that the checkpoint holds: nothing, as no step is left.
    train(backbone, tmp_path / "seen", SHORT)
    assert drawn(tmp_path / "seen") == pictures


@pytest.mark.full
def test_a_continued_training_draws_the_same_pictures(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_looks, "PREVIEW_SHARE", 0)
    monkeypatch.setattr(concepts, "PREVIEW_STEPS", 1)

    def stop(step: int, total: int, loss: float) -> None:
        if step == 6:
            raise KeyboardInterrupt

    longer = SHORT.model_copy(update={"steps": 8, "checkpoint_every": 4})  # pictures after 2, 5 and 8 steps
    with pytest.raises(KeyboardInterrupt):
        train(backbone, tmp_path, longer, stop)
    before = drawn(tmp_path)
    for path in (tmp_path / "previews").iterdir():
        path.unlink()
    train(backbone, tmp_path, longer)  # from the checkpoint after four steps
    after = drawn(tmp_path)
    assert list(after) == [f"step-{step:06d}-class-{label}.png" for step in (5, 8) for label in (0, 3)]
    again = [name for name in after if name in before]
    assert len(again) == 2 and all(before[name] == after[name] for name in again)
