"""The fit `concepts`: a token per class and LoRA on the U-Net, learned from real images (Diff-Mix, arXiv 2403.19600).

Diff-II, Diff-Mix, Diff-AUG and Diff-Gen learn all classes in one run, DA-Fusion every class for itself. The fit's name
is a digest of what decides it, so methods of the same settings name the same fit.
"""

from collections.abc import Sequence
from typing import Protocol

from diffaug_datasets.core.learning import ConceptConfig
from diffaug_datasets.core.method import Context, FitFiles, FitUnit, PlanSpec, Resize, image_key
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import Source, SourceTable


class LearnsConcepts(Protocol):
    """The part of a `Config` that decides what is learned: how, and how the images are fitted."""

    @property
    def concepts(self) -> ConceptConfig: ...

    @property
    def resize(self) -> Resize: ...


def fits(cfg: LearnsConcepts, table: SourceTable, spec: PlanSpec, rows: Sequence[PlanRow]) -> tuple[FitUnit, ...]:
    """The concepts of all classes."""
    return (concept_unit(cfg, table, spec),)


def fit(unit: FitUnit, cfg: LearnsConcepts, ctx: Context) -> FitFiles:
    """Learn the concepts."""
    return learn(unit, cfg.concepts, ctx)


def concept_unit(cfg: LearnsConcepts, table: SourceTable, spec: PlanSpec) -> FitUnit:
    """The tokens of all classes that have images, and the LoRA they share."""
    return unit_of(table.sources, cfg.concepts, cfg.resize, table, spec)


def unit_of(
    sources: Sequence[Source], concepts: ConceptConfig, resize: Resize, table: SourceTable, spec: PlanSpec
) -> FitUnit:
    """One training run over these images."""
    payload = {"backbone": spec.backbone, "config": concepts.identity(), "resize": resize}
    names = {str(label): table.prompt_names[label] for label in sorted({source.label for source in sources})}
    images = [image_key(source.id, source.label) for source in sources]
    return FitUnit.of("concepts", {**payload, "images": images, "names": names, "metaclass": table.metaclass})


def learn(unit: FitUnit, concepts: ConceptConfig, ctx: Context) -> FitFiles:
    """Train one unit."""
    content = unit.content
    names = {int(label): name for label, name in content["names"].items()}
    about = {"metaclass": content["metaclass"], "resize": content["resize"]}
    return ctx.learn_concepts(content["images"], names, concepts, **about)
