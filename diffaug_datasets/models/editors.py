"""Which backbones edit as a text instructs (InstructPix2Pix), and whether a method gets the kind that it needs.

Asked at plan, without torch, where the model lies on this machine, and again once it is loaded.
"""

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.family import ModelFacts
from diffaug_datasets.core.models import BackboneSpec, find_backbone
from diffaug_datasets.families.stable_diffusion import EDITOR
from diffaug_datasets.models.model_folder import check_backbone, unfit


def check_backbone_for(spec: BackboneSpec, editor: bool) -> ModelFacts | None:
    """`check_backbone`, and that the model edits by instruction where `editor`, and does not otherwise.

    Raises:
        BackboneError: as `check_backbone`, or the model is of the other kind.
    """
    facts, folder = check_backbone(spec), find_backbone(spec).folder
    if facts is not None and folder is not None:
        check_kind(spec.id, editor, facts.edits)
    if editor and facts is not None and facts.prediction != "epsilon":
        raise unfit(spec.id, f"predicts {facts.prediction!r}", "an InstructPix2Pix model that predicts noise")
    return facts


def check_kind(name: str, wanted: bool, is_editor: bool) -> None:
    """Raises BackboneError where a model edits by instruction and the method does not, or the other way round."""
    if wanted and not is_editor:
        raise BackboneError(
            f"backbone {name!r} does not edit by instruction, as this method does: name an InstructPix2Pix model, such "
            "as timbrooks/instruct-pix2pix, or set config.editor: noised, which edits with any Stable Diffusion."
        )
    if is_editor and not wanted:
        raise unfit(name, f"is a {EDITOR}, which only edits by instruction", "a StableDiffusionPipeline")
