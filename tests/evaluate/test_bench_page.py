"""The page of a bench: complete, safe whatever the names are, and honest about what is missing."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from answers import kept, result, simulated
from tables import Sets, pictures
from tables import table as rows_of

from diffaug_datasets.evaluate import draws as drawing
from diffaug_datasets.evaluate.bench import bench
from diffaug_datasets.evaluate.bench_page import write_page
from diffaug_datasets.evaluate.classes import by_class, harms
from diffaug_datasets.evaluate.record import read_bench
from diffaug_datasets.evaluate.suite import Bench
from diffaug_datasets.evaluate.table import table
from diffaug_datasets.models.encoders import Encoder

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style></title><svg/onload=alert(1)>")
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Parses a page: tags balanced, nothing from elsewhere, no script, styles are numbers alone."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.alts: list[str] = []
        self.pieces: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        assert not any(name.startswith("on") for name in told)
        assert told.get("src", "data:image/").startswith("data:image/") and told.get("href", "#").startswith("#")
        assert re.fullmatch(r"(--v:-?[\d.]+)?", told.get("style", ""))
        self.tags.append(tag)
        self.alts += [told["alt"]] if "alt" in told else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.pieces.append(data + " ")


def page(folder: Path) -> Page:
    found = read_bench(folder)
    return Page(write_page(found, table(found.answer), folder / "report.html").read_text(encoding="utf-8"))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    answer = simulated(tmp_path, {HOSTILE[0]: -0.2, HOSTILE[1]: 0.1}, draws=2, kind={"setting": HOSTILE[2]})
    kept(tmp_path, answer, names=HOSTILE, place="gone/set", leaks=("<b>",))
    found = page(tmp_path)
    assert "script" not in found.tags and "b" in found.tags
    for name in HOSTILE:
        assert " ".join(name.split()) in found.text
    assert "No pictures: the set is not there any more" in found.text


def test_policy_forbids_everything_but_inline_styles_and_images(tmp_path: Path) -> None:
    kept(tmp_path, simulated(tmp_path, {"a": 0.1}, draws=2))
    page(tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'" in html
    assert "url(" not in html and "@import" not in html


def test_costs_are_plotted_where_they_are_known(tmp_path: Path) -> None:
    answer = simulated(tmp_path, {"a": 0.1}, draws=2)
    kept(tmp_path, answer)
    assert "Accuracy against" not in page(tmp_path).text
    rng = np.random.default_rng(0)
    cells = [
        result(tmp_path, d, line, rng.integers(0, 3, 90), images=images, evaluations=evaluations, kind={"setting": "s"})
        for d in answer.draws
        for line, images, evaluations in (("real", 10, 0), ("a", 30, 5000))
    ]
    kept(tmp_path, type(answer)(answer.draws, (), tuple(cells)))
    text = page(tmp_path).text
    assert "Accuracy against images" in text and "Accuracy against U-Net evaluations" in text


def test_harms_are_the_paired_differences_by_class(tmp_path: Path) -> None:
    labels = np.arange(300) % 3
    always = np.where(labels == 1, 2, labels)  # dogs are taken for foxes
    answer = type(simulated(tmp_path, {"a": 0}, draws=1))(
        ("0", "1"),
        (),
        (
            result(tmp_path, "0", "real", labels),
            result(tmp_path, "0", "a", np.where(np.arange(300) < 150, always, labels)),
            result(tmp_path, "1", "real", labels),
            result(tmp_path, "1", "a", always),
        ),
    )
    judge = ("tiny@1", "logistic", "p 0.5")
    found = by_class(answer.results, judge, 3)
    np.testing.assert_allclose(found["a"].mean, [1, 0.25, 1])
    [harm] = harms(found, ["a"], 5)
    assert (harm.line, harm.label, harm.draw) == ("a", 1, "1") and harm.change == pytest.approx(-0.75)
    assert harms(found, ["a", "b"], 0) == []


def test_the_images_behind_a_bad_class_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every generated `light` image is dark and the other way round, so test images are lost."""
    wrong = [(picture, 1 - label) for picture, label in pictures(20, 2)]
    sets = {"a": (rows_of(pictures(6, 0), wrong), rows_of(pictures(40, 1)))}
    monkeypatch.setattr(drawing, "load", Sets(**sets))
    spec = Bench.from_dict({"sets": ["a"], "mixing": {"probability": 1.0}, "classifiers": ["logistic"]})
    bench(spec, [Encoder.load("tiny")], tmp_path, cache=tmp_path / "cache")
    found = page(tmp_path)
    assert "light txt2img, -" in found.text and "taken for dark" in found.text
    assert found.alts.count("real image of class light") == 3
    assert found.alts.count("generated image of class light") == 8
    assert found.alts.count("test image of class light") >= 1
    monkeypatch.setattr(drawing, "load", Sets(a=(sets["a"][0], rows_of(pictures(40, 7)))))
    assert "No pictures: the set has other test images than it had" in page(tmp_path).text
