"""The embedded default really learns: five images per class lower the loss on images that it has never seen."""

import io
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from held_out import held_out_loss
from PIL import Image

import diffaug_datasets
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.methods.diff_ii import Config
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.concepts import train_concepts
from diffaug_datasets.models.latents import ConceptExample
from diffaug_datasets.planning.catalogue import config_recipe

FASHION = Path(diffaug_datasets.__file__).parent / "assets" / "tiny" / "fashion"


def examples(split: str, a_class: int) -> list[ConceptExample]:
    """The first images of every class."""
    seen: Counter[int] = Counter()
    found: list[ConceptExample] = []
    for row in pq.read_table(FASHION / f"{split}.parquet").to_pylist():
        seen[row["label"]] += 1
        if seen[row["label"]] <= a_class:
            found.append(ConceptExample(Image.open(io.BytesIO(row["image"]["bytes"])), row["label"]))
    return found


@pytest.mark.full
def test_five_images_per_class_lower_the_held_out_loss(tmp_path: Path) -> None:
    method_config = config_recipe("fashion_5shot_diffii").method_config
    assert isinstance(method_config, Config)
    cfg = method_config.concepts
    backbone, names = Backbone.load(BackboneSpec(id="tiny")), {c: f"class {c}" for c in range(10)}
    held_out = examples("test", 8)
    before = held_out_loss(backbone, None, held_out, names, cfg)
    learned = train_concepts(backbone, examples("pool", 5), names, cfg, workdir=tmp_path)
    after = held_out_loss(backbone, learned.concepts, held_out, names, cfg)
    assert sum(after[c] < before[c] for c in names) >= 9
