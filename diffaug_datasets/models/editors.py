"""Which backbones edit as a text instructs (InstructPix2Pix), and whether a method gets the kind that it needs.

Asked at plan, without torch, where the model lies on this machine, and again once it is loaded.
"""

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.models import BackboneSpec, find_backbone
from diffaug_datasets.models.model_folder import EDITOR, check_backbone, read_object, unfit
from diffaug_datasets.numerics.timesteps import SchedulerSettings


def check_backbone_for(spec: BackboneSpec, editor: bool) -> SchedulerSettings | None:
    """`check_backbone`, and that the model edits by instruction where `editor`, and does not otherwise.

    Raises:
        BackboneError: as `check_backbone`, or the model is of the other kind.
    """
    settings, folder = check_backbone(spec), find_backbone(spec).folder
    if folder is not None:
        check_kind(spec.id, editor, read_object(folder, "model_index.json").get("_class_name") == EDITOR)
    if editor and settings is not None and settings.prediction_type != "epsilon":
        raise unfit(spec.id, f"predicts {settings.prediction_type!r}", "an InstructPix2Pix model that predicts noise")
    return settings


def check_kind(name: str, wanted: bool, is_editor: bool) -> None:
    """Raises BackboneError where a model edits by instruction and the method does not, or the other way round."""
    if wanted and not is_editor:
        raise BackboneError(
            f"backbone {name!r} does not edit by instruction, as this method does: name an InstructPix2Pix model, such "
            "as timbrooks/instruct-pix2pix, or set config.editor: noised, which edits with any Stable Diffusion."
        )
    if is_editor and not wanted:
        raise unfit(name, f"is a {EDITOR}, which only edits by instruction", "a StableDiffusionPipeline")
