"""Small real runs on the embedded default, for the tests of the engine."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from small_controlnet import small_controlnet

import diffaug_datasets
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.plan import Plan
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.numerics.timesteps import img2img_start
from diffaug_datasets.planning.catalogue import config_recipe, merged
from diffaug_datasets.planning.prepare import Prepared, prepare, write_run
from diffaug_datasets.run.store import Run

QUICK = {"num_inference_steps": 4}
CONCEPTS = {"steps": 6, "batch": 4, "rank": 4, "checkpoint_every": 2, "lr_lora": 1e-3, "lr_embedding": 1e-3}
METHODS: dict[str, dict[str, Any]] = {
    "txt2img": QUICK,
    "img2img": QUICK,
    "genie": QUICK,
    "genieada": {**QUICK, "levels": [0.5, 0.75, 1.0]},
    "diffii": {**QUICK, "inversion_steps": 3, "concepts": CONCEPTS},
    "realguidance": {**QUICK, "strength": 0.5},
    "realgen": QUICK,
    "diffgen": {**QUICK, "concepts": CONCEPTS},
    "diffaug": {**QUICK, "concepts": CONCEPTS},
    "diffmix": {**QUICK, "concepts": CONCEPTS},
    "realmix": QUICK,
    "timix": {**QUICK, "concepts": {**CONCEPTS, "steps": 2, "rank": 0}},
    "tiaug": {**QUICK, "concepts": {**CONCEPTS, "steps": 2, "rank": 0}},
    "dafusion": {**QUICK, "concepts": {**CONCEPTS, "steps": 2, "rank": 0, "templates": ["a {token}", "the {token}"]}},
    "diffusemix": QUICK,
    "datadream": {
        **QUICK,
        "lora": {"epochs": 2, "batch": 2, "rank": 2, "warmup": 1, "checkpoint_every": 1, "lr": 1e-3},
    },
    "gif": {**QUICK, "encoder": "tiny"},
    "dreamda": {**QUICK, "strength": 0.75},
    "alia": {**QUICK, "strength": 0.75},
    "saspa": QUICK,
    "retrieval": {},
    "diffinversion": {
        **QUICK,
        "embeddings": {"vectors": 3, "steps": 4, "batch": 4, "group": 12, "checkpoint_every": 2},
    },
}


def some_by_default(names: Iterable[str], chosen: Container[str]) -> list[Any]:
    """Parameters of a test that is dear: names of methods, those that are not chosen under `full` alone."""
    return [pytest.param(name, marks=() if name in chosen else pytest.mark.full) for name in names]


load_backbone = Backbone.load  # whatever a test puts in its place
IMAGE_ALONE = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}


@cache
def small_pool() -> str:
    """A pool of 30 images per class, as a Parquet file without labels."""
    whole = pq.read_table(Path(diffaug_datasets.__file__).parent / "assets" / "tiny" / "fashion" / "retrieval.parquet")
    chosen = [i for i in range(len(whole)) if i % 500 < 30]
    path = Path(tempfile.mkdtemp(prefix="diffaug-pool-")) / "pool.parquet"
    pq.write_table(whole.take(chosen).select(["image"]).replace_schema_metadata(IMAGE_ALONE), path)
    return str(path)


def small_recipe(slug: str, **changes: Any) -> Recipe:
    """A recipe of 2 images per class in few steps; shards of 8 rows, batches of 3: the last batch is ragged."""
    small = {"per_class": 2, "batch_size": 3, "shard_rows": 8, "include_test": False, "config": METHODS[slug]}
    places = {"retrieval": {"pool": small_pool}, "saspa": {"controlnet": small_controlnet}}.get(slug, {})
    config = {"config": {key: build() for key, build in places.items()}}
    return config_recipe(f"fashion_2shot_{slug}", **merged(merged(small, config), changes))


def small_run(folder: Path, slug: str, **changes: Any) -> Run:
    """A planned run folder."""
    return write_run(prepare(small_recipe(slug, **changes)), folder)


def mixed_start_run(folder: Path) -> Run:
    """An img2img run whose batches mix start steps: rows differ in strength."""
    prepared = prepare(small_recipe("img2img"))
    rows = tuple(
        row.model_copy(update={"strength": s, "start_step": img2img_start(4, s)})
        for row, s in zip(prepared.plan.rows, [0.25, 0.5, 0.75, 1.0] * 5, strict=True)
    )
    plan = Plan(prepared.plan.header, rows, prepared.plan.real, prepared.plan.fits)
    return write_run(Prepared(prepared.recipe, plan, prepared.real, prepared.subset), folder)


def digests(folder: Path) -> dict[str, str]:
    """Relative name -> sha256 of everything a run promises to make alike: shards, fits, selection, assembled files."""
    named = {p.relative_to(folder): p for p in folder.rglob("*") if p.suffix in (".arrow", ".safetensors", ".parquet")}
    promised = {name: p for name, p in named.items() if "cache" not in name.parts and "checkpoint" not in str(name)}
    found = {str(name): hashlib.sha256(p.read_bytes()).hexdigest() for name, p in promised.items()}
    return found | {"files": str(json.loads((folder / "run.json").read_text())["files"])}


@contextmanager
def loading(load: Callable[[BackboneSpec, str], Any]) -> Iterator[None]:
    """Whoever asks for a backbone meanwhile gets it from here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "load", staticmethod(load))
        yield
