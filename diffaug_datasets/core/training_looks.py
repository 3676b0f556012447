"""At which steps a training of concepts is looked at, and at which classes: a picture each, for the report.

Plain Python, so that a price can count the pictures.
"""

from collections.abc import Sequence

from diffaug_datasets.core.learning import ConceptConfig

FEWEST_LOOKS, MOST_LOOKS = 3, 12
PREVIEW_CLASSES, PREVIEW_STEPS = 4, 10
# A training step costs about three evaluations per image; pictures may cost a twentieth of them.
TRAINING_COST, PREVIEW_SHARE = 3, 20


def shown_classes(labels: Sequence[int]) -> tuple[int, ...]:
    """A few classes spread evenly over all."""
    known = sorted(set(labels))
    count = min(PREVIEW_CLASSES, len(known))
    return tuple(known[i * len(known) // count] for i in range(count))


def moments(cfg: ConceptConfig, classes: int) -> tuple[int, ...]:
    """After how many steps to look at so many classes: at every checkpoint, or at twelve of them.

    At fewer where looking would cost more than a twentieth of the training, at none where three are too many. With
    fewer than three checkpoints, at thirds of the way.
    """
    ends = [*range(cfg.checkpoint_every, cfg.steps, cfg.checkpoint_every), cfg.steps]
    if len(ends) < FEWEST_LOOKS:
        ends = [cfg.steps * (i + 1) // FEWEST_LOOKS for i in range(FEWEST_LOOKS)]
    cost, affordable = PREVIEW_SHARE * classes * PREVIEW_STEPS * 2, TRAINING_COST * cfg.steps * cfg.batch
    count = next((n for n in range(min(MOST_LOOKS, len(ends)), FEWEST_LOOKS - 1, -1) if n * cost <= affordable), 0)
    return tuple(step for step in dict.fromkeys(ends[(i + 1) * len(ends) // count - 1] for i in range(count)) if step)
