"""Which fits of another run folder are copied: same name, same stack, and the network of the same size and dtype."""

import hashlib
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from command_line import Command
from small_runs import loading, small_run

from diffaug_datasets.core.errors import PlanError
from diffaug_datasets.core.files import FileDigest
from diffaug_datasets.core.method import FitUnit
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.planning.prepare import refuse_other_plan
from diffaug_datasets.release.read import load
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.reuse import adoptable, refusals, same_images, same_network
from diffaug_datasets.run.stacks import Stack, same_stack
from diffaug_datasets.run.store import Receipt, Run
from diffaug_datasets.run.worker import WorkerOptions

STACK = {"device": "AVX2", "torch": "2.6.0"}
TINY = {"id": "tiny", "dtype": "float32", "height": 32, "width": 32}
LARGE = {"backbone": {**TINY, "height": 64, "width": 64}}
HALF = {"backbone": {**TINY, "dtype": "bfloat16"}}
OPEN = {"backbone": {**TINY, "height": None, "width": None}}


def fitted(folder: Path, slug: str, **changes: Any) -> Run:
    """A run whose fits are said to be done; their files hold anything."""
    run = small_run(folder, slug, **changes)
    for unit in run.plan.fits:
        done(run, unit)
    return run


def done(run: Run, unit: FitUnit) -> None:
    """A file and its receipt."""
    run.fit_folder(unit.name).mkdir(parents=True)
    (run.fit_folder(unit.name) / "x.safetensors").write_bytes(b"anything")
    digest = FileDigest(file="x.safetensors", sha256=hashlib.sha256(b"anything").hexdigest(), size=8)
    run.write_receipt(Receipt(plan_id=run.plan.id, unit=unit.name, files=(digest,), stack=STACK))


def taken(run: Run, *others: Run, stack: dict[str, str] = STACK, native: int = 32) -> set[str]:
    """Kinds of the fits that would be copied."""
    folders = [other.folder for other in others]

    def is_ours(theirs: Stack, _: int) -> bool:
        return same_stack(theirs, stack)

    found = {u.kind: adoptable(u, run, folders, is_ours, lambda: (native, native)) for u in run.plan.fits}
    return {kind for kind, place in found.items() if place is not None}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fitted(tmp_path_factory.mktemp("fits") / "first", "diffii")


@pytest.mark.parametrize("changes", [LARGE, HALF], ids=["size", "dtype"])
def test_a_fit_of_another_network_is_not_taken_although_its_name_is_ours(
    first: Run, tmp_path: Path, changes: dict[str, Any]
) -> None:
    second = small_run(tmp_path / "second", "diffii", **changes)
    assert [u.name for u in second.plan.fits] == [u.name for u in first.plan.fits]
    assert taken(second, first) == set()
    assert len(list(refusals(second, [first.folder]))) == 1
    third = fitted(tmp_path / "third", "diffii", per_class=1, **changes)
    assert taken(second, first, third) == {"concepts", "inversions"}  # the next folder may hold the right one


def test_a_size_that_is_left_open_is_the_networks_own(first: Run, tmp_path: Path) -> None:
    second = small_run(tmp_path / "second", "diffii", **OPEN)
    assert taken(second, first, native=32) == {"concepts", "inversions"}
    assert taken(second, first, native=64) == set()
    assert list(refusals(second, [first.folder])) == []


def test_what_no_diffusion_model_made_is_taken_anyway(tmp_path: Path) -> None:
    first = fitted(tmp_path / "first", "genieada")
    second = small_run(tmp_path / "second", "genieada", **LARGE)
    assert taken(second, first) == {"embeddings"}
    assert list(refusals(second, [first.folder])) == []


