"""How concepts are learned: one token a class, together with LoRA on the U-Net (Diff-Mix, Diff-II)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class ConceptConfig(BaseModel):
    """Defaults follow the authors' code (Zhicaiwww/Diff-Mix, arXiv 2403.19600); its 4 GPUs times 2 are one batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens_per_class: int = Field(default=1, ge=1, le=16, description="vectors a class; the authors use 1")
    rank: int = Field(default=10, ge=0, le=512, description="LoRA rank (alpha = rank); 0 = textual inversion alone")
    steps: int = Field(default=35_000, ge=0, description="optimiser steps")
    batch: int = Field(default=8, ge=1, description="images a step")
    lr_lora: float = Field(default=5e-5, ge=0, description="AdamW learning rate of the LoRA matrices")
    lr_embedding: float = Field(default=5e-5, ge=0, description="AdamW learning rate of the token embeddings")
    lr_schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="constant, as the authors; cosine = down to zero at the last step"
    )
    prompt_template: str = Field(
        default="a photo of a {token} {metaclass}", description="with {token} and, where wanted, {metaclass}"
    )
    flip: float = Field(default=0.5, ge=0, le=1, description="probability of mirroring an image")
    class_balanced: bool = Field(default=False, description="draw class c with weight 1/n_c (long-tailed data)")
    snr_gamma: float | None = Field(default=None, gt=0, description="Min-SNR loss weights; null = plain MSE")
    init: int | str = Field(
        default="auto",
        description="start of a token: a vocabulary id, or a phrase (mean of its tokens; {name} and {metaclass} are "
        "filled in); auto = id 42170 in CLIP's vocabulary, else {metaclass} or `thing`",
    )
    seed: int = Field(default=42, ge=0, description="every draw of a step follows from it")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between checkpoints; no part of the result")

    @field_validator("prompt_template")
    @classmethod
    def _names_the_token(cls, value: str) -> str:
        if value.count("{token}") != 1:
            raise ValueError("the template must contain {token} exactly once")
        return value

    def token(self, class_id: int) -> str:
        """The placeholder of a class, e.g. `<class_3>`; it stands for all its vectors."""
        return f"<class_{class_id}>"

    def prompt(self, class_id: int, metaclass: str = "") -> str:
        """The prompt of a class, spaces collapsed: `a photo of a <class_3> bird`, without a metaclass no last space."""
        text = self.prompt_template.replace("{token}", self.token(class_id)).replace("{metaclass}", metaclass)
        return " ".join(text.split())

    def identity(self) -> dict[str, object]:
        """What decides the learned weights: everything but how often we save."""
        return self.model_dump(mode="json", exclude={"checkpoint_every"})
