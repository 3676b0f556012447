"""Every degenerate input of the specification's table, by id: the policy that applies, and what it says."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from test_plans import SPEC, plan_of, table

from diffaug_datasets.core.errors import PlanError, RecipeError, SourceError
from diffaug_datasets.core.images import decode_image, source_id
from diffaug_datasets.core.method import Generated, discover_methods, other_noise
from diffaug_datasets.core.method_facts import FALLBACKS, fallback_text
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.plan import draw_plan
from diffaug_datasets.core.profiles import EXACT
from diffaug_datasets.core.protocols import draw_subset, parse_protocol
from diffaug_datasets.core.recipe import Filter, Recipe
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.methods import diff_ii, genie, genie_ada
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.numerics.interpolation import angle, circle
from diffaug_datasets.numerics.selection import largest_jump
from diffaug_datasets.run.assembly import Assembled, ClassCount, select_rows
from diffaug_datasets.run.batch import BatchJob
from diffaug_datasets.run.execute import emptied
from diffaug_datasets.run.looking import flaw
from diffaug_datasets.sources.real import read_real

# The rows of the table, in its order.
IDS = (
    *("one_image", "no_image", "coincident_latents", "antipodal_latents", "cosine_above_one", "negative_cosine"),
    *("unequal_norms", "not_finite", "target_without_images", "source_equals_target", "tied_jumps", "class_names"),
    *("small_class", "odd_images", "dotted_stems", "emptied_class"),
)
# Methods that make images of a class without one of its own, if they are told how many.
WITHOUT_IMAGES = {"txt2img", "genie", "genie_ada", "retrieval", "real_gen", "real_mix"}


class Latents:
    """The part of a context that Diff-II's interpolation asks for."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def fit(self, name: str) -> dict[str, torch.Tensor]:
        return self.tensors


def on_circle(a: torch.Tensor, b: torch.Tensor, **config: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """Diff-II's start of a row between two inversions."""
    row = next(row for row in plan_of("diff_ii").rows if row.start_step == 0)
    ends = {f"{source}/{row.label}": end for source, end in zip(row.source_ids, (a, b), strict=True)}
    draw = diff_ii.Draw.model_validate_json(row.draw)
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    start = diff_ii.start_of(row, draw, noise, diff_ii.Config(**config), Latents(ends))  # type: ignore[arg-type]
    return start.latent, start.measured


def latent(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed))


def one_image() -> str:
    policies = ("noise_partner", "self_noise", "diff_aug")
    for policy in policies:
        alone = [row for row in plan_of("diff_ii", (3, 1), single_image_policy=policy).rows if row.label == 1]
        assert {row.fallback for row in alone} == {policy}
    [told] = plan_of("diff_ii", (3, 1), single_image_policy="skip").header.warnings
    assert told.startswith("no image is planned for 1 of 2 classes, such as ")
    with pytest.raises(PlanError, match=r"has one image, so no pair; set config\.single_image_policy"):
        plan_of("diff_ii", (3, 1), single_image_policy="error")
    return FALLBACKS["no_partner"] * any(
        row.fallback == "no_partner" for row in plan_of("diffusion_inversion", (3, 1)).rows
    )


def no_image() -> str:
    said = ""
    for name in discover_methods():
        recipe = Recipe.from_dict({"builder": "toy", "method": name})
        with pytest.raises(PlanError, match="class 'class 1' has no training image") as refusal:
            draw_plan("x", recipe, table((3, 0, 2)), None, SPEC)
        said = str(refusal.value)
        told = replace(SPEC, per_class=2)
        if name in WITHOUT_IMAGES:
            assert {row.label for row in draw_plan("x", recipe, table((3, 0, 2)), None, told).rows} == {0, 1, 2}
        else:
            with pytest.raises(PlanError, match=f"{name} plans nothing for it"):
                draw_plan("x", recipe, table((3, 0, 2)), None, told)
    return said


def coincident_latents() -> str:
    point, measured = on_circle(latent(), latent())
    assert torch.isfinite(point).all()
    return fallback_text(measured["fallback"])


def antipodal_latents() -> str:
    point, measured = on_circle(latent(), -latent())
    assert torch.isfinite(point).all()
    return fallback_text(measured["fallback"])


def cosine_above_one() -> str:
    half = latent().half()
    assert float(half.flatten() @ half.flatten()) != float(half.norm() ** 2)  # what goes wrong in half precision
    assert angle(half, half) == 0.0
    return f"angle {angle(half, -half):.5f}"


def negative_cosine() -> str:
    a = latent()
    b = -a + 0.5 * latent(1)
    assert angle(a, b) > math.pi / 2
    point, measured = on_circle(a, b)
    assert torch.isfinite(point).all()
    return "fallback" * ("fallback" in measured) or "as any other pair"


