"""Diff-Mix: images between two classes, drawn by a model that has learned both (Wang et al. 2024, arXiv 2403.19600).

1. one token per class, learned together with LoRA on the U-Net   fit `concepts`, `models.concepts`
2. a source image of any class, the token of a target class      `plan`, roles `source_class`, `source`
3. a strength s of a small list                                  `plan`, role `strength`
4. z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps at strength s         `numerics.schedule.add_noise`
5. guided denoising under the target's token                     `models.denoising.denoise`
6. the label (1 - s^gamma) e_source + s^gamma e_target             `real_mix.diff_mix_label`

Follows the authors' code in prompt, sampler, resize and in drawing the source class with replacement, so that one row
in C edits an image of its own class. Departs from it: every target class gets its planned number of rows (theirs is
itself drawn), weights sum to 1 (0.9 in most of their loaders, not in the paper: `soft_scaler`), and the source is
recorded. For long tails they draw sources uniformly over all images and targets uniformly over classes (`sources`,
`targets`). Sources are the posterior's mode, where img2img of diffusers samples it (`encode: sample`, in the presets of
their code; on the packaged model latents are 0.07 apart on average). DPM-Solver++ ends at zero noise, as in diffusers
since 0.26; their 0.25.1 ends at the level of label 0 (`final: alpha_bar_0`, in the presets of their code), on the
packaged model 1.2 grey levels away on average and 44 at most. Concepts are learned from images stretched to a square
(theirs: random crops) at the backbone's size (their current scripts: 224, `concepts.resolution`), on the posterior's
mode, with the tokens' gradient clipped too. LoRA starts normal with deviation 1/rank, as their version of diffusers has
it; peft's uniform start (`concepts.lora_start`) leaves |B A| 1.68 times smaller after 60 steps on the packaged model,
where the loss (0.122) and the judged share of 50 images of Diff-Gen (70 and 68 %) hardly differ. Their optional filter,
the lowest tenth by CLIP's probability of a caption with the metaclass against one without it, is `scores.captions` and
a rule for `caption_probability`, as the recipe `caption_filter` has them.
"""

from collections.abc import Iterator

from diffaug_datasets.methods import _concepts, _editing
from diffaug_datasets.methods.real_mix import Mixing, mixed, source_pools
from diffaug_datasets.plugin import ConceptConfig, PlanRow, PlanSpec, RowKey, SourceTable, new_row

NAME = "diff_mix"
SLUG = "diffmix"
VERSION = 1
TITLE = "Diff-Mix"
PAPER = "2403.19600"
PARITY = "differs: a fixed number of rows per class, where the authors draw it; concepts learned without crops, at 512"
N_SOURCES = 1
LABEL_RULE = "mixed"
NEEDS = frozenset({"concepts"})
PROMPT = "learned token of the target"
START = "noised image of any class"


class Config(Mixing):
    """Real-Mix's, and the concepts."""

    concepts: ConceptConfig = ConceptConfig()


fits, fit = _concepts.fits, _concepts.fit
evaluations, generate = _editing.evaluations, _editing.from_source
Draw, redraw = _editing.Draw, _editing.redraw


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """Rows of every target class that has images, each from an image of any class, its own among them."""
    return edits(NAME, VERSION, cfg, table, spec)


def edits(name: str, version: int, cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """The rows of Diff-Mix, or of its like with other concepts."""
    concept, pools = _concepts.concept_unit(cfg, table, spec), source_pools(cfg, table)
    learned = {source.label for source in table.sources}
    for target, count in _editing.counts(table, spec, cfg.targets):
        prompt = cfg.concepts.prompt(target, table.metaclass)
        for k in range(count if target in learned else 0):
            key = RowKey(spec.seed, name, target, k)
            yield new_row(version, key, spec, prompt=prompt, adapters=(concept.name,), **mixed(cfg, key, pools))
