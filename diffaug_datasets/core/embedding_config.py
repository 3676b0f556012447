"""How image embeddings are learned: one sequence of vectors an image (Diffusion Inversion)."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer


class EmbeddingConfig(BaseModel):
    """Defaults follow the authors' code (yongchaoz/diffusion_inversion, arXiv 2305.15316)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vectors: int = Field(default=5, ge=1, le=77, description="vectors an image: the length of the condition")
    steps: int = Field(
        default=6000,
        ge=0,
        le=10_000_000,
        description="optimiser steps a group: 3000 an image where a step shows 50 of 100",
    )
    batch: int = Field(default=50, ge=1, le=1024, description="images a step, of one group")
    group: int = Field(
        default=100, ge=1, le=1_000_000, description="images learned together; guidance leads away from their mean"
    )
    by_class: bool = Field(default=False, description="images of one class a group; False: in the dataset's order")
    lr: float = Field(default=3e-2, gt=0, description="AdamW learning rate, constant")
    seed: int = Field(default=42, ge=0, lt=2**63, description="the start and every draw of a step follow from it")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between checkpoints; no part of the result")

    @model_serializer(mode="wrap")
    def _without_unused_grouping(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`by_class` came later: plans of groups in the dataset's order keep their ids."""
        content: dict[str, Any] = serialise(self)
        return content if self.by_class else {key: value for key, value in content.items() if key != "by_class"}

    @property
    def flip(self) -> float:
        """Images are never mirrored: an embedding stands for one picture."""
        return 0.0

    @property
    def class_balanced(self) -> bool:
        """Every image is seen as often as every other."""
        return False

    def identity(self) -> dict[str, object]:
        """What decides the learned vectors: not how often we save, nor how a group came about."""
        return self.model_dump(mode="json", exclude={"checkpoint_every", "by_class"})