def test_another_stack_is_not_taken_but_any_number_of_processes(first: Run, tmp_path: Path) -> None:
    second = small_run(tmp_path / "second", "diffii", per_class=1)
    assert taken(second, first) == {"concepts", "inversions"}
    assert taken(second, first, stack={**STACK, "torch": "2.7.0"}) == set()
    assert taken(second, first, stack={**STACK, "processes": "2"}) == {"concepts", "inversions"}
    assert same_stack(STACK, {**STACK, "processes": "4"}) and not same_stack(STACK, {"device": "AVX2"})


def test_networks_are_compared_by_what_is_written() -> None:
    ours = BackboneSpec(id="tiny", height=32)
    assert same_network(ours, {"dtype": "float32", "variant": None, "height": 32, "width": None}, lambda: (1, 1))
    assert not same_network(ours, {"dtype": "float32", "variant": "fp16", "height": 32, "width": None}, lambda: (1, 1))
    assert same_network(ours, {"dtype": "float32", "variant": None, "height": 32, "width": 48}, lambda: (64, 48))
    assert not same_network(ours, {"dtype": "float32", "variant": None, "height": 32, "width": 48}, lambda: (64, 64))


def test_the_command_says_what_it_does_not_take(first: Run, tmp_path: Path, diffaug: Command) -> None:
    second = small_run(tmp_path / "second", "diffii", **LARGE)
    for unit in second.plan.fits:  # nothing is left to make
        done(second, unit)
    said = diffaug("fit", second.folder, "--fits-from", first.folder, "--allow-mixed-stack", "--workers", 1)
    assert said.code == 0, said.err
    assert (
        f"note: {first.folder}: its fits were made at 32 x 32 pixels in float32, this run is 64 x 64 pixels in "
        "float32; they are made here instead.\n"
    ) in said.out


@pytest.mark.full
def test_concepts_of_another_size_are_learned_again(tmp_path: Path) -> None:
    first, second = (small_run(tmp_path / name, "diffgen", **change) for name, change in (("a", {}), ("b", LARGE)))
    execute(first, WorkerOptions(only_fits=True), workers=1)
    execute(second, WorkerOptions(only_fits=True, fits_from=(first.folder,)), workers=1)
    [unit] = second.plan.fits
    ours, theirs = second.receipt(unit.name), first.receipt(unit.name)
    assert ours and theirs
    assert ours.files != theirs.files and ours.evaluations == theirs.evaluations > 0


def test_other_filters_make_no_image_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are decided upon anew; nothing is generated, and the shards are the same files."""
    first = small_run(tmp_path / "first", "txt2img")
    execute(first, WorkerOptions(), workers=1)
    rows = load(first.folder, augmented_only=True)
    limit = median(rows["judge_confidence"])
    second = small_run(tmp_path / "second", "txt2img", filters=[{"column": "judge_confidence", "minimum": limit}])
    assert second.plan.id != first.plan.id and same_images(first.plan, second.plan)

    def never(spec: BackboneSpec, device: str) -> Any:
        raise AssertionError("a backbone was loaded")

    with loading(never):
        done = execute(second, WorkerOptions(fits_from=(first.folder,)), workers=1)
    assert done is not None and done.plan_id == second.plan.id
    names = [shard.name for shard in second.plan.shards()]
    assert all(second.shard_path(n).read_bytes() == first.shard_path(n).read_bytes() for n in names)
    kept = {row["row_id"] for row in rows if row["judge_confidence"] >= limit}
    assert len(kept) == 10 and len(rows) == 20
    assert {row["row_id"] for row in load(second.folder, augmented_only=True)} == kept
    with pytest.raises(PlanError, match=r"filters: .*; `--fits-from .*first` takes its images over, or put"):
        refuse_other_plan(first, second.plan)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"per_class": 3}, {"scores": {"judge": None}}], ids=str)
def test_images_of_any_other_recipe_are_made_anew(tmp_path: Path, changes: dict[str, Any]) -> None:
    first, second = small_run(tmp_path / "a", "txt2img"), small_run(tmp_path / "b", "txt2img", **changes)
    assert not same_images(first.plan, second.plan)
