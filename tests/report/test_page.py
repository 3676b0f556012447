"""The page: complete, safe whatever the names are, light, and honest about what is missing."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.report import page as report
from diffaug_datasets.report.page import protocol_words, write_report
from diffaug_datasets.report.rendering import count, seconds
from diffaug_datasets.run.store import Run

METHODS = ("txt2img", "img2img", "genie", "genie_ada", "diff_ii", "diff_mix", "da_fusion")
VOID = {"meta", "img", "input", "br"}
OURS = ["application/json", ""]  # the types of the scripts of a page, which stand at its end
INLINE = {"a", "b", "i", "em", "small", "code", "span", "label", "summary", "figcaption", "title", "style", "text"}
BLOCKS = {"html", "head", "body", "main", "header", "footer", "nav", "section", "article", "figure", "div", "details"}
BLOCKS |= {"h1", "h2", "h3", "h4", "p", "pre", "dl", "dt", "dd", "ol", "ul", "li"}
BLOCKS |= {"table", "thead", "tbody", "tfoot", "tr", "th", "td"}
CONTROLS = {"form", "select", "option", "button", "dialog", "script"}
DRAWN = {"svg", "path", "polyline", "circle"}
ATTRIBUTES = {"class", "id", "title", "style", "lang", "charset", "content", "name", "http-equiv", "href", "rel"}
ATTRIBUTES |= {"src", "width", "height", "alt", "decoding", "type", "scope", "data-name", "role"}
ATTRIBUTES |= {
    "hidden",
    "value",
    "step",
    "checked",
    "aria-label",
    "aria-labelledby",
    "aria-hidden",
    "viewbox",
    "cx",
    "cy",
    "r",
    "d",
    "points",
    "x",
    "y",
}
LINKS = re.compile(r"#[\w-]+|https://arxiv\.org/abs/[\d.]+|https://github\.com/zalandoresearch/fashion-mnist")


class Page(HTMLParser):
    """Parses a page strictly: known tags and attributes, balanced, nothing loaded from anywhere."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.classes: list[str] = []
        self.alts: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.pieces: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID | INLINE | BLOCKS | DRAWN | CONTROLS, tag
        names = [name for name, _ in attrs]
        assert set(names) <= ATTRIBUTES and len(names) == len(set(names)), (tag, names)
        told = {name: value or "" for name, value in attrs}
        assert told.get("src", "data:image/").startswith("data:image/")
        assert LINKS.fullmatch(told.get("href", "#x")), told
        assert re.fullmatch(r"(--[nv]:[\d.]+)?", told.get("style", ""))
        assert tag != "img" or told["alt"]
        self.tags.append(tag)
        self.scripts += [told.get("type", "")] if tag == "script" else []
        self.alts += [told["alt"]] if "alt" in told else []
        self.ids += [told["id"]] if "id" in told else []
        self.links += [told["href"][1:]] if told.get("href", "").startswith("#") else []
        self.pieces += [" "] if tag in BLOCKS else []
        self.classes += told.get("class", "").split()
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.pieces.append(data)


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Page]:
    """Writes the report of runs and parses it."""

    def written(*runs: Run) -> Page:
        out = write_report(runs, tmp_path / "report.html")
        return Page(out.read_text(encoding="utf-8"))

    return written


@pytest.mark.parametrize("method", METHODS)
def test_hostile_names_and_prompts_stay_text(method: str, make_run: Callable[..., Run], hostile, page) -> None:
    found = page(make_run(method=method, class_names=hostile, per_class=2, failing=2))
    for name in hostile:
        assert " ".join(name.split()) in found.text
        assert f"generated image of class {name}" in found.alts
    assert found.scripts == OURS and "{{ 7 * 7 }}" in found.text


def test_policy_forbids_everything_but_inline_styles_images_and_our_script(make_run, tmp_path: Path) -> None:
    html = write_report([make_run()], tmp_path / "r.html").read_text(encoding="utf-8")
    first = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"
    assert html.count(first) == 1 and "'; base-uri 'none'; form-action 'none'" in html
    assert re.findall(r"url\((.{9})", html) == ['"${uri}")'] and "@import" not in html


def test_every_class_shows_sources_beside_results(make_run, page) -> None:
    found = page(make_run(method="genie_ada", per_class=4, shots=2))
    assert found.classes.count("card") == 3 * 4 + 12
    assert found.classes.count("trajectory") == 3 * 4
    made = {alt.removeprefix("generated image of class ") for alt in found.alts if alt.startswith("generated")}
    assert made == {"bag", "boot", "coat"}
    assert "The Ada trajectories" in found.text and "ratio r" in found.text


def test_the_method_says_what_it_does_in_its_own_words(make_run, page) -> None:
    found = page(make_run(method="txt2img"))
    assert "The class name as a prompt, pure noise as the start" in found.text
    assert "How an image is made" in found.text and "guided denoising over the whole schedule" in found.text


def test_diff_ii_shows_circle_suffix_and_losses(make_run, page) -> None:
    found = page(make_run(method="diff_ii", per_class=3))
    assert found.classes.count("circle") == 3 * 3
    assert "on a <b>table</b>" in found.text and "mean" in found.text and "suffix for 7 steps" in found.text
    assert found.classes.count("loss") == 1 and "loss first" in found.text


def draw_previews(run: Run, *names: str) -> None:
    """PNG files beside the concept fit."""
    unit = next(unit for unit in run.plan.fits if unit.kind == "concepts")
    folder = run.fit_folder(unit.name) / "previews"
    folder.mkdir()
    for name in names:
        Image.new("RGB", (32, 32), "teal").save(folder / name, "PNG")


