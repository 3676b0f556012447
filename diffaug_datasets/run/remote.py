"""A run on an object store: units, leases and receipts are there, a cache folder here holds what is read from a file.

The cache is an ordinary run folder, one per address and plan. What it holds is fetched once, by its digest: real
images and finished fits when a worker meets them, shards when they are assembled, reported or published (`fetch_all`).
What is made goes up before its receipt does. A checkpoint of a fit goes up when it is written, so that whoever takes
over from a worker that went away goes on from there.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.files import FileDigest, sha256_file, temporary_path, write_atomically, write_bytes
from diffaug_datasets.core.identity import canonical
from diffaug_datasets.core.models import cache_home
from diffaug_datasets.core.plan import Plan, Shard
from diffaug_datasets.run.place import ENDPOINTS, Entry, ObjectPlace, Place, address_of
from diffaug_datasets.run.store import OF_THE_SET, Receipt, Run

PLANNED = ("recipe.yaml", "plan.parquet")
OPTIONAL = ("manifest.json", "pool.parquet")
CHECKPOINTS = "-checkpoint"
EVENTS = "events"
EVENT_SECONDS = 20.0
AT_ONCE = 16  # requests
MTIME_SECONDS = 2.0  # that a file system may round times of files by
OF_READERS = ("measures.json", "quality.parquet", "selection.parquet", "README.md", "run.json")


def cached_at(address: str, plan_id: str) -> Path:
    """The cache folder of a run; the endpoint counts too, for two stores may have a bucket of one name."""
    endpoint = next(filter(None, map(os.environ.get, ENDPOINTS)), "")
    key = hashlib.sha256(f"{endpoint}|{address_of(address)}|{plan_id}".encode()).hexdigest()[:24]
    return cache_home() / "runs" / key


@dataclass
class _Seen:
    """What is known of the store: receipts, units that had none at the last listing, sizes of what was listed."""

    receipts: dict[str, Receipt] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    checkpoints: dict[Path, int] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    sent: float = 0.0


class RemoteRun(Run):
    """A run at an address such as s3://bucket/run, with its cache folder."""

    def __init__(self, address: str, plan_id: str, plan: Plan | None = None) -> None:
        super().__init__(cached_at(address, plan_id), plan)
        self.address = address_of(address)
        self._seen = _Seen()

    @classmethod
    def at(cls, address: str) -> "RemoteRun":
        """An existing run.

        Raises:
            RunError: nothing is planned there, the store cannot be read, or the plan is damaged.
        """
        place = ObjectPlace(address)
        content = place.get("plan.json")
        if content is None:
            raise RunError(
                f"{place.shown}: no plan.json here; `diffaug plan RECIPE --run {place.shown}` makes a run there."
            )
        run = cls(place.shown, _plan_id(content, place.shown))
        run.folder.mkdir(parents=True, exist_ok=True)
        for name in PLANNED:
            if name == "recipe.yaml" or not (run.folder / name).exists():
                run.fetched(name)
        for name in OPTIONAL:
            if not (run.folder / name).exists():
                run.fetched(name)
        write_bytes(run.folder / "plan.json", content)
        run.check()
        return run

    @property
    def where(self) -> str:
        """The address."""
        return self.address

    @property
    def from_anywhere(self) -> str:
        """The address."""
        return self.address

    @cached_property
    def place(self) -> Place:
        """The store."""
        return ObjectPlace(self.address)

    def upload_plan(self) -> None:
        """Send a planned cache folder: real images first, `plan.json` last.

        Raises:
            RunError: the store refuses, or somebody else has planned something else there meanwhile.
        """
        self.check_writable()
        written = [receipt for shard in self.plan.real_shards() if (receipt := Run.receipt(self, shard.name))]
        self.refresh()
        for receipt in written:
            if self.receipt(receipt.unit) is None:
                self.write_receipt(receipt)
        for name in (*OPTIONAL, *PLANNED):
            if (self.folder / name).exists():
                self.send(name)
        content = (self.folder / "plan.json").read_bytes()
        if not self.place.create("plan.json", content):
            there = _plan_id(self.place.get("plan.json") or b"", self.where)
            if there != self.plan.id:
                raise RunError(f"{self.where}: holds another plan, {there[:16]}; give another address.")

    # What is there

    def refresh(self) -> None:
        """Know which units have receipts, by one listing, and read those that are new."""
        begun = time.time()
        listed = {entry.key: entry for entry in (*self.place.list("shards/"), *self.place.list("fits/"))}
        self._seen.sizes = {key: entry.size for key, entry in listed.items()}
        shards = [shard.name for shard in (*self.plan.real_shards(), *self.plan.shards())]
        units = [*shards, *(unit.name for unit in self.plan.fits)]
        self._seen.absent = {unit for unit in units if self._key(unit) not in listed}
        for unit in self._seen.absent:
            self._seen.receipts.pop(unit, None)
            self._forget(self.receipt_path(unit), begun)
        new = [unit for unit in units if unit not in self._seen.absent and unit not in self._seen.receipts]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda unit: self._learn(unit, listed[self._key(unit)]), new))

    def _forget(self, copy: Path, listed: float) -> None:
        """Take the copy of a receipt away that the store has not, unless it was made after the store was looked at."""
        with suppress(FileNotFoundError):
            if copy.stat().st_mtime < listed - MTIME_SECONDS:
                copy.unlink()

    def look_again(self, unit: str) -> None:
        """Forget that a unit had no receipt."""
        self._seen.absent.discard(unit)

    def receipt(self, unit: str) -> Receipt | None:
        """As `Run.receipt`; asked of the store where it is not known."""
        if unit not in self._seen.receipts and unit not in self._seen.absent:
            self._learn(unit)
        return self._seen.receipts.get(unit)

    def _learn(self, unit: str, entry: Entry | None = None) -> None:
        """Read a unit's receipt, and keep a copy; a copy with the store's own digest is as good."""
        path = self.receipt_path(unit)
        with suppress(OSError):
            content = path.read_bytes()
            if entry is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() == entry.tag:
                if receipt := self.read_receipt(content):
                    self._seen.receipts[unit] = receipt
                return
        found = self.place.get(self._key(unit))
        if found is None:
            path.unlink(missing_ok=True)
        elif receipt := self.read_receipt(found):
            write_bytes(path, found)
            self._seen.receipts[unit] = receipt

    def _key(self, unit: str) -> str:
        return self.receipt_path(unit).relative_to(self.folder).as_posix()

    def has(self, path: str) -> bool:
        """Whether a file of the set is there."""
        return path in self._seen.sizes or (self.folder / path).exists() or self.fetched(path).exists()

    def intact(self, unit: str) -> bool:
        """As `Run.intact`. Of made shards the store is asked for sizes; all others are fetched, by their digest."""
        receipt = self.receipt(unit)
        if receipt is None:
            return False
        if unit in self.shard_names:
            folder = Path(self._key(unit)).parent
            stated = {f"{folder.as_posix()}/{f.file}": f.size for f in receipt.files}
            return all(self._seen.sizes.get(key, size) == size for key, size in stated.items())
        return not self._damaged(receipt)

    def _damaged(self, receipt: Receipt, trusted: Set[str] = frozenset()) -> list[Path]:
        """As `Run._damaged`, once all files are here."""
        for file in receipt.files:
            self._fetch_file(receipt.unit, file)
        return super()._damaged(receipt, trusted)

    def _fetch_file(self, unit: str, file: FileDigest) -> None:
        """Have a unit's file here, with its digest."""
        folder = self.receipt_path(unit).parent.relative_to(self.folder)
        self.file((folder / file.file).as_posix(), file.size, file.sha256)

    def file(self, path: str, size: int, sha256: str) -> Path:
        """As `Run.file`, in the cache; what is there with another digest is fetched anew."""
        here = self.folder / path
        if not (here.is_file() and here.stat().st_size == size and sha256_file(here) == sha256):
            here.unlink(missing_ok=True)
            self._download(path, here)
        return here

    def again(self) -> "RemoteRun":
        """As `Run.again`; what one of them knows of the store, the other one asks for itself."""
        return RemoteRun(self.address, self.plan.id, self.plan)

    def news(self) -> Mapping[str, Receipt]:
        """As `Run.news`: all that there are, by one listing."""
        self.refresh()
        return dict(self._seen.receipts)

    def have(self, unit: str) -> None:
        """As `Run.have`; a unit that has no receipt has none."""
        self.look_again(unit)
        if not self.receipt_path(unit).exists():  # another process that saw the store before took the copy away
            self._seen.receipts.pop(unit, None)
        receipt = self.receipt(unit)
        for file in receipt.files if receipt else ():
            self._fetch_file(unit, file)

    def _download(self, key: str, path: Path) -> bool:
        temporary = temporary_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            is_there = self.place.fetch(key, temporary)
            if is_there:
                temporary.replace(path)
        except OSError as error:
            raise RunError(f"{path.parent}: cannot keep {path.name} ({error.strerror}); free space there.") from None
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        return is_there

    def fetched(self, name: str) -> Path:
        """A file of the run as it is there now, in the cache; absent there, it is absent here."""
        path = self.folder / name
        if not self._download(name, path):
            path.unlink(missing_ok=True)
        return path

    def table(self, shard: Shard) -> pa.Table:
        """As `Run.table`, fetched if need be.

        Raises:
            RunError: the store holds other bytes than the receipt says.
        """
        receipt = self.receipt(shard.name)
        if receipt is not None and (bad := self._damaged(receipt)):
            raise RunError(
                f"{self.where}: {bad[0].name} is missing there or damaged; delete its receipt "
                f"({self._key(shard.name)}), and `diffaug generate {self.where}` makes it again."
            )
        return super().table(shard)

    def fetch_all(self) -> None:
        """Have everything here that readers, reports and releases look at."""
        self.refresh()
        files = [(receipt.unit, file) for receipt in self._seen.receipts.values() for file in receipt.files]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda one: self._fetch_file(*one), files))
        for unit in OF_THE_SET:
            self._learn(unit)
        done = self.place.list("kept/")
        previews = [key for key in self._seen.sizes if "/previews/" in key]
        for name in (*OF_READERS, *(entry.key for entry in done), *previews):
            self.fetched(name)
        events = [self.place.get(entry.key) or b"" for entry in self.place.list(f"{EVENTS}/")]
        write_bytes(self.folder / "events.jsonl", b"".join(sorted(b"".join(events).splitlines(keepends=True))))

    # What goes there

    def send(self, name: str) -> None:
        """Put a file of the cache there, over what is there."""
        self.place.put(name, self.folder / name)

    def make_way(self, unit: str) -> None:
        """As `Run.make_way`, there too."""
        super().make_way(unit)
        if not self.receipt_path(unit).exists():
            self._seen.receipts.pop(unit, None)

    def send_files(self, receipt: Receipt) -> Receipt:
        """Send a unit's files, each created if absent; where others stand under its name, under its own digest's."""
        folder = self.receipt_path(receipt.unit).parent
        prefix = "" if folder == self.folder else f"{folder.relative_to(self.folder).as_posix()}/"
        if receipt.unit in OF_THE_SET:
            for file in receipt.files:
                self.send(file.file)
            return receipt
        files = tuple(self._send_file(folder, prefix, file) for file in receipt.files)
        for preview in sorted((folder / "previews").glob("*.png")) if prefix.startswith("fits/") else ():
            self.send(preview.relative_to(self.folder).as_posix())
        return receipt.model_copy(update={"files": files})

    def _send_file(self, folder: Path, prefix: str, file: FileDigest) -> FileDigest:
        path = folder / file.file
        own = f"{path.stem.removesuffix(f'-{file.sha256[:16]}')}-{file.sha256[:16]}{path.suffix}"
        for name in (file.file, own):
            if self.place.create(f"{prefix}{name}", path) or self._holds(f"{prefix}{name}", file):
                if name != file.file:
                    write_atomically(folder / name, lambda temporary: shutil.copyfile(path, temporary))
                return file.model_copy(update={"file": name})
        self.place.put(f"{prefix}{own}", path)
        return file.model_copy(update={"file": own})

    def _holds(self, key: str, file: FileDigest) -> bool:
        """Whether those bytes are there."""
        path = temporary_path(self.folder / "compared")
        try:
            return self.place.fetch(key, path) and sha256_file(path) == file.sha256
        finally:
            path.unlink(missing_ok=True)

    def note_receipt(self, receipt: Receipt) -> None:
        """Keep a copy of what was committed; a fit's checkpoints are of no use any more."""
        self._seen.absent.discard(receipt.unit)
        self._seen.receipts.pop(receipt.unit, None)
        self._learn(receipt.unit)
        if receipt.unit in self._fits:
            for entry in self._checkpoints(receipt.unit):
                self.place.delete(entry.key)

    # Long fits

    def _checkpoints(self, unit: str) -> Sequence[Entry]:
        found = self.place.list(f"fits/{unit}/")
        return [entry for entry in found if CHECKPOINTS in entry.key.split("/")[2]]

    def save_progress(self, unit: str) -> None:
        """Send the checkpoints of a fit that were written since the last call."""
        for path in self.fit_folder(unit).glob(f"*{CHECKPOINTS}/*.safetensors"):
            written = path.stat().st_mtime_ns
            if self._seen.checkpoints.get(path) != written:
                self.send(path.relative_to(self.folder).as_posix())
                self._seen.checkpoints[path] = written

    def restore_progress(self, unit: str) -> None:
        """Have the checkpoints here that whoever worked on the fit before has left."""
        for entry in self._checkpoints(unit):
            path = self.fetched(entry.key)
            self._seen.checkpoints[path] = path.stat().st_mtime_ns

    def event(self, **content: object) -> None:
        """As `Run.event`; this process's own lines are there too, in one object that is written anew now and then."""
        super().event(**content)
        line = canonical({"time": round(time.time(), 3), "pid": os.getpid(), "host": self.leases.host, **content})
        self._seen.events.append(line)
        if content.get("event") in ("start", "done") or time.monotonic() - self._seen.sent > EVENT_SECONDS:
            self._seen.sent = time.monotonic()
            name = f"{EVENTS}/{self.leases.host}-{os.getpid()}-{self._number}.jsonl"
            with suppress(RunError):  # progress is never needed
                self.place.put(name, ("\n".join(self._seen.events) + "\n").encode())

    @cached_property
    def _number(self) -> str:
        return hashlib.sha256(os.urandom(16)).hexdigest()[:8]


def _plan_id(content: bytes, where: str) -> str:
    try:
        plan_id = str(json.loads(content)["plan_id"])
        if len(plan_id) != 64 or not set(plan_id) <= set("0123456789abcdef"):
            raise ValueError("no plan id")
    except (ValueError, LookupError, TypeError, RecursionError):
        raise RunError(f"{where}/plan.json: unreadable; plan again into another address.") from None
    return plan_id
