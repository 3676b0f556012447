"""What comes after planning as sets grow: CPU seconds and peak memory of each step, in a process of its own.

    python scripts/bench_scale_runs.py [--shards 100 1000 10000] [--shard-rows 10] [--steps status start assemble ...]
        [--json FILE]

A run is planned by `bench_scale.py`'s recipe in shards of ten rows, or of `--shard-rows`, and its shards are written by
hand: tiny pictures, as if they had been made. `seconds`: CPU time, user and system; `wall`: what a clock shows, beside
whatever else the machine does; both without the imports that every step shares (torch).

- `status`: what `diffaug status` reads; nobody works meanwhile.
- `start`: a worker begins and looks at every unit of a run that lacks one, until it would make that; Diff-II with nine
  fits of inversions for every ten shards. Each unit has its file and its receipt.
- `assemble`: the selection and run.json, and the bytes of the run folder's own card; no shard may be written again.
- `report`, `preview` (`publish --dry-run`, and the bytes of the README that would go out), `verify` of what was
  published into a folder.
- `search`: a hundred vectors [d] a shard and one, of moved pictures of the packaged pool, 1,000 other ones as queries,
  through what `search: auto` takes: faiss past a million. Recall of the 20 nearest against exact search, which
  begins when faiss is done; `faiss_peak_mb`: memory until then.

Exponent as in `bench_scale.py`.
"""

import argparse
import hashlib
import importlib
import json
import math
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from bench_scale import PER_IMAGE, recipe, write_images
from PIL import Image

from diffaug_datasets.core.files import FileDigest

STEPS = ("status", "start", "assemble", "report", "preview", "verify", "search")
SIDE = 12  # of the means that a vector holds: 144 dimensions
NEAREST = 20
QUERIES = 1000
FACTS = {"seconds": 1.0, "finished": "2026-01-01T00:00:00+00:00", "worker": "bench"}
Found = dict[str, float]
Record = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """So many shards, of so many rows each."""

    shards: int
    shard_rows: int

    @property
    def rows(self) -> int:
        """In all."""
        return self.shards * self.shard_rows


def planned(work: Path, images: int, method: str, shard_rows: int, **changes: object) -> Path:
    """A planned run over so many images, in shards of so many rows."""
    from diffaug_datasets import Recipe, plan

    source, folder = write_images(work / f"images-{images}", images), work / f"{method}-{images}-{shard_rows}"
    if not (folder / "plan.json").exists():
        content = recipe(method, source, source)
        content |= {"shard_rows": shard_rows, "licence": "cc0-1.0", "title": "Dots", **changes}
        warnings.simplefilter("ignore")
        plan(Recipe.model_validate(content), folder)
    return folder


def fill(folder: Path) -> None:
    """Files and receipts of all units: shards of pictures of one colour, fits of a few bytes."""
    from diffaug_datasets.core.images import pixel_sha256
    from diffaug_datasets.core.rows import Outcome, Row
    from diffaug_datasets.run.shards import arrow_schema, schema_digest, write_stream
    from diffaug_datasets.run.stacks import stack
    from diffaug_datasets.run.store import Receipt, Run

    run, encoded, picture = Run.open(folder), BytesIO(), Image.new("RGB", (2, 2), "red")
    picture.save(encoded, "PNG")
    outcome = Outcome(width=2, height=2, image_format="png", pixel_sha256=pixel_sha256(picture))
    names = run.plan.header.class_names
    schema, features, facts = arrow_schema(names), schema_digest(names), {**FACTS, "stack": stack("cpu")}

    def put(path: Path, content: bytes) -> FileDigest:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return FileDigest(file=path.name, sha256=hashlib.sha256(content).hexdigest(), size=len(content))

    for unit in run.plan.fits:
        file = put(run.fit_folder(unit.name) / "inversions.safetensors", unit.name.encode())
        receipt = Receipt(plan_id=run.plan.id, unit=unit.name, files=(file,)).model_copy(update=facts)
        run.receipt_path(unit.name).write_text(receipt.model_dump_json())
    for shard in run.plan.shards():
        sink = BytesIO()
        made = (Row(image=encoded.getvalue(), plan_id=run.plan.id, plan=row, outcome=outcome) for row in shard.rows)
        rows, num_bytes = write_stream(sink, made, schema)
        file = put(run.folder / "shards" / f"{shard.name}.arrow", sink.getvalue())
        counted = {"rows": rows, "num_bytes": num_bytes, "schema_digest": features}
        receipt = Receipt(plan_id=run.plan.id, unit=shard.name, files=(file,)).model_copy(update={**counted, **facts})
        run.receipt_path(shard.name).write_text(receipt.model_dump_json())


