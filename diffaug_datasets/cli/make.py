"""Verbs that make something: recipes, suffix files, plans, fits, images, prepared datasets, runs without an image.

Each calls the library once and prints what came of it.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from textwrap import wrap
from types import MappingProxyType
from typing import TYPE_CHECKING

from rich.filesize import decimal

from diffaug_datasets.cli.clusters import Cluster, made_there
from diffaug_datasets.cli.screen import note, say, say_facts, say_json, waiting, warn_of_patterns
from diffaug_datasets.core.errors import RecipeError, RunError, few
from diffaug_datasets.core.files import load_yaml, sha256_file, write_text
from diffaug_datasets.core.models import Place
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.cards import card_at_hand, card_line, read_bytes
from diffaug_datasets.planning.catalogue import config_recipe, merged, shipped_recipes
from diffaug_datasets.planning.new_run import PricedPlan, find_recipe, price_plan
from diffaug_datasets.planning.price import CPU_FLOPS, GPU_FLOPS, Price
from diffaug_datasets.planning.published import price_published
from diffaug_datasets.planning.sentences import SentenceOptions, write_sentences
from diffaug_datasets.planning.suffixes import CaptionOptions, write_suffixes
from diffaug_datasets.run.assembly import Assembled
from diffaug_datasets.run.execute import emptied, execute, generate, leads, over_budget, shown_on
from diffaug_datasets.run.progress import clock, duration
from diffaug_datasets.run.reuse import refusals, withdraw
from diffaug_datasets.run.store import RUNS, Run
from diffaug_datasets.run.worker import WorkerOptions

if TYPE_CHECKING:
    import datasets

SHOWN_CLASSES, SAMPLED_CLASSES = 20, 8  # classes that are all printed; of more, so many
LEAST_HOURS = 0.1  # of a GPU that are told
LINE_WIDTH = 110  # characters, of what is said on the source
NAMED_ROWS = 3  # withdrawn rows that are named


# Recipes


def print_recipes() -> None:
    """The shipped recipes and their first line; a config name is a recipe too."""
    facts = {name: item.read_text("utf-8").splitlines()[0].lstrip("# ") for name, item in shipped_recipes().items()}
    facts["BUILDER_PROTOCOL_SLUG"] = "the default recipe of a config name, such as cub_5shot_diffii"
    facts["METHOD@SETTING"] = "a published setting, such as diff_ii@cub_5shot; `diffaug methods METHOD` lists them"
    say_facts(facts)


def copy_recipe(name: str, file: Path | None) -> None:
    """Write a recipe to a file that is not there yet; `-` prints it."""
    shipped = shipped_recipes()
    text = shipped[name].read_text("utf-8") if name in shipped else config_recipe(name).to_yaml()
    if file == Path("-"):
        say(text.rstrip("\n"))
        return
    target = file or Path(f"{name}.yaml")
    try:
        with target.open("x", encoding="utf-8") as sink:
            sink.write(text)
    except FileExistsError:
        raise RecipeError(f"{target}: is there already; give another file name, or remove it first.") from None
    except OSError as error:
        raise RecipeError(f"{target}: cannot be written ({error.strerror}); give another place.") from None
    say(f"{target}: written; `diffaug methods` explains the keys of config, `diffaug plan {target}` plans it")


def make_sentences(recipe_name: str, out: Path, source: str | None, options: SentenceOptions) -> None:
    """Write a file of sentences per class that is not there yet.

    Raises:
        RecipeError: the file is there.
    """
    if out.exists():
        raise RecipeError(f"{out}: is there already; give another file name, or remove it first.")
    recipe = find_recipe(recipe_name, changes_of((), source))
    options = replace(options, model=Place().absolute(options.model, Path()))
    with waiting(f"asking for sentences of the classes of {recipe.builder}"):
        sentences = write_sentences(recipe, options)
    write_text(out, sentences.to_json())
    if sentences.fewer:
        say(f"  fewer than {options.per_class} different sentences: {few(sentences.fewer)}")
    say(f"{out}: written; next: diffaug plan {recipe_name} --set config.prompts={out}")


def make_suffixes(recipe_name: str, out: Path, source: str | None, options: CaptionOptions) -> None:
    """Caption real images and write a suffix file that is not there yet.

    Raises:
        RecipeError: the file is there.
    """
    if out.exists():
        raise RecipeError(f"{out}: is there already; give another file name, or remove it first.")
    recipe = find_recipe(recipe_name, changes_of((), source))
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
    say(f"{out}: written; next: diffaug plan {recipe_name} --set config.suffixes={out}")


def changes_of(words: Sequence[str], source: str | None) -> Mapping[str, object]:
    """What `--set` and `--source` change of a recipe: `config.strength=0.3` as nested mappings; the value is YAML.

    Raises:
        RecipeError: a word that is no KEY=VALUE, or whose value is no YAML.
    """
    changes: dict[str, object] = {}
    for word in words:
        path, equals, value = word.partition("=")
        if not equals or not all(path.split(".")):
            raise RecipeError(f"--set: got {word!r}, expected KEY=VALUE such as per_class=10 or config.strength=0.3.")
        try:
            content: object = load_yaml(value)
        except ValueError as error:
            raise RecipeError(
                f"--set {path}: got {value[:60]!r}, expected a YAML value ({error}); a text may need quotes."
            ) from None
        for key in reversed(path.split(".")):
            content = {key: content}
        assert isinstance(content, dict)
        changes = merged(changes, content)
    return {**changes, "source": source} if source else changes


# Plans


def say_published_price(
    recipe_name: str, folder: str | None, source: str | None, words: Sequence[str], *, as_json: bool
) -> None:
    """What a plan would cost, from published counts; nothing is written."""
    if source:
        raise RecipeError(
            f"--price: counts are those that the dataset publishes, so --source {source} is not looked at; leave it "
            "out, or give --dry-run instead of --price."
        )
    recipe = find_recipe(recipe_name, changes_of(words, None), lambda text: note(f"note: {text}"))
    with waiting(f"counting the rows of {recipe.name or recipe_name}"):
        found = price_published(recipe, Path(folder or RUNS))
    if as_json:
        say_json(asdict(found))
    else:
        print_price(found)
        say("counted on stand-ins for the published images; nothing written (--price)")


def make_plan(
    recipe_name: str,
    folder: str | None,
    source: str | None,
    words: Sequence[str],
    *,
    dry_run: bool,
    as_json: bool,
    memory: str | None = None,
    tries_batches: bool = False,
) -> None:
    """Draw, price, write. `memory`: of a card, such as 8GB; the one at hand where it is not stated. `tries_batches`:
    the recipe's batch size is found by trying.
    """
    card = card_at_hand() if memory is None else read_bytes(memory)
    recipe = find_recipe(recipe_name, changes_of(words, source), lambda text: note(f"note: {text}"))
    if tries_batches:
        recipe = with_found_batch(recipe)
    with waiting(f"reading the real images of {recipe.builder}"):
        drawn = price_plan(recipe, folder)
    if dry_run:
        drawn.check()
    else:
        drawn.write()
        if drawn.address is None:
            warn_of_patterns(drawn.folder)
    if as_json:
        run = None if dry_run else drawn.where
        fits = card_line(drawn.prepared, card) or None
        say_json({**asdict(drawn.price), "found": source_facts(drawn), "card": fits, "run": run})
        return
    in_store = drawn.address is not None
    print_price(drawn.price, source_lines(drawn), card_line(drawn.prepared, card), in_store=in_store)
    if dry_run:
        say(f"nothing written (--dry-run); run folder would be {drawn.where}")
    else:
        say(f"next: diffaug generate {drawn.where}")


def with_found_batch(recipe: Recipe) -> Recipe:
    """The recipe with the batch size that this machine makes images with most quickly."""
    from diffaug_datasets.run.batch_search import find_batch
    from diffaug_datasets.run.execute import resolve_device

    device = resolve_device("auto")
    with waiting(f"trying batches on {device}"):
        found = find_batch(recipe, device)
    note(f"batch_size: {found.words}")
    return recipe.model_copy(update={"batch_size": found.rows})


def source_facts(drawn: PricedPlan) -> Mapping[str, object]:
    """What the source turned out to be, for programs: all classes with what prompts call them, what was left out."""
    header, real = drawn.prepared.plan.header, drawn.prepared.real
    return {
        "layout": real.survey.layout,
        "prompts": dict(zip(header.class_names, header.prompt_names, strict=True)),
        "left_out": list(real.survey.left_out),
        "skipped": {image.name: image.reason for image in real.skipped},
        "notes": list(real.notes),
    }


def source_lines(drawn: PricedPlan) -> Mapping[str, str]:
    """The same for people: up to SHOWN_CLASSES classes, of more a sample, spread evenly."""
    header, real = drawn.prepared.plan.header, drawn.prepared.real
    names, prompts = header.class_names, header.prompt_names
    are_few = len(names) <= SHOWN_CLASSES
    shown = range(len(names)) if are_few else range(0, len(names), -(-len(names) // SAMPLED_CLASSES))
    count = f"{len(names):,}: " if are_few else f"{len(names):,}, such as "
    lines = {
        "  found": real.survey.layout,
        "  classes": count + ", ".join(names[label] for label in shown),
        "  prompts": "as the classes" if names == prompts else ", ".join(prompts[label] for label in shown),
        "  left out": "; ".join(real.survey.left_out),
        "  note": "; ".join(real.notes),
    }
    return {
        name: "\n".join(wrap(text, LINE_WIDTH, break_long_words=False, break_on_hyphens=False))
        for name, text in lines.items()
        if text or name not in ("  left out", "  note")
    }


def print_price(
    price: Price, source: Mapping[str, str] = MappingProxyType({}), card: str = "", *, in_store: bool = False
) -> None:
    """The price as a short table; `source`: lines on the real images, above it; `card`: whether one holds the plan.

    `in_store`: the run will lie in an object store.
    """
    memory_free = "free memory unknown" if price.memory_free is None else f"{decimal(price.memory_free)} free"
    say(f"{price.name}, plan {price.plan_id[:16]}" if price.plan_id else price.name)
    say_facts(
        {
            **source,
            "  images": f"{price.rows:,}: {_per_class(price)}, {len(price.images_per_class):,} classes",
            "  beside": f"{price.real:,} real images for training, {price.test:,} for testing",
            "  shards": f"{price.shards:,}, in batches of {price.batch_size}",
            "  fits": ", ".join(f"{count} {kind}" for kind, count in price.fits.items()) or "none",
            "  work": _work(price),
            "  time": _time(price),
            **_elsewhere(price, in_store),
            "  disk": f"{decimal(price.bytes_needed)} needed, {decimal(price.bytes_free)} free",
            "  memory": f"{decimal(price.memory_per_worker)} per worker, {decimal(price.memory_to_plan)} to plan, "
            f"{memory_free}",
            **({"  card": card} if card else {}),
        }
    )
    for warning in price.warnings:
        say(f"  warning: {warning}")


def _per_class(price: Price) -> str:
    """How many images a class gets; of stand-ins, which are spread evenly whatever the real sizes are, their mean."""
    fewest, most = min(price.images_per_class.values()), max(price.images_per_class.values())
    if fewest == most:
        return f"{fewest} per class"
    if fewest and not price.plan_id:
        return f"{price.rows / len(price.images_per_class):,.1f} per class on average"
    return f"{fewest} to {most} per class"


def _elsewhere(price: Price, in_store: bool) -> Mapping[str, str]:
    """What is paid for on rented machines; of a plan that takes minutes, nothing worth a line."""
    is_worth = price.gpu_hours >= LEAST_HOURS
    gpu = {"  GPU": f"{price.gpu_hours:,.2f} hours; {price.assumption}"}
    store = f"about {price.store_writes:,} writes, {price.store_listings:,} listings, {price.store_reads:,} reads"
    there = "" if in_store else ", where the run lies in one"
    return {**(gpu if is_worth else {}), **({"  store": f"{store}{there}"} if is_worth or in_store else {})}


def _work(price: Price) -> str:
    idle = f" ({price.idle:,} of them fill batches up)" if price.idle else ""
    fits = f" and {price.fit_evaluations:,} for the fits" if price.fit_evaluations else ""
    flop = price.flop_per_evaluation
    each = f"{flop / 1e9:,.0f} GFLOP" if flop >= 1e9 else f"{flop / 1e6:,.0f} MFLOP"
    assumed = "" if price.weights_here else " (weights not here: Stable Diffusion 1.5 assumed)"
    return f"{price.evaluations:,} U-Net evaluations{idle}{fits}, {each} each{assumed}"


def _time(price: Price) -> str:
    rates = f"at {CPU_FLOPS / 1e9:.0f} GFLOP/s per thread or {GPU_FLOPS / 1e12:.0f} TFLOP/s per GPU"
    workers = f"{price.workers} CPU worker{'s' if price.workers > 1 else ''}"
    cpu, gpu = (duration(max(1.0, seconds)) for seconds in (price.seconds_cpu, price.seconds_gpu))
    return f"about {cpu} with {workers}, {gpu} on one GPU ({rates})"


# Fits and images


def run_fits(folder: str, workers: int, options: WorkerOptions) -> None:
    """Make the fits of a run and stop."""
    run = Run.open(folder)
    _announce(run, options.fits_from, f"{len(run.plan.fits)} fits, for {len(run.plan.rows)} images later")
    with shown_on(sys.stdout, run, only_fits=True) as on_progress:
        execute(run, replace(options, only_fits=True), workers, on_progress)
    if leads():
        say(f"{folder}: all fits are there; next: diffaug generate {folder}")


def run_generate(folder: str, workers: int, options: WorkerOptions, cluster: Cluster | None = None) -> int:
    """Make what a run lacks; 1 where more rows failed than its recipe accepts."""
    run = Run.open(folder)
    _announce(run, options.fits_from, f"{len(run.plan.rows)} images to have, plan {run.plan.id[:16]}")
    if options.progress and leads():
        from huggingface_hub import constants

        where = f"{constants.ENDPOINT}/datasets/{options.progress}"
        say(f"how far it is: {where}, written anew at most every ten minutes")
    if cluster is None:
        with shown_on(sys.stdout, run) as on_progress:
            done = execute(run, options, workers, on_progress)
    else:
        done = made_there(run, options, workers, cluster)
    if done is None:
        return 0
    if not leads():
        return 0
    print_summary(run, done)
    if run.where == str(run.folder):
        warn_of_patterns(run.folder)
    if warning := emptied(done):
        say(f"warning: {warning}")
    if trouble := over_budget(run, done):
        note(f"diffaug: {trouble}")
        return 1
    say(f"next: diffaug report {folder}")
    return 0


def _announce(run: Run, fits_from: Sequence[Path], what: str) -> None:
    if leads():
        say(f"{run.plan.header.name}: {what}")
        for sentence in refusals(run, fits_from):
            say(f"note: {sentence}")


def print_summary(run: Run, done: Assembled) -> None:
    """What came of a run: how many images, whether they show their class, where they are."""
    written = sum(count.written for count in done.counts)
    failed, kept = sum(count.failed for count in done.counts), sum(count.kept for count in done.counts)
    say(f"{done.name}: {written} images written, {failed} failed, {kept} kept, {clock(done.seconds)} of work")
    for line in done.shown.lines() if done.shown else ():
        say(line)
    say(f"run folder: {run.where}")


def run_build(name: str, source: str | None, folder: Path | None, workers: int, device: str) -> None:
    """Plan, generate and prepare a config name through its `datasets` builder."""
    from diffaug_datasets.train.builder import load_builder

    builder = load_builder(name, source=source, run_dir=folder, workers=workers, device=device)
    say(f"{name}: {len(builder.run.plan.rows)} images to have, plan {builder.run.plan.id[:16]}")
    builder.download_and_prepare()
    splits: Mapping[str, datasets.SplitInfo] = builder.info.splits or {}
    rows = ", ".join(f"{split.num_examples} {name} rows" for name, split in splits.items())
    say(f"{name}: prepared, {rows}, in {builder.cache_dir}")
    say(f"run folder: {builder.run.folder}")


# The demo


@dataclass(frozen=True)
class DemoRun:
    """One run of the demo: a config name and what it changes of the recipe."""

    config: str
    changes: Mapping[str, object] = field(default_factory=dict)


FEW_STEPS = {"num_inference_steps": 8}
DEMO = (
    DemoRun("fashion_5shot_diffii"),
    DemoRun("fashion_5shot_txt2img", {"per_class": 8}),
    DemoRun("fashion_5shot_img2img", {"per_class": 8}),
    DemoRun("fashion_5shot_genie", {"per_class": 8}),
    DemoRun("fashion_5shot_genieada", {"per_class": 4}),
)
SHORT_DEMO = (
    DemoRun(
        "fashion_5shot_diffii",
        {
            "per_class": 2,
            "config": {**FEW_STEPS, "inversion_steps": 8, "concepts": {"steps": 10}},
            "include_test": False,
        },
    ),
    DemoRun("fashion_5shot_genie", {"per_class": 2, "config": FEW_STEPS, "include_test": False}),
)
ONE_WORKER_ROWS = 100  # rows up to which a second process costs more time than it saves


def run_demo(folder: Path, short: bool) -> None:
    """Several small runs on embedded data, a report over them, and the line that loads one."""
    import datasets

    from diffaug_datasets.report.page import write_report

    wanted = SHORT_DEMO if short else DEMO
    runs = [_demo_run(one, folder, f"[{i}/{len(wanted)}]") for i, one in enumerate(wanted, 1)]
    say("writing the report")
    page = write_report(runs, folder / "report.html")
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        loaded: Mapping[str, datasets.Dataset] = datasets.load_dataset(str(runs[0].folder), cache_dir=cache)
        rows = ", ".join(f"{len(split)} {name} rows" for name, split in loaded.items())
    say()
    say(f"report page: {page}")
    say("load the first run in Python:")
    say("    from datasets import load_dataset")
    say(f'    dataset = load_dataset("{runs[0].folder}")  # {rows}')


def _demo_run(wanted: DemoRun, parent: Path, number: str) -> Run:
    drawn = price_plan(config_recipe(wanted.config, **wanted.changes), parent=parent)
    say(f"{number} {wanted.config}: {drawn.prepared.recipe.method_definition.TITLE}")
    print_price(drawn.price)
    run = drawn.write()
    workers = 0 if drawn.price.rows > ONE_WORKER_ROWS else 1
    done = generate(run, workers=workers, device="cpu", progress=sys.stdout)
    print_summary(run, done)
    if trouble := over_budget(run, done):
        raise RunError(trouble)
    return run


# Withdrawal


@dataclass(frozen=True)
class TrainingImage:
    """A real training image of a run: sha256 of its bytes, and the name of its class."""

    id: str
    class_name: str


def run_withdraw(folder: str, words: Sequence[str], out: Path | None, as_json: bool) -> None:
    """Take real images out of a finished run, and say what went and what stayed."""
    run = Run.open(folder)
    images = {image.id: image for image in (_training_image(run, word) for word in words)}
    made = withdraw(run, list(images), out)
    if as_json:
        new = {"plan_id": made.run.plan.id, "run": str(made.run.folder), "images": sorted(images)}
        say_json({**new, "rows": made.rows, "learned": made.learned})
        return
    rows = ", ".join(made.rows[:NAMED_ROWS]) + (", ..." if len(made.rows) > NAMED_ROWS else "")
    facts = {
        "  rows": f"{len(made.rows)} synthetic out{f' ({rows})' if rows else ''}, {len(made.run.plan.rows)} stay",
        "  shards": f"{made.taken} taken over, {made.rewritten} written without these rows and the image's own",
    }
    if made.learned:
        facts["  fits"] = (
            f"{len(made.learned)} were made with the image in and stay, as other rows rest on them; "
            "`diffaug plan --set without=[...]` draws and learns anew instead"
        )
    first, *others = images.values()
    named = f"{len(images)} images" if others else f"1 image of {first.class_name} ({first.id[:16]})"
    say(f"{made.done.name}: plan {run.plan.id[:16]} without {named}")
    say_facts(facts)
    say(f"run folder: {made.run.folder}, plan {made.run.plan.id[:16]}")
    say(f"next: diffaug publish {made.run.folder} TARGET")


def _training_image(run: Run, word: str) -> TrainingImage:
    """The training image that a word means: a file with its bytes, its sha256, or the first digits of that.

    Raises:
        RunError: none or several are meant.
    """
    path = Path(word)
    wanted = sha256_file(path) if path.is_file() else word.lower()
    labels = {row.source_ids[0]: row.label for row in run.plan.real if row.split == "train"}
    meant = [image for image in labels if wanted and image.startswith(wanted)]
    if len(meant) != 1:
        what = "no training image" if not meant else f"{len(meant)} training images"
        raise RunError(
            f"{word!r}: {what} of {run.where} answers to it; give the file itself, or the sha256 of its bytes as the "
            "column source_ids has it."
        )
    return TrainingImage(meant[0], run.plan.header.class_names[labels[meant[0]]])
