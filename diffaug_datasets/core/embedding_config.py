"""How image embeddings are learned: one sequence of vectors an image (Diffusion Inversion)."""

from pydantic import BaseModel, ConfigDict, Field


class EmbeddingConfig(BaseModel):
    """Defaults follow the authors' code (yongchaoz/diffusion_inversion, arXiv 2305.15316)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vectors: int = Field(default=5, ge=1, le=77, description="vectors an image: the length of the condition")
    steps: int = Field(
        default=3000, ge=0, description="optimiser steps a group; the authors train up to 8000, use 3000"
    )
    batch: int = Field(default=50, ge=1, description="images a step, of one group")
    group: int = Field(default=100, ge=1, description="images learned together; guidance leads away from their mean")
    lr: float = Field(default=3e-2, gt=0, description="AdamW learning rate, constant")
    seed: int = Field(default=42, ge=0, description="the start and every draw of a step follow from it")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between checkpoints; no part of the result")

    @property
    def flip(self) -> float:
        """Images are never mirrored: an embedding stands for one picture."""
        return 0.0

    @property
    def class_balanced(self) -> bool:
        """Every image is seen as often as every other."""
        return False

    def identity(self) -> dict[str, object]:
        """What decides the learned vectors: everything but how often we save."""
        return self.model_dump(mode="json", exclude={"checkpoint_every"})
