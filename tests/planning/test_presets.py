"""Every value of every preset says where it stands; a value without a place, or a place without one, is refused."""

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Command

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.planning.presets import families, presets, presets_of

FOLDER = Path(str(files("diffaug_datasets") / "recipes" / "presets"))
FORMS = (
    r"[\w.-]+/[\w.-]+ at [0-9a-f]{7}, \S+:\d[\d, -]*( \(.+\))?",
    r".+ \(arXiv \d{4}\.\d{5}\), (section|appendix|table|algorithm|equation) .+",
    r".+ \(arXiv \d{4}\.\d{5}\), .+, at second hand( \(.+\))?",
    r"ours: .{20,}",
)
# The commits that the method specification read (its section 0.1), Diff-Mix's first release, and of later methods.
COMMITS = {
    "scuwyh2000/Diff-II at 8c0fa1a",
    "Zhicaiwww/Diff-Mix at a81337b",
    "Zhicaiwww/Diff-Mix at 4aa0ec8",
    "UCDvision/GeNIe at ee34b11",
    "brandontrabucco/da-fusion at ea784ad",
    "yongchaoz/diffusion_inversion at fa49f92",
    "CVMI-Lab/SyntheticData at 062ac23",
    "khawar-islam/diffuseMix at e58418d",
    "nukezil/DiffDA-Eval at 00f7dd8",
    "ExplainableML/DataDream at a71515f",
    "Vanint/DatasetExpansion at 554e608",
    "yunxiangfu2001/DreamDA at 03be6ff",
    "lisadunlap/ALIA at ce01c94",
    "EyalMichaeli/SaSPA-Aug at 87799b4",
    "huggingface/diffusers at 6fc8aff",
}


def keys(content: Any, above: str = "") -> set[str]:
    """`a.b` of every value inside a mapping."""
    found: set[str] = set()
    for key, value in content.items():
        found |= keys(value, f"{above}{key}.") if isinstance(value, dict) else {above + key}
    return found


def test_every_value_says_where_it_stands() -> None:
    for name, preset in presets().items():
        assert set(preset.origins) == {"setting", *keys(preset.changes)}, name
        for key, origin in preset.origins.items():
            assert any(re.fullmatch(form, origin.text) for form in FORMS), f"{name}: {key}: {origin.text}"
            assert origin.published == (not re.search(r"^ours: |, at second hand", origin.text)), name


def test_code_is_of_the_commits_that_were_read() -> None:
    texts = {origin.text for preset in presets().values() for origin in preset.origins.values()}
    assert {found[1] for text in texts if (found := re.match(r"(\S+/\S+ at [0-9a-f]{7}), ", text))} == COMMITS


def shipped(name: str = "diff_ii.yaml") -> dict[str, Any]:
    """What a file holds."""
    content = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def planted(change: Callable[[dict[str, Any]], object]) -> str:
    """What is said of Diff-II's presets where one thing was changed."""
    content = shipped()
    change(content)
    with pytest.raises(RecipeError) as error:
        presets_of(content, "diff_ii.yaml")
    return str(error.value)


def test_a_value_without_a_place_is_refused() -> None:
    def set_one(content: dict[str, Any]) -> None:
        content["presets"][0]["set"]["config"]["norm"] = "geodesic"

    assert planted(set_one) == (
        "diff_ii.yaml: diff_ii@cub_5shot: config.norm: nothing says where it stands; name its place under from."
    )


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.yaml")))
def test_every_word_on_places_says_something(name: str) -> None:
    """Without any one of them a value has no place, or another one."""
    content = shipped(name)
    before = {preset.name: preset.origins for preset in presets_of(content, name)}
    for holder in (*content.get("bases", {}).values(), *content["presets"]):
        for place, told in holder.get("from", {}).items():
            for key in list(told):
                told.remove(key)
                try:
                    after = {preset.name: preset.origins for preset in presets_of(content, name)}
                except RecipeError as error:
                    assert re.search(r"nothing says where|a place is named for it|where no value stands", str(error))
                else:
                    assert after != before, f"{place}: {key} says nothing"
                told.append(key)


CHANGES: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("odd: a place where no value stands; take it out", lambda c: c["places"].update(odd={"ours": "for no reason"})),
    (
        "base code: config.arc: a place is named for it, but it is no value; take it out.",
        lambda c: c["bases"]["code"]["from"]["count"].append("config.arc"),
    ),
    (
        "diff_ii@cub_5shot_code: per_image: 2 places are named for it; name one under from.",
        lambda c: c["bases"]["code"]["from"]["steps"].append("per_*"),
    ),
    ("papr: no such paper; expected diff_ii", lambda c: c["places"]["details"].update(paper="papr")),
    ("gone: no such code; expected diff_ii", lambda c: c["places"]["steps"].update(code="gone")),
    ("gone: no such base; expected paper, ", lambda c: c["presets"][0].update(base="gone")),
    ("gone: no such place; expected few_shot, ", lambda c: c["presets"][0].update({"from": {"gone": ["setting"]}})),
    (
        "more: no place is in this paper; take it out",
        lambda c: c["papers"].update(more={"title": "More", "arxiv": "2001.00001"}),
    ),
    ("expected paper and at", lambda c: c["places"]["steps"].pop("lines")),
    ("expected paper and at", lambda c: c["places"]["details"].update(ours="and ours")),
    ("expected paper and at", lambda c: c["places"]["steps"].update(second_hand=True)),
    ("places.steps.lines", lambda c: c["places"]["steps"].update(lines="somewhere")),
    ("code.diff_ii.commit", lambda c: c["code"]["diff_ii"].update(commit="main")),
    ("presets.0.unsure: unknown key", lambda c: c["presets"][0].update(unsure=["setting"])),
    ("diff_ii@cub_5shot stands there twice; take one out.", lambda c: c["presets"].append(c["presets"][0])),
    ("base few_shot: is based on itself", lambda c: c["bases"]["paper"].update(base="few_shot")),
]


@pytest.mark.parametrize(("told", "change"), CHANGES, ids=[told[:40] for told, _ in CHANGES])
def test_what_is_not_sound_is_refused(told: str, change: Callable[[dict[str, Any]], object]) -> None:
    said = planted(change)
    assert told in said and said.startswith("diff_ii.yaml: ") and said.count("\n") == 0


def test_presets_that_differ_in_dataset_and_protocol_alone_are_shown_together() -> None:
    groups = families("diff_ii")
    assert sorted(one.name for group in groups for one in group) == [
        n for n in sorted(presets()) if n.startswith("diff_ii@")
    ]
    assert [one.name for one in groups[0]] == [f"diff_ii@{b}_5shot" for b in ("cub", "aircraft", "cars", "pets")]
    assert all(len({(one.about, str(one.changes)) for one in group}) == 1 for group in groups)


def test_the_command_line_says_it_beside_the_value(diffaug: Command) -> None:
    page = diffaug("methods", "diff_ii@cub_5shot_code").out
    [line] = [line for line in page.splitlines() if line.startswith("config.inversion_steps ")]
    assert re.search(r" 200 +scuwyh2000/Diff-II at 8c0fa1a, get_inversion\.py:149-151", line)
    whole = diffaug("methods", "diff_ii").out
    assert "diff_ii@cub_5shot, diff_ii@aircraft_5shot, diff_ii@cars_5shot, diff_ii@pets_5shot:" in whole
    assert "The sets: Diff-II (arXiv 2408.16266), section 4.1." in whole
    assert diffaug("methods", "diff_ii@nowhere").code == 2
