"""The verb that takes real images out of a finished run, and what it prints.

From what a person names (a file, a shipped recipe, a config) to a priced run folder. Nothing here needs torch.

Verbs that make something: fits, images, prepared datasets.

The whole way on embedded data: several small runs, a report over them, and the line that loads one.

The verb that turns pictures into context suffixes.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from textwrap import wrap
from types import MappingProxyType
from typing import Any

from rich.filesize import decimal

from diffaug_datasets.cli.screen import note, say, say_facts, say_json, waiting, warn_of_signs
from diffaug_datasets.core.errors import RecipeError, RunError
from diffaug_datasets.core.files import load_yaml, sha256_file, write_text
from diffaug_datasets.core.models import Place
from diffaug_datasets.core.recipe import Recipe, with_absolute_places
from diffaug_datasets.planning.catalogue import config_recipe, merged
from diffaug_datasets.planning.prepare import Prepared, prepare, refuse_other_plan, write_run
from diffaug_datasets.planning.price import CPU_FLOPS, GPU_FLOPS, Price, price
from diffaug_datasets.planning.suffixes import CaptionOptions, write_suffixes
from diffaug_datasets.run.assembly import Assembled
from diffaug_datasets.run.engines import accelerate
from diffaug_datasets.run.execute import emptied, execute, over_budget
from diffaug_datasets.run.progress import clock, following
from diffaug_datasets.run.reuse import Withdrawal, refusals, withdraw
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions

SHOWN, SAMPLED = 20, 8  # classes that are all printed; of more, so many
WIDTH = 110  # of what is said on the source


def shipped_recipes() -> dict[str, Traversable]:
    """Name -> file of every recipe inside the package (`defaults` and `presets` say what names stand for)."""
    found = (files("diffaug_datasets") / "recipes").iterdir()
    named = {item.name.removesuffix(".yaml"): item for item in found if item.name.endswith(".yaml")}
    return {name: named[name] for name in sorted(named) if name not in ("defaults", "presets")}


def print_recipes() -> None:
    """The shipped recipes and their first line; a config name is a recipe too."""
    facts = {name: item.read_text("utf-8").splitlines()[0].lstrip("# ") for name, item in shipped_recipes().items()}
    facts["BUILDER_PROTOCOL_SLUG"] = "the default recipe of a config name, such as cub_5shot_diffii"
    facts["METHOD@SETTING"] = "a published setting, such as diff_ii@cub_5shot; `diffaug methods METHOD` lists them"
    say_facts(facts)


def copy_recipe(name: str, file: Path | None) -> None:
    """Write a recipe to a file that is not there yet."""
    shipped = shipped_recipes()
    text = shipped[name].read_text("utf-8") if name in shipped else config_recipe(name).to_yaml()
    target = file or Path(f"{name}.yaml")
    try:
        with target.open("x", encoding="utf-8") as sink:
            sink.write(text)
    except FileExistsError:
        raise RecipeError(f"{target}: is there already; give another file name, or remove it first.") from None
    except OSError as error:
        raise RecipeError(f"{target}: cannot be written ({error.strerror}); give another place.") from None
    say(f"{target}: written; `diffaug methods` explains the keys of config, `diffaug plan {target}` plans it")


def read_recipe(text: str, source: str | None, changes: Sequence[str]) -> Recipe:
    """The recipe that a file, a shipped name or a config name stands for, with a caller's changes on top.

    Raises:
        RecipeError: one sentence that names the key or the name, and what is allowed.
    """
    shipped = shipped_recipes()
    if Path(text).suffix in (".yaml", ".yml") or Path(text).is_file():
        recipe = Recipe.from_yaml(Path(text))
    elif text in shipped:
        recipe = Recipe.from_dict(load_yaml(shipped[text].read_text("utf-8")))
    else:
        recipe = config_recipe(text)
    changed: dict[str, Any] = {}
    for change in changes:
        changed = merged(changed, _change(change))
    if source:
        changed["source"] = source
    content = recipe.model_dump(mode="json", by_alias=True)
    here = with_absolute_places({"method": recipe.method, **changed}, Path())
    return Recipe.from_dict(merged(content, here), folder=None)


def _change(text: str) -> dict[str, Any]:
    """`config.strength=0.3` as nested mappings; the value is YAML."""
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
        raise RecipeError(f"--set: got {text!r}, expected KEY=VALUE such as per_class=10 or config.strength=0.3.")
    try:
        content: Any = load_yaml(value)
    except ValueError as error:
        raise RecipeError(
            f"--set {path}: got {value[:60]!r}, expected a YAML value ({error}); a text may need quotes."
        ) from None
    for key in reversed(path.split(".")):
        content = {key: content}
    return dict(content)


def default_folder(prepared: Prepared, parent: Path = Path("runs")) -> Path:
    """`runs/NAME-PLANID`: another plan gets another folder."""
    return parent / f"{prepared.plan.header.name}-{prepared.plan.id[:8]}"


def make_plan(
    text: str, folder: Path | None, source: str | None, changes: Sequence[str], *, dry_run: bool, as_json: bool
) -> None:
    """Draw, price, write."""
    recipe = read_recipe(text, source, changes)
    with waiting(f"reading the real images of {recipe.builder}"):
        prepared = prepare(recipe)
    place = folder or default_folder(prepared)
    quote = price(prepared, place)
    if dry_run:
        check_room(prepared, place, quote)
    else:
        write_checked(prepared, place, quote)
        warn_of_signs(place)
    if as_json:
        say_json({**asdict(quote), "found": found_facts(prepared), "run": None if dry_run else str(place)})
        return
    print_price(quote, found_lines(prepared))
    say(f"nothing written (--dry-run); run folder would be {place}" if dry_run else f"next: diffaug generate {place}")


def found_facts(prepared: Prepared) -> dict[str, Any]:
    """What the source turned out to be, for programs: all classes with what prompts call them, what was left out."""
    header, survey = prepared.plan.header, prepared.real.survey
    prompts = dict(zip(header.class_names, header.prompt_names, strict=True))
    skipped = {image.name: image.reason for image in prepared.real.skipped}
    left_out, notes = list(survey.left_out), list(prepared.real.notes)
    return {"layout": survey.layout, "prompts": prompts, "left_out": left_out, "skipped": skipped, "notes": notes}


def found_lines(prepared: Prepared) -> dict[str, str]:
    """The same for people: up to SHOWN classes, then a sample, spread evenly."""
    header, survey = prepared.plan.header, prepared.real.survey
    names, prompts = header.class_names, header.prompt_names
    places = range(len(names)) if len(names) <= SHOWN else range(0, len(names), -(-len(names) // SAMPLED))
    start = f"{len(names):,}: " if len(names) <= SHOWN else f"{len(names):,}, such as "
    lines = {
        "  found": survey.layout,
        "  classes": start + ", ".join(names[place] for place in places),
        "  prompts": "as the classes" if names == prompts else ", ".join(prompts[place] for place in places),
    }
    lines |= {"  left out": "; ".join(survey.left_out)} if survey.left_out else {}
    lines |= {"  note": "; ".join(prepared.real.notes)} if prepared.real.notes else {}
    return {name: "\n".join(wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False))
            for name, text in lines.items()}  # fmt: skip


def check_room(prepared: Prepared, folder: Path, quote: Price) -> None:
    """All that can be said against writing the run folder before a file of it is written.

    Raises:
        RunError: the disk lacks room for what will come.
        PlanError: the folder holds another plan.
    """
    quote.check(folder)
    if (folder / "plan.json").exists():
        refuse_other_plan(Run.open(folder), prepared.plan)


def write_checked(prepared: Prepared, folder: Path, quote: Price) -> Run:
    """Write the run folder, if the disk has room for what will come."""
    check_room(prepared, folder, quote)
    return write_run(prepared, folder)


def print_price(quote: Price, found: Mapping[str, str] = MappingProxyType({})) -> None:
    """The price as a short table; `found`: lines on the source that stand above it."""
    say(f"{quote.name}, plan {quote.plan_id[:16]}")
    say_facts(
        {
            **found,
            "  images": _images(quote),
            "  beside": f"{quote.real:,} real images for training, {quote.test:,} for testing",
            "  shards": f"{quote.shards:,}, in batches of {quote.batch_size}",
            "  fits": ", ".join(f"{count} {kind}" for kind, count in quote.fits.items()) or "none",
            "  work": _work(quote),
            "  time": _time(quote),
            "  disk": f"{decimal(quote.bytes_needed)} needed, {decimal(quote.bytes_free)} free",
            "  memory": _memory(quote),
        }
    )
    for warning in quote.warnings:
        say(f"  warning: {warning}")


def _images(quote: Price) -> str:
    counts = sorted(quote.images_a_class.values())
    span = str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    return f"{quote.rows:,}: {span} a class, {len(counts):,} classes"


def _work(quote: Price) -> str:
    idle = f" ({quote.idle:,} of them fill batches up)" if quote.idle else ""
    fits = f" and {quote.fit_evaluations:,} for the fits" if quote.fit_evaluations else ""
    assumed = "" if quote.weights_here else " (weights not here: Stable Diffusion 1.5 assumed)"
    return f"{quote.evaluations:,} U-Net evaluations{idle}{fits}, {_flop(quote.flop_a_evaluation)} each{assumed}"


def _flop(count: float) -> str:
    return f"{count / 1e9:,.0f} GFLOP" if count >= 1e9 else f"{count / 1e6:,.0f} MFLOP"


def _time(quote: Price) -> str:
    rates = f"at {CPU_FLOPS / 1e9:.0f} GFLOP/s a thread or {GPU_FLOPS / 1e12:.0f} TFLOP/s a GPU"
    workers = f"{quote.workers} CPU worker{'s' if quote.workers > 1 else ''}"
    cpu, gpu = (clock(max(1.0, seconds)) for seconds in (quote.seconds_cpu, quote.seconds_gpu))
    return f"about {cpu} with {workers}, {gpu} on one GPU ({rates})"


def _memory(quote: Price) -> str:
    needed = f"{decimal(quote.memory_a_worker)} a worker, {decimal(quote.memory_to_plan)} to plan"
    return f"{needed}, {_free(quote)}"


def _free(quote: Price) -> str:
    return f"{decimal(quote.memory_free)} free" if quote.memory_free is not None else "free memory unknown"


def leads() -> bool:
    """Whether this process prints: the only one, or the first under `accelerate launch`."""
    return not accelerate.launched() or accelerate.rank() == 0


def run_fits(folder: Path, workers: int, options: WorkerOptions) -> None:
    """Make the fits of a run and stop."""
    run = Run.open(folder)
    if leads():
        say(f"{run.plan.header.name}: {len(run.plan.fits)} fits, for {len(run.plan.rows)} images later")
        _say_refusals(run, options)
    finish(run, replace(options, only_fits=True), workers)
    if leads():
        say(f"{folder}: all fits are there; next: diffaug generate {folder}")


def run_generate(folder: Path, workers: int, options: WorkerOptions) -> int:
    """Make what a run lacks; 1 where more rows failed than its recipe accepts."""
    run = Run.open(folder)
    if leads():
        say(f"{run.plan.header.name}: {len(run.plan.rows)} images to have, plan {run.plan.id[:16]}")
        _say_refusals(run, options)
    done = finish(run, options, workers)
    if done is None or not leads():
        return 0
    print_summary(run, done)
    warn_of_signs(folder)
    if warning := emptied(done):
        say(f"warning: {warning}")
    if trouble := over_budget(run, done):
        note(f"diffaug: {trouble}")
        return 1
    say(f"next: diffaug report {folder}")
    return 0


def _say_refusals(run: Run, options: WorkerOptions) -> None:
    for sentence in refusals(run, options.fits_from):
        say(f"note: {sentence}")


def finish(run: Run, options: WorkerOptions, workers: int) -> Assembled | None:
    """Execute a run and show how far it is."""
    if not leads():
        return execute(run, options, workers)
    with following(run) as tick:
        return execute(run, options, workers, tick)


def print_summary(run: Run, done: Assembled) -> None:
    """What came of a run, in two lines."""
    written, failed, kept = (sum(getattr(c, key) for c in done.counts) for key in ("written", "failed", "kept"))
    say(f"{done.name}: {written} images written, {failed} failed, {kept} kept, {clock(done.seconds)} of work")
    say(f"run folder: {run.folder}")


def run_build(name: str, source: str | None, folder: Path | None, workers: int, device: str) -> None:
    """Plan, generate and prepare a config name through its `datasets` builder."""
    from diffaug_datasets.train.builder import load_builder

    builder = load_builder(name, source=source, run_dir=folder, workers=workers, device=device)
    say(f"{name}: {len(builder.run.plan.rows)} images to have, plan {builder.run.plan.id[:16]}")
    builder.download_and_prepare()
    splits: dict[str, Any] = builder.info.splits or {}
    rows = ", ".join(f"{split.num_examples} {name} rows" for name, split in splits.items())
    say(f"{name}: prepared, {rows}, in {builder.cache_dir}")
    say(f"run folder: {builder.run.folder}")


@dataclass(frozen=True)
class Part:
    """One run of the demo: a config name and what it changes."""

    config: str
    changes: Mapping[str, Any] = field(default_factory=dict)


PARTS = (
    Part("fashion_5shot_diffii"),
    Part("fashion_5shot_txt2img", {"per_class": 8}),
    Part("fashion_5shot_img2img", {"per_class": 8}),
    Part("fashion_5shot_genie", {"per_class": 8}),
    Part("fashion_5shot_genieada", {"per_class": 4}),
)
FEW = {"num_inference_steps": 8}
HASTY = {**FEW, "inversion_steps": 8, "concepts": {"steps": 10}}
SHORT = (
    Part("fashion_5shot_diffii", {"per_class": 2, "config": HASTY, "include_test": False}),
    Part("fashion_5shot_genie", {"per_class": 2, "config": FEW, "include_test": False}),
)
ONE_WORKER = 100  # rows up to which a second process costs more time than it saves


def run_demo(folder: Path, short: bool) -> None:
    """Plan, generate, report, load."""
    from diffaug_datasets.report.page import write_report

    parts = SHORT if short else PARTS
    runs = [_made(part, folder, f"[{i}/{len(parts)}]") for i, part in enumerate(parts, 1)]
    say("writing the report")
    page = write_report(runs, folder / "report.html")
    rows = _loaded(runs[0].folder)
    say()
    say(f"report page: {page}")
    say("load the first run in Python:")
    say("    from datasets import load_dataset")
    say(f'    dataset = load_dataset("{runs[0].folder}")  # {rows}')


def _made(part: Part, folder: Path, number: str) -> Run:
    prepared = prepare(config_recipe(part.config, **part.changes))
    place = default_folder(prepared, folder)
    say(f"{number} {part.config}: {prepared.recipe.module.TITLE}")
    quote = price(prepared, place)
    print_price(quote)
    run = write_checked(prepared, place, quote)
    done = finish(run, WorkerOptions(), 0 if quote.rows > ONE_WORKER else 1)
    if done is None:
        raise RunError(f"{place}: nothing was assembled; run the demo again.")
    print_summary(run, done)
    if trouble := over_budget(run, done):
        raise RunError(trouble)
    return run


def _loaded(folder: Path) -> str:
    """What plain `load_dataset` finds in a run folder."""
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        found: Mapping[str, Sequence[Any]] = datasets.load_dataset(str(folder), cache_dir=cache)
        return ", ".join(f"{len(split)} {name} rows" for name, split in found.items())


def make_suffixes(text: str, out: Path, source: str | None, options: CaptionOptions) -> None:
    """Write a suffix file that is not there yet.

    Raises:
        RecipeError: the file is there.
    """
    if out.exists():
        raise RecipeError(f"{out}: is there already; give another file name, or remove it first.")
    recipe = read_recipe(text, source, ())
    options = replace(
        options,
        captioner=Place().absolute(options.captioner, Path()),
        summariser=Place(packaged=("clusters",)).absolute(options.summariser, Path()),
    )
    with waiting(f"captioning the real images of {recipe.builder}"):
        document = write_suffixes(recipe, options)
    write_text(out, document.to_json())
    for suffix in document.suffixes:
        say(f"  {suffix}")
    for dropped in document.dropped:
        say(f"  left out: {dropped.text} ({dropped.reason})")
    say(f"{out}: written; next: diffaug plan {text} --set config.suffixes={out}")


NAMED = 3


@dataclass(frozen=True)
class Real:
    """A real training image of a run: sha256 of its bytes, and the name of its class."""

    id: str
    class_name: str


def run_withdraw(folder: Path, words: Sequence[str], out: Path | None, as_json: bool) -> None:
    """Withdraw, and say what went and what stayed."""
    run = Run.open(folder)
    images = {found.id: found for word in words for found in [_found(run, word)]}
    made = withdraw(run, list(images), out)
    if as_json:
        facts = {"plan_id": made.run.plan.id, "run": str(made.run.folder), "images": sorted(images)}
        say_json({**facts, "rows": made.rows, "learned": made.learned})
        return
    say(f"{made.done.name}: plan {run.plan.id[:16]} without {_named(images.values())}")
    say_facts({f"  {name}": text for name, text in _facts(made).items()})
    say(f"run folder: {made.run.folder}, plan {made.run.plan.id[:16]}")
    say(f"next: diffaug publish {made.run.folder} TARGET")


def _found(run: Run, word: str) -> Real:
    """The training image that a word means: a file with its bytes, its sha256, or the first digits of that.

    Raises:
        RunError: none or several are meant.
    """
    path = Path(word)
    wanted = sha256_file(path) if path.is_file() else word.lower()
    found = {r.id: r for r in _training_images(run) if wanted and r.id.startswith(wanted)}
    if len(found) != 1:
        what = "no training image" if not found else f"{len(found)} training images"
        raise RunError(
            f"{word!r}: {what} of {run.folder} answers to it; give the file itself, or the sha256 of its bytes as the "
            "column source_ids has it."
        )
    return next(iter(found.values()))


def _training_images(run: Run) -> Iterator[Real]:
    names = run.plan.header.class_names
    return (Real(row.source_ids[0], names[row.label]) for row in run.plan.real if row.split == "train")


def _named(images: Iterable[Real]) -> str:
    found = list(images)
    if len(found) == 1:
        return f"1 image of {found[0].class_name} ({found[0].id[:16]})"
    return f"{len(found)} images"


def _facts(made: Withdrawal) -> dict[str, str]:
    rows = ", ".join(made.rows[:NAMED]) + (", ..." if len(made.rows) > NAMED else "")
    facts = {
        "rows": f"{len(made.rows)} synthetic out{f' ({rows})' if rows else ''}, {len(made.run.plan.rows)} stay",
        "shards": f"{made.taken} taken over, {made.rewritten} written without these rows and the image's own",
    }
    if made.learned:
        facts["fits"] = (
            f"{len(made.learned)} were made with the image in and stay, as other rows rest on them; "
            "`diffaug plan --set without=[...]` draws and learns anew instead"
        )
    return facts
