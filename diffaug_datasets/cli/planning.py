"""From what a person names (a file, a shipped recipe, a config) to a priced run folder. Nothing here needs torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from textwrap import wrap
from types import MappingProxyType
from typing import Any

from diffaug_datasets.cli.screen import say, say_facts, say_json, waiting, warn_of_signs
from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.recipe import Recipe, with_absolute_places
from diffaug_datasets.core.strict_yaml import load_yaml
from diffaug_datasets.data.catalogue import config_recipe, merged
from diffaug_datasets.data.prepare import Prepared, prepare, refuse_other_plan, write_run
from diffaug_datasets.data.price import CPU_FLOPS, GPU_FLOPS, Price, price, size
from diffaug_datasets.run.progress import clock
from diffaug_datasets.run.store import Run

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
            "  disk": f"{size(quote.bytes_needed)} needed, {size(quote.bytes_free)} free",
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
    needed = f"{size(quote.memory_a_worker)} a worker, {size(quote.memory_to_plan)} to plan"
    return f"{needed}, {_free(quote)}"


def _free(quote: Price) -> str:
    return f"{size(quote.memory_free)} free" if quote.memory_free is not None else "free memory unknown"
