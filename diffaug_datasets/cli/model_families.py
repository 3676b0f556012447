"""The verb `families`: which kinds of diffusion models there are, and what is known of one."""

from diffaug_datasets.cli.screen import say, say_facts, say_json, say_table
from diffaug_datasets.core.errors import RecipeError, one_of
from diffaug_datasets.core.family import Family, discover_families, usual_facts
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.suitability import lacks


def print_families(as_json: bool) -> None:
    """Name, published models with the memory that their weights take, usual settings, licence."""
    families = [discover_families()[name] for name in sorted(discover_families())]
    if as_json:
        say_json([_facts(family) for family in families])
        return
    rows = [(f.NAME, f.TITLE, _gigabytes(f), _usual(f), f.LICENCE) for f in families]
    say_table(("NAME", "MODELS", "WEIGHTS", "USUAL", "LICENCE"), rows)


def print_family(name: str, as_json: bool) -> None:
    """Everything about one family: its page, its published models, and the methods that cannot use them.

    Raises:
        RecipeError: there is none of that name.
    """
    families = discover_families()
    if name not in families:
        raise RecipeError(f"family: got {name!r}, {one_of(name, sorted(families))}")
    family = families[name]
    if as_json:
        say_json({**_facts(family), "text": family.page})
        return
    say(family.page)
    say()
    say_facts({"pipelines": ", ".join(family.CLASSES), "usual": _usual(family), "licence": family.LICENCE})
    say()
    for size in family.SIZES:
        refused = refusals(family, size.id)
        say(f"{size.id}: {size.gigabytes:.1f} GB of weights in half precision")
        say(f"  methods: all but {', '.join(refused)}" if refused else "  methods: all")


def refusals(family: Family, hub_id: str) -> dict[str, str]:
    """Method -> why it cannot use a published model, at its default settings."""
    facts = usual_facts(family, hub_id)
    said = {name: lacks(method, facts) for name, method in sorted(discover_methods().items())}
    return {name: reason for name, reason in said.items() if reason}


def _gigabytes(family: Family) -> str:
    sizes = sorted(size.gigabytes for size in family.SIZES)
    if not sizes:
        return "-"
    ends = dict.fromkeys(f"{size:.0f}" for size in (sizes[0], sizes[-1]))
    return f"{' to '.join(ends)} GB"


def _usual(family: Family) -> str:
    usual = family.DEFAULTS
    return f"{usual.steps} steps of {usual.sampler}, guidance {usual.guidance:g}, {usual.side} px"


def _facts(family: Family) -> dict[str, object]:
    models = [{"id": s.id, "gigabytes": round(s.gigabytes, 1), "refused": refusals(family, s.id)} for s in family.SIZES]
    return {
        "name": family.NAME,
        "title": family.TITLE,
        "pipelines": list(family.CLASSES),
        "licence": family.LICENCE,
        "purpose": family.PURPOSE,
        "usual": vars(family.DEFAULTS),
        "models": models,
    }
