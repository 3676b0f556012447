"""What an image counts, against what `Replacer` does over many epochs."""

import numpy as np
import pytest

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.evaluate.draws import Labelled
from diffaug_datasets.evaluate.suite import Bench, Mixing
from diffaug_datasets.evaluate.training_sets import shares
from diffaug_datasets.train.replacement import Replacer, Rows

REAL = ([0, 0, 0, 1, 1, 2], [["a"], ["b"], ["c"], ["d"], ["e"], ["f"]])
SYNTHETIC = ([0, 0, 1, 1, 1, 1, 3], [["a"], ["a", "b"], ["d"], ["d"], ["d"], ["e"], ["z"]])
EPOCHS = 4000


@pytest.mark.parametrize("rule", ["class", "global", "index", "lt_inverse"])
def test_an_image_counts_as_often_as_it_is_drawn(rule) -> None:
    replacer = Replacer(Rows(*REAL), Rows(*SYNTHETIC), rule, probability=0.4, seed=3)
    drawn_real, drawn_synthetic = np.zeros(6), np.zeros(7)
    for epoch in range(EPOCHS):
        for place in range(6):
            chosen = replacer.choose(epoch, place)
            if chosen is None:
                drawn_real[place] += 1
            else:
                drawn_synthetic[chosen] += 1
    of_real, of_synthetic = shares(
        Labelled.hard(REAL[0], 4, REAL[1]),
        Labelled.hard(SYNTHETIC[0], 4, SYNTHETIC[1]),
        Mixing(rule=rule, probability=0.4),
    )
    np.testing.assert_allclose(of_real, drawn_real / EPOCHS, atol=0.03)
    np.testing.assert_allclose(of_synthetic, drawn_synthetic / EPOCHS, atol=0.03)
    assert of_real.sum() + of_synthetic.sum() == pytest.approx(6)


@pytest.mark.parametrize("rule", ["class", "global", "index", "lt_inverse"])
def test_without_synthetic_images_every_real_one_stays(rule) -> None:
    of_real, of_synthetic = shares(Labelled.hard(REAL[0], 4, REAL[1]), Labelled.hard([], 4), Mixing(rule=rule))
    assert of_real.tolist() == [1] * 6
    assert not len(of_synthetic)


def test_mixing_that_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"mixing\.probability: got 1\.5, input should be less than or equal to 1"):
        Bench.from_dict({"sets": ["a"], "mixing": {"probability": 1.5}})
    with pytest.raises(RecipeError, match=r"mixing\.rule: got none, expected one"):
        shares(Labelled.hard([0], 1), Labelled.hard([0], 1), Mixing())


def test_concatenated_images_count_alike_up_to_their_weight() -> None:
    real, made = Labelled.hard([0, 1], 2), Labelled.hard([0, 0, 1], 2)
    of_real, of_made = shares(real, made, Mixing(rule="concatenate", weight=0.5))
    assert (of_real.tolist(), of_made.tolist()) == ([1, 1], [0.5, 0.5, 0.5])
