"""The shipped suites: values beside a second typing, a source for each, and names that the package knows."""

import re
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.protocols import parse_protocol
from diffaug_datasets.evaluate import paper_suites
from diffaug_datasets.evaluate.bench import bracket
from diffaug_datasets.evaluate.paper_suites import Suite, find_benches, load_suite, suite_names
from diffaug_datasets.evaluate.papers import paper_tables
from diffaug_datasets.evaluate.suite import Network, Probe
from diffaug_datasets.planning.catalogue import config_recipe

FOLDER = Path(paper_suites.__file__).parent / "suites"
SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine", "warm_up": 0.1}
SMOOTH = {"label_smoothing": 0.1, "augmentation": "weak"}
SMALL, LARGE, LARGEST = ({"image_size": side} for side in (224, 384, 448))
TAIL = {"epochs": 200, "batch_size": 128, "learning_rate": 0.005, "optimizer": "sgd", "momentum": 0.9, **SMALL}
RN50 = {"kind": "fine_tuned", "model": "microsoft/resnet-50"}
VIT = {"kind": "fine_tuned", "model": "google/vit-base-patch16-384"}
FEW_RN50 = {**RN50, "epochs": 128, "batch_size": 256, **SGD, **SMOOTH, **SMALL}
FEW_VIT = {**VIT, "epochs": 100, "batch_size": 32, **SGD, **SMOOTH, **LARGE}
MIX = {"epochs": 120, **SGD, **SMOOTH}
MIX_224 = {**RN50, **MIX, "batch_size": 256, **SMALL}
MIX_384 = {**RN50, **MIX, "batch_size": 128, **LARGE}
MIX_448 = {**RN50, **MIX, "batch_size": 64, **LARGEST}
MIX_VIT = {**VIT, **MIX, "batch_size": 32, **LARGE}
HEAD = {"kind": "head", "steps": 10_000, "batch_size": 32, "optimizer": "adam", "learning_rate": 1e-4}
THIN_AIR = {"kind": "scratch", "steps": 50_000, "batch_size": 128, "learning_rate": 0.1, "warm_up": 0.02}
UNIFIED = {**FEW_RN50, "learning_rate": 0.1, "warm_up": 0}
LIVT = {"epochs": 100, "batch_size": 1024, "learning_rate": 0.008, "image_size": 224}
# Typed a second time from the papers' settings and their code: a pattern of benches, and values of its classifier.
CLASSIFIERS = [
    ("diffii_rn50@(aircraft|cars)_.*", {**FEW_RN50, "learning_rate": 0.1}),
    ("diffii_parts@aircraft_5shot", {**FEW_RN50, "learning_rate": 0.1}),
    ("diffii_rn50@cub_.*", {**FEW_RN50, "learning_rate": 0.05}),
    ("diffii_rn50@pets_.*", {**FEW_RN50, "learning_rate": 0.01}),
    ("diffii_vitb@(aircraft|cars|cub)_.*", {**FEW_VIT, "learning_rate": 1e-3}),
    ("diffii_vitb@pets_.*", {**FEW_VIT, "learning_rate": 1e-4}),
    ("diffii_lt@.*", {**RN50, **TAIL, "weight_decay": 5e-4, "schedule": "cosine", "warm_up": 0.1}),
    ("diffii_lt@.*", {"label_smoothing": 0.1, "augmentation": "classic"}),
    ("diffii_ood@cub_5shot", {**FEW_RN50, "learning_rate": 0.05}),
    ("diffmix@cub_(rn50_224|5shot|10shot)", {**MIX_224, "learning_rate": 0.05}),
    ("diffmix@(aircraft|cars)_(rn50_224|5shot|10shot)", {**MIX_224, "learning_rate": 0.1}),
    ("diffmix@flowers_rn50_224", {**MIX_224, "learning_rate": 0.05}),
    ("diffmix@pets_(5|10)shot", {**MIX_224, "learning_rate": 0.01}),
    ("diffmix@.*_rn50_384", MIX_384),
    ("diffmix@cub_rn50_448", {**MIX_448, "learning_rate": 0.025}),
    ("diffmix@(aircraft|cars)_rn50_448", {**MIX_448, "learning_rate": 0.05}),
    ("diffmix@(cub|aircraft|cars)_vitb_384", {**MIX_VIT, "learning_rate": 1e-3}),
    ("diffmix@flowers_vitb_384", {**MIX_VIT, "learning_rate": 5e-4}),
    ("diffmix_lt@.*", {**RN50, **TAIL, "weight_decay": 2e-4, "schedule": "steps", "warm_up": 5 / 200}),
    ("diffmix_lt@.*", {"label_smoothing": 0, "augmentation": "classic"}),
    ("genie_(logreg|noise)@.*", {"kind": "logistic", "penalty": 1}),
    ("genie_dino_svm@.*", {"kind": "svm", "penalty": 1}),
    ("genie_lt@imagenet_lt", LIVT),
    ("dafusion_head@.*", {**HEAD, "image_size": 256, "weight_decay": 0, "schedule": "constant"}),
    (
        "dinv_rn18@.*",
        {**THIN_AIR, "optimizer": "sgd", "weight_decay": 5e-4, "schedule": "cosine", "augmentation": "weak"},
    ),
    ("dinv_rn18@cifar.*", {"image_size": 32}),
    ("dinv_rn18@stl10_full", {"image_size": 96}),
    ("dinv_rn18@imagenette_full", {"image_size": 256}),
    ("dinv_rn18@.*mnist_250shot", {"image_size": 28}),
    ("retrieval_in10@imagenet_10pct", {"model": "microsoft/resnet-50", "augmentation": "resized_crop"}),
    ("unidiffda@.*", UNIFIED),
]
# The same of the mixing rule: rule, probability where there is one, weight.
MIXINGS = [
    ("diffii_(rn50|vitb|ood|parts)@.*", ("class", 0.5)),
    ("diffii_lt@.*", ("lt_inverse", 0.5)),
    ("diffmix@.*_(224|384|448)", ("global", 0.1)),
    ("diffmix@.*shot", ("global", 0.3)),
    ("diffmix_lt@.*", ("lt_inverse", 0.5)),
    ("dafusion_head@.*", ("index", 0.5)),
    ("unidiffda@.*", ("global", 0.5)),
]
DRAWS = {
    "genie_logreg@mini.*": 600,
    "genie_logreg@tiered.*": 1000,
    "genie_noise@.*": 600,
    "genie_dino_svm@.*": 100,
    "diffii_(rn50|vitb|parts)@.*": 3,
    "dafusion_head@.*": 8,
}
BOUNDS = {"diff(ii|mix)_lt@cub_.*": (20, 5), "diff(ii|mix)_lt@flowers_.*": (30, 10), "genie_lt@.*": (100, 20)}
UNIFIED_SHARES = {
    "cub_5shot": (0.1, 0.5, 0.5, 0.7, 0.5),
    "aircraft_5shot": (0.9, 0.5, 0.5, 0.7, 0.5),
    "cub_10shot": (0.3, 0.3, 0.3, 0.3, 0.3),
    "aircraft_10shot": (0.3, 0.5, 0.5, 0.7, 0.5),
}
EVERY = {f"{suite}@{name}": bench for suite in suite_names() for name, bench in load_suite(suite).plans.items()}


