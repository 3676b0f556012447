"""A model with a part of its own: its folder, in which links lead to what stays and to what was changed.

Families read one folder in diffusers format, so an override is another folder: `vae` is a link to the other
autoencoder, `scheduler/scheduler_config.json` is written with the changed keys. It lies in the temporary folder of this
process and goes with it; the weights stay where they are. LoRA and a single file change weights where they are read
(`families.parts.weight_overrides`); whether LoRA fits is asked here, of headers.
"""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.family import Family
from diffaug_datasets.core.model_files import read_object
from diffaug_datasets.core.models import BackboneSpec, find_loras, find_vae
from diffaug_datasets.families.parts.diffusers_folders import SCHEDULER, read_header_of
from diffaug_datasets.families.parts.lora_layouts import check_fit, read_lora
from diffaug_datasets.families.parts.original_names import renaming
from diffaug_datasets.families.parts.single_files import class_of

VAE_FILES = ("config.json", "diffusion_pytorch_model*.safetensors")


def with_overrides(folder: Path, spec: BackboneSpec) -> Path:
    """The folder of a model, or one that stands for it with the overrides of a spec.

    Raises:
        Damage: the file that is changed is garbled.
        BackboneError: the other autoencoder is none, or no folder can be written for it.
    """
    other = find_vae(spec)
    vae = other.folder if other else None
    if vae is None and not spec.scheduler:
        return folder
    scheduler = None
    if spec.scheduler and (folder / SCHEDULER).is_file():
        scheduler = json.dumps({**read_object(folder, SCHEDULER), **spec.scheduler}, sort_keys=True)
    here = tuple(sorted(path.name for path in folder.iterdir()))
    try:
        return _linked(folder.resolve(), here, vae, scheduler)
    except OSError as error:
        raise BackboneError(
            f"backbone {spec.id!r}: its overrides need a temporary folder ({error.strerror}): free some space, or set "
            "TMPDIR."
        ) from None


def check_loras(folder: Path, family: Family, spec: BackboneSpec) -> None:
    """Whether every matrix of the spec's LoRA files changes a weight of the model, as far as files are here.

    Raises:
        BackboneError: see `families.parts.lora_layouts`.
    """
    files = [file for file in find_loras(spec) if file.path is not None]
    if not files:
        return
    stems = family.PARTS
    headers = {part: read_header_of(folder, part, stem, spec, is_whole=False) for part, stem in stems.items()}
    loras = [read_lora(file, tuple(stems)) for file in files]
    if not all(headers.values()):
        return  # to come from the Hub, or under names that are not known before it is loaded
    kinds = {part: class_of(folder, part) for part in stems}
    originals = {part: renaming(kind, read_object(folder, f"{part}/config.json")) for part, kind in kinds.items()}
    weights = {
        part: {key.removesuffix(".weight"): entry.shape for key, entry in header.items() if key.endswith(".weight")}
        for part, header in headers.items()
        if header
    }
    for lora in loras:
        check_fit(lora, weights, originals)


@cache
def _linked(folder: Path, names: tuple[str, ...], vae: Path | None, scheduler: str | None) -> Path:
    """`names`: what lies in the folder, which may be a cache that fills."""
    made = Path(tempfile.mkdtemp(prefix="diffaug-model-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    changed = {"vae": vae, "scheduler": scheduler}
    for name in names:
        if not changed.get(name):
            (made / name).symlink_to(folder / name)
    if vae is not None:
        (made / "vae").symlink_to(vae.resolve())
    if scheduler is not None:
        (made / "scheduler").mkdir()
        (made / SCHEDULER).write_text(scheduler, encoding="utf-8")
    return made
