"""Retrieval end to end on real pools of every kind: what is found, what is refused, what a row says about it."""

import json
import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps

import diffaug_datasets
from diffaug_datasets.core.errors import BackboneError, DiffAugError, PlanError, SourceError
from diffaug_datasets.core.images import source_id
from diffaug_datasets.core.method import PlanSpec
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.methods import retrieval
from diffaug_datasets.models import image_index
from diffaug_datasets.planning.catalogue import config_recipe, merged
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.release.read import load
from diffaug_datasets.report.page import write_report
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.shards import read_stream
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions
from diffaug_datasets.sources.pools import DatasetPool

FASHION = Path(diffaug_datasets.__file__).parent / "assets" / "tiny" / "fashion"


def encoded(name: str, places: range) -> list[bytes]:
    column = pq.read_table(FASHION / f"{name}.parquet")["image"]
    return [bytes(column[i].as_py()["bytes"]) for i in places]


@pytest.fixture(scope="module")
def pool() -> list[bytes]:
    """20 images per class."""
    return [data for c in range(10) for data in encoded("retrieval", range(500 * c, 500 * c + 20))]


def write_pool(images: list[bytes], path: Path, **columns: list[str]) -> str:
    features = datasets.Features({"picture": datasets.Image(), **{name: datasets.Value("string") for name in columns}})
    rows = {"picture": [{"bytes": data, "path": None} for data in images], **columns}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return str(path)


def recipe(pool: str, **changes: Any) -> Recipe:
    small = {
        "per_class": 3,
        "config": {"pool": pool},
        "include_test": False,
        "scores": {"encoder": None, "judge": None},
    }
    return config_recipe("fashion_2shot_retrieval", **merged(small, changes))


def made(folder: Path, wanted: Recipe) -> tuple[Run, list[dict[str, Any]]]:
    run = write_run(prepare(wanted), folder)
    execute(run, WorkerOptions(), workers=1)
    return run, [row for s in run.plan.shards() for row in read_stream(str(run.shard_path(s.name))).to_pylist()]


def measured(row: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(row["measured"]))


def index_receipt(run: Run) -> dict[str, Any]:
    receipt = run.receipt(run.plan.fits[-1].name)
    assert receipt is not None
    return receipt.measured


def test_a_row_is_the_pool_image_itself_and_says_so(tmp_path: Path, pool: list[bytes]) -> None:
    urls = [f"https://example.org/{i}" for i in range(len(pool))]
    place = write_pool(pool, tmp_path / "pool.parquet", URL=urls, license=["CC0"] * len(pool))
    run, rows = made(tmp_path / "run", recipe(place))
    assert len(rows) == 30
    for row in rows:
        found = measured(row)
        data = row["image"]["bytes"]
        assert source_id(data) == found["pool_id"] == source_id(pool[found["pool_row"]])
        assert (found["url"], found["license"]) == (urls[found["pool_row"]], "CC0")
        assert (row["origin"], row["is_synthetic"], row["backbone"]) == ("retrieved", False, None)
        assert found["rank"] == json.loads(row["draw"])["rank"]
        assert row["image_format"] == "png"
        assert (row["width"], row["height"]) == (32, 32)
    assert len({measured(row)["pool_id"] for row in rows}) == 30
    for label in range(10):
        ranked = sorted((measured(r)["rank"], -measured(r)["similarity"]) for r in rows if r["label"] == label)
        assert ranked == sorted(ranked, key=lambda pair: pair[1])
    assert len(load(run.folder, augmented_only=True)) == 30
    both = datasets.load_dataset(str(run.folder), "fashion_2shot_retrieval_synthetic", cache_dir=str(tmp_path / "c"))
    assert set(both["train"]["origin"]) == {"retrieved"}
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "images retrieved with <b>Retrieval</b>" in page
    assert "images generated with" not in page
    assert "cosine of a retrieved image to what it was looked for with" in page


def test_the_nearest_images_are_those_that_a_plain_search_finds(tmp_path: Path, pool: list[bytes]) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    folder = str(FASHION.parent / "encoder")
    model, words = CLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    images = [Image.open(BytesIO(data)).convert("RGB") for data in pool]
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images, return_tensors="pt").pixel_values
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=pixels).pooler_output
        asked = model.get_text_features(**words(["a photo of a sandal"], return_tensors="pt")).pooler_output
    cosines = torch.nn.functional.cosine_similarity(seen, asked)
    off = {"duplicates": {"hash_distance": None, "cosine": None}}
    _, rows = made(tmp_path / "run", recipe(write_pool(pool, tmp_path / "p.parquet"), config=off))
    got = sorted((measured(r) for r in rows if r["label"] == 5), key=lambda found: int(found["rank"]))
    assert [found["pool_row"] for found in got] == cosines.argsort(descending=True)[:3].tolist()
    assert [found["similarity"] for found in got] == pytest.approx(cosines.sort(descending=True).values[:3].tolist())


