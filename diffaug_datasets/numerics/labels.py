"""Soft labels of images that lie between two classes."""


def diff_mix_label(
    source: int, target: int, strength: float, gamma: float, scaler: float = 1.0
) -> tuple[tuple[int, float], ...]:
    """The soft label ((class, weight), ...) of an image edited from source to target class; zero weights are left out.

    Implements the label of Diff-Mix: (1 - s^gamma) e_source + s^gamma e_target, for an img2img strength s in [0, 1] and
    gamma > 0; gamma < 1 favours the target. Equal classes give a one-hot label. Weights sum to `scaler`, in (0, 1]:
    1 in the paper, 0.9 by default in most of the authors' loaders.

    Raises:
        ValueError: strength, gamma or scaler is out of range.
    """
    if not (0 <= strength <= 1 and gamma > 0 and 0 < scaler <= 1):
        raise ValueError(
            f"got strength {strength}, gamma {gamma}, scaler {scaler}; "
            "give strength in [0, 1], gamma above 0 and scaler in (0, 1]"
        )
    if source == target:
        return ((source, scaler),)
    of_target = strength**gamma
    weights = ((source, scaler * (1 - of_target)), (target, scaler * of_target))
    return tuple((label, weight) for label, weight in weights if weight > 0)
