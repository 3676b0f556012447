"""The page in a headless browser: 5,000 rows, wide and narrow, light and dark, by keyboard; nothing is asked for."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from headless import Headless, chromium

from diffaug_datasets.report.page import write_report
from diffaug_datasets.run.store import Run

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(chromium() is None, reason="no Chromium here"),
    pytest.mark.timeout(600),
]
MakeRun = Callable[..., Run]
FOCUSED = "[...document.querySelectorAll('#every-image .tile')].indexOf(document.activeElement)"
IS_OPEN = "document.querySelector('.grid-one').open"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Headless]:
    found = Headless(str(chromium()), tmp_path / "profile")
    yield found
    found.close()


def choose(browser: Headless, name: str, value: str) -> str:
    """Set a field of the grid's form as a person does; what the page then says of what it shows."""
    field = f"document.querySelector('.grid-form').elements['{name}']"
    browser.value(f"{field}.value = '{value}'; {field}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    return str(browser.value("document.querySelector('.grid-status').textContent"))


def test_five_thousand_rows_at_two_widths_light_and_dark(make_run: MakeRun, browser: Headless, tmp_path: Path) -> None:
    run = make_run(method="txt2img", class_names=("bag", "boot", "coat", "dress", "shirt"), per_class=1000, side=8)
    page = write_report([run], tmp_path / "report.html")
    grounds = {}
    for width in (1366, 390):
        for scheme in ("light", "dark"):
            browser.open(page, width, scheme)
            assert browser.value("document.querySelectorAll('#every-image .tile').length") == 5000
            assert browser.value("document.querySelector('.grid-status').textContent") == "5000 of 5000 images shown."
            assert browser.value("document.documentElement.scrollWidth") <= width, (width, scheme)
            beyond = (
                "[...document.querySelectorAll('.tile')].filter((t) => t.getBoundingClientRect().right > innerWidth)"
            )
            assert browser.value(f"{beyond}.length") == 0, (width, scheme)
            grounds[width, scheme] = browser.value("getComputedStyle(document.body).backgroundColor")
            assert browser.told("Runtime.exceptionThrown") == [] == browser.told("Log.entryAdded")
            asked = {told["request"]["url"] for told in browser.told("Network.requestWillBeSent")}
            assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    assert grounds[1366, "light"] == grounds[390, "light"] != grounds[390, "dark"] == grounds[1366, "dark"]


def test_filters_order_and_keys(make_run: MakeRun, browser: Headless, tmp_path: Path) -> None:
    browser.open(write_report([make_run(per_class=12)], tmp_path / "report.html"), 1366, "light")
    doubted = browser.value("document.querySelectorAll('#every-image .tile.doubted').length")
    assert doubted > 0 and browser.value("document.querySelector('#every-image .tile').classList.contains('doubted')")
    shares = browser.value(
        "[...document.querySelectorAll('.grid-class')].map((s) => s.querySelectorAll('.doubted').length)"
    )
    assert shares == sorted(shares, reverse=True), "the worst class does not come first"
    assert choose(browser, "show", "doubted") == f"{doubted} of 36 images shown."
    assert choose(browser, "show", "") == "36 of 36 images shown."
    assert choose(browser, "class", "boot") == "12 of 36 images shown."
    assert choose(browser, "low", "5") == "0 of 36 images shown."
    choose(browser, "low", "")
    browser.value("document.querySelector('#every-image .tile').focus()")
    for key, place in (("ArrowRight", 1), ("ArrowLeft", 0), ("End", 11), ("Home", 0)):
        browser.press(key)
        assert browser.value(FOCUSED) == place, key
    browser.press("Enter")
    assert browser.value(IS_OPEN) is True
    assert "diffaug show" in browser.value("document.querySelector('.grid-shown').textContent")
    browser.press("ArrowRight")
    browser.press("Escape")
    assert browser.value(IS_OPEN) is False and browser.value(FOCUSED) == 1


def test_two_runs_stand_side_by_side(make_run: MakeRun, browser: Headless, tmp_path: Path) -> None:
    runs = [make_run("one", per_class=4), make_run("two", method="txt2img", per_class=4)]
    for width in (1366, 390):
        browser.open(write_report(runs, tmp_path / "report.html"), width, "light")
        assert browser.value("document.querySelectorAll('.grid-class:first-child .grid-column').length") == 2
        assert browser.value("document.querySelectorAll('#every-image .tile').length") == 24
        assert browser.value("document.documentElement.scrollWidth") <= width
