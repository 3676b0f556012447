"""What a bench gathers: lines of equal budgets, controls, mixing rules, more real images, groups."""

import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from tables import Sets, pictures, table

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.evaluate import contest as contests
from diffaug_datasets.evaluate import draws as drawing
from diffaug_datasets.evaluate import runs
from diffaug_datasets.evaluate.bench import Answer, bench, bracket
from diffaug_datasets.evaluate.contest import gather
from diffaug_datasets.evaluate.draws import Draw, Images, Labelled, read_set
from diffaug_datasets.evaluate.groups import by_group
from diffaug_datasets.evaluate.making import Making
from diffaug_datasets.evaluate.outlook import outlook
from diffaug_datasets.evaluate.runs import Doing, announcement, is_recipe, made, planned_control, planned_runs
from diffaug_datasets.evaluate.spare import not_at_hand, read_spare, spare_images, up_to_share
from diffaug_datasets.evaluate.suite import Bench
from diffaug_datasets.evaluate.table import table as rows_of
from diffaug_datasets.evaluate.worth import images_for
from diffaug_datasets.models.encoders import Encoder
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare
from diffaug_datasets.sources.real import read_real

SHORT = {"per_class": 1, "config": {"num_inference_steps": 2}}
NO_CONTROLS = {"controls": ["real"]}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load("tiny")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch):
    """Sets that stand for those on disk, and recipes that say how they were made."""

    def put(sets: Mapping[str, tuple], recipes: Mapping[str, Recipe] | None = None) -> None:
        monkeypatch.setattr(drawing, "load", Sets(**sets))
        made = {name: Making(recipe, 100, 1000, 200) for name, recipe in (recipes or {}).items()}
        monkeypatch.setattr(drawing, "making_of", lambda where, config: made.get(where))

    return put


def bench_of(sets: list, **keys: object) -> Bench:
    return Bench.from_dict({"sets": sets, **NO_CONTROLS, **keys})


# Budgets


def test_lines_of_unlike_numbers_are_refused_and_the_first_ones_compared(use, tmp_path: Path) -> None:
    test, real = table(pictures(20, 9)), pictures(8, 0)
    use({"a": (table(real, pictures(12, 1), "one"), test), "b": (table(real, pictures(8, 2), "two"), test)})
    sentence = (
        "budget: one has 6 synthetic images of 'dark' and two has 4, so more images might win and not better ones; "
        "give --images-per-class 4 (`images_per_class`) to compare the first 4 of every class."
    )
    with pytest.raises(RecipeError, match=re.escape(sentence)):
        gather(bench_of(["a", "b"]), tmp_path, Doing())
    found = gather(bench_of(["a", "b"], images_per_class=4), tmp_path, Doing())
    assert [line.synthetic.counts for _, line in found.lines] == [(4, 4), (4, 4)]
    whole = gather(bench_of(["a"]), tmp_path, Doing()).lines[0][1].synthetic
    assert found.lines[0][1].synthetic.keys == whole.keys[:8]
    with pytest.raises(RecipeError, match="--images-per-class 4"):
        gather(bench_of(["a", "b"], images_per_class=5), tmp_path, Doing())


def test_where_classes_are_drawn_first_as_many_in_all_are_enough(use, tmp_path: Path) -> None:
    test, real = table(pictures(20, 9)), pictures(8, 0)
    uneven = [*pictures(3, 2, label=0), *pictures(9, 3, label=1)]
    rule = {"rule": "lt_inverse"}
    use({"a": (table(real, pictures(12, 1), "one"), test), "b": (table(real, uneven, "two"), test)})
    found = gather(bench_of(["a", "b"], mixing=rule), tmp_path, Doing())
    assert [line.synthetic.counts for _, line in found.lines] == [(6, 6), (3, 9)]
    with pytest.raises(RecipeError, match="one has 6 synthetic images of 'dark' and two has 3"):
        gather(bench_of(["a", "b"]), tmp_path, Doing())
    use({"a": (table(real, pictures(10, 1), "one"), test), "b": (table(real, uneven, "two"), test)})
    with pytest.raises(RecipeError, match="budget: one has 10 synthetic images and two has 12, so more images might"):
        gather(bench_of(["a", "b"], mixing=rule), tmp_path, Doing())


