'''All that the author of a method or of a builder imports; everything else in the package may change freely.

A method is a module that states its facts, plans its rows and makes the images of a batch. The shipped ones, in
`diffaug_datasets/methods/`, are made of the names below. A whole one, `diffaug_mirrored.py`:

```python
"""Mirrored: a real image of the class, mirrored, under a little latent noise.

1. a real image of the class                  `plan`, role `source`
2. its mirror image, encoded, plus noise      `generate`
"""

from diffaug_datasets.plugin import Generated, MethodConfig, RowKey, new_row

NAME, SLUG, VERSION, TITLE, PAPER = "mirrored", "mirrored", 1, "Mirrored", "0000.00000"
PARITY = "matches nothing published"
N_SOURCES, LABEL_RULE = 1, "source"


class Config(MethodConfig):
    """How much noise."""

    noise: float = 0.1


def plan(cfg, table, spec):
    for label, images in table.by_class().items():
        for k in range(spec.count(len(images)) if images and spec.wants(label) else 0):
            key = RowKey(spec.seed, NAME, label, k)
            source = key.choice("source", images)
            yield new_row(VERSION, key, spec, source_ids=(source.id,), source_labels=(label,))


def evaluations(cfg, row):
    return 0


def generate(rows, cfg, ctx):
    import torch

    pixels = [ctx.backbone.preprocess(ctx.source(row.source_ids[0]), "bilinear").flip(-1) for row in rows]
    latents = ctx.backbone.encode(torch.stack(pixels)) + cfg.noise * ctx.noise(rows)
    return [Generated(image.permute(1, 2, 0)) for image in ctx.backbone.decode_float(latents)]
```

`Method` lists every fact and function that a method may declare, with its default; `Context` and `DiffusionModel` what
it may ask for while it works. `import diffaug_datasets.plugin` needs no torch; what a method does with torch, it
imports where it generates.

A builder is a module that says how the images of a real dataset are named and laid out. A whole one,
`diffaug_pins.py`, for folders that hold `pins.txt`, with lines such as `p1 map_pin`, and `photos/`:

```python
"""Pins: photographs of pins."""

from diffaug_datasets.plugin import FolderFetch, Listed, Listing, pairs

NAME = "pins"
TITLE = "Pins"
LICENCE = "CC BY 4.0"
HUB_ID = "someone/pins"


def prompt_name(label):
    """map_pin -> map pin."""
    return label.replace("_", " ")


def read(folder):
    """What the folder lists; None if it is laid out in another way."""
    if not (folder / "pins.txt").is_file():
        return None
    photos = pairs(FolderFetch(folder.resolve()).text("pins.txt"), "pins.txt")
    names = tuple(sorted({label for _, label in photos}))
    return Listing(names, tuple(Listed(f"photos/{name}.png", names.index(label)) for name, label in photos), None)
```

`BuilderFacts` lists what a builder may state. A package plugs in through its entry points, one per module:

```toml
[project.entry-points."diffaug_datasets.methods"]
mirrored = "diffaug_mirrored"

[project.entry-points."diffaug_datasets.builders"]
pins = "diffaug_pins"
```
'''

from diffaug_datasets.core.errors import DiffAugError, PlanError, RecipeError, RunError, SourceError
from diffaug_datasets.core.family import Sampler, Solver
from diffaug_datasets.core.identity import RowKey, canonical, digest, uint63
from diffaug_datasets.core.learning import (
    ConceptConfig,
    EmbeddingConfig,
    LoraConfig,
    TextualInversionConfig,
    TokenConfig,
)
from diffaug_datasets.core.method import (
    Context,
    DiffusionModel,
    Final,
    FitFiles,
    FitUnit,
    Generated,
    Guidance,
    Method,
    MethodConfig,
    PlanSpec,
    Requirements,
    Resize,
    StepCount,
    branches,
    image_key,
    image_of,
    new_row,
)
from diffaug_datasets.core.models import Place
from diffaug_datasets.core.prompts import fill, with_suffix
from diffaug_datasets.core.rows import PlanRow, SoftLabel
from diffaug_datasets.core.settings import Later
from diffaug_datasets.core.sources import BuilderFacts, Listed, Listing, Pool, PoolTable, Source, SourceTable, pairs
from diffaug_datasets.sources.folders import FolderFetch
from diffaug_datasets.sources.real import class_phrases

__all__ = [
    "BuilderFacts",
    "ConceptConfig",
    "Context",
    "DiffAugError",
    "DiffusionModel",
    "EmbeddingConfig",
    "Final",
    "FitFiles",
    "FitUnit",
    "FolderFetch",
    "Generated",
    "Guidance",
    "Later",
    "Listed",
    "Listing",
    "LoraConfig",
    "Method",
    "MethodConfig",
    "Place",
    "PlanError",
    "PlanRow",
    "PlanSpec",
    "Pool",
    "PoolTable",
    "RecipeError",
    "Requirements",
    "Resize",
    "RowKey",
    "RunError",
    "Sampler",
    "SoftLabel",
    "Solver",
    "Source",
    "SourceError",
    "SourceTable",
    "StepCount",
    "TextualInversionConfig",
    "TokenConfig",
    "branches",
    "canonical",
    "class_phrases",
    "digest",
    "fill",
    "image_key",
    "image_of",
    "new_row",
    "pairs",
    "uint63",
    "with_suffix",
]