def unequal_norms() -> str:
    a, b = latent(), 3 * latent(1)
    point, measured = on_circle(a, b)
    assert torch.equal(point, circle(a, b, measured["phi"]))
    assert torch.equal(on_circle(a, b, norm="geodesic")[0], circle(a, b, measured["phi"], "geodesic"))
    assert measured["norm_b"] == pytest.approx(3 * float(latent(1).norm()), rel=1e-5)
    assert measured["norm_z"] == pytest.approx(float(point.norm()), rel=1e-5)
    return " ".join(sorted(key for key in measured if key.startswith("norm")))


tries: list[int | None] = []


class Spoilt:
    """A method whose every image is not a number; it notes the seeds of `tries`."""

    NAME = "spoilt"

    redraw = staticmethod(other_noise)

    @staticmethod
    def generate(rows: list[PlanRow], config: Any, ctx: Any) -> list[Generated]:
        tries.extend(row.seed for row in rows)
        return [Generated(torch.full((4, 4, 3), torch.nan)) for _ in rows]


def not_finite() -> str:
    row = plan_of("txt2img").rows[0]
    tries.clear()

    class Context:
        batch_shape = 1
        recipe = SimpleNamespace(profile=EXACT)

        @staticmethod
        def source(source_id: str) -> None:
            """Every source can be read."""

    job = BatchJob(Spoilt, None, Context(), 0, 1, 3)  # type: ignore[arg-type]
    made, failed = job.make((row,))
    assert len(set(tries)) == 3
    assert not made
    return f"{failed[0].reason}, {failed[0].attempts} attempts; {flaw(Generated(torch.ones(4, 4, 3)))}"


def target_without_images() -> str:
    told = replace(SPEC, per_class=2)
    rows = [row for row in genie.plan(genie.Config(), table((3, 0, 2)), told) if row.label == 1]
    assert {row.fallback for row in rows} == {None}
    ada = [row for row in genie_ada.plan(genie_ada.Config(), table((3, 0, 2)), told) if row.label == 1]
    [fallback] = {row.fallback for row in ada}
    backbone = Backbone.load(BackboneSpec(id="tiny"), "cpu")
    noise = torch.stack([latent(i) for i in range(len(ada))])
    ctx: Any = SimpleNamespace(backbone=backbone, noise=lambda _: noise, source=lambda _: Image.new("RGB", (8, 8)))
    alone = genie_ada.generate(ada, genie_ada.Config(), ctx)
    assert backbone.rows_evaluated == sum(genie_ada.evaluations(genie_ada.Config(), row) for row in ada) == 2 * 90
    beside = genie_ada.chosen(ada[0], [alone[0]] * 5, [latent()] * 5, genie_ada.Config(), ctx)
    assert beside == alone[0] and beside.measured == {"levels": (0.9,), "fallback": fallback}
    return fallback_text(fallback or "")


def source_equals_target() -> str:
    row = plan_of("genie_ada").rows[0]
    same = torch.ones(4) / 2
    known = {f"{row.source_ids[0]}/{row.source_labels[0]}": same, f"x/{row.label}": same}
    index, measured = genie_ada.judged(row, [same] * 5, Latents(known))  # type: ignore[arg-type]
    assert index == 4
    return fallback_text(str(measured["fallback"]))


def tied_jumps() -> str:
    assert largest_jump([0.0, 0.0, 0.0]) == 1
    return f"level {largest_jump([0.5, 0.1, 0.5, 0.1])}"


def class_names() -> str:
    sources = tuple(Source(f"{i:02d}" * 32, i, f"{i}/0") for i in range(3))
    names = ("crane/bird", "Black_footed_Albatross", "crane (machine)")
    odd = SourceTable("toy", "train", names, ("crane", "black footed albatross", "crane (machine)"), "", sources)
    rows = list(discover_methods()["img2img"].plan(discover_methods()["img2img"].Config(), odd, SPEC))
    assert {row.label for row in rows} == {0, 1, 2}
    assert not any("_" in (row.prompt or "") for row in rows)
    with pytest.raises(SourceError, match="share one name; rename or merge them") as refusal:
        SourceTable("toy", "train", ("crane", "crane"), ("crane", "crane"), "", ())
    return str(refusal.value)


def small_class() -> str:
    counted, five = table((7, 2)), parse_protocol("5shot")
    warned = draw_subset(five, counted)
    assert sorted(warned.labels) == [0] * 5 + [1] * 2
    assert len(set(warned.indices)) == 7
    again = draw_subset(five, counted, "duplicate")
    assert sorted(again.labels) == [0] * 5 + [1] * 5
    assert set(again.indices) >= {7, 8}
    assert "some come again" in again.warnings[0]
    with pytest.raises(RecipeError, match="asked for 5 images, found 2; give more images, ask for fewer"):
        draw_subset(five, counted, "error")
    return warned.warnings[0]


def encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, options.pop("format", "JPEG"), **options)
    return buffer.getvalue()


def odd_images() -> str:
    turned = Image.Exif()
    turned[274] = 6
    wide = Image.new("RGB", (6, 4), "red")
    assert decode_image(encoded(wide, exif=turned)).size == (4, 6)
    for mode in ("CMYK", "L"):
        assert decode_image(encoded(Image.new(mode, (6, 4)))).mode == "RGB"
    assert decode_image(encoded(Image.new("RGBA", (6, 4)), format="PNG")).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(SourceError, match="cut short, the file ends") as refusal:
        decode_image(encoded(wide)[:100], "bird.jpg")
    return str(refusal.value)


def dotted_stems(folder: Path) -> str:
    pictures = {name: encoded(Image.new("RGB", (8, 8), name)) for name in ("red", "blue")}
    (folder / "a").mkdir()
    for stem, data in zip(("a.b.jpg", "a.c.jpg"), pictures.values(), strict=True):
        (folder / "a" / stem).write_bytes(data)
    found = read_real("imagefolder", folder).train.sources
    assert {source.id for source in found} == {source_id(data) for data in pictures.values()}
    return " ".join(source.key for source in found)


def emptied_class() -> str:
    rows = [{"row_id": str(i), "label": i // 3, "clip_margin": -1.0 + i / 10} for i in range(6)]
    drop = select_rows(rows, [Filter(column="clip_margin", minimum=0.0)]).dropped
    keep = select_rows(rows, [Filter(column="clip_margin", minimum=0.0, min_keep=1)])
    assert len(drop) == 6
    assert set(drop) - set(keep.dropped) == set(keep.spared) == {"2", "5"}  # the best of each class, flagged
    kept = {"name": "bag", "real": 1, "planned": 3, "failed": 0}
    counts = (ClassCount(**kept, written=3, kept=0), ClassCount(**kept, written=3, kept=1))
    assert not emptied(Assembled.model_construct(counts=counts[1:]))
    return emptied(Assembled.model_construct(counts=counts))


CHECKS: dict[str, tuple[Callable[..., str], str]] = {
    "one_image": (one_image, "varied by noise alone"),
    "no_image": (no_image, "or partial: true to leave such classes out"),
    "coincident_latents": (coincident_latents, "the two inversions coincide"),
    "antipodal_latents": (antipodal_latents, "the two inversions are opposite"),
    "cosine_above_one": (cosine_above_one, "angle 3.14159"),
    "negative_cosine": (negative_cosine, "as any other pair"),
    "unequal_norms": (unequal_norms, "norm_a norm_b norm_z"),
    "not_finite": (not_finite, "not finite, 3 attempts; constant image"),
    "target_without_images": (target_without_images, "no image to compare with: the largest level is kept"),
    "source_equals_target": (source_equals_target, "look the same to the encoder: the largest level is kept"),
    "tied_jumps": (tied_jumps, "level 1"),
    "class_names": (class_names, "rename or merge them"),
    "small_class": (small_class, "asked for 5 images, found 2; all are kept, none twice"),
    "odd_images": (odd_images, "bird.jpg: cut short, the file ends before the picture does"),
    "dotted_stems": (dotted_stems, "a.b.jpg a/a.c.jpg"),
    "emptied_class": (
        emptied_class,
        "no image of 1 of 2 classes, such as 'bag' (of 3 written); give the filters a min_keep",
    ),
}


def test_every_row_of_the_table_has_a_policy_and_a_check() -> None:
    assert tuple(CHECKS) == IDS
    assert all(text.strip() for text in FALLBACKS.values())


@pytest.mark.parametrize("case", IDS)
def test_degenerate_input(case: str, tmp_path: Path) -> None:
    check, words = CHECKS[case]
    said = check(tmp_path) if case == "dotted_stems" else check()
    assert words in said


def test_every_method_without_images_is_one() -> None:
    assert set(discover_methods()) >= WITHOUT_IMAGES


def test_every_fallback_that_a_plan_gives_has_words() -> None:
    told = replace(SPEC, per_class=2)
    seen = set()
    for name, method in discover_methods().items():
        recipe = Recipe.from_dict({"builder": "toy", "method": name})
        rows = draw_plan("x", recipe, table((3, 1)), None, told).rows
        seen |= {row.fallback for row in rows if row.fallback}
        assert all(json.loads(row.draw) is not None for row in rows), method.NAME
    assert seen <= set(FALLBACKS)
    assert {"noise_partner", "no_partner"} <= seen