def test_a_fit_shows_how_its_classes_grew(make_run, page) -> None:
    steps = [f"step-{step:06d}-class-{label}.png" for label in (0, 2) for step in (100, 200, 300)]
    strange = ["step-000100-class-9.png", "step-1-class-<b>.png", "step--1-class-0.png", "other.png"]
    run = make_run(method="diff_ii", per_class=1)
    draw_previews(run, *steps, *strange)
    found = page(run)
    assert found.classes.count("growth") == 2 and found.classes.count("loss") == 1
    assert [alt for alt in found.alts if "after" in alt] == [
        f"class {name} after {step} steps" for name in ("bag", "coat") for step in (100, 200, 300)
    ]
    assert found.text.count("step 100 step 200 step 300") == 2


def test_a_fit_that_was_taken_over_or_has_no_pictures_shows_none(make_run, page) -> None:
    run = make_run(method="diff_ii", per_class=1)
    assert "growth" not in page(run).classes
    draw_previews(run, "step-000100-class-0.png")
    assert "growth" in page(run).classes
    unit = next(unit for unit in run.plan.fits if unit.kind == "concepts")
    receipt = run.receipt(unit.name)
    run.receipt_path(unit.name).unlink()
    run.write_receipt(receipt.model_copy(update={"evaluations": 0}))  # copied, so nothing was computed here
    assert "growth" not in page(run).classes


def test_diff_mix_shows_the_weights_of_its_label(make_run, page) -> None:
    found = page(make_run(method="diff_mix", per_class=6, recipe={"config": {"strengths": [0.5], "gamma": 0.5}}))
    assert re.search(r"label (bag|boot|coat) 0\.71, (bag|boot|coat) 0\.29", found.text)
    assert "strength 0.50" in found.text and "ratio r" not in found.text


def test_counts_add_up_and_failures_are_named(make_run, page) -> None:
    run = make_run(per_class=6, failing=3)
    found = page(run)
    assert "constant <image>" in found.text and "3 tries" in found.text
    assert "all 9 18 15 3 15" in found.text
    assert run.plan.rows[0].row_id[:10] in found.text


def test_links_inside_the_page_lead_somewhere(make_run, page) -> None:
    found = page(make_run("one", method="genie"), make_run("two", method="diff_ii"))
    assert len(found.ids) == len(set(found.ids))
    assert set(found.links) <= set(found.ids)


def test_several_runs_are_compared(make_run, page) -> None:
    found = page(*(make_run(method, method=method, per_class=2) for method in METHODS))
    for title in ("Txt2Img", "Img2Img", "GeNIe", "GeNIe-Ada", "Diff-II", "Diff-Mix", "DA-Fusion"):
        assert title in found.text
    assert found.classes.count("strip") == 3
    assert found.text.count("At a glance") == 1 and "7 runs over 3 classes" in found.text


@pytest.mark.parametrize("shards", [0, 1])
def test_an_unfinished_run_says_what_is_missing(shards: int, make_run, page) -> None:
    found = page(make_run(shards=shards))
    assert "Not finished: synthetic-0000" in found.text and "diffaug generate" in found.text
    assert f"{8 * shards} of 18 planned" in found.text


def test_a_run_without_its_last_step_says_so(make_run, page) -> None:
    assert "not assembled yet" in page(make_run(assembled=False)).text


def test_a_damaged_shard_is_left_out_and_named(make_run, page) -> None:
    run = make_run()
    run.shard_path("synthetic-00000").write_bytes(b"\0" * 100)
    found = page(run)
    assert "synthetic-00000.arrow has a receipt but cannot be read" in found.text and "10 of 18 planned" in found.text


def test_without_scores_nothing_is_judged(make_run, page) -> None:
    found = page(make_run(scored=False))
    assert "verdict" not in found.classes and "worst" not in found.classes and "judge agrees" not in found.text


def test_filters_mark_rows_as_taken_out(make_run, page) -> None:
    scores = {"encoder": "tiny"}
    found = page(make_run(recipe={"scores": scores, "filters": [{"column": "clip_margin", "minimum": 0.1}]}))
    assert "taken out: clip_margin below 0.1" in found.text
    lowest = page(make_run("share", recipe={"scores": scores, "filters": [{"column": "clip_margin", "lowest": 0.5}]}))
    assert "taken out: clip_margin among the lowest 50" in lowest.text


def test_large_pictures_become_small_ones_and_the_page_stays_light(make_run, tmp_path: Path, monkeypatch) -> None:
    run = make_run(side=256, real_side=300, per_class=6)
    full = write_report([run], tmp_path / "full.html").read_text(encoding="utf-8")
    assert "data:image/webp" in full and 'width="128"' in full
    monkeypatch.setattr(report, "PAGE_BYTES", len(full.encode()) - 1)
    light = Page(write_report([run], tmp_path / "light.html").read_text(encoding="utf-8"))
    assert "9 of 18 images" in light.text


def test_the_same_run_gives_the_same_page(make_run, tmp_path: Path) -> None:
    run = make_run()
    pages = [write_report([run], tmp_path / f"{i}.html").read_text(encoding="utf-8") for i in range(2)]
    assert len({re.sub(r"Page written .*? UTC", "", html) for html in pages}) == 1


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="got no run; name at least one"):
        write_report([], tmp_path / "r.html")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("full", "all images"),
        ("1shot", "1 image per class"),
        ("5shot_seed2", "5 images per class, trial 2"),
        ("lt100", "a long tail, 100 to 1"),
        ("10pct", "10 % of the images"),
    ],
)
def test_protocols_in_words(name: str, words: str) -> None:
    assert protocol_words(name) == words


def test_numbers_read_well() -> None:
    assert count(1234567) == "1\u202f234\u202f567"
    assert [seconds(s) for s in (0.5, 12.4, 200, 7500)] == ["0.50 s", "12 s", "3 min 20 s", "2 h 05 min"]
