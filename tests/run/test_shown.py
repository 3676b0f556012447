"""How often images show their class: the interval, the classes that stand out, and what is said of them."""

from typing import Any

import pyarrow as pa
import pytest
from scipy import stats

from diffaug_datasets.core.plan import PlanHeader
from diffaug_datasets.run import shown as shown_module
from diffaug_datasets.run.shown import Oracle, RealCheck, Shown, class_shown, share, with_seen

NAMES = ("daisy", "iris", "colts_foot")


def header(method: str = "txt2img") -> PlanHeader:
    names = {"class_names": NAMES, "prompt_names": ("daisy", "iris", "colts foot"), "metaclass": "flower"}
    origin = {"sources": "x", "test_sources": None, "source_revision": "", "backbone": "tiny"}
    return PlanHeader(name="flowers_full_x", recipe={"method": method}, method_version=1, **names, **origin)


def oracle(
    column: str = "judge_label", images: tuple[int, ...] = (50, 50, 50), right: tuple[int, ...] = (45, 45, 45)
) -> Oracle:
    real = {"of": "test", "images": images, "right": right}
    return Oracle.model_validate({"kind": "judge", "model": "resnet@1", "column": column, "real": real})


def table(seen: dict[int, list[int | None]], column: str = "judge_label") -> pa.Table:
    """Label -> what is seen in each of its images."""
    pairs = [(label, one) for label, values in seen.items() for one in values]
    kind = pa.float32() if column == "clip_margin" else pa.int32()
    return pa.table({"label": [label for label, _ in pairs], column: pa.array([one for _, one in pairs], kind)})


@pytest.mark.parametrize(("hits", "n"), [(0, 2), (2, 2), (1, 7), (83, 100), (999, 1000), (0, 40)])
def test_the_interval_is_wilsons(hits: int, n: int) -> None:
    ends = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert share(hits, n) == pytest.approx((hits / n, ends.low, ends.high), abs=1e-12)
    assert share(0, 0) == (0, 0, 1)


def test_a_class_far_below_is_named_with_what_it_is_taken_for() -> None:
    seen = {0: [0] * 19 + [1], 1: [1] * 20, 2: [2] * 4 + [0] * 15 + [1]}
    shown = class_shown(oracle(), table(seen), header())
    lines = list(shown.lines())
    assert lines[0] == "shows its class: 72 % (best iris 100, worst colts_foot 20)"
    assert lines[1] == "  by the judge resnet@1, right on 90 % of 150 real test images"
    assert lines[2] == (
        "  colts_foot: 20 % of 20 images; 15 are seen as daisy; the model may not know 'colts foot': call it otherwise"
        ", or learn it from its images (diff_ii or diff_mix)"
    )
    assert len(lines) == 3 and [one.name for one in shown.far_below] == ["colts_foot"]
    assert shown.facts()["classes"]["colts_foot"]["value"] == 0.2  # type: ignore[index]


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("diff_ii", "raise config.concepts.steps"),
        ("genie", "raise config.ratio"),
        ("genie_ada", "raise config.levels"),
        ("diff_mix", "raise config.concepts.steps"),
        ("real_mix", "raise config.strengths"),
        ("diffusion_inversion", "raise config.embeddings.steps"),
        ("retrieval", "give another one"),
        ("of somebody else", "look at the images themselves"),
    ],
)
def test_the_advice_follows_from_the_method(method: str, told: str) -> None:
    seen = {0: [0] * 20, 1: [1] * 20, 2: [0] * 20}
    [low] = class_shown(oracle(), table(seen), header(method)).far_below
    assert told in low.remark
    assert low.text().startswith("colts_foot: 0 % of 20 images; 20 are seen as daisy; ")


def test_an_oracle_that_cannot_see_the_class_is_told_so_first() -> None:
    seen = {0: [0] * 20, 1: [1] * 20, 2: [0] * 20}
    [low] = class_shown(oracle(right=(49, 49, 10)), table(seen), header()).far_below
    assert low.remark == "this oracle is right on 20 % of its 50 real images only, so look at the images themselves"