def filled_run(work: Path, size: Size) -> Path:
    """A run whose shards are all there, for every step that only reads it."""
    folder = planned(work, size.rows // PER_IMAGE, "txt2img", size.shard_rows)
    if not (folder / "shards" / f"synthetic-{size.shards - 1:05d}.json").exists():
        fill(folder)
    return folder


def status_of(work: Path, size: Size) -> Callable[[], Found]:
    """`diffaug status`."""
    folder = filled_run(work, size)

    def step() -> Found:
        from diffaug_datasets.run.progress import status
        from diffaug_datasets.run.store import Run

        state = status(Run.open(folder))
        assert state.rows_written == state.rows and state.shards_done == size.shards
        return {}

    return step


def start_of(work: Path, size: Size) -> Callable[[], Found]:
    """A worker's own start."""
    folder = planned(work, size.rows, "diff_ii", size.shard_rows, per_image=1, batch_size=1)
    last = folder / "shards" / f"synthetic-{size.shards - 1:05d}.json"
    if not last.exists():
        fill(folder)

    def step() -> Found:
        from diffaug_datasets.run.store import Run
        from diffaug_datasets.run.worker import Worker, WorkerOptions

        last.unlink()
        run = Run.open(folder)
        worker = Worker(run, WorkerOptions("cpu"))
        worker.begin()
        unit = next(worker._leased())
        assert unit.name == last.stem and len(list(run.plan.shards()[-1].rows)) == size.shard_rows
        return {"fits": len(run.plan.fits)}

    return step


def assemble_of(work: Path, size: Size) -> Callable[[], Found]:
    """The selection and run.json."""
    folder = filled_run(work, size)

    def state() -> list[tuple[str, int]]:
        return sorted((path.name, path.stat().st_mtime_ns) for path in (folder / "shards").iterdir())

    def step() -> Found:
        from diffaug_datasets.run.assembly import assemble
        from diffaug_datasets.run.store import Run

        before = state()
        done = assemble(Run.open(folder))
        assert len(done.files) > size.shards and state() == before and not (folder / "kept").exists()
        return {"own_card_bytes": (folder / "README.md").stat().st_size}

    return step


def assembled_run(work: Path, size: Size) -> Path:
    """The same run, assembled where it is not measured."""
    folder = filled_run(work, size)
    if not (folder / "run.json").exists():
        assemble_of(work, size)()
    return folder


def report_of(work: Path, size: Size) -> Callable[[], Found]:
    """`diffaug report`."""
    folder = assembled_run(work, size)

    def step() -> Found:
        from diffaug_datasets.report.page import write_report
        from diffaug_datasets.run.store import Run

        return {"page_bytes": write_report([Run.open(folder)], work / f"report-{size.shards}.html").stat().st_size}

    return step


def preview_of(work: Path, size: Size) -> Callable[[], Found]:
    """`diffaug publish --dry-run`."""
    folder = assembled_run(work, size)

    def step() -> Found:
        from diffaug_datasets.release.publishing import preview
        from diffaug_datasets.run.store import Run

        seen = preview(Run.open(folder), (work / "nowhere").as_uri())
        assert len(seen.contents.release.files) > size.shards
        return {"card_bytes": len(seen.card.encode())}

    return step


def verify_of(work: Path, size: Size) -> Callable[[], Found]:
    """`diffaug verify` of the published set."""
    from diffaug_datasets import PublishOptions, publish

    folder, place = assembled_run(work, size), work / f"shelf-{size.shards}-{size.shard_rows}"
    if not place.exists():
        publish(folder, place.as_uri(), PublishOptions(allow=("test-leak",)))

    def step() -> Found:
        from diffaug_datasets import verify

        found = verify(place.as_uri())
        assert found.checks and {check.outcome for check in found.checks} == {"ok"}, found
        return {"checks": len(found.checks)}

    return step


def search_of(_work: Path, size: Size) -> Callable[[], Found]:
    """faiss beside exact search."""

    def step() -> Found:
        import torch

        from diffaug_datasets.models.image_index import EXACT_UP_TO, searcher

        torch.set_num_threads(1)
        importlib.import_module("faiss").omp_set_num_threads(1)
        vectors = moved_pictures(100 * size.shards + 1 + QUERIES)
        pool, queries = vectors[QUERIES:], vectors[:QUERIES]
        begin = time.process_time()
        found = searcher(queries, pool, "auto" if len(pool) > EXACT_UP_TO else "faiss")(NEAREST)
        approximate, faiss_peak, begin = time.process_time() - begin, peak_mb(), time.process_time()
        exact = searcher(queries, pool, "exact")(NEAREST)
        pairs = list(zip(found.place.tolist(), exact.place.tolist(), strict=True))
        recall = sum(len(set(a) & set(b)) for a, b in pairs) / exact.place.numel()
        first = sum(a[0] == b[0] for a, b in pairs) / len(pairs)
        seconds = {"faiss_seconds": round(approximate, 2), "exact_seconds": round(time.process_time() - begin, 2)}
        counted = {"faiss_peak_mb": faiss_peak, "vectors": len(pool)}
        return {**seconds, **counted, "recall": round(recall, 4), "nearest_found": first}

    return step


def moved_pictures(count: int) -> Any:
    """Unit-norm vectors [count 144] of real pictures, each cut out elsewhere and with noise."""
    import numpy as np
    import pyarrow.parquet as pq
    import torch

    from diffaug_datasets.core.images import decode_image
    from diffaug_datasets.sources.pools import TINY_POOL

    assets = Path(__import__("diffaug_datasets").__file__).parent
    encoded = [image["bytes"] for image in pq.read_table(assets / TINY_POOL).column("image").to_pylist()]
    pixels = np.stack([np.asarray(decode_image(data).convert("L").resize((28, 28)), np.float32) for data in encoded])
    draw = np.random.default_rng(0)
    vectors = np.empty((count, SIDE * SIDE), np.float32)
    for begin in range(0, count, 10_000):
        size = min(10_000, count - begin)
        chosen, (down, right) = draw.integers(len(pixels), size=size), draw.integers(0, 5, (2, size))
        rows, columns = down[:, None] + np.arange(24), right[:, None] + np.arange(24)
        cut = pixels[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
        means = cut.reshape(size, SIDE, 24 // SIDE, SIDE, 24 // SIDE).mean((2, 4)).reshape(size, -1)
        vectors[begin : begin + size] = means + draw.normal(0, 4, means.shape).astype(np.float32)
    vectors -= vectors[: min(count, 100_000)].mean(0)
    return torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)


def timed(step: str, work: Path, size: Size) -> Found:
    """In a process of its own: CPU seconds of the step without imports that others share, peak MB, what it found."""
    import torch  # noqa: F401  # what every worker pays once

    import diffaug_datasets.release.publishing
    import diffaug_datasets.report.page
    import diffaug_datasets.run.worker  # noqa: F401
    from diffaug_datasets.run.stacks import stack

    stack("cpu")  # asks diffusers and peft for their versions
    run = BY_NAME[step](work, size)
    begin, wall = time.process_time(), time.monotonic()
    found = run()
    seconds, wall = time.process_time() - begin, time.monotonic() - wall
    return {"seconds": round(seconds, 2), "wall": round(wall, 2), "peak_mb": peak_mb(), **found}


def peak_mb() -> float:
    """Resident memory of this process at its highest until now, in MB of 10^6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return round(peak / 1e6, 1)


def prepared(step: str, work: Path, size: Size) -> None:
    """What the step needs, made in another process, so that its memory does not count."""
    BY_NAME[step](work, size)


BY_NAME: dict[str, Callable[[Path, Size], Callable[[], Found]]] = {
    "status": status_of,
    "start": start_of,
    "assemble": assemble_of,
    "report": report_of,
    "preview": preview_of,
    "verify": verify_of,
    "search": search_of,
}


def measured(steps: list[str], sizes: list[int], shard_rows: int, work: Path) -> Iterator[Record]:
    """A record a step and size."""
    context = multiprocessing.get_context("spawn")
    for step in steps:
        before: Record | None = None
        for shards in sorted(sizes):
            for function in (prepared, timed):
                with context.Pool(1, maxtasksperchild=1) as pool:
                    found = pool.apply(function, (step, work, Size(shards, shard_rows)))
            record: Record = {"step": step, "shards": shards, **(found or {})}
            if before:
                grown = max(float(record["seconds"]), 0.01) / max(float(before["seconds"]), 0.01)
                record["exponent"] = round(math.log(grown) / math.log(shards / int(before["shards"])), 2)
            before = record
            yield record


def main() -> None:
    """Measure and print a line each; with --json write them too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--shard-rows", type=int, default=10)
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--work", type=Path, help="folder of the runs, kept (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for record in measured(given.steps, given.shards, given.shard_rows, work):
            records.append(record)
            shown = ", ".join(f"{key} {value:,}" for key, value in record.items() if key not in ("step", "shards"))
            print(f"{record['step']:<8} {record['shards']:>6,} shards: {shown}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