def of(pattern: str) -> list[str]:
    found = [name for name in EVERY if re.fullmatch(pattern, name)]
    assert found, pattern
    return found


def test_every_suite_is_there() -> None:
    assert set(suite_names()) == {
        *("diffii_rn50", "diffii_vitb", "diffii_lt", "diffii_ood", "diffii_parts", "diffmix", "diffmix_lt"),
        *("genie_logreg", "genie_noise", "genie_dino_svm", "genie_lt", "dafusion_head", "dinv_rn18"),
        *("retrieval_in10", "unidiffda"),
    }


@pytest.mark.parametrize(("pattern", "expected"), CLASSIFIERS, ids=[pattern for pattern, _ in CLASSIFIERS])
def test_classifiers_are_the_papers(pattern: str, expected: dict) -> None:
    for name in of(pattern):
        (classifier,) = EVERY[name].classifiers
        assert {key: getattr(classifier, key) for key in expected} == expected, name


def test_every_classifier_was_typed_twice() -> None:
    assert {name for pattern, _ in CLASSIFIERS for name in of(pattern)} == set(EVERY)


def test_mixing_draws_and_groups_are_the_papers() -> None:
    for pattern, (rule, probability) in MIXINGS:
        for name in of(pattern):
            assert (EVERY[name].mixing.rule, EVERY[name].mixing.probability) == (rule, probability), name
    for name in of("genie_(logreg|noise)@.*"):  # five passes over real images, one over the others
        assert (EVERY[name].mixing.rule, EVERY[name].mixing.weight) == ("concatenate", 1 / 5)
    assert not any(EVERY[name].mixing.same_mass for name in of("genie_(logreg|noise|dino_svm)@.*"))
    for pattern, count in DRAWS.items():
        assert all(EVERY[name].draws == tuple(range(count)) for name in of(pattern))
    for pattern, bounds in BOUNDS.items():
        assert all(EVERY[name].count_bounds == bounds and EVERY[name].groups == ("count",) for name in of(pattern))
    assert all(EVERY[name].seeds == (2020, 2021, 2022) for name in of("diffmix@.*"))
    assert all(EVERY[name].baselines == ("cmo", "cmo_drw") for name in of("diff(ii|mix)_lt@.*"))
    assert EVERY["retrieval_in10@imagenet_10pct"].more_real == (0.2,)
    assert EVERY["diffii_ood@cub_5shot"].groups == ("place",)