def test_a_class_that_one_method_leaves_out_is_said(use, tmp_path: Path) -> None:
    test, real = table(pictures(20, 9)), pictures(8, 0)
    use(
        {
            "a": (table(real, pictures(12, 1), "one"), test),
            "b": (table(real, pictures(5, 2, label=1), "two"), test),
        }
    )
    found = gather(bench_of(["a", "b"], images_per_class=5), tmp_path, Doing())
    assert "two has no synthetic image of 'dark' and one has some." in found.notes


# Mixing


@pytest.mark.parametrize(("protocol", "rule"), [("lt10", "lt_inverse"), ("5shot", "class"), (None, "class")])
def test_the_rule_follows_from_the_protocol(use, tmp_path: Path, protocol: str | None, rule: str) -> None:
    recipes = {"a": config_recipe(f"fashion_{protocol}_txt2img", **SHORT)} if protocol else {}
    use({"a": (table(pictures(8, 0), pictures(8, 1)), table(pictures(20, 9)))}, recipes)
    found = gather(bench_of(["a"]), tmp_path, Doing())
    assert found.mixing.rule == rule
    assert any("no set says of which protocol" in note for note in found.notes) == (protocol is None)
    assert gather(bench_of(["a"], mixing={"rule": "global"}), tmp_path, Doing()).mixing.rule == "global"


def test_a_line_may_be_mixed_in_its_own_way(use, tmp_path: Path, encoder: Encoder) -> None:
    test, real, made = table(pictures(40, 9, apart=3)), pictures(8, 0, apart=3), pictures(8, 1, apart=3)
    use({"a": (table(real, made), test)})
    entries = [{"set": "a", "name": "half"}, {"set": "a", "name": "none", "mixing": {"probability": 0}}]
    answer = bench(bench_of(entries, controls=["real"]), [encoder], tmp_path, cache=tmp_path / "cache")
    predicted = {r.receipt.cell.line: r.receipt.predictions.sha256 for r in answer.results}
    assert predicted["none"] == predicted["real"]
    assert any(note.startswith("none is mixed in a way of its own (probability 0") for note in answer.notes)


def test_draws_of_two_protocols_are_refused(use, tmp_path: Path) -> None:
    test, made = table(pictures(20, 9)), pictures(8, 1)
    recipes = {name: config_recipe(f"fashion_{name}shot_seed{name}_txt2img", **SHORT) for name in ("5", "6")}
    use({name: (table(pictures(8, int(name)), made), test) for name in recipes}, recipes)
    with pytest.raises(RecipeError, match=r"sets: 5 is of fashion 5shot and 6 of fashion 6shot, and a mean over both"):
        gather(bench_of(["5", "6"]), tmp_path, Doing())


def test_two_lines_of_one_name_are_refused(use, tmp_path: Path) -> None:
    use({"a": (table(pictures(8, 0), pictures(8, 1)), table(pictures(20, 9)))})
    with pytest.raises(RecipeError, match="a stands there twice; give each a name of its own"):
        bench_of(["a", "a"])
    with pytest.raises(RecipeError, match="two lines of one draw are called 'mine"):
        gather(bench_of([{"set": "a", "name": "mine"}, {"set": "a", "name": "mine", "config": "b"}]), tmp_path, Doing())


def test_a_recipe_that_cannot_be_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for keys in ({"changes": {"foo": 1}}, {"sets": ["fashion_5shot_geni"]}):
        spec = Bench.from_dict({"sets": ["fashion_5shot_genie"], **keys})
        with pytest.raises(RecipeError):
            bench(spec, [], tmp_path / "bench")
    assert not (tmp_path / "bench").exists()


