"""What DA-Fusion learns, as its plan says: a token per class, by textual inversion, from that class's images alone."""

from dataclasses import replace
from typing import Any

from diffaug_datasets.core.method import PlanSpec
from diffaug_datasets.core.plan import Plan, draw_plan
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.sources import Source, SourceTable

SPEC = PlanSpec(seed=0, backbone="model@0123", per_image=2.0)
NAMES = ("heron", "crane", "ibis", "stork")


def table(counts: tuple[int, ...]) -> SourceTable:
    """So many invented images per class, the classes' images taking turns."""
    places = sorted((j, i) for i, count in enumerate(counts) for j in range(count))
    sources = tuple(Source(f"{i:02d}{j:02d}" * 16, i, f"{i}/{j}") for j, i in places)
    names = NAMES[: len(counts)]
    return SourceTable("toy", "train", names, names, "bird", sources)


def plan_of(counts: tuple[int, ...], **config: Any) -> Plan:
    recipe = Recipe.from_dict({"builder": "toy", "method": "da_fusion", "config": config})
    return draw_plan("toy_full", recipe, table(counts), None, SPEC)


def learned(plan: Plan) -> dict[str, dict[str, Any]]:
    """Class id as text -> the content of its fit."""
    units = [unit.content for unit in plan.fits if unit.kind == "concepts"]
    assert all(len(unit["names"]) == 1 for unit in units)
    found = {label: unit for unit in units for label in unit["names"]}
    assert len(found) == len(units)
    return found


def test_every_class_has_one_fit_of_rank_0_over_its_own_images() -> None:
    counts = (3, 1, 4)
    fits = learned(plan_of(counts))
    assert fits.keys() == {"0", "1", "2"}
    for label, unit in fits.items():
        images = [f"{label.zfill(2)}{j:02d}" * 16 + f"/{label}" for j in range(counts[int(label)])]
        assert sorted(unit["images"]) == images
        assert unit["names"] == {label: NAMES[int(label)]}
        assert unit["config"]["rank"] == 0
        assert unit["config"]["tokens_per_class"] == 1


def test_the_images_of_a_class_decide_its_fit_and_no_other() -> None:
    few, more = learned(plan_of((3, 2, 4))), learned(plan_of((3, 2, 6)))
    assert [few[label] == more[label] for label in "012"] == [True, True, False]


def test_the_tokens_of_all_classes_come_last_and_every_row_cites_them() -> None:
    plan = plan_of((3, 1, 4))
    *concepts, tokens = plan.fits
    assert tokens.kind == "tokens"
    assert [unit.kind for unit in concepts] == ["concepts"] * 3
    assert set(tokens.after) == {unit.name for unit in concepts} == set(tokens.content["concepts"])
    assert {row.adapters for row in plan.rows} == {(tokens.name,)}
    assert {(row.label, row.prompt) for row in plan.rows} == {(i, f"a photo of a <class_{i}>") for i in range(3)}


def test_a_class_without_images_is_not_learned() -> None:
    assert names_learned(SPEC, (2, 0, 1)) == [{"0": "heron"}, {"2": "ibis"}]


def test_a_class_without_rows_is_not_learned() -> None:
    assert names_learned(replace(SPEC, targets=(2,)), (2, 3, 1)) == [{"2": "ibis"}]
    assert names_learned(replace(SPEC, per_image=0.4), (2, 3, 1)) == [{"1": NAMES[1]}]  # int(0.4 n) rows


def names_learned(spec: PlanSpec, counts: tuple[int, ...]) -> list[dict[str, str]]:
    recipe = Recipe.from_dict({"builder": "toy", "method": "da_fusion"})
    rows = list(recipe.method_definition.plan(recipe.planned_config, table(counts), spec))
    fits = recipe.method_definition.fits(recipe.planned_config, table(counts), spec, rows)
    assert {row.adapters for row in rows} == {(fits[-1].name,)}
    return [unit.content["names"] for unit in fits if unit.kind == "concepts"]