def test_the_unified_evaluation_has_a_probability_for_each_method_and_dataset() -> None:
    for name, shares in UNIFIED_SHARES.items():
        sets = EVERY[f"unidiffda@{name}"].sets
        assert [entry.name for entry in sets] == ["Real-Guidance", "DA-Fusion", "Diff-AUG", "Diff-Mix", "Diff-II"]
        assert tuple(entry.mixing.probability for entry in sets if entry.mixing) == shares


@pytest.mark.parametrize("name", EVERY)
def test_every_set_is_a_recipe_of_this_package_in_every_draw(name: str) -> None:
    bench = EVERY[name]
    for entry in bench.sets:
        protocol = parse_protocol(config_recipe(entry.set, **entry.changes).protocol)
        for draw in (bench.draws[0], bench.draws[-1]):
            text = f"{protocol.name}_seed{draw}" if draw else protocol.name
            assert config_recipe(entry.set, **{**entry.changes, "protocol": text}).protocol == text
    names = [entry.name for entry in bench.sets]
    assert None not in names and len(set(names)) == len(names)


@pytest.mark.parametrize("name", suite_names())
def test_every_row_of_a_suites_tables_has_a_line_or_a_reason(name: str) -> None:
    suite = load_suite(name)
    assert {table.id for table in paper_tables().values() if name in table.suites} == set(suite.tables)
    printed = {row for table in suite.tables for row in paper_tables()[table].rows}
    made = {str(entry.name) for bench in suite.plans.values() for entry in bench.sets}
    assert printed <= made | set(suite.rows) | set(suite.missing)
    assert set(suite.rows) | set(suite.missing) <= printed
    for bench in suite.plans.values():
        lines = {*bench.controls, *bench.baselines, *map(bracket, bench.more_real)}
        lines |= {f"{entry.name} alone" for entry in bench.sets if "synthetic_only" in bench.controls}
        assert set(suite.rows.values()) <= lines


@pytest.mark.parametrize("name", suite_names())
def test_datasets_of_a_suite_are_those_of_its_tables(name: str) -> None:
    suite = load_suite(name)
    asked = {config_recipe(entry.set).builder for bench in suite.plans.values() for entry in bench.sets}
    asked |= {bench.test.builder for bench in suite.plans.values() if bench.test}
    printed = {c.dataset for table in suite.tables for c in paper_tables()[table].columns.values()} - {"average"}
    assert printed <= asked


