"""DA-Fusion: real images redrawn under a token of their class, by textual inversion alone (Trabucco et al. 2023).

Paper: "Effective data augmentation with diffusion models", arXiv 2302.07944.

1. one token per class, each learned for itself over 27 templates   fits `concepts`, `models.concepts`
2. the tokens of all classes in one file                           fit `tokens`
3. a real image of the class itself                                `plan`, role `source`
4. a strength of 1/4, 1/2, 3/4, 1, alike often                      `plan`, role `strength`
5. z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps at strength s          `numerics.schedule.add_noise`
6. PLMS under `a photo of a <class_i>`                             `numerics.sampling.plms_sample`

Follows the authors' code: no metaclass, Stable Diffusion's own sampler (PNDM, 50 steps) with what diffusers makes of a
late start, ten images per real one. Departs from it where the defaults of all edits do, and presets do not: sources are
drawn with replacement, so that a real image has ten variants on average, where theirs has ten each (`sources: each`),
and their latents are the posterior's mode, where img2img of diffusers samples it (`encode: sample`; on the packaged
model latents are 0.07 apart on average). The tokens' gradient is clipped to norm 1. Theirs is Stable Diffusion 1.4,
which presets name; the default backbone here is 1.5, as for every method (the base model of Diff-II's comparison is not
stated). Their switches for masks and for erasing a concept are left out, as is the safety checker.
"""

from collections.abc import Iterator, Sequence

from pydantic import Field, model_validator

from diffaug_datasets.methods import _editing
from diffaug_datasets.methods._concepts import learn, unit_of
from diffaug_datasets.methods._editing import counts, own_source
from diffaug_datasets.plugin import (
    Context,
    FitFiles,
    FitUnit,
    PlanRow,
    PlanSpec,
    Resize,
    RowKey,
    Sampler,
    SourceTable,
    TextualInversionConfig,
    new_row,
)

NAME = "da_fusion"
SLUG = "dafusion"
VERSION = 1
TITLE = "DA-Fusion"
PAPER = "2302.07944"
PARITY = "differs: Stable Diffusion 1.5 unless a preset says 1.4; about ten images per real one; no masks or erasure"
N_SOURCES = 1
LABEL_RULE = "source"
NEEDS = frozenset({"concepts"})
PROMPT = "learned token"
START = "noised image of the class"


class Config(_editing.Editing):
    """Tokens, strengths and sampling."""

    concepts: TextualInversionConfig = TextualInversionConfig()
    concepts_resize: Resize = Field(default="bicubic", description="how the images to learn from are fitted")
    strengths: _editing.Strengths = Field(default=(0.25, 0.5, 0.75, 1.0), description="drawn uniformly for every row")
    sampler: Sampler = Field(default="plms", description="PLMS (PNDM), DPM-Solver++(2M) or DDIM")
    num_inference_steps: int = Field(default=50, ge=2, le=999)
    sources: _editing.Sources = "drawn"

    @model_validator(mode="after")
    def _some_step(self) -> "Config":
        self.steps(min(self.strengths))
        return self


evaluations, generate = _editing.evaluations, _editing.from_source
Draw, redraw = _editing.Draw, _editing.redraw


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows per class that has images, each from one of them, drawn or in turn."""
    groups = table.by_class()
    rows: list[PlanRow] = []
    for label, count in counts(table, spec):
        prompt = cfg.concepts.prompt(label, table.metaclass)
        for k in range(count if groups[label] else 0):
            key = RowKey(spec.seed, NAME, label, k)
            steps = cfg.steps(key.choice("strength", cfg.strengths)) | cfg.drawn(key)
            source = own_source(key, groups[label], cfg.sources)
            rows.append(new_row(VERSION, key, spec, prompt=prompt, **source, **steps))
    tokens = fits(cfg, table, spec, rows)[-1].name
    return (row.model_copy(update={"adapters": (tokens,)}) for row in rows)


def fits(cfg: Config, table: SourceTable, spec: PlanSpec, rows: Sequence[PlanRow]) -> tuple[FitUnit, ...]:
    """A training run for every class that rows are made of, then all their tokens together."""
    labels = {row.label for row in rows}
    groups = [images for label, images in table.by_class().items() if label in labels]
    learned = [unit_of(images, cfg.concepts, cfg.concepts_resize, table, spec) for images in groups]
    names = [unit.name for unit in learned]
    return (*learned, FitUnit.of("tokens", {"concepts": names}, after=names))


def fit(unit: FitUnit, cfg: Config, ctx: Context) -> FitFiles:
    """Learn one class's token, or gather all."""
    from diffaug_datasets.models.adapters import LoadedConcepts

    if unit.kind == "concepts":
        return learn(unit, cfg.concepts, ctx)
    tokens = {token: rows for name in unit.content["concepts"] for token, rows in ctx.fit(name).items()}
    return FitFiles(LoadedConcepts(tokens).files())
