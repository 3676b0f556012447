"""Checking a finished run where it lies: every digest, the plan, all rows; and a sample of them made again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.files import sha256_file
from diffaug_datasets.core.identity import __version__
from diffaug_datasets.core.plan import Shard
from diffaug_datasets.release.checks import OK, Check, Verification, Wrong, rebuilt, summed_up, tried
from diffaug_datasets.release.layout import shard_faults
from diffaug_datasets.run.assembly import Assembled, finished
from diffaug_datasets.run.rebuild import Closeness, Rebuilt, Regenerator, rebuild_with, regenerator_of
from diffaug_datasets.run.shards import read_stream
from diffaug_datasets.run.store import OF_THE_SET, Receipt, Run


def verify_run(
    run: Run, sample: int, device: str, progress: Callable[[Verification], None] | None = None
) -> Verification:
    """Check a finished run; `sample`: how many rows are made again on the device, spread evenly over the plan.

    Raises:
        RunError: it is not finished, or the store does not answer.
    """
    done = finished(run)
    if done is None:
        raise RunError(f"{run.where}: not finished; `diffaug generate {run.where}` continues it.")
    verification = Verification(run.where, done.name, done.plan_id)
    if progress:
        progress(verification)
    for check in _checks(RunChecks(run, done), sample, device):
        verification = replace(verification, checks=(*verification.checks, check))
        if progress:
            progress(verification)
    return verification


def _checks(checks: "RunChecks", sample: int, device: str) -> Iterator[Check]:
    """Check after check; a file whose digest is wrong is not opened, and nothing is looked at after that."""
    digests = tried("digests", checks.digests_are_right)
    yield digests
    if digests.outcome != OK:
        return
    yield tried("plan", checks.plan_is_its_digest)
    yield tried("rows", checks.rows_are_whole)
    yield tried("counts", checks.counts_are_right)
    method, version = checks.run.recipe.method, checks.run.plan.header.method_version
    yield Check("version", OK, f"{method} version {version}, here {__version__} of diffaug-datasets")
    if not sample:
        return
    outcomes: list[Check] = []
    measured: list[Closeness] = []
    for row_id in checks.sample(sample):
        check, closeness = rebuilt(row_id, partial(checks.rebuild, row_id, device))
        outcomes.append(check)
        measured += [closeness] if closeness else []
        yield check
    if outcomes:
        yield summed_up(outcomes, measured)


@dataclass
class RunChecks:
    """Checks of a finished run, each a sentence of what holds; one that fails raises `Wrong` with what is wrong."""

    run: Run
    done: Assembled
    _regenerators: dict[str, Regenerator] = field(default_factory=dict)

    @cached_property
    def receipts(self) -> dict[str, Receipt]:
        """Of every unit.

        Raises:
            Wrong: one has none.
        """
        self.run.refresh()
        plan = self.run.plan
        shards = (*plan.real_shards(), *plan.shards())
        names = [*(shard.name for shard in shards), *(unit.name for unit in plan.fits)]
        found = {name: self.run.receipt(name) for name in (*names, *OF_THE_SET)}
        if missing := [name for name, receipt in found.items() if receipt is None and name != "quality"]:
            raise Wrong(f"{missing[0]} has no receipt; `diffaug generate {self.run.where}` makes it")
        return {name: receipt for name, receipt in found.items() if receipt is not None}

    def digests_are_right(self) -> str:
        """Every file that a receipt or `run.json` names."""
        files = {(file.path, file.size, file.sha256) for file in self.done.files}
        for name, receipt in self.receipts.items():
            folder = self.run.receipt_path(name).parent.relative_to(self.run.folder)
            files |= {((folder / file.file).as_posix(), file.size, file.sha256) for file in receipt.files}
        for path, size, sha256 in sorted(files):
            here = self.run.file(path, size, sha256)
            if not here.is_file():
                raise Wrong(f"{path} is missing; `diffaug generate {self.run.where}` makes it again")
            if here.stat().st_size != size or sha256_file(here) != sha256:
                raise Wrong(f"{path} has other bytes than stated; `diffaug generate {self.run.where}` makes it again")
        return f"{len(files)} files have the bytes that receipts and run.json state"

    def plan_is_its_digest(self) -> str:
        """The id is the digest of the rows, and the recipe beside it the one that they were drawn from."""
        self.run.check()
        return f"{len(self.run.plan.rows):,} rows give plan {self.run.plan.id[:16]}"

    def rows_are_whole(self) -> str:
        """Every planned row has an image under its label, or is said to have failed."""
        written = 0
        for shard in (*self.run.plan.real_shards(), *self.run.plan.shards()):
            written += self._rows_of(shard)
        for file in self.done.files:
            table = read_stream(str(self.run.file(file.path, file.size, file.sha256)))
            if faults := list(shard_faults(table, file, self.done)):
                raise Wrong(faults[0])
        return f"{written:,} rows have the ids and labels of the plan"

    def _rows_of(self, shard: Shard) -> int:
        receipt, table = self.receipts[shard.name], self.run.table(shard)
        lost = {row.row_id for row in receipt.failed}
        planned = {row.row_id: row.label for row in shard.rows if row.row_id not in lost}
        found = dict(zip(table.column("row_id").to_pylist(), table.column("label").to_pylist(), strict=True))
        if len(found) != table.num_rows or found.keys() != planned.keys():
            raise Wrong(f"{shard.name} holds other rows than are planned for it")
        if wrong := [row_id for row_id, label in found.items() if planned[row_id] != label]:
            raise Wrong(f"{shard.name}: row {wrong[0]} has label {found[wrong[0]]}, planned is {planned[wrong[0]]}")
        return len(found)

    def counts_are_right(self) -> str:
        """`run.json` counts what receipts count, and its files hold what it says is kept."""
        written = sum(self.receipts[shard.name].rows for shard in self.run.plan.shards())
        failed = sum(len(self.receipts[shard.name].failed) for shard in self.run.plan.shards())
        kept = sum(file.rows for file in self.done.files if file.origin != "real")
        counts = self.done.counts
        stated = tuple(sum(numbers) for numbers in zip(*((c.written, c.failed, c.kept) for c in counts), strict=True))
        if stated != (written, failed, kept):
            raise Wrong(f"run.json states written, failed, kept {stated}, and they are {(written, failed, kept)}")
        return f"{written:,} written, {failed:,} failed, {kept:,} kept"

    def rebuild(self, row_id: str, device: str) -> tuple[Rebuilt, Closeness]:
        """A row made again; models are loaded once."""
        if device not in self._regenerators:
            self._regenerators[device] = regenerator_of(self.run, device)
        return rebuild_with(self._regenerators[device], self.run, row_id)

    def sample(self, count: int) -> Iterator[str]:
        """Ids of so many rows that have an image, spread evenly over the plan."""
        lost = {row.row_id for row in self.done.failed}
        ids = [row.row_id for row in self.run.plan.rows if row.row_id not in lost]
        count = min(count, len(ids))
        yield from (ids[place * len(ids) // count] for place in range(count))