def test_the_same_line_twice_differs_by_exactly_nothing(use, tmp_path: Path, encoder: Encoder) -> None:
    sets = {}
    for draw in range(3):
        real, made = pictures(8, draw, apart=3), pictures(8, 10 + draw, apart=3)
        sets[f"s{draw}"] = (table(real, made), table(pictures(60, 9, apart=3)))
    use(sets)
    entries = [{"set": name, "name": line} for name in sets for line in ("first", "second")]
    answer = bench(bench_of(entries), [encoder], tmp_path, cache=tmp_path / "cache")
    accuracy = {row.line: row.accuracy for row in rows_of(answer, resamples=2)}
    assert accuracy["first"] - accuracy["second"] == 0
    for draw in answer.draws:
        pair = [r.correct for r in answer.results if r.receipt.cell.draw == draw and r.receipt.cell.line != "real"]
        assert np.array_equal(*pair)


# What it cost


def test_a_cell_says_what_its_images_took(use, tmp_path: Path, encoder: Encoder) -> None:
    recipe = config_recipe("fashion_5shot_txt2img", **SHORT)
    use({"a": (table(pictures(8, 0), pictures(40, 1)), table(pictures(20, 9)))}, {"a": recipe})
    answer = bench(bench_of(["a"], images_per_class=5), [encoder], tmp_path, cache=tmp_path / "cache")
    took = {r.receipt.cell.line: r.receipt.evaluations for r in answer.results}
    assert took == {"real": None, "txt2img": 200 + 800 * 10 // 100}


# Config names and controls


def test_names_and_places_are_told_apart(tmp_path: Path) -> None:
    assert all(map(is_recipe, ["fashion_5shot_genie", "diff_ii@cub_5shot", "clip_filter", "mine.yaml"]))
    assert not any(
        map(is_recipe, ["org/name", "s3://bucket/set", str(tmp_path), "some_run", "runs/fashion_5shot_genie"])
    )


def test_every_draw_of_a_config_name_is_a_trial_with_noise_of_its_own(tmp_path: Path) -> None:
    spec = bench_of([{"set": "fashion_5shot_txt2img", "changes": {"per_class": 2}}], draws=2, changes=SHORT)
    first, second = (run.drawn.prepared for run in planned_runs(spec, tmp_path, tmp_path / "none"))
    assert [one.recipe.protocol for one in (first, second)] == ["5shot", "5shot_seed1"]
    assert [(one.recipe.per_class, one.recipe.seed) for one in (first, second)] == [(2, 0), (2, 1)]
    assert first.plan.header.recipe["config"]["num_inference_steps"] == 2
    shared = bench_of(["fashion_5shot_txt2img"], draws=[3], changes=SHORT, fresh_images=False)
    assert next(planned_runs(shared, tmp_path, tmp_path / "none")).recipe.seed == 0
    full = bench_of(["fashion_full_txt2img"], draws=3, changes=SHORT)
    assert len(list(planned_runs(full, tmp_path, tmp_path / "none"))) == 1
    assert not list(tmp_path.iterdir())


def test_a_control_is_made_as_its_neighbour_is(tmp_path: Path) -> None:
    first = config_recipe("fashion_5shot_seed2_genie", per_class=3, seed=7, config={"num_inference_steps": 4})
    planned = planned_control("txt2img", first, tmp_path, tmp_path, 60)
    assert not isinstance(planned, str)
    recipe = planned.recipe
    assert (recipe.method, recipe.protocol, recipe.per_class, recipe.seed) == ("txt2img", "5shot_seed2", 3, 7)
    assert announcement(planned).startswith("control txt2img, to compare with: 30 images to have (fashion_5shot_seed2_")
    assert recipe.method_config.num_inference_steps == 4  # type: ignore[attr-defined]
    assert prepare(recipe).subset.ids == prepare(first).subset.ids


def test_a_control_that_is_dear_or_lacks_its_images_is_left_out_with_a_reason(tmp_path: Path) -> None:
    dear = config_recipe("fashion_5shot_genie", per_class=100)
    assert "more than 1 s (`affordable`)" in str(planned_control("txt2img", dear, tmp_path, tmp_path, 1))
    away = config_recipe("cub_5shot_genie")
    assert planned_control("txt2img", away, tmp_path, tmp_path, 1) == "no copy of CUB-200-2011 on this machine is named"
    gone = config_recipe("cub_5shot_genie", source=str(tmp_path / "gone"))
    assert not_at_hand(gone) == f"its real images are not at {tmp_path / 'gone'}"
    on_hub = config_recipe("cub_5shot_genie", source="org/birds")
    assert not_at_hand(on_hub) == "its real images are on the Hub (org/birds)"


# Real images beside a draw


@pytest.fixture(scope="module")
def fashion() -> tuple[Recipe, Draw]:
    """A draw of real pictures, as a run would have them, with a few test images."""
    from diffaug_datasets.core.images import decode_image, pixel_sha256

    recipe = config_recipe("fashion_5shot_txt2img", **SHORT)
    prepared = prepare(recipe)

    def images(split: str, places: list[int]) -> Images:
        rows = prepared.real.table(split).sources
        pixels = [decode_image(prepared.real.read(split, i)) for i in places]
        labelled = Labelled.hard([rows[i].label for i in places], 10, [(rows[i].id,) for i in places])
        return Images(labelled, tuple(map(pixel_sha256, pixels)), lambda i: pixels[i])

    real, test = images("train", list(prepared.subset.indices)), images("test", list(range(30)))
    return recipe, Draw("draw", prepared.plan.header.class_names, real, test)


def test_spare_images_are_of_training_alone_and_outside_the_draw(fashion: tuple[Recipe, Draw]) -> None:
    recipe, draw = fashion
    spare = spare_images(recipe, draw, 4)
    assert spare.counts == (4,) * 10
    ids = {source for sources in spare.labelled.source_ids for source in sources}
    source = read_real("fashion")
    assert ids <= {one.id for one in source.train.sources}
    assert not ids & (
        {one.id for one in source.test.sources} | {s for ids in draw.real.labelled.source_ids for s in ids}
    )
    assert not set(spare.keys) & {*draw.real.keys, *draw.test.keys}
    assert spare.keys == spare_images(recipe, draw, 4).keys
    label = {one.id: one.label for one in source.train.sources}
    assert [label[sources[0]] for sources in spare.labelled.source_ids] == spare.labelled.labels.tolist()


def test_an_image_that_looks_like_a_test_image_is_no_spare_one(fashion: tuple[Recipe, Draw]) -> None:
    recipe, draw = fashion
    first = spare_images(recipe, draw, 1)
    planted = Draw(draw.key, draw.class_names, draw.real, draw.test + first.select([0]))
    second = spare_images(recipe, planted, 1)
    assert first.keys[0] not in second.keys and second.keys[1:] == first.keys[1:]


def test_brackets_and_images_to_choose_with_share_none(fashion: tuple[Recipe, Draw]) -> None:
    recipe, draw = fashion
    found = contests.Contest({draw.key: draw}, spare={draw.key: spare_images(recipe, draw, 5)})
    held_out, more = found.held_out(draw, 2), found.more_real(draw, 3, 2)
    assert held_out is not None and more is not None
    assert (held_out.counts, more.counts) == ((2,) * 10, (3,) * 10)
    assert not set(held_out.keys) & set(more.keys)


def test_a_bracket_may_be_a_share_of_all_real_images(fashion: tuple[Recipe, Draw]) -> None:
    recipe, draw = fashion
    spare = read_spare(recipe, draw, 2, 0.2)
    size = spare.totals[0]
    assert set(spare.totals) == {size} and draw.real.counts == (5,) * 10
    found = contests.Contest({draw.key: draw}, spare={draw.key: spare.images}, totals={draw.key: spare.totals})
    tenth, fifth = found.more_real(draw, 0.1, 2), found.more_real(draw, 0.2, 2)
    assert tenth is not None and fifth is not None
    assert tenth.counts == (round(size / 10) - 5,) * 10 and fifth.counts == (round(size / 5) - 5,) * 10
    assert set(tenth.keys) < set(fifth.keys) and not set(fifth.keys) & {
        *draw.real.keys,
        *spare.images.per_class(2).keys,
    }
    nothing = found.more_real(draw, 4 / size, 2)
    assert nothing is not None and len(nothing) == 0  # the draw has five of each


def test_shares_round_to_whole_images_and_take_none_away() -> None:
    assert up_to_share(0.2, (10, 13, 4, 0), (1, 1, 3, 0)) == (1, 2, 0, 0)
    assert [bracket(amount) for amount in (5, 0.1, 0.125)] == ["real + 5", "real at 10 %", "real at 12.5 %"]
    assert Bench.from_dict({"sets": ["a"], "more_real": [1, 0.2]}).more_real == (1, 0.2)


def test_without_a_source_brackets_are_left_out_and_choosing_is_refused(use, tmp_path: Path) -> None:
    use({"a": (table(pictures(8, 0), pictures(8, 1)), table(pictures(20, 9)))})
    found = gather(bench_of(["a"], more_real=[2]), tmp_path, Doing())
    assert "no lines of more real images: no set says from which source it is." in found.notes
    with pytest.raises(RecipeError, match=r"val_per_class: no set says .*, so there is nothing to choose with"):
        gather(bench_of(["a"], val_per_class=2), tmp_path, Doing())


@pytest.mark.parametrize(
    ("gain", "images"),
    [(-0.1, 0), (0, 0), (0.01, 0.5), (0.02, 1), (0.03, 2), (0.05, 4.0), (0.06, 5), (0.061, None)],
)
def test_what_a_gain_is_worth_in_real_images(gain: float, images: float | None) -> None:
    found = images_for(gain, [0, 1, 3, 5], [0, 0.02, 0.04, 0.06])
    assert found == (None if images is None else pytest.approx(images))


def test_a_bracket_below_a_smaller_one_teaches_nothing() -> None:
    assert images_for(0.03, [0, 1, 3, 5], [0, 0.02, 0.01, 0.04]) == pytest.approx(4)
    assert images_for(0.01, [0, 1], [0, -0.02]) is None


# Groups


def test_groups_hold_every_image_once_and_their_mean_is_the_whole(use, tmp_path: Path, encoder: Encoder) -> None:
    real = [*pictures(12, 0, label=0, apart=3), *pictures(3, 1, label=1, apart=3)]
    use({"a": (table(real, pictures(8, 1, apart=3)), table(pictures(60, 9, apart=3)))})
    answer = bench(bench_of(["a"]), [encoder], tmp_path, cache=tmp_path / "cache")
    groups = by_group(answer, ("count", "seen"), (10, 5))
    assert list(groups) == ["many (above 10)", "few (below 5)", "seen classes"]
    for result in answer.results:
        key = result.receipt.cell.key
        parts = [find(groups[name], key) for name in ("many (above 10)", "few (below 5)")]
        assert sum(len(part.correct) for part in parts) == 60
        assert sum(part.correct.sum() for part in parts) / 60 == result.receipt.accuracy
        assert find(groups["seen classes"], key).receipt.accuracy == result.receipt.accuracy
    assert {row.line for row in rows_of(groups["few (below 5)"], resamples=2)} == {"real", "txt2img"}


def test_places_of_test_images_are_groups(use, tmp_path: Path, encoder: Encoder) -> None:
    test = table(pictures(40, 9, apart=3))
    test = test.add_column("place", ["land" if i < 30 else "water" for i in range(40)])
    use({"a": (table(pictures(8, 0, apart=3), pictures(8, 1, apart=3)), test)})
    answer = bench(bench_of(["a"]), [encoder], tmp_path, cache=tmp_path / "cache")
    groups = by_group(answer, ("place",))
    sizes = {name: len(part.results[0].correct) for name, part in groups.items()}
    worst = sizes.pop("worst group")
    assert sizes == {"class 0 at land": 15, "class 0 at water": 5, "class 1 at land": 15, "class 1 at water": 5}
    assert worst in sizes.values()
    for whole, part in zip(answer.results, groups["worst group"].results, strict=True):
        right = whole.table.to_pandas().assign(right=whole.correct).groupby(["label", "place"])["right"].mean()
        assert whole.receipt.cell == part.receipt.cell and part.receipt.accuracy == right.min() == part.correct.mean()


def find(answer: Answer, key: str):
    return next(result for result in answer.results if result.receipt.cell.key == key)


# The file


def test_a_number_of_draws_stands_for_the_first_ones_and_faults_are_named(tmp_path: Path) -> None:
    assert Bench.from_dict({"sets": ["a"], "draws": 600}).draws == tuple(range(600))
    for keys, sentence in (
        ({"draws": 0}, "draws: got 0, value error, expected 1 to 10,000 draws"),
        ({"draws": 10**9}, "draws: got 1000000000, value error, expected 1 to 10,000 draws"),
        ({"draws": [1, 1]}, r"draws: got \[1, 1\], value error, 1 stands there twice"),
        (
            {"more_real": [0]},
            "more_real.0: got 0, value error, expected a whole number of images per class, or a share",
        ),
        ({"more_real": [1.0]}, "more_real.0: got 1.0, value error, expected a whole number of images per class"),
        ({"more_real": [0.2, 0.2]}, r"more_real: got \[0.2, 0.2\], value error, 0.2 stands there twice"),
        ({"count_bounds": [5, 20]}, "count_bounds: got .*the first number must not be below the second"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            Bench.from_dict({"sets": ["a"], **keys})


def test_sets_beside_a_file_are_found_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "bench.yaml").write_text("sets: [run, {set: run, name: other}, org/name, fashion_5shot_genie]\n")
    spec = Bench.from_yaml(tmp_path / "bench.yaml")
    assert [entry.set for entry in spec.sets] == [*2 * [str(tmp_path / "run")], "org/name", "fashion_5shot_genie"]


def test_reading_a_set_finds_nothing_of_its_making_where_it_says_none(use) -> None:
    use({"a": (table(pictures(8, 0), pictures(8, 1)), table(pictures(20, 9)))})
    draw, line = read_set("a")
    assert line.making is None and draw.places == ()


def test_a_finished_run_of_the_same_plan_is_used_again(tmp_path: Path) -> None:
    spec = bench_of(["fashion_5shot_txt2img"], draws=1, changes=SHORT)
    (planned,) = planned_runs(spec, tmp_path / "first", tmp_path / "none")
    assert planned.folder.parent == tmp_path / "first" / "runs" and not planned.is_finished
    assert not made(planned, Doing(until=0)) and not planned.folder.exists()
    out = StringIO()
    assert made(planned, Doing(progress=out)) and planned.is_finished
    said = f"draw 0 of fashion_5shot_txt2img: {planned.price.rows} images to have (fashion_5shot_txt2img, in "
    assert out.getvalue().startswith(f"{said}{planned.folder})\n")
    (again,) = planned_runs(spec, tmp_path / "second", tmp_path / "first" / "runs")
    assert (again.folder, again.is_finished) == (planned.folder, True)
    other = bench_of(["fashion_5shot_txt2img"], draws=[1], changes=SHORT)
    (next_draw,) = planned_runs(other, tmp_path / "second", tmp_path / "first" / "runs")
    assert next_draw.folder.parent == tmp_path / "second" / "runs"


def test_a_dry_run_plans_each_set_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned, real = [], runs.price_plan

    def price_plan(recipe: Recipe, **options):
        planned.append(recipe.protocol)
        return real(recipe, **options)

    monkeypatch.setattr(runs, "price_plan", price_plan)
    sets = ["fashion_5shot_txt2img", "fashion_5shot_img2img"]
    spec = Bench.from_dict({"sets": sets, "draws": 4, "changes": {"per_class": 1}, "controls": ["real"]})
    found = outlook(spec, [], tmp_path, Doing(runs=tmp_path / "none"))
    assert (planned, found.runs, found.draws, found.images) == (["5shot"] * 2, 8, 4, 80)


def test_a_dry_run_knows_a_long_tail_before_anything_is_made(tmp_path: Path, encoder: Encoder) -> None:
    keys = {"draws": 2, "changes": {"per_class": 1}, "controls": ["real", "rebalanced"]}
    for name, lines in (("fashion_lt10_txt2img", 3), ("fashion_5shot_txt2img", 2)):
        spec = Bench.from_dict({"sets": [name], **keys})
        assert outlook(spec, [encoder], tmp_path, Doing(runs=tmp_path / "none")).cells == 2 * lines