@pytest.mark.parametrize("name", suite_names())
def test_a_source_is_a_place(name: str) -> None:
    for source in load_suite(name).sources:
        assert re.search(r"arXiv \d{4}\.\d{5}|[\w-]+/[\w-]+ at [0-9a-f]{7}|table \d|the paper, ", source.where), source


def content(name: str = "genie_noise") -> dict:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def test_a_value_without_a_source_is_refused() -> None:
    suite = content()
    Suite.model_validate(suite)
    suite["shared"]["classifier"]["seed"] = 3
    with pytest.raises(ValueError, match=r"5way1shot: classifier\.seed: nothing says where it stands"):
        Suite.model_validate(suite)


def test_every_single_value_needs_its_source() -> None:
    for name in suite_names():
        for part in ("sources", "ours"):
            whole = content(name)
            for place, told in enumerate(whole.get(part, [])):
                for key in range(len(told["of"])):
                    suite = deepcopy(whole)
                    suite[part][place]["of"][key] = "title"
                    with pytest.raises(ValueError, match="nothing says where it stands"):
                        Suite.model_validate(suite)


def test_a_source_of_nothing_and_two_of_one_value_are_refused() -> None:
    suite = content()
    suite["ours"].append({"of": ["classifier.epochs"], "why": "no reason"})
    with pytest.raises(ValueError, match=r"classifier\.epochs is no value of a bench"):
        Suite.model_validate(suite)
    suite["ours"][-1]["of"] = ["classifier.penalty"]
    with pytest.raises(ValueError, match=r"classifier\.penalty: it is told 2 times"):
        Suite.model_validate(suite)


def test_a_key_that_a_bench_cannot_have_is_named_with_its_bench() -> None:
    suite = content()
    suite["shared"]["mixing"]["probability"] = 2
    suite["sources"].append({"of": ["mixing.probability"], "where": "table 1"})
    with pytest.raises(RecipeError, match=r"^mini_imagenet_5way1shot: mixing\.probability: got 2"):
        _ = Suite.model_validate(suite).plans


def test_names_that_are_not_there() -> None:
    with pytest.raises(RecipeError, match=r"'diffi': no such suite; expected one of dafusion_head, diffii_lt"):
        find_benches("diffi")
    with pytest.raises(RecipeError, match=r"'diffii_lt@cub': no such bench; diffii_lt has cub_lt100, cub_lt20"):
        find_benches("diffii_lt@cub")
    assert list(find_benches("diffii_lt@cub_lt20")) == ["diffii_lt@cub_lt20"]
    assert list(find_benches("diffii_lt").values()) == [EVERY[name] for name in of("diffii_lt@.*")]


def test_a_classifier_of_cub_is_tested_on_waterbirds() -> None:
    [bench] = find_benches("diffii_ood@cub_5shot").values()
    assert (bench.test.builder, bench.test.source, bench.groups) == ("waterbirds", None, ("place",))
    assert {config_recipe(entry.set).builder for entry in bench.sets} == {"cub"}


def test_epochs_are_of_the_real_images() -> None:
    network = EVERY["diffii_rn50@cub_5shot"].classifiers[0]
    assert isinstance(network, Network)
    in_steps = network.of_draw(1000)
    assert (in_steps.steps, in_steps.epochs) == (128 * 4, None)  # 1000 images in batches of 256
    assert in_steps.of_draw(5) == in_steps
    with pytest.raises(ValueError, match="expected one of the two"):
        Network(kind="scratch", steps=2, epochs=2)


def test_few_shot_lines_have_as_many_images() -> None:
    for name in of("diffii_(rn50|vitb|ood|parts)@.*"):
        shots = parse_protocol(config_recipe(EVERY[name].sets[0].set).protocol).value
        assert EVERY[name].images_per_class == 5 * shots
        for entry in EVERY[name].sets:
            recipe = config_recipe(entry.set, **entry.changes)
            kept = [rule.min_keep for rule in recipe.filters]
            assert (recipe.per_image * shots if not kept else kept[0]) >= 5 * shots


def test_probes_need_no_epochs() -> None:
    assert isinstance(EVERY["genie_noise@mini_imagenet_5way1shot"].classifiers[0], Probe)