def as_jpeg(data: bytes) -> bytes:
    buffer = BytesIO()
    Image.open(BytesIO(data)).convert("RGB").save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


def enlarged(data: bytes) -> bytes:
    buffer = BytesIO()
    Image.open(BytesIO(data)).resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(("disguise", "words"), [(bytes, "same bytes as a"), (as_jpeg, "looks like a")])
def test_test_and_source_images_are_never_retrieved(
    tmp_path: Path, pool: list[bytes], disguise: Callable[[bytes], bytes], words: str
) -> None:
    tests = encoded("test", range(0, 1000, 100))
    known = {source_id(data): data for data in encoded("pool", range(2000))}
    two_shot = prepare(config_recipe("fashion_2shot_img2img", include_test=False)).plan.real
    planted = [disguise(data) for data in (*tests, *(known[row.source_ids[0]] for row in two_shot))]
    place = write_pool(pool + planted, tmp_path / "pool.parquet")
    # All that there is, so that every planted image is met.
    run, rows = made(tmp_path / "run", recipe(place, per_class=24, include_test=True, failure_budget=1.0))
    assert {measured(row)["pool_id"] for row in rows}.isdisjoint(map(source_id, planted))
    removed = index_receipt(run)["removed"]
    assert removed[f"{words} test"] >= 10
    assert removed[f"{words} source"] >= 20
    if disguise is as_jpeg:  # without the tests of look they do come through
        blind = {"duplicates": {"hash_distance": None, "cosine": None}}
        _, seen = made(tmp_path / "blind", recipe(place, per_class=24, failure_budget=1.0, config=blind))
        assert len({measured(row)["pool_id"] for row in seen} & set(map(source_id, planted))) > 20


def test_pictures_that_look_alike_come_once(tmp_path: Path, pool: list[bytes]) -> None:
    copies = [enlarged(data) for data in pool[100:110]] + [as_jpeg(data) for data in pool[110:120]]
    place = write_pool([*pool, *pool[:5], *copies], tmp_path / "pool.parquet")
    look = {"hash_distance": 8, "cosine": 0.98, "rule": "both"}
    wanted = recipe(place, per_class=22, failure_budget=1.0, config={"duplicates": look})
    run, rows = made(tmp_path / "run", wanted)
    assert prepare(wanted).pool is not None
    assert len(prepare(wanted).pool or ()) == 220  # byte-equal images are one
    got = {measured(row)["pool_id"] for row in rows}
    for original, copy in zip(pool[100:120], copies, strict=True):
        assert not {source_id(original), source_id(copy)} <= got
    assert index_receipt(run)["removed"]["looks like a row"] >= 20


def test_a_pool_that_runs_out_fails_rows_with_the_reason(tmp_path: Path, pool: list[bytes]) -> None:
    run, rows = made(tmp_path / "run", recipe(write_pool(pool[:25], tmp_path / "p.parquet"), failure_budget=1.0))
    failed = [lost for s in run.plan.shards() for r in [run.receipt(s.name)] if r for lost in r.failed]
    assert len(rows) + len(failed) == 30
    assert len(rows) <= 25
    assert all("the pool has no image of rank" in lost.reason for lost in failed)


def test_an_unreadable_pool_image_is_left_out(tmp_path: Path, pool: list[bytes]) -> None:
    broken = [pool[0][:200], b"no image", *pool[1:100]]
    run, rows = made(tmp_path / "run", recipe(write_pool(broken, tmp_path / "p.parquet")))
    [seen] = [run.receipt(unit.name) for unit in run.plan.fits if unit.kind == "pool_features"]
    assert seen is not None
    assert seen.measured["unreadable"] == 2
    assert {measured(row)["pool_id"] for row in rows}.isdisjoint(map(source_id, broken[:2]))


def test_image_queries_find_what_looks_like_each_source(tmp_path: Path, pool: list[bytes]) -> None:
    place = write_pool(pool, tmp_path / "p.parquet")
    _, rows = made(tmp_path / "run", recipe(place, config={"query": "image"}, scores={"encoder": "tiny"}))
    assert {len(row["source_ids"]) for row in rows} == {1}
    assert {row["prompt"] for row in rows} == {None}
    for label in range(10):
        own = [row for row in rows if row["label"] == label]
        assert sorted(measured(row)["rank"] for row in own) == [0, 0, 1]
        assert all(row["source_similarity"] == pytest.approx(measured(row)["similarity"], abs=1e-5) for row in own)


def image_folder(images: list[bytes], folder: Path) -> str:
    for i, data in enumerate(images):
        path = folder / f"part{i % 3}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(folder)