def test_few_images_accuse_no_class() -> None:
    shown = class_shown(oracle(), table({0: [0, 0], 1: [1, 1], 2: [0, 0]}), header())
    assert shown.far_below == () and shown.value == pytest.approx(4 / 6)


def test_of_a_margin_the_sign_alone_is_known() -> None:
    margins: Any = {0: [0.1, -0.2, None], 1: [0.0]}
    shown = class_shown(oracle("clip_margin"), table(margins, "clip_margin"), header())
    assert [(one.name, one.images, one.shown, one.instead) for one in shown.classes] == [
        ("daisy", 2, 1, ""),
        ("iris", 1, 0, ""),
    ]


@pytest.mark.parametrize(
    ("images", "right", "is_poor"),
    [
        ((50, 50, 50), (20, 15, 15), True),  # what chance gives
        ((50, 50, 50), (23, 23, 23), True),  # more than that, and wrong on most
        ((50, 50, 50), (30, 30, 30), False),
        ((50, 50, 0), (28, 27, 0), True),  # of two classes, half is chance
        ((1, 1, 0), (0, 1, 0), False),  # nobody can tell from two images
    ],
)
def test_an_oracle_must_know_real_images(images: tuple[int, ...], right: tuple[int, ...], is_poor: bool) -> None:
    assert oracle(images=images, right=right).is_poor is is_poor


def test_without_an_oracle_there_is_no_number_but_the_reason() -> None:
    shown = class_shown(None, table({0: [0]}), header(), "for the recipe names no encoder")
    assert list(shown.lines()) == ["shows its class: not known, for the recipe names no encoder"]
    assert shown.facts()["value"] is None
    assert Shown.model_validate_json(shown.model_dump_json()) == shown


def test_numbers_of_a_stranger_end_nothing() -> None:
    """A published statement about itself may be anything of the right type."""
    odd = Oracle(kind="judge", model="x", column="judge_label", real=RealCheck(of="test", images=(1,), right=(9, 9, 9)))
    shown = class_shown(odd, table({0: [0] * 30, 2: [70] * 30, 9: [0]}), header())
    assert [one.name for one in shown.classes] == ["daisy", "colts_foot"]


def test_rows_that_go_are_not_counted() -> None:
    columns = {"row_id": ["a", "b"], "label": [0, 1], "judge_label": [0, 0], "clip_margin": [None, None]}
    left = with_seen([pa.table(columns)], {"a": 1, "b": 2}, {"b"})
    assert left.column("seen_label").to_pylist() == [1] and left.column("label").to_pylist() == [0]


def test_shards_are_looked_at_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    row_ids = [f"{number:02d}" for number in range(10)]
    columns = {"label": range(10), "judge_label": range(10), "clip_margin": [number / 10 for number in range(10)]}
    whole = pa.table({"row_id": row_ids, **{name: pa.array(values) for name, values in columns.items()}})
    shards = [whole.slice(begin, 2) for begin in range(0, 10, 2)]
    seen, without = {"03": 7, "08": 2}, {"04", "05"}
    at_once = with_seen(shards, seen, without)
    monkeypatch.setattr(shown_module, "OPEN_SHARDS", 2)
    assert with_seen(iter(shards), seen, without).equals(at_once)
    assert at_once.column("label").to_pylist() == [0, 1, 2, 3, 6, 7, 8, 9]
    assert at_once.column("seen_label").to_pylist() == [None, None, None, 7, None, None, 2, None]


def test_classes_that_could_not_be_tried_are_counted() -> None:
    """With one training image a class has nothing to be compared with, so the number of images is not that of all."""
    real = RealCheck(of="training", images=(15, 14, 0), right=(15, 14, 0))
    shots = Oracle(kind="shots", model="clip", column="seen_label", real=real)
    right = "right on 100 % of 29 real training images"
    assert shots.text() == f"by clip and the real images, {right} (1 class of one image or none not tried)"
    tested = shots.model_copy(update={"real": real.model_copy(update={"of": "test"})})
    assert tested.text() == "by clip and the real images, right on 100 % of 29 real test images"
