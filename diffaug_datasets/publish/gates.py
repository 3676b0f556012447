"""What must hold before a run goes out. A gate says in one sentence why not, and how to pass it on one's own word."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.publish.contents import Contents
from diffaug_datasets.publish.licences import model_terms
from diffaug_datasets.publish.options import PublishOptions
from diffaug_datasets.publish.recipe import local_models
from diffaug_datasets.publish.tables import faults, open_table
from diffaug_datasets.publish.testing import leak_reason
from diffaug_datasets.run.execute import over_budget

RIGHTS = "--i-have-rights"


@dataclass(frozen=True)
class Verdict:
    """What a gate found: nothing, or a reason that `allowed` may overrule."""

    gate: str
    reason: str = ""
    allowed: bool = False

    @property
    def passed(self) -> bool:
        """Whether the release may go out as far as this gate knows."""
        return not self.reason or self.allowed


def verdicts(contents: Contents, options: PublishOptions) -> tuple[Verdict, ...]:
    """All gates, in order."""
    reasons = {
        "licence": _licence(contents, options),
        "model-licence": _model(contents),
        "local-model": _local(contents),
        "failed-rows": _failed(contents),
        "rows": next(_rows(contents), ""),
        "test-leak": leak_reason(contents.run),
    }
    allowed = {*options.allow, *(("licence",) if options.with_rights else ())}
    return tuple(Verdict(gate, reason, gate in allowed) for gate, reason in reasons.items())


def refuse(found: Sequence[Verdict]) -> None:
    """Raises PublishError with every reason that nobody overruled."""
    against = [verdict.reason for verdict in found if not verdict.passed]
    if len(against) > 1:
        numbered = " ".join(f"({number}) {reason}" for number, reason in enumerate(against, 1))
        raise PublishError(f"{len(against)} gates say no. {numbered}")
    if against:
        raise PublishError(against[0])


def _licence(contents: Contents, options: PublishOptions) -> str:
    facts = contents.facts
    if facts.redistributable or options.recipe_only:
        return ""
    return (
        f"licence: images of {facts.title} may not be redistributed ({facts.licence}), and these are made from them; "
        f"publish with --recipe-only, or with {RIGHTS} where you hold the rights."
    )


def _model(contents: Contents) -> str:
    backbone = contents.run.plan.header.backbone
    if model_terms(backbone).licence != "unknown":
        return ""
    return (
        f"model-licence: the terms of {backbone} are not known here; read them, then publish with "
        "--allow model-licence."
    )


def _local(contents: Contents) -> str:
    keys = local_models(contents.run.recipe)
    if not keys:
        return ""
    return (
        f"local-model: {' and '.join(keys)} of the recipe name a folder of this machine, so nobody else could make the "
        "images again; put the model on the Hub and plan with its id, or publish with --allow local-model."
    )


def _failed(contents: Contents) -> str:
    if trouble := over_budget(contents.run, contents.release):
        return f"failed-rows: {trouble} Publish with --allow failed-rows if that is meant."
    if not any(count.kept for count in contents.release.counts):
        return "failed-rows: no synthetic row was kept; loosen the filters, or publish with --allow failed-rows."
    return ""


def _rows(contents: Contents) -> Iterator[str]:
    """One schema over all shards, every image there, every label in range, counts as stated."""
    release, kept = contents.release, 0
    for item, file in zip(contents.items, release.files, strict=False):
        table = open_table(item.content, release.file_format)
        for fault in faults(table, file, release.class_names, release.schema_digest):
            yield f"rows: {fault}; `diffaug generate {contents.run.folder}` makes it again."
        kept += table.num_rows if file.origin != "real" else 0
    stated = sum(count.kept for count in release.counts)
    if kept != stated and not release.recipe_only:
        yield f"rows: {kept} synthetic rows lie in the shards, stated are {stated}; assemble the run again."
