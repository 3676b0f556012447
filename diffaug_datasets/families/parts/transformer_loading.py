"""From a folder to the networks and tokenizers of a pipeline with a transformer, by the classes that its index names.

`check` of the family has seen the index before: every class in it is one that the family drives.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from diffaug_datasets.core.model_files import read_object
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.families.parts.diffusers_folders import SCHEDULER
from diffaug_datasets.families.parts.loaders import freeze, quiet, read_network, read_tokenizer
from diffaug_datasets.numerics.flow import DynamicShift, FlowSchedule, Grid
from diffaug_datasets.numerics.flow_settings import read_flow

NETWORKS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")


def read_pipeline(folder: Path, spec: BackboneSpec, device: torch.device) -> dict[str, Any]:
    """Part -> network, frozen, in the spec's dtype and on the device, or tokenizer, once it fits its text encoder.

    Raises:
        ValueError: weights are missing or not finite, or a tokenizer has no words.
        Exception: of whichever kind diffusers and transformers fail with.
    """
    import diffusers
    import transformers

    index = read_object(folder, "model_index.json")
    dtype = getattr(torch, spec.dtype)
    read: dict[str, Any] = {}
    with quiet():
        for part in NETWORKS:
            declared = index.get(part)
            if not isinstance(declared, list) or not all(declared):
                continue
            library = {"diffusers": diffusers, "transformers": transformers}[declared[0]]
            read[part] = read_network(getattr(library, declared[1]), folder, part, spec, torch_dtype=dtype)
            freeze(read[part], device)
        for part in [name for name in read if name.startswith("text_encoder")]:
            name = part.replace("text_encoder", "tokenizer")
            kind = getattr(transformers, index[name][1])  # type: ignore[index]
            rows = read[part].get_input_embeddings().num_embeddings
            read[name] = read_tokenizer(kind, folder / name, rows)
    return read


def levels_of(
    folder: Path, *, tokens: int, grid: Grid = "scheduler", shift: Callable[[DynamicShift], DynamicShift] | None = None
) -> Callable[[int, int], FlowSchedule]:
    """The flow of a folder at a size in pixels, whose tokens have `tokens` pixels on a side.

    `shift`: what the family makes of a dynamic shift.
    """
    read = read_flow(read_object(folder, SCHEDULER), grid=grid)
    if read.dynamic and shift:
        read = replace(read, dynamic=shift(read.dynamic))

    @cache
    def at(height: int, width: int) -> FlowSchedule:
        return replace(read, tokens=(height // tokens) * (width // tokens))

    return at
