"""One measure over fits and images: how far the whole is, how long the rest takes, what a stream is told."""

import io
import re
from pathlib import Path

import pytest
from small_runs import small_run

from diffaug_datasets.core.rows import FailedRow
from diffaug_datasets.planning.prepare import prepare
from diffaug_datasets.planning.price import price
from diffaug_datasets.run import progress
from diffaug_datasets.run.execute import execute, generate
from diffaug_datasets.run.progress import Pace, following
from diffaug_datasets.run.store import Receipt, Run
from diffaug_datasets.run.work import TRAINING, unit_work
from diffaug_datasets.run.worker import WorkerOptions


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Concepts, inversions, then three shards."""
    return small_run(tmp_path_factory.mktemp("progress") / "run", "diffii")


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock, which stands still unless it is moved."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def run(planned: Run, tmp_path: Path) -> Run:
    """The same plan in a folder without events."""
    return Run(tmp_path, planned.plan)


def pace_of(run: Run, planned: Run, **options: bool) -> Pace:
    run.__dict__["recipe"] = planned.recipe
    return Pace.of(run, **options)


def test_work_is_what_the_price_counts(planned: Run, tmp_path: Path) -> None:
    quote, work = price(prepare(planned.recipe), tmp_path), unit_work(planned.recipe, planned.plan)
    fits = {unit.name for unit in planned.plan.fits}
    assert sum(size for name, size in work.items() if name not in fits) == quote.evaluations
    trained = sum(size for name, size in work.items() if name.startswith("concepts"))
    others = sum(size for name, size in work.items() if name in fits and not name.startswith("concepts"))
    assert trained / TRAINING + others == quote.fit_evaluations


def test_fits_and_images_are_one_whole(run: Run, planned: Run, seconds: list[float]) -> None:
    pace = pace_of(run, planned)
    work, whole = unit_work(planned.recipe, planned.plan), sum(unit_work(planned.recipe, planned.plan).values())
    concepts, *others = [unit.name for unit in planned.plan.fits]
    assert pace.share == 0 and pace.seconds_left is None
    run.event(event="start", unit=concepts)
    run.event(event="fit", unit=concepts, step=1, total=6, loss=0.5)
    pace.poll()
    assert pace.share == pytest.approx(work[concepts] / 6 / whole)
    assert pace.seconds_left is None and pace.text() == "0/20 images, fit 1 of 3, concepts 1/6, loss 0.5000"
    seconds[0] += 10
    run.event(event="fit", unit=concepts, step=3, total=6, loss=0.25)
    pace.poll()
    assert pace.share == pytest.approx(work[concepts] / 2 / whole)
    left = 10 * (whole - work[concepts] / 2) / (work[concepts] / 3)
    assert pace.seconds_left == pytest.approx(left)
    assert pace.text().endswith(f", loss 0.2500, ETA {progress.clock(left)}")
    for name in (concepts, *others):
        run.event(event="start", unit=name)
        run.event(event="done", unit=name, rows=0, failed=0)
    run.event(event="start", unit="synthetic-00000")
    pace.poll()
    assert pace.text() == "0/20 images, loading the model, 0 failed"
    run.event(event="loaded", unit="synthetic-00000")
    pace.poll()
    assert pace.text() == "0/20 images, the first batch, 0 failed"
    seconds[0] += 2
    run.event(event="batch", unit="synthetic-00000", rows=3, failed=1)
    pace.poll()
    made = sum(work[name] for name in (concepts, *others)) + work["synthetic-00000"] / 2
    assert pace.share == pytest.approx(made / whole)
    assert re.fullmatch(r"4/20 images, 2\.0 images/s, ETA \d+:\d\d, 1 failed", pace.text())
    for shard in planned.plan.shards():
        run.event(event="done", unit=shard.name, rows=len(shard.rows), failed=0)
    pace.poll()
    assert pace.share == 1 and "ETA" not in pace.text()


def test_where_fits_alone_are_made_they_are_the_whole(run: Run, planned: Run) -> None:
    pace = pace_of(run, planned, only_fits=True)
    for unit in planned.plan.fits:
        run.event(event="done", unit=unit.name, rows=0, failed=0)
    pace.poll()
    assert pace.share == 1 and pace.text() == "all fits done"


def test_what_is_done_counts_when_it_goes_on(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "genie", per_class=1)
    execute(run, WorkerOptions(), workers=1)
    pace = Pace.of(run)
    assert (pace.share, pace.done) == (1, 10)
    assert '"loaded"' in (run.folder / "events.jsonl").read_text()
    assert progress.loss(run) == "" and progress.status(run).unfinished == 0


def test_a_stream_that_is_no_terminal_gets_lines_and_a_terminal_one_bar(run: Run, planned: Run) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    run.__dict__["recipe"] = planned.recipe
    for out in (io.StringIO(), Terminal()):
        with following(run, out) as on_progress:
            for unit in (*planned.plan.fits, *planned.plan.shards()):
                run.event(event="start", unit=unit.name)
                rows = 0 if unit in planned.plan.fits else len(unit.rows)  # type: ignore[union-attr]
                told = (
                    {"event": "batch", "rows": rows, "failed": 0} if rows else {"event": "fit", "step": 1, "total": 1}
                )
                run.event(unit=unit.name, loss=1, **told)
                run.event(event="done", unit=unit.name, rows=rows, failed=0)
            on_progress()
        said = out.getvalue()
        if isinstance(out, Terminal):
            assert "100%" in said and "20/20 images" in said and "━" in said
        else:
            assert re.fullmatch(r"  100 %, 20/20 images, \d+\.\d images/s, 0 failed\n", said), said


def test_what_others_finish_elsewhere_counts_once(run: Run, planned: Run, seconds: list[float]) -> None:
    """Of a run in a bucket their receipts tell it, now and then; an event of the same unit adds nothing."""
    pace, work = pace_of(run, planned), unit_work(planned.recipe, planned.plan)
    first, second, *_ = planned.plan.shards()
    lost = FailedRow(row_id=first.rows[0].row_id, attempts=2, reason="black")
    fits = [unit.name for unit in planned.plan.fits]
    there = {name: Receipt(plan_id=run.plan.id, unit=name, files=()) for name in fits}
    there[first.name] = Receipt(
        plan_id=run.plan.id, unit=first.name, files=(), rows=len(first.rows) - 1, failed=(lost,)
    )
    asked: list[float] = []
    pace.looked, pace.news = seconds[0], lambda: asked.append(seconds[0]) or there  # type: ignore[func-returns-value]
    pace.poll()
    assert not asked and pace.share == 0
    for _ in range(3):
        seconds[0] += progress.NEWS_SECONDS
        pace.poll()
        assert (pace.done, pace.failed) == (len(first.rows), 1)
        assert pace.share == pytest.approx(sum(work[name] for name in (*fits, first.name)) / sum(work.values()))
    run.event(event="done", unit=first.name, rows=len(first.rows) - 1, failed=1)
    run.event(event="batch", unit=second.name, rows=2, failed=0)
    pace.poll()
    assert (pace.done, pace.failed, len(asked)) == (len(first.rows) + 2, 1, 3)


def test_a_stream_is_not_flooded_with_one_line(run: Run, planned: Run, seconds: list[float]) -> None:
    run.__dict__["recipe"] = planned.recipe
    out = io.StringIO()
    with following(run, out) as on_progress:
        for _ in range(1000):
            seconds[0] += 1
            on_progress()
    said = out.getvalue().splitlines()
    assert len(set(said)) == 1 and 4 <= len(said) <= 8


def test_a_stop_says_how_many_images_are_made_again(run: Run, planned: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.__dict__["recipe"] = planned.recipe
    assert progress.loss(run) == ""
    run.event(event="start", unit="synthetic-00000")
    run.event(event="batch", unit="synthetic-00000", rows=5, failed=0)
    run.event(event="start", unit="synthetic-00000")  # stopped once before
    run.event(event="batch", unit="synthetic-00000", rows=2, failed=0)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("diffaug_datasets.run.execute.execute", stopped)
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        generate(run, progress=out)
    assert out.getvalue() == "  2 images lie in an unfinished shard and will be made again\n"
    assert (progress.status(run).rows_written, progress.status(run).unfinished) == (0, 2)
