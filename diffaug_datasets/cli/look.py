"""Verbs that look: at this machine, at what there is (datasets, methods), at a run, at one row made again."""

import json
import os
import platform
import re
import shlex
import shutil
import sys
import time
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.filesize import decimal

from diffaug_datasets.cli.screen import note, say, say_facts, say_json, say_table
from diffaug_datasets.core.errors import DiffAugError, RunError, SourceError, install
from diffaug_datasets.core.identity import __version__
from diffaug_datasets.core.images import xmp_identifier
from diffaug_datasets.core.method import Method, discover_methods, find_method
from diffaug_datasets.core.method_facts import method_facts
from diffaug_datasets.core.models import DEFAULT_ID, TINY, BackboneSpec, find_backbone
from diffaug_datasets.planning.catalogue import find_preset
from diffaug_datasets.planning.presets import SETTING, Preset, families, presets, shown_value
from diffaug_datasets.planning.price import cores, memory_free
from diffaug_datasets.release.card_metadata import bibtex
from diffaug_datasets.release.exporting import exported_row
from diffaug_datasets.release.places import is_run
from diffaug_datasets.run.progress import Status, clock, on_terminal, status
from diffaug_datasets.run.store import RUNS, Run
from diffaug_datasets.sources.real import builder_facts, discover_builders

if TYPE_CHECKING:
    from diffaug_datasets.run.rebuild import Closeness

PAGE = "report.html"
MOST_WORK = 20  # units in work that are named
URN = re.compile(r"urn:diffaug:([0-9a-f]{16}):([0-9a-f]{24})")

# This machine

LIBRARIES = ("datasets", "huggingface_hub", "pyarrow", "torch", "diffusers", "transformers", "peft", "accelerate")
FLAGS = ("HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_DATASETS_CACHE", "CUDA_VISIBLE_DEVICES")


def print_doctor(as_json: bool) -> int:
    """What this machine can do, said before a long run finds out; 1 where images cannot be generated here."""
    can_generate, tiny = _load_tiny()
    free = memory_free()
    flags = [f"{name}={os.environ[name]}" for name in FLAGS if name in os.environ]
    facts = {
        "diffaug": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "cores": str(cores()),
        "memory": f"{decimal(free)} free" if free is not None else "unknown",
        "disk": f"{decimal(shutil.disk_usage(Path.cwd()).free)} free in {Path.cwd()}",
        "devices": _devices(),
        **{name: _version(name) for name in LIBRARIES},
        "environment": ", ".join(flags) or "no HF or CUDA settings",
        "default backbone": _default_backbone(),
        "packaged backbone": tiny,
    }
    if as_json:
        say_json({**facts, "can_generate": can_generate})
    else:
        say_facts(facts)
        ready = "ready to generate" if can_generate else "can plan and load, but not generate; see above"
        say(f"doctor: {ready}")
    return 0 if can_generate else 1


def _devices() -> str:
    if find_spec("torch") is None:
        return "cpu (torch is not installed)"
    import torch

    gpus = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *gpus])


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def _default_backbone() -> str:
    from huggingface_hub import constants

    model = find_backbone(BackboneSpec(id=DEFAULT_ID))
    if model.folder is not None:
        return f"{DEFAULT_ID} is in the cache, {model.folder}"
    fetch = f"`hf download {DEFAULT_ID} --revision {model.revision}` fetches it"
    return f"{DEFAULT_ID} is not in {constants.HF_HUB_CACHE}; {fetch}"


def _load_tiny() -> tuple[bool, str]:
    """Whether the packaged model loads, and how fast or why not."""
    begin = time.perf_counter()
    try:
        from diffaug_datasets.models.backbone import Backbone

        name = Backbone.load(BackboneSpec(id=TINY), "cpu").name
    except DiffAugError as error:
        return False, str(error)
    except ModuleNotFoundError as error:
        return False, f"needs {error.name}: {install('generate')} ({sys.executable})"
    return True, f"{name} loads in {time.perf_counter() - begin:.1f} s"


