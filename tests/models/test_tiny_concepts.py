"""The embedded default really learns: five images a class lower the loss on images that it has never seen."""

import io
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

import diffaug_datasets
from diffaug_datasets.core.backbone_spec import BackboneSpec
from diffaug_datasets.core.concept_config import ConceptConfig
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.concepts import ConceptExample, held_out_loss, train_concepts

FASHION = Path(diffaug_datasets.__file__).parent / "assets" / "tiny" / "fashion"
CFG = ConceptConfig(steps=300, lr_lora=1e-3, lr_embedding=5e-2, lr_schedule="cosine")


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
@pytest.mark.skipif(not FASHION.is_dir(), reason="the packaged model is not in this checkout")
def test_five_images_a_class_lower_the_held_out_loss(tmp_path: Path) -> None:
    backbone, names = Backbone.load(BackboneSpec(id="tiny")), {c: f"class {c}" for c in range(10)}
    held_out = examples("test", 20)
    before = held_out_loss(backbone, None, held_out, names, CFG)
    learned = train_concepts(backbone, examples("pool", 5), names, CFG, workdir=tmp_path)
    after = held_out_loss(backbone, learned.concepts, held_out, names, CFG)
    assert sum(after[c] < before[c] for c in names) >= 9
