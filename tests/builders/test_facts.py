"""Every fact sheet says enough for a card, and nothing is redistributable by accident."""

import re

import pytest

from diffaug_datasets.core.protocols import parse_protocol
from diffaug_datasets.core.sources import BuilderFacts
from diffaug_datasets.sources.hub import DATASET_ID
from diffaug_datasets.sources.real import builder_facts, discover_builders

SHIPPED = sorted(name for name, module in discover_builders().items() if module.__name__.startswith("diffaug_datasets"))
KNOWN = {fact.upper() for fact in BuilderFacts.__dataclass_fields__}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_fact_sheet_is_complete_and_its_file_has_its_name(name):
    module, facts = discover_builders()[name], builder_facts(name)
    assert module.__name__ == f"diffaug_datasets.builders.{name}"
    assert module.__doc__ and module.prompt_name.__doc__
    if name != "imagefolder":
        assert facts.title != name and facts.homepage.startswith("https://") and facts.official["classes"] > 1
        assert re.match(r"@\w+\{\w+,\n(  \w+ = \{.+\},?\n)+\}$", facts.citation)
        assert facts.hub_id is None or DATASET_ID.fullmatch(facts.hub_id)
        assert facts.licence_url.startswith("https://") or facts.licence == "unknown"


def test_only_freely_licensed_sets_may_be_redistributed():
    free = ["bloodmnist", "dermamnist", "eurosat", "fashion", "pathmnist"]
    assert [name for name in SHIPPED if builder_facts(name).redistributable] == free


def test_imagenet_lt_is_a_protocol_itself_and_the_others_are_not():
    fixed = {name: builder_facts(name).protocol for name in SHIPPED if builder_facts(name).protocol}
    assert fixed == {"imagenet_lt": "full"}
    assert parse_protocol(fixed["imagenet_lt"]).kind == "full"


def test_long_tail_thresholds_are_those_of_the_papers():
    assert {name: builder_facts(name).groups for name in ("cub", "flowers", "imagenet_lt")} == {
        "cub": (20, 5),
        "flowers": (30, 10),
        "imagenet_lt": (100, 20),
    }


@pytest.mark.parametrize(
    ("name", "official"),
    [
        ("cub", {"classes": 200, "train": 5994, "test": 5794}),
        ("aircraft", {"classes": 100, "train": 6667, "test": 3333}),
        ("cars", {"classes": 196, "train": 8144, "test": 8041}),
        ("pets", {"classes": 37, "train": 3680, "test": 3669}),
        ("flowers", {"classes": 102, "total": 8189}),
        ("food101", {"classes": 101, "train": 75750, "test": 25250}),
        ("pathmnist", {"classes": 9, "train": 89996, "test": 7180}),
        ("dermamnist", {"classes": 7, "train": 7007, "test": 2005}),
        ("bloodmnist", {"classes": 8, "train": 11959, "test": 3421}),
        ("caltech101", {"classes": 102, "total": 9144}),
        ("pascal", {"classes": 20, "train": 1464, "test": 1449}),
        ("coco", {"classes": 80, "train": 117266, "test": 4952}),
        ("inat", {"classes": 200, "train": 5959, "test": 8000}),
        ("dtd", {"classes": 47, "train": 3760, "test": 1880}),
        ("imagenet_lt", {"classes": 1000, "train": 115846, "test": 50000}),
    ],
)
def test_official_counts(name, official):
    assert builder_facts(name).official == official
