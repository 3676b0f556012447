"""The fit `concepts`: a token a class and LoRA on the U-Net, learned from the real images (Diff-Mix, arXiv 2403.19600).

Diff-II, Diff-Mix, Diff-AUG and Diff-Gen learn all classes in one run, DA-Fusion every class for itself. The fit's name
is a digest of what decides it, so methods of the same settings name the same fit.
"""

from collections.abc import Sequence
from functools import partial

from diffaug_datasets.core.learning import ConceptConfig
from diffaug_datasets.core.method import Context, FitFiles, FitUnit, PlanSpec
from diffaug_datasets.core.sources import Source, SourceTable


def image_key(source_id: str, label: int) -> str:
    """How fits name a real image: its bytes' digest and its class."""
    return f"{source_id}/{label}"


def concept_unit(concepts: ConceptConfig, resize: str, table: SourceTable, spec: PlanSpec) -> FitUnit:
    """The tokens of all classes that have images, and the LoRA they share."""
    return unit_of(table.sources, concepts, resize, table, spec)


def unit_of(
    sources: Sequence[Source], concepts: ConceptConfig, resize: str, table: SourceTable, spec: PlanSpec
) -> FitUnit:
    """One training run over these images."""
    payload = {"backbone": spec.backbone, "config": concepts.identity(), "resize": resize}
    names = {str(label): table.prompt_names[label] for label in sorted({source.label for source in sources})}
    images = [image_key(source.id, source.label) for source in sources]
    return FitUnit.of("concepts", {**payload, "images": images, "names": names, "metaclass": table.metaclass})


def learn(unit: FitUnit, concepts: ConceptConfig, ctx: Context) -> FitFiles:
    """Train one unit; killed and called again, it goes on from its last checkpoint. A team trains it together."""
    from diffaug_datasets.models.concepts import ConceptExample, train_concepts

    content = unit.content
    pairs = [image.split("/") for image in content["images"]]
    examples = [ConceptExample(partial(ctx.source, source), int(label)) for source, label in pairs]
    names = {int(label): name for label, name in content["names"].items()}
    learned = train_concepts(
        ctx.backbone, examples, names, concepts, metaclass=content["metaclass"], resize=content["resize"],
        workdir=ctx.folder, progress=ctx.report, team=ctx.team,
    )  # fmt: skip
    return FitFiles(learned.files(), learned.measured())