# What there is: real datasets and methods, read from their modules


METHOD_LINES = ("name", "slug", "version", "sources", "prompt", "start", "label", "filter", "needs", "cost", "parity")


class ParameterText(TypedDict):
    """A parameter of a method in words; `key` is dotted where it lies in a model inside."""

    key: str
    type: str
    default: str
    meaning: str


def print_builders(as_json: bool) -> None:
    """Name, size, licence and where the images come from."""
    facts = [builder_facts(name) for name in discover_builders()]
    if as_json:
        say_json([{**vars(fact), "citation": fact.citation or None} for fact in facts])
        return
    rows: list[tuple[str, ...]] = []
    for fact in facts:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in fact.official.items())
        source = "in the package" if fact.embedded else fact.hub_id or "your own folder"
        rows.append((fact.name, fact.title, counts or "any", source, fact.licence))
    say_table(("NAME", "DATASET", "IMAGES", "SOURCE", "LICENCE"), rows)


def print_methods(as_json: bool) -> None:
    """Name, paper and the first line of each method's page."""
    methods = [discover_methods()[name] for name in sorted(discover_methods())]
    if as_json:
        say_json([_facts(method) for method in methods])
        return
    rows = [(m.NAME, m.SLUG, m.TITLE, f"arXiv {m.PAPER}", _summary(m)) for m in methods]
    say_table(("NAME", "IN CONFIG NAMES", "TITLE", "PAPER", "WHAT IT DOES"), rows)


def print_method(name: str, as_json: bool) -> None:
    """Everything about one method: its steps, facts, parameters and presets; of a preset its values alone."""
    if "@" in name:
        _print_preset(find_preset(name), as_json)
        return
    method = find_method(name)
    parameters = list(_parameters(method.Config))
    unsure = dict(method.UNSURE)
    if as_json:
        known = [_preset_facts(preset) for preset in presets().values() if preset.method == name]
        facts = {**_facts(method), "text": method.page, "parameters": parameters, "unsure": unsure, "presets": known}
        say_json(facts)
        return
    say(f"{method.TITLE} (arXiv {method.PAPER})")
    say()
    say(method.page)
    say()
    facts = _facts(method)
    say_facts({key: str(facts[key]) for key in METHOD_LINES})
    say()
    rows = [(p["key"], p["type"], p["default"], p["meaning"]) for p in parameters]
    say_table(("PARAMETER", "TYPE", "DEFAULT", "MEANING"), rows)
    if unsure:
        say()
        say_table(("NOT FROM THE PUBLICATION ITSELF", "WHAT WE HAVE"), list(unsure.items()))
    groups = families(name)
    if listed := [(one.name, one.about, ", ".join(one.unsure)) for group in groups for one in group]:
        say()
        say_table(("PRESET", "WHAT IT IS", "OURS OR AT SECOND HAND"), listed)
    for group in groups:
        say()
        say(f"{', '.join(preset.name for preset in group)}:")
        say_table(("VALUE", "IS", "WHERE IT STANDS"), _traced(group[0])[1:])
        where = dict.fromkeys(origin.text for one in group for key, _, origin in one.values() if key == SETTING)
        say(f"The sets: {'; '.join(where)}.")
    say()
    say(bibtex(method.PAPER, method.TITLE))


def _print_preset(preset: Preset, as_json: bool) -> None:
    """What a preset sets, and where each value stands."""
    if as_json:
        say_json(_preset_facts(preset))
        return
    say(f"{preset.name}: {preset.about}")
    say_table(("VALUE", "IS", "WHERE IT STANDS"), _traced(preset))


def _traced(preset: Preset) -> list[tuple[str, str, str]]:
    """Key, value and place of everything that a preset sets, its dataset and protocol first."""
    return [(key, shown_value(value), origin.text) for key, value, origin in preset.values()]


