"""Who made the source images of a row, from a person's metadata file to the published provenance and the card."""

import json
from collections import Counter
from typing import Any

import pytest
from hub.server import LoopbackHub
from PIL import Image
from small_release import made
from test_card import Repository

from diffaug_datasets import load
from diffaug_datasets.release.card import markdown
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.layout import LicenceCount
from diffaug_datasets.release.provenance import licence_counts
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.run.store import Run

NAME = "org/toys"
HOSTILE = "CC BY | <b>4.0</b>"
LICENCES = {"red/0.png": HOSTILE, "red/1.png": "CC0", "blue/0.png": "CC0", "blue/1.png": None}


@pytest.fixture(scope="module")
def credited(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run over four images, three of which state terms; each is edited twice."""
    folder = tmp_path_factory.mktemp("credited")
    lines = []
    for number, (name, licence) in enumerate(LICENCES.items()):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (60 * number, 90, 200)).save(path)
        told = {"license": licence, "author": f"Author {number}"} if licence else {}
        lines.append(json.dumps({"file_name": name, **told}))
    (folder / "images" / "metadata.jsonl").write_text("\n".join(lines))
    changes = {"backbone": "tiny", "source": str(folder / "images"), "scores": {}, "per_class": None, "per_image": 2}
    return made(folder / "run", "imagefolder_full_img2img", **changes)


def expected(rows: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Licence -> real images, images made from them, by hand."""
    licence = {r["source_ids"][0]: (r["source_licenses"] or [None])[0] for r in rows if r["origin"] == "real"}
    real = Counter(licence.values())
    edited = Counter(
        name for r in rows if r["origin"] != "real" for name in {licence[source] for source in r["source_ids"]}
    )
    return {name or "not stated": [real[name], edited[name]] for name in real}


@pytest.mark.parametrize("rights", [PublishOptions(with_rights=True), PublishOptions(recipe_only=True)])
def test_every_row_names_the_makers_of_its_sources(hub: LoopbackHub, credited: Run, rights: PublishOptions) -> None:
    publish(credited, NAME, rights)
    rows = load(NAME, f"{credited.plan.header.name}_provenance")
    assert rows.column_names[-2:] == ["source_authors", "source_licenses"]
    stated = {row["source_ids"][0]: row for row in rows if row["origin"] == "real"}
    for row in rows:
        for source, author, licence in zip(
            row["source_ids"], row["source_authors"], row["source_licenses"], strict=True
        ):
            measured = json.loads(stated[source]["measured"])
            assert (author, licence) == (measured.get("author"), measured.get("license"))
    made_rows = [row for row in rows if row["origin"] == "generated"]
    assert len(made_rows) == 8
    assert {row["source_licenses"][0] for row in made_rows} == {HOSTILE, "CC0", None}


def test_the_card_counts_rows_a_licence(hub: LoopbackHub, credited: Run) -> None:
    publish(credited, NAME, PublishOptions(with_rights=True))
    repository = Repository(hub.files(NAME), credited)
    found = {cells[0]: [int(cell) for cell in cells[1:]] for cells in repository.cells("Licences of the source images")}
    numbers = expected(repository.rows("_provenance"))
    assert {name: real for name, (real, _) in numbers.items()} == {HOSTILE: 1, "CC0": 2, "not stated": 1}
    assert sum(edited for _, edited in numbers.values()) == 8
    assert found == {markdown(name): counts for name, counts in numbers.items()}
    info = next(i for i in repository.card.data["dataset_info"] if i["config_name"].endswith("_provenance"))
    assert [feature["name"] for feature in info["features"]][-2:] == ["source_authors", "source_licenses"]


def test_a_set_whose_sources_state_nothing_has_neither_columns_nor_table(hub: LoopbackHub, finished: Run) -> None:
    publish(finished, NAME)
    repository = Repository(hub.files(NAME), finished)
    assert "Licences of the source images" not in repository.card.text
    assert not {name for name in repository.rows("_provenance")[0] if name.startswith("source_")} - {
        *("source_ids", "source_labels", "source_similarity")
    }


def test_a_row_of_two_licences_counts_under_both_and_a_retrieved_one_under_its_own() -> None:
    def row(origin: str, sources: list[str], measured: dict[str, str], **more: str) -> dict[str, Any]:
        ends = {"split": "train", "status": "kept", **more}
        return {"origin": origin, "source_ids": sources, "measured": json.dumps(measured), **ends}

    rows = [
        row("real", ["a"], {"license": "CC0"}),
        row("real", ["b"], {"license": "MIT"}),
        row("real", ["t"], {"license": "GPL"}, split="test"),
        row("generated", ["a", "b"], {"alpha": 1.0}),
        row("generated", ["a", "a"], {}),
        row("generated", ["b"], {}, status="filtered"),
        row("generated", [], {}),
        row("retrieved", ["a"], {"license": "CC BY", "pool_row": "3"}),
    ]
    found = licence_counts(rows, ("kept",))
    assert found == tuple(
        LicenceCount(licence=name, real=real, made=count)
        for name, real, count in (("CC0", 1, 2), ("MIT", 1, 1), ("CC BY", 0, 1))
    )
    assert licence_counts([row("real", ["a"], {"author": "A"})], ("kept",)) == ()
