"""The device that models run on."""

import torch

from diffaug_datasets.core.errors import BackboneError


def checked_device(device: str) -> torch.device:
    """The device of that name, if this machine has it.

    Raises:
        BackboneError: it has not, or there is no such kind.
    """
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BackboneError(
            f"device {device!r} was asked for, but torch {torch.__version__} cannot use it here: "
            "say `cpu`, or install a torch build for your GPU."
        ) from error
    return place