def _preset_facts(preset: Preset) -> dict[str, object]:
    values = [
        {"key": key, "value": value, "where": origin.text, "published": origin.published}
        for key, value, origin in preset.values()
    ]
    return {"name": preset.name, "about": preset.about, "values": values}


def _summary(method: Method) -> str:
    first = method.page.split("\n\n")[0]
    text = " ".join(first.split()).partition(": ")[2]
    return text.split(" (")[0].rstrip(".")


def _facts(method: Method) -> dict[str, object]:
    made_of = method_facts(method)
    return {
        "name": method.NAME,
        "slug": method.SLUG,
        "version": method.VERSION,
        "title": method.TITLE,
        "paper": method.PAPER,
        "parity": method.PARITY,
        "sources": method.N_SOURCES,
        "prompt": made_of.prompt,
        "start": made_of.start,
        "label": made_of.label,
        "filter": made_of.filter,
        "needs": ", ".join(sorted(method.NEEDS)) or "nothing beside the backbone",
        "cost": f"{made_of.cost} network rows per image at the default settings, two per step with guidance",
    }


def _parameters(model: type[BaseModel], prefix: str = "") -> list[ParameterText]:
    """Every parameter with its type, default and meaning; those of a model inside under dotted names."""
    texts: list[ParameterText] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            texts += _parameters(field.annotation, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "(required)" if default is PydanticUndefined else json.dumps(default)
        meaning = "; ".join(part for part in (field.description, _bounds(field.metadata)) if part)
        texts.append({"key": prefix + name, "type": _type(field.annotation), "default": shown, "meaning": meaning})
    return texts


def _bounds(metadata: Sequence[object]) -> str:
    """`> 0, <= 1` of pydantic's constraints."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return ", ".join(f"{sign} {getattr(m, key)}" for m in metadata for key, sign in signs.items() if hasattr(m, key))


def _type(annotation: object) -> str:
    """`float`, `dpm | ddim`, `str | list of str`: as one would write it in a recipe."""
    if isinstance(annotation, type) and not get_args(annotation):
        return "null" if annotation is type(None) else annotation.__name__
    inner = [item for item in get_args(annotation) if item is not Ellipsis]
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, inner))
    if get_origin(annotation) in (tuple, list):
        return f"list of {_type(inner[0])}"
    return " | ".join(_type(item) for item in inner)


# A run


def print_status(place: str, as_json: bool) -> None:
    """Counts from receipts, and who works on which units."""
    state = status(Run.open(place))
    if as_json:
        say_json(_state_facts(state))
    else:
        say("\n".join(_state_lines(state, place)))


def watch_status(place: str, seconds: float, as_json: bool) -> None:
    """The same again and again until the run is finished: redrawn on a terminal, elsewhere where something changed."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    run, before = Run.open(place), ""
    redraws = on_terminal(sys.stdout) and not as_json
    with Live(console=Console(file=sys.stdout), auto_refresh=False) if redraws else nullcontext() as live:
        while True:
            state = status(run)
            text = "\n".join(_state_lines(state, place))
            if live is not None:
                live.update(Text(text), refresh=True)
            elif as_json:
                print_line(_state_facts(state))
            elif text != before:
                say(text)
            if state.finished:
                return
            before = text
            time.sleep(seconds)


def print_line(facts: Mapping[str, object]) -> None:
    """JSON on one line."""
    say(json.dumps(facts, ensure_ascii=False))


def _state_facts(state: Status) -> dict[str, object]:
    return {**asdict(replace(state, shown=None)), "shown": state.shown and state.shown.facts()}


def _state_lines(state: Status, place: str) -> Iterator[str]:
    phase = "finished" if state.finished else "running" if state.lively else "not finished"
    yield f"{state.name}, plan {state.plan_id[:16]}: {phase}"
    pace = state.rows_per_second or 0.0
    rate = f", {pace:.1f} per second and worker" if pace >= 1 else f", {pace:.2g} per second and worker" if pace else ""
    eta = f", ETA {clock(state.seconds_left)}" if state.seconds_left is not None else ""
    workers = f" by {state.lively} workers" if state.lively > 1 else ""
    learned = f", ETA {clock(state.fits_seconds_left)}" if state.fits_seconds_left is not None else ""
    yield f"  fits     {state.fits_done} of {state.fits}{learned}"
    yield f"  shards   {state.shards_done} of {state.shards}"
    yield f"  images   {state.rows_written} written, {state.rows_failed} failed, of {state.rows}{rate}{eta}"
    if state.unfinished:
        again = "" if state.lively else ", to be made again"
        yield f"           {state.unfinished} more in shards that are not finished{again}"
    yield f"  in work  {len(state.work) or 'nothing'}{workers}"
    for one in state.work[:MOST_WORK]:
        late = ", far longer than others took" if one.is_late else ""
        sign = f", no sign for {clock(one.silent)}" if one.is_silent else ""
        yield f"    {one.unit} on {one.host} (process {one.pid}) for {clock(one.seconds)}{sign}{late}"
    if len(state.work) > MOST_WORK:
        yield f"    and {len(state.work) - MOST_WORK} more"
    for reason, count in state.reasons.items():
        yield f"  failed {count:,} time{'s' * (count > 1)}: {reason}"
    for line in state.shown.lines() if state.shown else ():
        yield f"  {line}"
    if not state.finished and not state.lively:
        yield f"next: diffaug generate {place}"


def show_row(place: str, prefix: str, out: Path | None) -> None:
    """Everything about one row."""
    from diffaug_datasets.report.row import show

    say(show(Run.open(place), prefix, out))


def make_report(places: Sequence[str], out: Path | None, open_it: bool) -> None:
    """A page over runs; that of a run at an address goes there too."""
    from diffaug_datasets.report.page import write_report

    runs = [Run.open(place, whole=True) for place in places]
    page = write_report(runs, out or runs[0].folder / PAGE)
    if out is None:
        runs[0].send(PAGE)
    there = "" if out or runs[0].where == str(runs[0].folder) else f", and {runs[0].where}/{PAGE}"
    say(f"report page: {page}{there}")
    if open_it:
        open_page(page)


def open_page(page: Path) -> None:
    """Show a page in the browser; says so where there is none."""
    if not webbrowser.open(page.resolve().as_uri()):
        note(f"{page}: no browser could be started here; open the file in one.")


# A picture from anywhere


def show_picture(file: Path, place: str | None, out: Path | None) -> None:
    """Which row a picture is, by its XMP packet, and the story of that row where a run or a set here knows it.

    Of a picture without one, such as a real image, what the table of the export that it lies in says.

    Raises:
        RunError: it is no picture, has no packet of ours and lies in no export, or the place does not know its row.
    """
    from diffaug_datasets.report.row import show

    named = _named_by(file)
    if named is None:
        _say_exported(file)
        return
    plan_id, row_id = named
    say(f"{file}: row {row_id} of plan {plan_id}")
    if place is not None and not is_run(place):
        _say_published(place, plan_id, row_id)
        return
    places = [place] if place is not None else [str(path.parent) for path in sorted(RUNS.glob("*/plan.json"))]
    run = next((run for run in _runs_in(places) if _holds(run, plan_id, row_id)), None)
    if run is not None:
        say(f"run folder: {run.where}")
        say()
        say(show(run, row_id, out))
    elif place is not None:
        raise RunError(f"{place}: holds no row {row_id} of plan {plan_id}; give the run that made it.")
    else:
        say(
            f"no run in {RUNS}/ has it; `diffaug show {shlex.quote(str(file))} RUN` (or org/name) tells the row's story"
        )


def _say_exported(file: Path) -> None:
    """A real image of an export, or one whose metadata was lost, as the export's table has it."""
    row = exported_row(file)
    if row is None:
        raise RunError(
            f"{file}: names no row of ours in its metadata and lies in no export of ours, so it is a real image, was "
            "made by something else, or was saved again by a program that left the metadata out."
        )
    what = "a synthetic image (its own metadata is gone)" if row["is_synthetic"] == "True" else "a real image"
    say(f"{file}: {what} of class {row['label']}")
    say_facts({f"  {key}": _one_line(value) for key, value in row.items() if value not in ("", "{}", "[]")})


def _named_by(file: Path) -> tuple[str, str] | None:
    """Plan id and row id; None where it names no row."""
    try:
        name = xmp_identifier(file.read_bytes())
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror}); check the path and its rights.") from None
    except SourceError as error:
        raise RunError(f"{file}: {str(error).removeprefix('image: ')}") from None
    match = URN.fullmatch(name)
    return (match[1], match[2]) if match else None


