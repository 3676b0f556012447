"""Whether a folder holds BLIP-Diffusion's Q-Former that fits a backbone, by its files alone: at plan, without torch."""

from diffaug_datasets.core.errors import BackboneError, RecipeError
from diffaug_datasets.core.model_files import Damage, read_object, read_weights, whole_number
from diffaug_datasets.core.models import BackboneSpec, find_backbone, local_path
from diffaug_datasets.core.weight_headers import TensorInfo

WORDS = ("vocab.txt", "tokenizer.json")
NEEDED = {
    "query_tokens": 3,
    "embeddings.word_embeddings.weight": 2,
    "visual_encoder.embeddings.patch_embedding.weight": 4,
    "visual_encoder.embeddings.position_embedding": 3,
    "proj_layer.dense2.weight": 2,
}
"""Some of its weights, and how many sides they have."""


def check_subject(place: str, spec: BackboneSpec) -> None:
    """Look at the Q-Former of a recipe, and at the backbone's text encoder where that lies on this machine.

    Raises:
        RecipeError: none is named.
        BackboneError: there is no such folder, it holds something else, or it fits another backbone.
    """
    if not place:
        raise RecipeError(
            "config.qformer: subject blip_diffusion shows the model another image of the class; give the folder "
            "`qformer` of a BLIP-Diffusion model in diffusers format (Salesforce/blipdiffusion-controlnet, fetched by "
            "`hf download`), whose other folders are the backbone and config.controlnet."
        )
    folder = local_path(place)
    if folder is None or not folder.is_dir():
        raise unfit_subject(place, "there is no such folder")
    try:
        read_object(folder, "config.json")
        weights = read_weights(folder, "model")
        if weights is None:
            raise Damage("model.safetensors is missing")
        _check_weights(weights, spec)
        if not any((folder / name).is_file() for name in WORDS):
            raise Damage(f"{WORDS[0]} is missing: put that of bert-base-uncased beside config.json")
    except Damage as error:
        raise unfit_subject(place, str(error)) from None


def _check_weights(weights: dict[str, TensorInfo], spec: BackboneSpec) -> None:
    for name, sides in NEEDED.items():
        if name not in weights or len(weights[name].shape) != sides:
            raise Damage(f"model.safetensors holds no {name} of {sides} sides")
    queries, width = weights["query_tokens"].shape[1], weights["proj_layer.dense2.weight"].shape[0]
    backbone = find_backbone(spec).folder
    if backbone is None or not (backbone / "text_encoder" / "config.json").is_file():
        return
    text = read_object(backbone, "text_encoder/config.json")
    wanted, places = (
        whole_number(text, key, "text_encoder/config.json", default)
        for key, default in (("hidden_size", 512), ("max_position_embeddings", 77))
    )
    if width != wanted:
        raise Damage(f"its subjects have {width} numbers, words of the backbone's text encoder {wanted}")
    if queries + 3 > places:
        raise Damage(f"its {queries} vectors leave no word among the {places} places of the backbone's text encoder")


def unfit_subject(place: str, reason: str) -> BackboneError:
    """A Q-Former that cannot be used."""
    return BackboneError(
        f"qformer {place!r} cannot be used ({reason}): expected the folder `qformer` of a BLIP-Diffusion model in "
        "diffusers format, config.json and model.safetensors, and BERT's vocab.txt."
    )
