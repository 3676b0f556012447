"""What stands against what: the draws of a bench, the lines of each, and the controls that the bench adds.

Run folders and published sets are read as they are, config names and recipes are planned and generated for every draw
before. Whatever is left out for a reason is said in a sentence: `notes`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffaug_datasets.core.errors import DiffAugError, RecipeError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.evaluate.budget import check_budgets
from diffaug_datasets.evaluate.draws import Draw, Images, Line, named_apart, read_set
from diffaug_datasets.evaluate.making import Making, is_long_tail
from diffaug_datasets.evaluate.other_tests import TestsOf, other_tests
from diffaug_datasets.evaluate.runs import Doing, PlannedRun, is_recipe, made, planned_control, planned_runs
from diffaug_datasets.evaluate.spare import Spare, not_at_hand, read_spare, up_to_share
from diffaug_datasets.evaluate.suite import Bench, Control, Entry, Mixing
from diffaug_datasets.release.leakage import Looks
from diffaug_datasets.run.kept import keeping_models
from diffaug_datasets.sources.real import SeenSources, here

PLANNED_CONTROLS: tuple[Control, ...] = ("txt2img", "retrieval")
# Of lines without synthetic images.
OWN_NAMES = ("real", "duplicate", "rebalanced", "zero_shot", "classic", "randaugment_cutmix")


@dataclass(frozen=True)
class Contest:
    """Draws by key; lines with the key of their draw; `spare`: more real images of a draw, those to choose with first.

    `totals`: how many training images each class of a draw has at the source.

    `mixing`: of all lines that state none of their own. `waiting`: runs that are not there yet, as the time is over;
    their lines are left out. `trials`: of the planned runs that are there.
    """

    draws: Mapping[str, Draw] = field(default_factory=dict)
    lines: tuple[tuple[str, Line], ...] = ()
    spare: Mapping[str, Images] = field(default_factory=dict)
    totals: Mapping[str, Sequence[int]] = field(default_factory=dict)
    mixing: Mixing = field(default_factory=Mixing)
    notes: tuple[str, ...] = ()
    waiting: tuple[PlannedRun, ...] = ()
    trials: frozenset[int] = frozenset()

    def of(self, draw: Draw) -> list[Line]:
        """The lines of a draw."""
        return [line for key, line in self.lines if key == draw.key]

    def held_out(self, draw: Draw, per_class: int) -> Images | None:
        """The real images to choose with; None where none are asked for."""
        return self.spare[draw.key].per_class(per_class) if per_class and draw.key in self.spare else None

    def more_real(self, draw: Draw, amount: int | float, held_out: int) -> Images | None:
        """More real images, none of which is held out; None where the source is not at hand.

        `amount`: a whole number of every class, or the share in (0, 1) of the training split that they make with those
        of the draw. A class that has fewer left gives what it has.
        """
        if draw.key not in self.spare:
            return None
        images = self.spare[draw.key]
        wanted: Sequence[int] = [int(amount)] * len(draw.class_names)
        if isinstance(amount, float):
            wanted = up_to_share(amount, self.totals[draw.key], draw.real.counts)
        seen: dict[int, int] = {}
        chosen = []
        for place, label in enumerate(images.labelled.labels.tolist()):
            seen[label] = seen.get(label, 0) + 1
            if held_out < seen[label] <= held_out + wanted[label]:
                chosen.append(place)
        return images.select(chosen)


def gather(spec: Bench, folder: Path, doing: Doing) -> Contest:
    """Plan, generate and read all that a bench compares.

    Raises:
        DiffAugError: a set or recipe cannot be had, budgets differ, or sets are of different protocols.
    """
    there: list[PlannedRun] = []
    waiting: list[PlannedRun] = []
    seen = SeenSources()
    doing.tell(f"reading {len(spec.sets):,} set{'s' * (len(spec.sets) > 1)} and the real images beside ...")
    with keeping_models():
        for planned in planned_runs(spec, folder, doing.runs, only_price=doing.only_price, seen=seen):
            (there if made(planned, doing) else waiting).append(planned.light())
    tests_of = other_tests(spec.test, folder)
    looks = Looks()
    read = [_read(entry, where, by, tests_of, looks) for entry, where, by in _places(spec, there)]
    draws = {draw.key: draw for draw, _ in read}
    lines = named_apart([(draw.key, line) for draw, line in read], OWN_NAMES)
    if spec.images_per_class:
        lines = [(key, _first(line, spec.images_per_class)) for key, line in lines]
    makings = [line.making for _, line in lines]
    _check_protocols(lines)
    mixing, notes = _mixing(spec.mixing, makings, waiting)
    notes += check_budgets(draws, lines, spec.images_per_class, mixing.rule)
    added: list[tuple[str, Line]] = []
    left_out: dict[str, None] = {}
    for draw in draws.values():
        of_draw = [line for key, line in lines if key == draw.key]
        for control in PLANNED_CONTROLS:
            if control in spec.controls and not any(_method(line) == control for line in of_draw):
                found = _control(control, draw, of_draw, spec, folder, doing, tests_of, seen)
                if isinstance(found, PlannedRun):
                    waiting.append(found.light())
                elif isinstance(found, str):
                    left_out[f"no line {control}: {found}."] = None
                else:
                    added.append((draw.key, found))
    spare, more_notes = _spare(spec, draws, lines)
    notes += (*left_out, *more_notes, *_other_mixing(lines))
    trials = frozenset(one.trial for one in there)
    images = {key: one.images for key, one in spare.items()}
    totals = {key: one.totals for key, one in spare.items()}
    return Contest(draws, (*lines, *added), images, totals, mixing, notes, tuple(waiting), trials)


def _places(spec: Bench, planned: Sequence[PlannedRun]) -> Iterable[tuple[Entry, str, str]]:
    """(entry, where it lies, what tells it apart): sets as they are listed, then planned runs draw after draw."""
    for entry in spec.sets:
        if not is_recipe(entry.set):
            yield entry, entry.set, ""
    for one in planned:
        yield one.entry, str(one.folder), one.entry.set


def _read(entry: Entry, where: str, told_by: str, tests_of: TestsOf | None, looks: Looks) -> tuple[Draw, Line]:
    draw, line = read_set(where, entry.config, entry.with_real, tests_of, looks)
    making = line.making
    if making and entry.with_real:
        recipe = making.recipe.model_copy(update={"source": here(entry.with_real)})
        making = replace(making, recipe=recipe)
    return draw, replace(line, name=entry.name or line.name, mixing=entry.mixing, making=making, told_by=told_by)


def _first(line: Line, most: int | Sequence[int]) -> Line:
    return replace(line, synthetic=line.synthetic.per_class(most))


def _method(line: Line) -> str:
    return line.making.recipe.method if line.making else line.name


def _check_protocols(lines: Sequence[tuple[str, Line]]) -> None:
    """Raises RecipeError where draws are of different things, whose mean says nothing."""
    known = {line.making.protocol: line for _, line in lines if line.making}
    if len(known) > 1:
        (first, one), (second, other) = list(known.items())[:2]
        raise RecipeError(
            f"sets: {one.where} is of {first} and {other.where} of {second}, and a mean over both says nothing; make a "
            "bench of each."
        )


def _mixing(
    mixing: Mixing, makings: Sequence[Making | None], waiting: Sequence[PlannedRun]
) -> tuple[Mixing, tuple[str, ...]]:
    """The bench's mixing with its rule filled in, and what there is to say about that."""
    if mixing.rule:
        return mixing, ()
    known = [*(making.recipe for making in makings if making), *(run.recipe for run in waiting)]
    rule = "lt_inverse" if any(map(is_long_tail, known)) else "class"
    note = "no set says of which protocol it is, so images are mixed by the rule `class` (--rule)."
    return mixing.model_copy(update={"rule": rule}), () if known or not makings else (note,)


