"""The verb `new`: look at images of one's own, say what they are, write a recipe.

On a terminal it asks what it cannot know: the names of classes that are called by codes, and the licence.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import typer

from diffaug_datasets.cli.make import LINE_WIDTH, changes_of
from diffaug_datasets.cli.screen import say, say_facts, say_json, telling
from diffaug_datasets.core.errors import RecipeError, few
from diffaug_datasets.core.licences import find_licence
from diffaug_datasets.core.models import TINY
from diffaug_datasets.planning.catalogue import merged
from diffaug_datasets.planning.inspect import NO_TEST, Inspection, Sizes, inspect, known_builder
from diffaug_datasets.planning.new_recipe import NAME_ME, NewRecipe, check_free, new_recipe
from diffaug_datasets.sources.real import by_reason

SHOWN_CLASSES = 12
MOST_QUESTIONS = 30  # classes that are asked for by name; of more, the file is the better place
FOREIGN = "prompts are in English for most models: give the English word"


def make_recipe(
    place: str, file: Path | None, backbone: str | None, words: Sequence[str], *, force: bool, yes: bool, as_json: bool
) -> None:
    """Inspect, say, ask where somebody is there, write."""
    changes = changes_of(words, None)
    if file is not None:
        check_free(file, force)
    with telling(f"looking at {place}", as_json):
        found = inspect(place, changes)
    if not as_json:
        say(f"{found.name}: {found.real.survey.layout}")
        say_facts(inspection_lines(found))
        if not yes and _somebody_is_there():
            changes = merged(_asked(found, changes), changes)
    made = new_recipe(found, file, backbone, changes)
    target = made.write(force)
    if as_json:
        say_json({**_facts(found), "recipe": str(target), "suggested": made.suggested.content})
        return
    say(f"{target}: written")
    say_facts(_suggestion_lines(made))
    names = "name the class" if len(made.unnamed) == 1 else f"name the {len(made.unnamed):,} classes"
    first = f"{names} marked {NAME_ME} in {target}, then " if made.unnamed else ""
    say(f"next: {first}diffaug run {target}")


def inspection_lines(found: Inspection) -> Mapping[str, str]:
    """What was found, a line each, in the order in which a person would ask."""
    real, counts = found.real, found.counts
    names = few(list(counts), SHOWN_CLASSES)
    lines = {
        "  unpacked": "; ".join(found.found_in),
        "  train": f"{sum(counts.values()):,} images, {_span(counts)}",
        "  test": NO_TEST
        if found.test_counts is None
        else f"{sum(found.test_counts.values()):,} images, {_span(found.test_counts)}",
        "  classes": f"{len(counts):,}: {names}",
        "  sizes": _sizes(found.sizes, len(real.train) + len(real.test or ())),
        "  broken": by_reason(real.skipped) and f"{len(real.skipped):,}: {by_reason(real.skipped)}",
        "  double": _doubles(found),
        "  left out": "; ".join(real.survey.left_out),
        "  note": "; ".join(real.notes),
        "  look at": "\n".join((*found.odd, *real.survey.warnings)),
        "  names": _names(found),
        "  known": _known(found),
    }
    return {name: _wrapped(text) for name, text in lines.items() if text}


def _wrapped(text: str) -> str:
    """Lines of at most LINE_WIDTH characters; those that there are stay."""
    parts = [wrap(line, LINE_WIDTH, break_long_words=False, break_on_hyphens=False) for line in text.split("\n")]
    return "\n".join("\n  ".join(part) for part in parts)


def _span(counts: Mapping[str, int]) -> str:
    low, high = min(counts.values()), max(counts.values())
    if low == high:
        return f"{low:,} per class"
    smallest, largest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    return f"{low:,} ({smallest}) to {high:,} ({largest}) per class"


def _sizes(sizes: Sizes, total: int) -> str:
    shown = [f"{width} x {height}" for width, height in (sizes.smallest, sizes.middle, sizes.largest)]
    part = f" ({sizes.count:,} of {total:,} looked at)" if sizes.count < total else ""
    if len(set(shown)) == 1:
        return f"{shown[0]} pixels{part}"
    return f"{shown[0]} to {shown[2]} pixels, {shown[1]} in the middle{part}"


def _doubles(found: Inspection) -> str:
    kinds = {
        "in training and test": found.in_both,
        "in several classes": found.in_classes,
        "more than once in a class": found.repeats,
    }
    text = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
    return text and f"{text} (the same bytes)"


def _names(found: Inspection) -> str:
    lines = []
    if found.nameless:
        codes = few([repr(label) for label in found.nameless], 8)
        lines.append(f"{len(found.nameless):,} to give in the recipe, for no model knows what these are: {codes}")
    if found.foreign:
        lines.append(f"{few(list(found.foreign), 8)}: {FOREIGN}")
    return "\n".join(lines)


def _known(found: Inspection) -> str:
    name = known_builder(found.source)
    return (name and f"the builder {name} has a fact sheet of this dataset: `diffaug plan {name}_full_img2img`") or ""


def _suggestion_lines(made: NewRecipe) -> Mapping[str, str]:
    """What the recipe says and why."""
    content, reasons = made.suggested.content, made.suggested.reasons
    recipe = made.recipe
    count = "per_class" if recipe.per_class is not None else "per_image"
    lines = {"  method": f"{recipe.method}: {reasons['method']}"} if recipe.method == content["method"] else {}
    lines["  images"] = f"{count}: {getattr(recipe, count):g}" + (f", {reasons[count]}" if count in reasons else "")
    lines["  model"] = f"{Path(recipe.backbone.id).name if recipe.backbone.id != TINY else TINY}: {reasons['backbone']}"
    if recipe.licence is None:
        lines["  licence"] = (
            "not stated, so the images cannot be published; set `licence:` where they are yours to give"
        )
    else:
        lines["  licence"] = recipe.licence
    return {name: _wrapped(text) for name, text in lines.items()}


def _facts(found: Inspection) -> dict[str, object]:
    """What was found, for programs."""
    real = found.real
    return {
        "name": found.name,
        "source": found.source,
        "layout": real.survey.layout,
        "train": found.counts,
        "test": found.test_counts,
        "sizes": {
            "smallest": found.sizes.smallest,
            "median": found.sizes.middle,
            "largest": found.sizes.largest,
            "looked_at": found.sizes.count,
        },
        "broken": {image.name: image.reason for image in real.skipped},
        "double": {"train_and_test": found.in_both, "classes": found.in_classes, "in_class": found.repeats},
        "left_out": list(real.survey.left_out),
        "notes": list(real.notes),
        "warnings": [*found.odd, *real.survey.warnings],
        "nameless": {label: found.phrases[label].code for label in found.nameless},
        "foreign": list(found.foreign),
        "licence": found.licence,
    }


def _somebody_is_there() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _asked(found: Inspection, changes: Mapping[str, object]) -> Mapping[str, object]:
    """What a person answers; an empty answer leaves the suggestion."""
    answers: dict[str, object] = {}
    stated = changes.get("classes")
    known = stated if isinstance(stated, Mapping) else {}
    open_names = [label for label in found.nameless if label not in known]
    if 0 < len(open_names) <= MOST_QUESTIONS:
        named = {label: _answer(f"what does class {label!r} show? (Enter: later)") for label in open_names}
        answers["classes"] = {label: text for label, text in named.items() if text}
    while found.licence is None and "licence" not in changes:
        text = _answer("licence of the images, such as cc-by-4.0? (Enter: none)")
        try:
            answers |= {"licence": find_licence(text).id} if text else {}
        except RecipeError as error:
            say(str(error))
            continue
        break
    return answers


def _answer(question: str) -> str:
    answer: str = typer.prompt(question, default="", show_default=False)
    return " ".join(answer.split())
