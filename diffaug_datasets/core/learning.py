"""The settings of what is learned from real images before rows are made; the defaults are the authors'.

Concepts: one token per class, with LoRA on the U-Net (Diff-Mix, Diff-II) or alone (DA-Fusion). Image embeddings: one
sequence of vectors per image (Diffusion Inversion).
"""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, field_validator

from diffaug_datasets.core.settings import Later, Settings

OnStep = Callable[[int, int, float], None]
"""Called after every step of a training: (steps done, of how many, loss of the last one) -> nothing."""

_OF_LORA = ("lr_lora", "lora_start")


class ConceptConfig(Settings):
    """Defaults follow the authors' code (Zhicaiwww/Diff-Mix, arXiv 2403.19600); its 4 GPUs times 2 are one batch."""

    tokens_per_class: int = Field(
        default=1, ge=1, le=64, description="vectors per class; the authors use 1; a prompt holds 75 tokens in all"
    )
    rank: int = Field(default=10, ge=0, le=512, description="LoRA rank (alpha = rank); 0 = textual inversion alone")
    lora_start: Literal["gaussian", "uniform"] = Field(
        default="gaussian",
        description="start of LoRA's A (B starts at zero): gaussian = N(0, 1/rank^2), as the authors' version of "
        "diffusers; uniform = peft's default, std 1/sqrt(3 columns)",
    )
    steps: int = Field(default=35_000, ge=0, le=10_000_000, description="optimiser steps")
    batch: int = Field(default=8, ge=1, le=1024, description="images per step")
    lr_lora: float = Field(default=5e-5, ge=0, description="AdamW learning rate of the LoRA matrices")
    lr_embedding: float = Field(
        default=5e-5, ge=0, description="AdamW learning rate of the token embeddings; 0 = they stay, LoRA alone learns"
    )
    lr_schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="constant, as the authors; cosine = down to zero at the last step"
    )
    prompt_template: str = Field(
        default="a photo of a {token} {metaclass}", description="with {token} and, where wanted, {metaclass}"
    )
    resolution: int | None = Field(
        default=None,
        ge=8,
        le=8192,
        multiple_of=8,
        description="side in pixels of the square that is learned from; null = the backbone's height and width, where "
        "images are made; Diff-Mix's current scripts: 224",
    )
    flip: float = Field(default=0.5, ge=0, le=1, description="probability of mirroring an image")
    class_balanced: bool = Field(default=False, description="draw class c with weight 1/n_c (long-tailed data)")
    snr_gamma: float | None = Field(default=None, gt=0, description="Min-SNR loss weights; null = plain MSE")
    init: int | str = Field(
        default="auto",
        description="start of a token: a vocabulary id, or a phrase (mean of its tokens; {name} and {metaclass} are "
        "filled in); auto = id 42170 in CLIP's vocabulary, else {metaclass} or `thing`",
    )
    seed: int = Field(default=42, ge=0, lt=2**63, description="every draw of a step follows from it")
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

    def training_prompts(self, class_id: int, metaclass: str = "") -> tuple[str, ...]:
        """What training shows a class's images under, each step one of them."""
        return (self.prompt(class_id, metaclass),)

    def identity(self) -> dict[str, object]:
        """What decides the learned weights: all but how often we save, and how LoRA starts where there is none."""
        unused = {"checkpoint_every"} if self.rank else {"checkpoint_every", "lora_start"}
        return self.model_dump(mode="json", exclude=unused)


class TokenConfig(ConceptConfig):
    """Tokens alone, all classes in one run: what the authors' script of Diff-Mix learns under `--ti_only`."""

    rank: int = Field(default=0, ge=0, le=0, description="0: no LoRA")

    def idle(self) -> dict[str, str]:
        """What is said of LoRA."""
        return dict.fromkeys(_OF_LORA, "tokens are learned alone")


# The templates for objects of Gal et al. (Textual Inversion, arXiv 2208.01618).
OBJECT_TEMPLATES = tuple(
    f"{before} {{token}}"
    for before in (
        *("a photo of a", "a rendering of a", "a cropped photo of the", "the photo of a", "a photo of a clean"),
        *("a photo of a dirty", "a dark photo of the", "a photo of my", "a photo of the cool", "a close-up photo of a"),
        *("a bright photo of the", "a cropped photo of a", "a photo of the", "a good photo of the", "a photo of one"),
        *("a close-up photo of the", "a rendition of the", "a photo of the clean", "a rendition of a"),
        *("a photo of a nice", "a good photo of a", "a photo of the nice", "a photo of the small"),
        *("a photo of the weird", "a photo of the large", "a photo of a cool", "a photo of a small"),
    )
)