def _other_mixing(lines: Sequence[tuple[str, Line]]) -> Iterable[str]:
    """A sentence for every line that is mixed in a way of its own."""
    own = {line.name: line.mixing for _, line in lines if line.mixing}
    for name, mixing in own.items():
        stated = ", ".join(f"{key} {value}" for key, value in mixing.model_dump(exclude_defaults=True).items())
        yield f"{name} is mixed in a way of its own ({stated or 'all defaults'})."


def _control(
    control: Control,
    draw: Draw,
    lines: Sequence[Line],
    spec: Bench,
    folder: Path,
    doing: Doing,
    tests_of: TestsOf | None,
    seen: SeenSources,
) -> Line | str | PlannedRun:
    """A line of a control's images, or why there is none; its run where the time is over before that is finished."""
    first = next((line for line in lines if line.making), None)
    if first is None or first.making is None:
        return "no set says from which recipe it is"
    planned = planned_control(control, first.making.recipe, folder, doing.runs, spec.affordable, seen)
    if isinstance(planned, str):
        return planned
    try:
        if not made(planned, doing):
            return planned
        own, line = read_set(str(planned.folder), tests_of=tests_of)
    except DiffAugError as error:
        return str(error).rstrip(".")
    if own.key != draw.key:
        return f"{first.where} has other real or test images than its recipe gives here"
    line = replace(_first(line, first.synthetic.counts), name=control, is_control=True)
    if line.synthetic.counts != first.synthetic.counts:
        return f"its run has fewer images than {first.name}"
    return line


def _spare(
    spec: Bench, draws: Mapping[str, Draw], lines: Sequence[tuple[str, Line]]
) -> tuple[Mapping[str, Spare], tuple[str, ...]]:
    """Real images outside each draw, and why brackets are left out.

    Raises:
        RecipeError: images to choose with are asked for and cannot be had.
    """
    asked = spec.val_per_class + max((one for one in spec.more_real if isinstance(one, int)), default=0)
    shares = [one for one in spec.more_real if isinstance(one, float)]
    if not (asked or shares):
        return {}, ()
    spare: dict[str, Spare] = {}
    notes: dict[str, None] = {}
    for key, draw in draws.items():
        recipe = next((line.making.recipe for other, line in lines if other == key and line.making), None)
        found = _spare_of(recipe, draw, asked, max(shares, default=0))
        if isinstance(found, str):
            if spec.val_per_class:
                raise RecipeError(f"val_per_class: {found}, so there is nothing to choose with; set it to 0.")
            notes[f"no lines of more real images: {found}."] = None
            continue
        spare[key] = found
        if fewer := [name for name, n in zip(draw.class_names, found.images.counts, strict=True) if n < asked]:
            notes[f"{fewer[0]} has fewer than {asked} real training images beside the draw; all are used."] = None
        for share in shares:
            if not any(up_to_share(share, found.totals, draw.real.counts)):
                notes[f"no line of {share:.0%} of the real images: the draw has as many or more."] = None
    return spare, tuple(notes)


def _spare_of(recipe: Recipe | None, draw: Draw, per_class: int, share: float) -> Spare | str:
    if recipe is None:
        return "no set says from which source it is"
    if reason := not_at_hand(recipe):
        return reason
    try:
        return read_spare(recipe, draw, per_class, share)
    except DiffAugError as error:
        return str(error).rstrip(".")
