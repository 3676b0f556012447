"""One run as a section of the page: its method, its classes with their cards, counts, failures, times, choices."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.core.method import Method, find_method
from diffaug_datasets.evaluate import choices, counts, timing
from diffaug_datasets.evaluate.gather import Gathered, Picture, Scanned
from diffaug_datasets.evaluate.row_card import Card, Fact, card
from diffaug_datasets.evaluate.sampling import sample, worst

PER_CLASS = 6
CARDS_A_RUN = 240
MEASURED_ROWS = 240
ARXIV = re.compile(r"\d{4}\.\d{4,5}")
STEP = re.compile(r"(?m)^\d+\. (?P<text>.+?)(?: {2,}.*| fit `.*)?$")
TIERS = {
    "T0": "bit for bit on this stack",
    "T1": "the same plan on any machine",
    "T2": "several stacks, pixels within a tolerance",
}


@dataclass(frozen=True)
class MethodText:
    """What a page says about a method; `arxiv` is empty where its PAPER is no arXiv number."""

    title: str
    line: str
    arxiv: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class ClassBlock:
    """A class of a run: its counts and the cards that are shown of it."""

    anchor: str
    counts: counts.ClassRow
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class RunSection:
    """Everything that the page shows of a run."""

    anchor: str
    name: str
    plan_id: str
    method: MethodText
    made: str
    totals: counts.Totals
    facts: tuple[Fact, ...]
    notes: tuple[str, ...]
    classes: tuple[ClassBlock, ...]
    table: tuple[counts.ClassRow, ...]
    confusion: tuple[counts.ConfusionRow, ...]
    worst: tuple[Card, ...]
    levels: choices.Levels | None
    turns: choices.Turns | None
    failures: tuple[counts.Failure, ...]
    shards: tuple[timing.ShardTime, ...]
    fits: tuple[timing.FitView, ...]
    recipe: str
    folder: str
    quoted_folder: str
    example: str

    @property
    def cards(self) -> int:
        """How many rows the class blocks show."""
        return sum(len(block.cards) for block in self.classes)


def run_section(gathered: Gathered, number: int, per_class: int = PER_CLASS, at_most: int = CARDS_A_RUN) -> RunSection:
    """The section of a run; `number` makes its anchors unique in the page."""
    table = counts.class_rows(gathered)
    measured = _some_pictures(gathered)
    shown = sample(gathered.rows, gathered.run.plan.id, per_class, at_most)
    bad = tuple(card(gathered, gathered.picture(row)) for row in worst(gathered.rows))
    folder = str(gathered.run.folder)
    return RunSection(
        anchor=f"run-{number}",
        name=gathered.header.name,
        plan_id=gathered.run.plan.id,
        method=method_text(str(gathered.header.recipe["method"])),
        made=gathered.run.plan.rows[0].origin,
        totals=counts.totals(gathered, table),
        facts=_facts(gathered),
        notes=_notes(gathered),
        classes=_blocks(gathered, number, table, shown),
        table=table,
        confusion=counts.confusion(gathered),
        worst=bad,
        levels=choices.levels(gathered, measured),
        turns=choices.turns(measured),
        failures=counts.failures(gathered),
        shards=timing.shard_times(gathered),
        fits=timing.fit_views(gathered),
        recipe=yaml.safe_dump(gathered.header.recipe, sort_keys=False, allow_unicode=True),
        folder=folder,
        quoted_folder=shlex.quote(folder),
        example=next((rows[0].row_id for rows in shown.values()), "ROW"),
    )


def _some_pictures(gathered: Gathered) -> list[Picture]:
    each = max(1, MEASURED_ROWS // max(1, len(gathered.class_names)))
    groups = sample(gathered.rows, gathered.run.plan.id, each, MEASURED_ROWS)
    return [gathered.picture(row) for rows in groups.values() for row in rows]


def _blocks(
    gathered: Gathered, number: int, table: Sequence[counts.ClassRow], shown: Mapping[int, Sequence[Scanned]]
) -> tuple[ClassBlock, ...]:
    return tuple(
        ClassBlock(
            anchor=f"run-{number}-class-{label}",
            counts=table[label],
            cards=tuple(card(gathered, gathered.picture(row)) for row in rows),
        )
        for label, rows in shown.items()
    )


def method_text(name: str) -> MethodText:
    """Title, first line and numbered steps of a method's module; only the name where it is not installed here."""
    try:
        method = find_method(name)
    except DiffAugError:
        return MethodText(name, "This method is not installed here.", "", ())
    text = (getattr(method, "__doc__", None) or "").strip()
    line = text.partition("\n")[0].removeprefix(f"{method.TITLE}: ")
    steps = tuple(_plain(match["text"]) for match in STEP.finditer(text))
    return MethodText(method.TITLE, line[:1].upper() + line[1:], _arxiv(method), steps)


def _plain(text: str) -> str:
    return text.replace("`", "").strip()


def _arxiv(method: Method) -> str:
    return method.PAPER if ARXIV.fullmatch(method.PAPER) else ""


def _facts(gathered: Gathered) -> tuple[Fact, ...]:
    recipe, done = gathered.header.recipe, gathered.assembled
    scores = recipe.get("scores") or {}
    encoder = (recipe.get("config") or {}).get("encoder")
    tier = [Fact("tier", ": ".join(filter(None, (done.tier, TIERS.get(done.tier)))))] if done else []
    named = [
        Fact("plan", gathered.run.plan.id[:16], gathered.run.plan.id),
        Fact("seed", str(recipe.get("seed", 0)), "every random choice follows from it"),
        Fact("backbone", gathered.header.backbone),
        Fact("method's encoder", str(encoder or "")),
        Fact("score encoder", str(scores.get("encoder") or "")),
        Fact("judge", str(scores.get("judge") or "")),
        *tier,
        Fact("stack", "; ".join(_stacks(gathered))),
        Fact("finished", done.finished.replace("T", " ").replace("+00:00", " UTC") if done else "not yet"),
    ]
    return tuple(fact for fact in named if fact.value)


def _stacks(gathered: Gathered) -> list[str]:
    texts = (" ".join((s.get("device", ""), "torch", s.get("torch", "?"))) for s in _known_stacks(gathered))
    return list(dict.fromkeys(texts))


def _known_stacks(gathered: Gathered) -> list[dict[str, str]]:
    return [receipt.stack for receipt in gathered.receipts.values() if receipt.stack]


def _notes(gathered: Gathered) -> tuple[str, ...]:
    return (*_unfinished(gathered), *gathered.gaps, *gathered.header.warnings)


def _unfinished(gathered: Gathered) -> list[str]:
    missing = gathered.missing
    quoted = shlex.quote(str(gathered.run.folder))
    if missing:
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        return [f"Not finished: {listed} still to be made. `diffaug generate {quoted}` goes on."]
    if gathered.assembled is None:
        return [f"All shards are there, but the run is not assembled yet. `diffaug generate {quoted}` does it."]
    return []
