"""The verb `export`: a run or a published set as plain files."""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from diffaug_datasets.cli.screen import say, say_facts, say_json
from diffaug_datasets.core.errors import RunError, one_of
from diffaug_datasets.release.exporting import FORMS, Exported, OnRow, export
from diffaug_datasets.run.progress import on_terminal

READ_BY = {
    "imagefolder": 'datasets.load_dataset("imagefolder", data_dir={folder})',
    "webdataset": "webdataset.WebDataset({tar}, shardshuffle=False)",
    "parquet": "datasets.load_dataset({folder})",
    "csv": "pandas.read_csv({table})",
}


def run_export(
    where: str,
    folder: Path,
    form: str,
    *,
    config: str | None,
    revision: str | None,
    synthetic_only: bool,
    with_real: str | None,
    as_json: bool,
) -> None:
    """Write the files and say what they are and how they are read."""
    known = next((name for name in FORMS if name == form), None)
    if known is None:
        raise RunError(f"--as: got {form!r}, {one_of(form, FORMS)}")
    options = {"config": config, "revision": revision, "with_real": with_real}
    with _bar(show=not as_json) as on_row:
        done = export(where, folder, known, synthetic_only=synthetic_only, on_row=on_row, **options)
    if as_json:
        say_json({**asdict(done), "folder": str(done.folder)})
        return
    _tell(done)


def _tell(done: Exported) -> None:
    rows = ", ".join(f"{count:,} {split}" for split, count in done.rows.items())
    state = "is there already, every file as it should be" if done.was_finished else "exported"
    say(f"{done.folder}: {state}, {rows} images of {done.name} as {done.form}")
    changed = {name: safe for name, safe in done.class_folders.items() if name != safe}
    facts = {"  files": f"{done.written:,} written, {done.kept:,} were there"}
    if changed:
        first, safe = next(iter(changed.items()))
        facts["  folders"] = (
            f"{len(changed)} classes have a safe name, such as {safe} for {first}; metadata.csv has both"
        )
    split = next(iter(done.rows))
    places = {"folder": done.folder, "tar": done.folder / f"{split}-000000.tar", "table": done.folder / f"{split}.csv"}
    quoted = {name: json.dumps(str(place), ensure_ascii=False) for name, place in places.items()}
    facts["  read it"] = READ_BY[done.form].format(**quoted)
    if done.form == "imagefolder":
        facts["  or"] = (
            f"torchvision.datasets.ImageFolder, Keras and others, at {shlex.quote(str(done.folder / split))}"
        )
    say_facts(facts)


@contextmanager
def _bar(*, show: bool) -> Iterator[OnRow | None]:
    """A bar on a terminal."""
    if not show or not on_terminal(sys.stdout):
        yield None
        return
    from rich.progress import Progress

    with Progress() as bars:
        task = bars.add_task("exporting", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