def saved(images: list[bytes], folder: Path) -> str:
    table = datasets.Dataset.from_parquet(write_pool(images, folder.with_suffix(".parquet")))
    datasets.DatasetDict({"a": table, "b": table.select(range(3))}).save_to_disk(str(folder))
    return str(folder)


def arrow_files(images: list[bytes], folder: Path) -> str:
    table = datasets.Dataset.from_parquet(write_pool(images, folder.with_suffix(".parquet")))
    folder.mkdir()
    with pa.ipc.new_stream(str(folder / "pool.arrow"), table.data.table.schema) as writer:
        writer.write_table(table.data.table)
    return str(folder)


def parquet_folder(images: list[bytes], folder: Path) -> str:
    folder.mkdir()
    write_pool(images[:40], folder / "b.parquet")
    write_pool(images[40:], folder / "a.parquet")
    return str(folder)


@pytest.mark.parametrize("write", [image_folder, saved, arrow_files, parquet_folder])
def test_every_kind_of_pool_is_the_same_pool(
    tmp_path: Path, pool: list[bytes], write: Callable[[list[bytes], Path], str]
) -> None:
    place = write(pool, tmp_path / "pool")
    found = prepare(recipe(place))
    assert found.plan.id == prepare(recipe(write_pool(pool, tmp_path / "same.parquet"))).plan.id
    opened = DatasetPool(place)
    assert {opened.read(r, i) for i, r in zip(opened.table.ids, opened.table.rows, strict=True)} == set(pool)
    with pytest.raises(SourceError, match="is no longer image"):
        opened.read(opened.table.rows[0], "ab" * 32)


def test_another_image_in_the_pool_is_another_plan(tmp_path: Path, pool: list[bytes]) -> None:
    one, other = (prepare(recipe(write_pool(p, tmp_path / f"{len(p)}.parquet"))) for p in (pool, pool[1:]))
    assert one.plan.id != other.plan.id


def test_a_row_leads_nowhere_outside_the_pool(tmp_path: Path, pool: list[bytes]) -> None:
    (tmp_path / "secret.png").write_bytes(pool[0])
    features = datasets.Features({"image": datasets.Image()})
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "secret.png")}]}
    (tmp_path / "in").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "in" / "p.parquet"))
    with pytest.raises(SourceError, match="holds no image bytes"):
        prepare(recipe(str(tmp_path / "in")))


@pytest.mark.parametrize(
    ("place", "said"),
    [("/no/such/pool", "where nothing is"), ("", "there is no pool to retrieve from"), ("nothing here", "nothing is")],
)
def test_a_pool_that_is_not_there_is_one_sentence(place: str, said: str) -> None:
    with pytest.raises(DiffAugError, match=said) as refusal:
        prepare(recipe(place))
    assert "a Hub id (org/name" in str(refusal.value)


def test_a_pool_without_images_names_its_columns(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(str(tmp_path / "t.parquet"))
    with pytest.raises(SourceError, match="has the columns text; expected one Image"):
        prepare(recipe(str(tmp_path / "t.parquet")))


def test_a_builder_names_its_own_pool_and_a_missing_test_split_is_said() -> None:
    prepared = prepare(config_recipe("fashion_5shot_retrieval", include_test=False))
    assert prepared.recipe.config["pool"] == "tiny"
    assert prepared.pool is not None
    assert len(prepared.pool) > 4990
    assert "no test images" in " ".join(prepared.plan.header.warnings)
    assert "no test images" not in " ".join(prepare(config_recipe("fashion_5shot_retrieval")).plan.header.warnings)


def test_planning_without_a_pool_is_refused() -> None:
    table = SourceTable("toy", "train", ("a",), ("a",), "", (Source("00" * 32, 0, "a/0"),))
    with pytest.raises(PlanError, match=r"set config\.pool"):
        list(retrieval.plan(retrieval.Config(), table, PlanSpec(seed=0, backbone="m")))


def test_without_faiss_a_large_pool_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_index, "EXACT_UP_TO", 10)
    monkeypatch.setitem(sys.modules, "faiss", None)
    vectors = torch.nn.functional.normalize(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    with pytest.raises(BackboneError, match=r"config\.search to exact") as told:
        image_index.searcher(vectors[:3], vectors, "auto")
    assert "`pip install '.[retrieval]'` in your clone" in str(told.value)


def test_a_mirrored_copy_is_seen_by_the_encoder_alone() -> None:
    """The limit that `perceptual_hash` states."""
    from diffaug_datasets.core.images import perceptual_hash

    bag = Image.open(BytesIO(encoded("test", range(501, 502))[0]))
    assert (perceptual_hash(bag) != perceptual_hash(ImageOps.mirror(bag))).sum() > 8
