"""Keys that came later: left out of dumps, and so out of plan ids, until somebody sets them."""

from typing import Annotated, Literal

from diffaug_datasets.core.learning import ConceptConfig, EmbeddingConfig
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.settings import Later, Settings


class Inner(Settings):
    old: int = 1
    new: Annotated[Literal["a", "b"], Later()] = "a"


class Outer(Settings):
    inner: Inner = Inner()
    new: Annotated[float | None, Later()] = None


def test_a_later_key_is_dumped_once_it_is_set() -> None:
    assert Outer().model_dump(mode="json") == {"inner": {"old": 1}}
    assert Outer.model_validate({"new": None, "inner": {"new": "a"}}).model_dump() == {"inner": {"old": 1}}
    made = Outer.model_validate({"new": 0.5, "inner": {"new": "b"}})
    assert made.model_dump(exclude={"new"}) == {"inner": {"old": 1, "new": "b"}}
    assert Outer.model_validate(made.model_dump()) == made


def test_what_is_learned_is_called_as_before_while_later_keys_are_not_set() -> None:
    assert not {"start", "order"} & EmbeddingConfig().identity().keys()
    assert EmbeddingConfig(start="group").identity() == EmbeddingConfig().identity() | {"start": "group"}
    assert "lora_start" in ConceptConfig().identity()  # it came with a new default, and moved ids on purpose


def test_every_later_key_of_a_method_has_a_default_and_no_place_in_the_identity_of_a_plain_recipe() -> None:
    found = 0
    for method in discover_methods().values():
        content = Recipe.from_dict({"builder": "toy", "method": method.NAME}).identity()["config"]
        for key, field in method.Config.model_fields.items():
            if any(isinstance(mark, Later) for mark in field.metadata):
                found += 1
                assert not field.is_required() and isinstance(content, dict) and key not in content
    assert found >= 10
