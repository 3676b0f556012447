"""Plans: pure, golden, independent of order and of other classes. No torch, no files."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from diffaug_datasets.core.errors import DiffAugError, PlanError, RecipeError
from diffaug_datasets.core.identity import RowKey, uint63
from diffaug_datasets.core.method import PlanSpec, discover_methods, find_method
from diffaug_datasets.core.plan import Plan, Shard, draw_plan
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import PoolTable, Source, SourceTable
from diffaug_datasets.methods import diff_ii, genie, genie_ada, img2img, txt2img

POOL = PoolTable.of(f"{i:02x}" * 32 for i in range(40))
SPEC = PlanSpec(
    seed=0, backbone="model@0123", batch_size=4, per_image=2.0, suffixes=("in the sun.", "at night."), pool=POOL
)


def table(counts: tuple[int, ...] = (3, 2, 4)) -> SourceTable:
    names = tuple(f"class {i}" for i in range(len(counts)))
    sources = tuple(Source(f"{i:02d}{j:02d}" * 16, i, f"{i}/{j}") for i, n in enumerate(counts) for j in range(n))
    return SourceTable("toy", "train", names, names, "bird", sources)


def plan_of(method: str, counts: tuple[int, ...] = (3, 2, 4), **config: Any) -> Plan:
    recipe = Recipe.from_dict({"builder": "toy", "method": method, "config": config, "shard_rows": 5, "batch_size": 2})
    return draw_plan("toy_full", recipe, table(counts), None, SPEC)


GOLDEN_FILE = Path(__file__).parent / "golden_plans.json"
GOLDEN: dict[str, str] = json.loads(GOLDEN_FILE.read_text())


@pytest.mark.parametrize("method", GOLDEN)
def test_golden_plan_ids(method: str) -> None:
    """Rewritten by `python scripts/regen_golden.py`, which is for a change that is meant."""
    assert plan_of(method).id == GOLDEN[method]


def test_the_seed_is_the_digest_that_the_contract_states() -> None:
    key = RowKey(7, "genie", 3, 11, 2)
    assert key.seed("noise") == uint63("7|genie|3|11|noise|2") < 2**63
    assert uint63("") == int("e3b0c44298fc1c14", 16) >> 1
    assert len(key.row_id) == 24
    assert key.row_id == key.retry(5).row_id
    assert key.seed("noise") != key.retry(5).seed("noise")


@pytest.mark.parametrize("name", sorted(discover_methods()))
def test_changing_one_class_leaves_the_others_alone(name: str) -> None:
    """Seeds and draws stay. Fits cover all classes, and GeNIe takes its sources from the other classes."""
    free = {"adapters", "source_ids", "source_labels"}

    def rows(counts: tuple[int, ...]) -> dict[str, dict[str, Any]]:
        return {r.row_id: r.model_dump(exclude=free) for r in plan_of(name, counts).rows if r.label != 2}

    assert rows((3, 2, 4)) == rows((3, 2, 6))


def test_a_plan_does_not_depend_on_the_hash_seed_of_python() -> None:
    script = "from test_plans import plan_of; print(plan_of('diff_ii').id, plan_of('genie').id)"
    folder = Path(__file__).parent
    runs = {
        subprocess.run(
            [sys.executable, "-c", script], cwd=folder, env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True,
            text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert runs == {f"{plan_of('diff_ii').id} {plan_of('genie').id}\n"}


def test_shards_and_batches_follow_from_the_plan() -> None:
    plan = plan_of("txt2img")
    shards = plan.shards()
    assert [len(s.rows) for s in shards] == [5, 5, 5, 3]
    assert [s.name for s in shards] == [f"synthetic-{i:05d}" for i in range(4)]
    batches = list(shards[0].batches(2))
    assert [len(b) for b in batches] == [2, 2, 1]
    assert {r.row_id for b in batches for r in b if r} == {r.row_id for r in shards[0].rows}


def test_rows_of_one_start_step_are_batched_together() -> None:
    rows = plan_of("img2img").rows[:6]
    mixed = [row.model_copy(update={"start_step": i % 2}) for i, row in enumerate(rows)]
    assert [{r.start_step for r in b if r} for b in Shard("synthetic", 0, tuple(mixed)).batches(3)] == [{0}, {1}]


def test_txt2img_needs_no_image_of_a_class() -> None:
    spec = PlanSpec(seed=0, backbone="m", per_class=4)
    rows = list(txt2img.plan(txt2img.Config(), table((3, 0, 1)), spec))
    assert Counter(r.label for r in rows) == {0: 4, 1: 4, 2: 4}
    assert {r.prompt for r in rows} == {f"a photo of a class {i} bird" for i in range(3)}


def test_img2img_light_and_heavy() -> None:
    light, heavy = plan_of("img2img", strength=0.3), plan_of("img2img", strength=0.7)
    assert {r.start_step for r in light.rows} == {35}
    assert {r.start_step for r in heavy.rows} == {15}
    with pytest.raises(RecipeError, match="runs no step"):
        plan_of("img2img", strength=0.01)


def test_genie_takes_other_classes_images_each_once_before_any_repeats() -> None:
    plan = plan_of("genie", (1, 1, 1, 1))
    assert all(r.source_labels[0] != r.label for r in plan.rows)
    spec = PlanSpec(seed=0, backbone="m", per_class=6)
    rows = list(genie.plan(genie.Config(), table((3, 4, 4)), spec))
    own = [r.source_ids[0] for r in rows if r.label == 0]
    assert len(set(own)) == 6
    assert {r.start_step for r in rows} == {10}


def test_genie_uses_the_confused_classes_where_they_are_given() -> None:
    spec = PlanSpec(seed=0, backbone="m", per_class=4, confused=((1,), (2,), (0,)), targets=(0, 2))
    rows = list(genie.plan(genie.Config(), table(), spec))
    assert {(r.label, r.source_labels[0]) for r in rows} == {(0, 1), (2, 0)}


def test_genie_without_another_class_is_refused() -> None:
    with pytest.raises(PlanError, match="no other class has an image"):
        plan_of("genie", (3,))


def test_ada_leaves_the_level_open_and_says_where_it_must_be_skipped() -> None:
    spec = PlanSpec(seed=0, backbone="m", per_class=2)
    rows = list(genie_ada.plan(genie_ada.Config(), table((3, 0, 2)), spec))
    assert {(r.strength, r.start_step) for r in rows if r.label != 1} == {(None, None)}
    assert {(round(r.strength, 6), r.start_step) for r in rows if r.label == 1} == {(0.9, 5)}
    cfg = genie_ada.Config()
    costs = {r.label: genie_ada.evaluations(cfg, r) for r in rows}
    assert costs == {0: 350, 1: 90, 2: 350}  # where nothing is compared, the largest level alone is made
    assert {r.fallback for r in rows if r.label == 1} == {"ada_skipped"}
    assert {r.fallback for r in rows if r.label != 1} == {None}


def test_ada_embeds_the_sources_of_its_rows_and_the_images_of_their_targets() -> None:
    real = table((3, 0, 40, 30))
    spec = PlanSpec(seed=0, backbone="m", batch_size=2, per_class=2, targets=(0, 1))
    rows = list(genie_ada.plan(genie_ada.Config(), real, spec))
    compared = [row for row in rows if row.label == 0]
    assert {row.fallback for row in rows if row.label == 1} == {"ada_skipped"}
    assert all(not row.adapters for row in rows if row.label == 1)
    units = genie_ada.fits(genie_ada.Config(), real, spec, rows)
    embedded = [image for unit in units for image in unit.content["images"]]
    sources = {f"{row.source_ids[0]}/{row.source_labels[0]}" for row in compared}
    assert sorted(embedded) == sorted(sources | {f"00{i:02d}" * 16 + "/0" for i in range(3)})


@pytest.mark.parametrize(("batch", "per_class"), [(2, 3), (4, 7), (8, 1), (1, 2)])
def test_diff_ii_inverts_the_images_of_its_pairs_once_each(batch: int, per_class: int) -> None:
    real = table((30, 25))
    spec = PlanSpec(seed=0, backbone="m", batch_size=batch, per_class=per_class, suffixes=("a.",))
    rows = list(diff_ii.plan(diff_ii.Config(), real, spec))
    _, *units = diff_ii.fits(diff_ii.Config(), real, spec, rows)
    inverted = [image for unit in units for image in unit.content["images"]]
    assert sorted(inverted) == sorted({f"{image}/{row.label}" for row in rows for image in row.source_ids})
    assert all(len(u.content["images"]) % u.content["batch"] == 0 and u.content["batch"] <= batch for u in units)
    assert diff_ii.fits(diff_ii.Config(), real, spec, rows[::-1])[1:] == tuple(units)
    home = {image: unit.name for unit in units for image in unit.content["images"]}
    assert all(set(row.adapters[1:]) == {home[f"{i}/{row.label}"] for i in row.source_ids} for row in rows)


@pytest.mark.parametrize("method", ["diff_mix", "real_mix", "ti_mix"])
def test_diff_mix_draws_sources_strengths_and_labels(method: str) -> None:
    module, spec = find_method(method), PlanSpec(seed=0, backbone="m", per_image=100)
    rows = list(module.plan(module.Config(gamma=0.8), table((5, 5, 5)), spec))
    assert Counter(r.label for r in rows) == dict.fromkeys(range(3), 500)
    assert {round(r.strength, 6): r.start_step for r in rows} == {0.5: 13, 0.7: 8, 0.9: 3}
    assert 0.3 < sum(r.source_labels == (r.label,) for r in rows) / len(rows) < 0.37
    assert len({r.source_ids for r in rows}) == 15
    for row in rows:
        weights = dict(zip(row.soft_label.classes, row.soft_label.weight, strict=True))
        of_target = {0.5: 0.574, 0.7: 0.752, 0.9: 0.919}[round(row.strength, 6)]
        mixed = {row.source_labels[0]: 1 - of_target, row.label: of_target}
        assert weights == pytest.approx({row.label: 1.0} if row.source_labels[0] == row.label else mixed, abs=5e-4)


@pytest.mark.parametrize("method", ["diff_mix", "real_mix"])
def test_diff_mix_on_a_long_tail_draws_head_images_and_even_targets(method: str) -> None:
    module, spec = find_method(method), PlanSpec(seed=0, backbone="m", per_image=100)
    config = module.Config(sources="images", targets="even")
    rows = list(module.plan(config, table((8, 1, 3)), spec))
    assert Counter(r.label for r in rows) == dict.fromkeys(range(3), 400)
    shares = Counter(r.source_labels[0] for r in rows)
    assert [round(shares[c] / 1200, 1) for c in range(3)] == [0.7, 0.1, 0.2]


def test_a_name_serves_a_class_without_images_and_a_token_does_not() -> None:
    spec = PlanSpec(seed=0, backbone="m", per_class=2)
    for method in ("real_gen", "real_mix"):
        module = find_method(method)
        assert {r.label for r in module.plan(module.Config(), table((3, 0, 1)), spec)} == {0, 1, 2}
    for method in ("diff_gen", "diff_mix", "diff_aug", "ti_mix", "ti_aug", "real_guidance", "img2img"):
        module = find_method(method)
        assert {r.label for r in module.plan(module.Config(), table((3, 0, 1)), spec)} == {0, 2}


def test_methods_of_the_same_concepts_share_one_fit() -> None:
    names = {plan_of(method).fits[0].name for method in ("diff_mix", "diff_gen", "diff_aug")}
    assert len(names) == 1
    assert plan_of("diff_ii", resize="bilinear").fits[0].name in names


def test_tokens_alone_are_one_fit_of_rank_0_whatever_else_is_set() -> None:
    """Also where a recipe sets a few keys of `concepts`; a rank is refused."""
    for concepts in ({}, {"steps": 100}):
        [mix], [aug] = (plan_of(method, concepts=concepts).fits for method in ("ti_mix", "ti_aug"))
        assert mix.name == aug.name != plan_of("diff_mix", concepts=concepts).fits[0].name
        assert (mix.content["config"]["rank"], len(mix.content["names"])) == (0, 3)
    with pytest.raises(RecipeError, match=r"concepts\.rank: got 4"):
        plan_of("ti_mix", concepts={"rank": 4})


def test_a_size_to_learn_at_names_another_fit_and_its_absence_the_same() -> None:
    default, at_224 = plan_of("diff_mix"), plan_of("diff_mix", concepts={"resolution": 224})
    assert plan_of("diff_mix", concepts={"resolution": None}).id == default.id
    assert default.fits[0].name != at_224.fits[0].name and default.id != at_224.id


@pytest.mark.parametrize("method", ["genie", "genie_ada", "img2img", "txt2img"])
def test_prompts_may_name_all_synonyms_of_an_imagenet_class(method: str) -> None:
    labels = ("n01440764", "great white shark, white shark, man-eater", "002.Laysan_Albatross")
    sources = tuple(Source(f"{i:02d}" * 32, i, str(i)) for i in range(3))
    real = SourceTable("toy", "train", labels, ("tench", "great white shark", "laysan albatross"), "", sources)
    module, spec = find_method(method), PlanSpec(seed=0, backbone="m", per_class=1)
    prompts = {r.label: r.prompt for r in module.plan(module.Config(prompt="a photo of a {synonyms}."), real, spec)}
    assert prompts == {
        0: "a photo of a tench, Tinca tinca.",
        1: "a photo of a great white shark, white shark, man-eater.",
        2: "a photo of a laysan albatross.",
    }


def test_a_strength_that_runs_no_step_is_refused() -> None:
    for method, key, value in (("real_guidance", "strength", 0.01), ("diff_mix", "strengths", [0.5, 0.03])):
        with pytest.raises(RecipeError, match="runs no step"):
            plan_of(method, **{key: value})
    for value in ([], [0.0], [1.5]):
        with pytest.raises(RecipeError, match=r"expected one or more strengths in \(0, 1\]"):
            plan_of("diff_aug", strengths=value)


EDITS = [
    "img2img",
    "real_guidance",
    "real_mix",
    "diff_aug",
    "diff_mix",
    "ti_aug",
    "ti_mix",
    "da_fusion",
    "alia",
    "dream_da",
]


@pytest.mark.parametrize("name", EDITS)
def test_a_sampled_source_has_a_seed_of_its_own(name: str) -> None:
    method, mode, sample = find_method(name), plan_of(name), plan_of(name, encode="sample")
    assert {row.draw for row in mode.rows} == {"{}"} and plan_of(name, encode="mode").id == mode.id != sample.id
    config = Recipe.from_dict({"builder": "toy", "method": name, "config": {"encode": "sample"}}).method_config
    for row, plain in zip(sample.rows, mode.rows, strict=True):
        key = RowKey(0, name, row.label, row.k)
        assert json.loads(row.draw) == {"posterior_seed": key.seed("posterior")} and key.seed("posterior") != row.seed
        assert row.model_copy(update={"draw": "{}"}) == plain.model_copy(update={"adapters": row.adapters})
        again = method.redraw(row, key.retry(1), config)
        assert json.loads(again.draw) == {"posterior_seed": key.retry(1).seed("posterior")}
        assert again.seed == key.retry(1).seed("noise")


@pytest.mark.parametrize("name", ["img2img", "real_guidance", "da_fusion"])
def test_each_image_is_edited_as_often_as_any_other(name: str) -> None:
    """As the authors of DA-Fusion and GeNIe do, m times; drawn, some are edited more often than others."""
    method, spec = find_method(name), PlanSpec(seed=0, backbone="m", per_image=7)
    each = list(method.plan(method.Config.model_validate({"sources": "each"}), table((3, 2, 4)), spec))
    assert set(Counter((row.label, row.source_ids) for row in each).values()) == {7} and len(each) == 63
    drawn = list(method.plan(method.Config(), table((3, 2, 4)), spec))
    assert len(set(Counter((row.label, row.source_ids) for row in drawn).values())) > 1 and len(drawn) == 63
    assert plan_of(name, sources="drawn").id == plan_of(name).id != plan_of(name, sources="each").id


@pytest.mark.parametrize("levels", [[0.5], [0.7, 0.5], [0.0, 0.5], [0.5, 1.2], [0.5, 0.5]])
def test_ada_refuses_levels_that_do_not_rise(levels: list[float]) -> None:
    with pytest.raises(RecipeError, match="rising noise ratios"):
        plan_of("genie_ada", levels=levels)


def test_diff_ii_draws_pairs_turns_and_suffixes() -> None:
    spec = PlanSpec(seed=0, backbone="m", per_image=100, suffixes=("a.", "b."))
    rows = list(diff_ii.plan(diff_ii.Config(), table((5,)), spec))
    assert len(rows) == 500
    pairs = Counter(r.source_ids for r in rows)
    assert len(pairs) == 10
    assert all(30 < n < 75 for n in pairs.values())
    draws = [diff_ii.Draw.model_validate_json(r.draw) for r in rows]
    assert {d.switch for d in draws} == {7}
    assert 0.45 < sum(d.u for d in draws) / 500 < 0.55
    assert Counter(r.prompt_first.rsplit(" ", 1)[1] for r in rows if r.prompt_first).keys() == {"a.", "b."}
    assert {r.prompt for r in rows} == {"a photo of a <class_0> bird"}


@pytest.mark.parametrize(("split", "switch"), [(0.0, 0), (0.1, 2), (0.3, 7), (0.5, 12), (1.0, 25)])
def test_diff_ii_split_ratio_counts_suffix_steps(split: float, switch: int) -> None:
    row = plan_of("diff_ii", split_ratio=split).rows[0]
    assert json.loads(row.draw)["switch"] == switch
    assert (row.prompt_first is None) == (switch == 0)


@pytest.mark.parametrize("policy", ["noise_partner", "self_noise", "diff_aug"])
def test_a_class_with_one_image_gets_its_policy(policy: str) -> None:
    plan = plan_of("diff_ii", (3, 1), single_image_policy=policy)
    alone = [r for r in plan.rows if r.label == 1]
    assert len(alone) == 2
    assert {r.fallback for r in alone} == {policy}
    assert {len(r.source_ids) for r in alone} == {1}
    assert {r.start_step for r in alone} == ({8} if policy == "diff_aug" else {0})
    assert {r.fallback for r in plan.rows if r.label == 0} == {None}


def test_a_class_with_one_image_may_be_skipped_or_refused() -> None:
    assert {r.label for r in plan_of("diff_ii", (3, 1), single_image_policy="skip").rows} == {0}
    with pytest.raises(PlanError, match="'class 1' has one image, so no pair"):
        plan_of("diff_ii", (3, 1), single_image_policy="error")


def test_byte_duplicates_make_no_pair() -> None:
    twice = table((2,))
    same = SourceTable("toy", "train", ("c",), ("c",), "", (twice.sources[0], twice.sources[0]))
    rows = list(diff_ii.plan(diff_ii.Config(), same, SPEC))
    assert {r.fallback for r in rows} == {"noise_partner"}


def test_diff_ii_without_suffixes_says_what_to_do() -> None:
    recipe = Recipe.from_dict({"builder": "toy", "method": "diff_ii"})
    with pytest.raises(RecipeError, match=r"config\.suffixes"):
        draw_plan("x", recipe, table(), None, PlanSpec(seed=0, backbone="m"))


def test_a_later_attempt_changes_seeds_and_the_turn_alone() -> None:
    row = plan_of("diff_ii").rows[0]
    again = diff_ii.redraw(row, RowKey(0, "diff_ii", row.label, row.k, 1), diff_ii.Config())
    changed = {name for name in PlanRow.model_fields if getattr(row, name) != getattr(again, name)}
    assert changed == {"seed", "draw"}


def test_a_recipe_names_the_key_and_the_allowed_values() -> None:
    cases = {
        "methd": ({"builder": "cub", "methd": "genie"}, "did you mean 'method'"),
        "method": ({"builder": "cub", "method": "geni"}, ", ".join(sorted(discover_methods()))),
        "config.ratoi": ({"builder": "cub", "method": "genie", "config": {"ratoi": 1}}, "did you mean 'ratio'"),
        "config.ratio": ({"builder": "cub", "method": "genie", "config": {"ratio": 7}}, "less than or equal to 1"),
        "protocol": ({"builder": "cub", "method": "genie", "protocol": "5shots"}, "5shot"),
        "batch_size": ({"builder": "cub", "method": "genie", "batch_size": "many"}, "got 'many'"),
        "builder": ({"method": "genie"}, "missing"),
    }
    for key, (content, text) in cases.items():
        with pytest.raises(DiffAugError) as refusal:
            Recipe.from_dict(content)
        assert key in str(refusal.value), refusal.value
        assert text in str(refusal.value), refusal.value


def test_the_same_recipe_from_its_own_yaml(tmp_path: Any) -> None:
    recipe = Recipe.from_dict({"builder": "cub", "method": "img2img", "config": {"strength": 0.3}, "seed": 4})
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert Recipe.from_yaml(tmp_path / "r.yaml") == recipe


def test_all_totals_of_plans() -> None:
    assert {m: len(plan_of(m).rows) for m in GOLDEN} == dict.fromkeys(GOLDEN, 18)
    assert img2img.N_SOURCES == 1
