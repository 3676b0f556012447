"""How a recipe spends its machine: `exact`, `fast`, `turbo`, and what lets a small card hold the model.

exact: bits that depend on nothing but the plan and the stack. fast: the same evaluations by the quickest kernels; an
image may differ by a grey level. turbo: fewer evaluations, so other images: features of the deep U-Net are used again
(DeepCache, Ma et al. 2023, arXiv 2312.00858), and guidance is given in a part of the steps only (Kynkaanniemi et al.
2024, arXiv 2404.07724). No torch is needed here.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from diffaug_datasets.core.settings import Later, Settings

ProfileName = Literal["exact", "fast", "turbo"]
Compile = Literal["auto", "always", "never"]
Optimiser = Literal["adamw", "adamw8bit"]

OF_FAST = ("compile",)
OF_TURBO = ("interval", "guided")


class Profile(Settings):
    """A bare string stands for `name`; every other key has a default that leaves plans as they are."""

    name: ProfileName = Field(
        default="exact",
        description="exact (bits that depend on the plan and the stack alone), fast (the same evaluations, at most a "
        "grey level apart), turbo (fewer evaluations, other images)",
    )
    compile: Annotated[Compile, Later()] = Field(
        default="auto",
        description="of fast and turbo: compile the network's repeated blocks, on a GPU all layers of a U-Net and its "
        "decoder; auto = on a GPU, and on a CPU of a model that is large enough to gain by it",
    )
    interval: Annotated[int, Later()] = Field(
        default=2, ge=1, le=100, description="of turbo: the whole U-Net runs at every so many steps, 1 = at all"
    )
    guided: Annotated[tuple[float, float], Later()] = Field(
        default=(0.0, 1.0), description="of turbo: from and to which share of the steps guidance is given"
    )
    vae_slicing: Annotated[bool, Later()] = Field(
        default=False, description="the VAE sees one image at a time: less memory"
    )
    vae_tiling: Annotated[bool, Later()] = Field(
        default=False, description="the VAE sees an image in overlapping tiles: less memory, seams may show"
    )
    offload: Annotated[bool, Later()] = Field(
        default=False, description="networks wait in the computer's memory and take turns on the GPU"
    )
    checkpointing: Annotated[bool, Later()] = Field(
        default=False, description="fits compute activations again on the way back: less memory, a third slower"
    )
    optimiser: Annotated[Optimiser, Later()] = Field(
        default="adamw", description="of fits: adamw, or adamw8bit of bitsandbytes, whose moments take a quarter"
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _keys_of_its_own(self) -> "Profile":
        foreign = OF_FAST * (self.name == "exact") + OF_TURBO * (self.name != "turbo")
        fields = type(self).model_fields
        if wrong := [key for key in foreign if getattr(self, key) != fields[key].default]:
            owner = "turbo" if wrong[0] in OF_TURBO else "fast and turbo"
            raise ValueError(f"{wrong[0]} is a key of {owner}, and this profile is {self.name}")
        low, high = self.guided
        if not 0 <= low < high <= 1:
            raise ValueError(f"guided: got {list(self.guided)}, expected two shares from 0 to 1, the lower one first")
        return self

    @property
    def is_exact(self) -> bool:
        """Whether bits must depend on nothing but plan and stack."""
        return self.name == "exact"

    @property
    def is_plain(self) -> bool:
        """Whether nothing was asked for at all."""
        return self == Profile()

    @property
    def is_turbo(self) -> bool:
        """Whether steps are left out."""
        return self.name == "turbo"

    def is_whole(self, step: int, first: int) -> bool:
        """Whether the whole U-Net runs at a step of a batch whose earliest row begins at step `first`."""
        return not self.is_turbo or step == first or step % self.interval == 0

    def is_guided(self, step: int, steps: int) -> bool:
        """Whether guidance is given at a step of so many."""
        low, high = self.guided
        return not self.is_turbo or low * steps <= step < high * steps

    @property
    def words(self) -> str:
        """What a stack says of it: the name and the settings that were made, such as `turbo, interval 3`."""
        made = [f"{key} {value}" for key, value in self.model_dump(mode="json").items() if key != "name"]
        return ", ".join([self.name, *made])


EXACT = Profile()


def with_image_format(content: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a recipe with the image format that its profile prefers, where none is given: lossless WebP in fast and
    turbo.
    """
    profile = content.get("profile")
    name = profile.get("name") if isinstance(profile, Mapping) else getattr(profile, "name", profile)
    preferred = {"image_format": "webp"} if name in ("fast", "turbo") and "image_format" not in content else {}
    return {**content, **preferred}