def _runs_in(places: Sequence[str]) -> Iterator[Run]:
    """Those that can be opened; a place that a person named must be one."""
    for place in places:
        try:
            yield Run.open(place)
        except RunError:
            if len(places) == 1:
                raise


def _holds(run: Run, plan_id: str, row_id: str) -> bool:
    """Whether the row is in a run under that plan, or was taken over from it, as after a withdrawal."""
    if not any(row.row_id == row_id for row in run.plan.rows):
        return False
    if run.plan.id.startswith(plan_id):
        return True
    homes = (shard for shard in run.plan.shards() if any(row.row_id == row_id for row in shard.rows))
    receipts = (shard for shard in homes if run.receipt(shard.name))
    made_under = (run.table(shard).select(["row_id", "plan_id"]).to_pylist() for shard in receipts)
    return any(r["row_id"] == row_id and r["plan_id"].startswith(plan_id) for rows in made_under for r in rows)


def _say_published(place: str, plan_id: str, row_id: str) -> None:
    """Every column of a published row that is not null."""
    import pyarrow.compute as pc

    from diffaug_datasets.release.read import Provenance
    from diffaug_datasets.release.repository import Repository

    repository = Repository.open(place)
    names = {name for name in repository.configs if not name.endswith(("_synthetic", "_provenance"))}
    names |= {name.removesuffix("_provenance") for name in repository.configs if name.endswith("_provenance")}
    for name in sorted(names):
        release = repository.release(name)
        rows = Provenance.of(repository, release).rows(pc.field("row_id") == row_id)
        found = next((row for row in rows if str(row.get("plan_id", "")).startswith(plan_id)), None)
        if found is not None:
            say(f"published: {repository.where}, {release.name}")
            label = {"class": release.class_names[found["label"]]}
            say_facts({f"  {key}": _one_line(value) for key, value in {**label, **found}.items() if value is not None})
            return
    raise RunError(f"{repository.where}: holds no row {row_id} of plan {plan_id}; give the set that it came from.")


def _one_line(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("\n", "\\n")


# One row made again


def run_regen(place: str, prefix: str, out: Path | None, device: str, as_json: bool) -> int:
    """Make one row of a run again; the exit codes are those of `say_closeness`."""
    from diffaug_datasets.run.execute import resolve_device
    from diffaug_datasets.run.rebuild import rebuild_row

    made, measured = rebuild_row(Run.open(place), prefix, resolve_device(device))
    if out is not None:
        write_image(out, made.data)
    return say_closeness(measured, as_json)


def say_closeness(closeness: "Closeness", as_json: bool) -> int:
    """Print how a rebuilt row compares; 1 where it is not as it should be, 3 where that cannot be known."""
    outcome = "ok" if closeness.is_good else "could not check" if closeness.is_unknown else "WRONG"
    if as_json:
        say_json({**asdict(closeness), "outcome": outcome})
    else:
        say(str(closeness))
    return {"ok": 0, "could not check": 3, "WRONG": 1}[outcome]


def write_image(out: Path, data: bytes) -> None:
    """Raises RunError where it cannot be written."""
    try:
        out.write_bytes(data)
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror}); give another place.") from None