class TextualInversionConfig(ConceptConfig):
    """Tokens alone, each learned for itself (brandontrabucco/da-fusion, arXiv 2302.07944).

    The authors' learning rate of 5e-4 is multiplied by the batch, as their script does.
    """

    rank: int = Field(default=0, ge=0, le=0, description="0: no LoRA")
    steps: int = Field(default=1_000, ge=0, le=10_000_000, description="optimiser steps")
    batch: int = Field(default=4, ge=1, le=1024, description="images per step")
    lr_embedding: float = Field(default=2e-3, ge=0, description="AdamW learning rate of the token embeddings")
    prompt_template: str = Field(default="a photo of a {token}", description="of the generated images' prompts")
    templates: Literal["objects"] | tuple[str, ...] = Field(
        default="objects", description="of training, one per step and image; objects = the 27 of Textual Inversion"
    )
    init: int | str = Field(default="the", description="start of a token: a vocabulary id or a phrase")

    @field_validator("templates")
    @classmethod
    def _all_name_the_token(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("expected one or more templates, or `objects`")
        return value if isinstance(value, str) else tuple(cls._names_the_token(template) for template in value)

    def idle(self) -> dict[str, str]:
        """What is said of LoRA."""
        return dict.fromkeys(_OF_LORA, "tokens are learned alone")

    @property
    def texts(self) -> tuple[str, ...]:
        """The templates themselves."""
        return OBJECT_TEMPLATES if isinstance(self.templates, str) else self.templates

    def training_prompts(self, class_id: int, metaclass: str = "") -> tuple[str, ...]:
        """Every template with the class's token."""
        return tuple(self.model_copy(update={"prompt_template": t}).prompt(class_id, metaclass) for t in self.texts)

    def identity(self) -> dict[str, object]:
        """With the templates' texts, whatever they are called."""
        return super().identity() | {"templates": self.texts}


class EmbeddingConfig(Settings):
    """Defaults follow the authors' code (yongchaoz/diffusion_inversion, arXiv 2305.15316), but for `start`, `order`."""

    vectors: int = Field(default=5, ge=1, le=77, description="vectors per image: the length of the condition")
    steps: int = Field(
        default=6000,
        ge=0,
        le=10_000_000,
        description="optimiser steps per group: 3000 per image where a step shows 50 of 100",
    )
    batch: int = Field(default=50, ge=1, le=1024, description="images per step, of one group")
    group: int = Field(
        default=100, ge=1, le=1_000_000, description="images learned together; guidance leads away from their mean"
    )
    by_class: bool = Field(default=False, description="one class per group; False: in the dataset's order")
    lr: float = Field(default=3e-2, gt=0, description="AdamW learning rate, constant")
    start: Annotated[Literal["tenth", "group", "prompt"], Later()] = Field(
        default="tenth",
        description="vectors start uniform within 0.1, right for 100 images; group: within 1/sqrt(embeddings of the "
        "group), as the authors' linear layer without bias; prompt: at the encoded prompt of the class, in its length",
    )
    clusters: Annotated[int, Later()] = Field(
        default=0,
        ge=0,
        le=10_000,
        description="0 = an embedding per image; k = k per class, shared by the images of a cluster (k-means of their "
        "latents); a class is a group then",
    )
    order: Annotated[Literal["shuffled", "fixed"], Later()] = Field(
        default="shuffled", description="images of a step: an order that every epoch draws anew, or the group's own"
    )
    seed: int = Field(default=42, ge=0, lt=2**63, description="the start and every draw of a step follow from it")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between checkpoints; no part of the result")

    def idle(self) -> dict[str, str]:
        """How groups are cut, where each class is one."""
        return dict.fromkeys(("group", "by_class"), "clusters is set") if self.clusters else {}

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


class LoraConfig(Settings):
    """LoRA of both networks under prompts in words; defaults follow the code of DataDream (arXiv 2407.10910)."""

    rank: int = Field(default=16, ge=1, le=512, description="of LoRA (alpha = rank); A starts at N(0, 1/rank^2)")
    text_encoder: bool = Field(default=True, description="learn LoRA of the text encoder too")
    epochs: int = Field(default=200, ge=0, le=1_000_000, description="passes over the images")
    batch: int = Field(default=8, ge=1, le=1024, description="images per step")
    lr: float = Field(default=1e-4, ge=0, description="AdamW learning rate")
    lr_schedule: Annotated[Literal["cosine", "constant"], Later()] = Field(
        default="cosine", description="cosine = up in `warmup` steps, then down to zero at the last; or constant"
    )
    warmup: int = Field(default=100, ge=0, description="steps in which the rate rises; cosine alone")
    flip: float = Field(default=0.0, ge=0, le=1, description="probability of mirroring an image; the authors: never")
    class_balanced: bool = Field(default=False, description="draw class c with weight 1/n_c (long-tailed data)")
    seed: int = Field(default=42, ge=0, lt=2**63, description="every draw of a step follows from it")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between checkpoints; no part of the result")

    def idle(self) -> dict[str, str]:
        """How a rate rises that is constant."""
        return {"warmup": "lr_schedule is constant"} if self.lr_schedule == "constant" else {}

    def steps(self, images: int) -> int:
        """Optimiser steps over so many images: epochs of ceil(n / batch)."""
        return self.epochs * -(-images // self.batch)

    def identity(self) -> dict[str, object]:
        """What decides the learned matrices."""
        return self.model_dump(mode="json", exclude={"checkpoint_every"})
