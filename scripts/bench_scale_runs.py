"""What comes after planning as sets grow: CPU seconds and peak memory of each step, in a process of its own.

    python scripts/bench_scale_runs.py [--rows 1000 10000 100000] [--steps status start assemble ...] [--json FILE]

A run is planned by `bench_scale.py`'s recipe, in shards of ten rows for `status` (so that 100,000 rows are 10,000
shards) and of a hundred for the others, and its shards are written by hand: tiny pictures, as if they had been made.

- `status`: receipts alone, as `diffaug status` reads them.
- `start`: a worker begins and looks at every unit of a run that lacks one, until it would make that; Diff-II with a fit
  of inversions for every eight images. Without the import of torch.
- `assemble`, `report`, `preview` (`publish --dry-run`), `verify` of what was published into a folder.
- `search`: rows vectors [rows 64] of moved pictures of the packaged pool, 1,000 queries through faiss; recall of the 20
  nearest against exact search. `auto` asks faiss past a million.

`card`: bytes of the README that goes out. Exponent as in `bench_scale.py`.
"""

import argparse
import json
import math
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from bench_scale import recipe, write_images
from PIL import Image

STEPS = ("status", "start", "assemble", "report", "preview", "verify", "search")
Found = dict[str, float]


def planned(work: Path, rows: int, method: str, shard_rows: int, **changes: object) -> Path:
    """A planned run of so many rows."""
    from diffaug_datasets import Recipe, plan

    per_image = changes.get("per_image", 10)
    assert isinstance(per_image, int)
    images, folder = (
        write_images(work / f"images-{rows}-{per_image}", rows // per_image),
        work / f"{method}-{rows}-{shard_rows}",
    )
    if not folder.exists():
        content = recipe(method, images, images) | {
            "shard_rows": shard_rows,
            "licence": "cc0-1.0",
            "title": "Dots",
            **changes,
        }
        warnings.simplefilter("ignore")
        plan(Recipe.model_validate(content), folder)
    return folder


def fill(folder: Path, files: bool) -> None:
    """Receipts of all units, and shards of pictures of one colour."""
    from diffaug_datasets.core.images import pixel_sha256
    from diffaug_datasets.core.rows import Outcome, Row
    from diffaug_datasets.run.stacks import stack
    from diffaug_datasets.run.store import Receipt, Run

    run, encoded, picture = Run.open(folder), BytesIO(), Image.new("RGB", (2, 2), "red")
    picture.save(encoded, "PNG")
    facts = {"stack": stack("cpu"), "seconds": 1.0, "finished": "2026-01-01T00:00:00+00:00", "worker": "bench"}
    outcome = Outcome(width=2, height=2, image_format="png", pixel_sha256=pixel_sha256(picture))
    for unit in run.plan.fits:
        path = run.receipt_path(unit.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Receipt(plan_id=run.plan.id, unit=unit.name, files=(), **facts).model_dump_json())
    for shard in run.plan.shards():
        if files:
            made = (Row(image=encoded.getvalue(), plan_id=run.plan.id, plan=row, outcome=outcome) for row in shard.rows)
            receipt = run.write_shard(shard, made).model_copy(update=facts)
        else:
            receipt = Receipt(plan_id=run.plan.id, unit=shard.name, files=(), rows=len(shard.rows), **facts)
        run.receipt_path(shard.name).write_text(receipt.model_dump_json())


def status_of(work: Path, rows: int) -> Callable[[], Found]:
    """`diffaug status`."""
    folder = planned(work, rows, "txt2img", 10)
    fill(folder, files=False)

    def step() -> Found:
        from diffaug_datasets.run.progress import status
        from diffaug_datasets.run.store import Run

        state = status(Run.open(folder))
        assert state.rows_written == rows
        return {"shards": state.shards}

    return step


def start_of(work: Path, rows: int) -> Callable[[], Found]:
    """A worker's own start."""
    folder = planned(work, rows, "diff_ii", 7, per_image=1, batch_size=1)
    fill(folder, files=False)

    def step() -> Found:
        from diffaug_datasets.run.store import Run
        from diffaug_datasets.run.worker import Worker, WorkerOptions

        run = Run.open(folder)
        last = run.plan.shards()[-1].name
        run.receipt_path(last).unlink(missing_ok=True)
        worker = Worker(run, WorkerOptions("cpu"))
        worker.begin()
        unit = next(worker._leased())
        assert unit.name == last and sum(1 for _ in run.plan.shards()[-1].rows)
        return {"shards": len(run.plan.shards()), "fits": len(run.plan.fits)}

    return step


def finished_run(work: Path, rows: int) -> Path:
    """A run whose shards are there, assembled where it is not measured."""
    folder = planned(work, rows, "txt2img", 100)
    if not (folder / "shards" / "synthetic-00000.json").exists():
        fill(folder, files=True)
    return folder


def assemble_of(work: Path, rows: int) -> Callable[[], Found]:
    """The selection and run.json."""
    folder = finished_run(work, rows)

    def step() -> Found:
        from diffaug_datasets.run.assembly import assemble
        from diffaug_datasets.run.store import Run

        before = sorted(path.name for path in (folder / "shards").iterdir())
        done = assemble(Run.open(folder))
        assert sorted(path.name for path in (folder / "shards").iterdir()) == before and not (folder / "kept").exists()
        return {"shards": len(done.files)}

    return step


def report_of(work: Path, rows: int) -> Callable[[], Found]:
    """`diffaug report`."""
    folder = finished_run(work, rows)

    def step() -> Found:
        from diffaug_datasets.report.page import write_report
        from diffaug_datasets.run.store import Run

        return {"report_bytes": write_report([Run.open(folder)], work / f"report-{rows}.html").stat().st_size}

    return step


def preview_of(work: Path, rows: int) -> Callable[[], Found]:
    """`diffaug publish --dry-run`."""
    folder = finished_run(work, rows)

    def step() -> Found:
        from diffaug_datasets.release.publishing import preview
        from diffaug_datasets.run.store import Run

        seen = preview(Run.open(folder), (work / f"shelf-{rows}").as_uri())
        return {"card": len(seen.card.encode()), "shards": len(seen.contents.release.files)}

    return step


def verify_of(work: Path, rows: int) -> Callable[[], Found]:
    """`diffaug verify` of the published set."""
    from diffaug_datasets import PublishOptions, publish

    folder, place = finished_run(work, rows), work / f"shelf-{rows}"
    if not place.exists():
        publish(folder, place.as_uri(), PublishOptions(allow=("test-leak",)))

    def step() -> Found:
        from diffaug_datasets import verify

        found = verify(place.as_uri())
        assert not [check for check in found.checks if check.state == "WRONG"], found
        return {"checks": len(found.checks)}

    return step


def search_of(_work: Path, rows: int) -> Callable[[], Found]:
    """faiss beside exact search."""

    def step() -> Found:
        import torch

        from diffaug_datasets.models.image_index import searcher

        torch.set_num_threads(1)
        pool = moved_pictures(rows)
        queries = pool[:: max(1, rows // 1000)][:1000]
        begin = time.process_time()
        found = searcher(queries, pool, "faiss")(20)
        approximate = time.process_time() - begin
        exact = searcher(queries, pool, "exact")(20)
        pairs = zip(found.place.tolist(), exact.place.tolist(), strict=True)
        recall = sum(len(set(a) & set(b)) for a, b in pairs) / exact.place.numel()
        return {"faiss_seconds": round(approximate, 2), "recall": round(recall, 4)}

    return step


def moved_pictures(count: int) -> Any:
    """Unit-norm vectors [count 64] of real pictures, each cut out elsewhere, in another light and with noise."""
    import numpy as np
    import pyarrow.parquet as pq
    import torch

    from diffaug_datasets.core.images import decode_image
    from diffaug_datasets.sources.pools import TINY_POOL

    assets = Path(__import__("diffaug_datasets").__file__).parent
    encoded = [image["bytes"] for image in pq.read_table(assets / TINY_POOL).column("image").to_pylist()]
    pixels = np.stack([np.asarray(decode_image(data).convert("L").resize((28, 28)), np.float32) for data in encoded])
    draw = np.random.default_rng(0)
    vectors = np.empty((count, 64), np.float32)
    for begin in range(0, count, 10_000):
        size = min(10_000, count - begin)
        chosen, (down, right) = draw.integers(len(pixels), size=size), draw.integers(0, 5, (2, size))
        rows, columns = down[:, None] + np.arange(24), right[:, None] + np.arange(24)
        cut = pixels[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
        means = cut.reshape(size, 8, 3, 8, 3).mean((2, 4)).reshape(size, 64)
        vectors[begin : begin + size] = means + draw.normal(0, 4, means.shape)
    vectors -= vectors[: min(count, 100_000)].mean(0)
    return torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)


def timed(step: str, work: Path, rows: int) -> Found:
    """In a process of its own: CPU seconds of the step without imports that others share, peak MB, what it found."""
    import torch  # noqa: F401  # what every worker pays once

    import diffaug_datasets.release.publishing
    import diffaug_datasets.run.worker  # noqa: F401

    run = BY_NAME[step](work, rows)
    begin = time.process_time()
    found = run()
    seconds = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": round(seconds, 2), "peak_mb": round(peak / 1e6, 1), **found}


def prepared(step: str, work: Path, rows: int) -> None:
    """What the step needs, made in another process, so that its memory does not count."""
    BY_NAME[step](work, rows)


BY_NAME: dict[str, Callable[[Path, int], Callable[[], Found]]] = {
    "status": status_of,
    "start": start_of,
    "assemble": assemble_of,
    "report": report_of,
    "preview": preview_of,
    "verify": verify_of,
    "search": search_of,
}


def measured(steps: list[str], sizes: list[int], work: Path) -> Iterator[dict[str, Any]]:
    """A record a step and size."""
    context = multiprocessing.get_context("spawn")
    for step in steps:
        before: dict[str, Any] | None = None
        for rows in sorted(sizes):
            for function in (prepared, timed):
                with context.Pool(1, maxtasksperchild=1) as pool:
                    found = pool.apply(function, (step, work, rows))
            record: dict[str, Any] = {"step": step, "rows": rows, **(found or {})}
            if before:
                grown = max(record["seconds"], 0.01) / max(before["seconds"], 0.01)
                record["exponent"] = round(math.log(grown) / math.log(rows / before["rows"]), 2)
            before = record
            yield record


def main() -> None:
    """Measure and print a line each; with --json write them too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory() as work:
        for record in measured(given.steps, given.rows, Path(work)):
            records.append(record)
            shown = {key: value for key, value in record.items() if key not in ("step", "rows")}
            print(f"{record['step']:<9} {record['rows']:>9,}  {json.dumps(shown)}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
