"""A training run on disk: weights, AdamW's moments and all losses so far, in one safetensors file replaced at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.temporary import write_bytes

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
LOSSES = "losses"


@dataclass(frozen=True)
class TrainingState:
    """The parameters by name, and the optimiser that holds their moments."""

    parameters: Mapping[str, nn.Parameter]
    optimiser: torch.optim.Optimizer

    def tensors(self) -> dict[str, Tensor]:
        """Copies of everything that a later step reads."""
        found = {f"{name}|value": parameter for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            moments = self.optimiser.state.get(parameter, {})
            found |= {f"{name}|{moment}": moments[moment] for moment in MOMENTS if moment in moments}
        return {key: tensor.detach().cpu().clone().contiguous() for key, tensor in found.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the copies back. Raises KeyError or RuntimeError where they belong to other parameters."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[f"{name}|value"])
            # AdamW keeps its step counter on the CPU, in the dtype it was saved in.
            kept = {m: tensors[f"{name}|{m}"] for m in MOMENTS if f"{name}|{m}" in tensors}
            if kept:
                self.optimiser.state[parameter] = {
                    m: value if m == "step" else value.to(parameter.device) for m, value in kept.items()
                }


@dataclass(frozen=True)
class Checkpoint:
    """Where a run with this fingerprint is kept; another fingerprint is another file, so settings never mix.

    `writes`: of processes that train together one alone writes, and all read.
    """

    folder: Path
    fingerprint: str
    writes: bool = True

    @property
    def path(self) -> Path:
        """The file; its number of losses is the number of finished steps."""
        return self.folder / f"{self.fingerprint}.safetensors"

    def write(self, state: TrainingState, losses: list[float]) -> None:
        """Replace the checkpoint by the state after `len(losses)` steps."""
        if not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = state.tensors() | {LOSSES: torch.tensor(losses, dtype=torch.float64)}
        write_bytes(self.path, save(tensors))

    def restore(self, state: TrainingState) -> list[float]:
        """Bring the state to the last checkpoint; returns the losses up to there, none if there is no checkpoint.

        Raises:
            BackboneError: the file is damaged.
        """
        if not self.path.is_file():
            return []
        try:
            tensors = load_file(self.path)
            state.restore(tensors)
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise BackboneError(
                f"checkpoint {str(self.path)!r} is damaged ({error}): delete it and the concepts are learned anew."
            ) from error
        losses: list[float] = tensors[LOSSES].tolist()
        return losses

    def discard(self) -> None:
        """Delete the file, once what was learned is safe elsewhere."""
        self.path.unlink(missing_ok=True)
