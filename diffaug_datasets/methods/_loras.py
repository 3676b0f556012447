"""The fit `lora`: LoRA under prompts in words, for each class by itself or for all (DataDream, DreamDA).

Rows of several classes share a batch: each row's matrices stand beside the projections, so that it costs what it would
alone. A fit's name is a digest of what decides it, so methods of the same settings name the same fit.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from diffaug_datasets.core.learning import LoraConfig
from diffaug_datasets.core.method import Context, FitFiles, FitUnit, PlanSpec, Resize, image_key
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import Source, SourceTable

if TYPE_CHECKING:
    from torch import Tensor

Scope = Annotated[Literal["class", "dataset"], Field(description="LoRA of each class, or one of all")]
PromptOf = Callable[[int], str]
"""Class id -> the prompt that its images are learned under."""


def units(
    cfg: LoraConfig, scope: Scope, resize: Resize, table: SourceTable, spec: PlanSpec, prompt: PromptOf
) -> Mapping[int, FitUnit]:
    """Class id -> the training run that its rows rest on, for every class that has images."""
    groups = {label: images for label, images in table.by_class().items() if images}
    if scope == "class":
        return {label: _unit(cfg, resize, spec, images, prompt) for label, images in groups.items()}
    return dict.fromkeys(groups, _unit(cfg, resize, spec, table.sources, prompt))


def _unit(cfg: LoraConfig, resize: Resize, spec: PlanSpec, images: Sequence[Source], prompt: PromptOf) -> FitUnit:
    config = {**cfg.identity(), "steps": cfg.steps(len(images))}
    payload = {"backbone": spec.backbone, "config": config, "resize": resize, "size": spec.size}
    prompts = {str(label): prompt(label) for label in sorted({source.label for source in images})}
    keys = [image_key(source.id, source.label) for source in images]
    return FitUnit.of("lora", {**payload, "images": keys, "prompts": prompts})


def cited(units: Mapping[int, FitUnit], rows: Sequence[PlanRow]) -> tuple[FitUnit, ...]:
    """The runs of the classes that rows are made of, each once."""
    return tuple({units[row.label].name: units[row.label] for row in sorted(rows, key=lambda row: row.label)}.values())


def learn(unit: FitUnit, cfg: LoraConfig, ctx: Context) -> FitFiles:
    """Learn the matrices of one run."""
    prompts = {int(label): text for label, text in unit.content["prompts"].items()}
    return ctx.learn_lora(unit.content["images"], prompts, cfg, resize=unit.content["resize"])


def encoded(
    texts: Sequence[str], loras: "Sequence[Mapping[str, Tensor]]", ctx: Context, *, negative: bool = False
) -> Any:
    """Conditions of b rows: text j under LoRA j, encoded alone. `negative`: of what is led away from."""
    from diffaug_datasets.models.few_shot import beside
    from diffaug_datasets.numerics.conditions import stacked

    def encode(text: str, lora: "Mapping[str, Tensor]") -> Any:
        matrices = part(lora, "text_encoder")
        with beside(ctx.backbone, [matrices]) if matrices else nullcontext():
            return ctx.backbone.prompts([text], negative=negative)[0]

    keys = [(text, id(lora)) for text, lora in zip(texts, loras, strict=True)]
    known = {key: encode(*pair) for key, pair in dict(zip(keys, zip(texts, loras, strict=True), strict=True)).items()}
    return stacked([known[key] for key in keys])


def part(lora: "Mapping[str, Tensor]", network: Literal["unet", "text_encoder"]) -> "dict[str, Tensor]":
    """The matrices of one network."""
    return {key: matrix for key, matrix in lora.items() if key.startswith(f"{network}.")}
