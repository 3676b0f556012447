"""Every method equals an independent rendering of its publication: latents, pictures and labels, in float32.

`published.py` is the other side; it imports nothing of the package. `scripts/mutate_parity.py` shows what this catches.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published import CLASSES, Expected, Published
from small_controlnet import small_controlnet
from small_runs import CONCEPTS, METHODS, small_run

import diffaug_datasets
from diffaug_datasets.core.identity import RowKey
from diffaug_datasets.core.method import Generated, MethodConfig, discover_methods
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.run.context import to_uint8
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Worker, WorkerOptions

ASSETS = Path(diffaug_datasets.__file__).parent / "assets" / "tiny"
SUFFIXES = json.loads((ASSETS / "suffixes.json").read_text(encoding="utf-8"))["suffixes"]
SIZE = 48  # not the pictures' own 32, so that fitting and restoring them show
N = 8
GAMMA = 0.8
TOLERANCE = 1e-4
LEARNED = {"concepts": {**CONCEPTS, "steps": 2}}
TOKENS = {"concepts": {**CONCEPTS, "steps": 2, "rank": 0}}
CONFIG: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "img2img": {"strength": 0.7},
    "genie": {"ratio": 0.8},
    "genieada": {"levels": [0.5, 0.75, 1.0]},
    "diffii": {**LEARNED, "inversion_steps": N, "split_ratio": 0.3},
    "realguidance": {"strength": 0.3},
    "realgen": {},
    "diffgen": LEARNED,
    "diffaug": {**LEARNED, "strengths": [1.0, 0.5]},
    "diffmix": {**LEARNED, "gamma": GAMMA},
    "realmix": {"gamma": GAMMA},
    "timix": {**TOKENS, "gamma": GAMMA},
    "tiaug": {**TOKENS, "strengths": [1.0, 0.5]},
    "dafusion": {**METHODS["dafusion"], "strengths": [0.25, 0.5, 0.75, 1.0]},
    "alia": {"strength": 0.6, "sampler": "plms"},
    "saspa": {"low": 60, "high": 120},
    "dreamda": {"prompts": ["a photo of a {name}"], "strength": 0.75},
}
# Tests of one method run in one process, where its fits are made once.
SLUGS = [pytest.param(slug, marks=pytest.mark.xdist_group(f"published-{slug}")) for slug in CONFIG]
ENDS_ALONE = ("txt2img", "genie", "saspa", "dreamda")  # by default: each drives its sampler in a way of its own
STATES_ITS_PROMPT_WITH_TOKENS = ("diffii", "diffgen", "diffaug", "diffmix", "timix", "tiaug", "dafusion")


def test_every_method_is_compared() -> None:
    """Here, or in a file of its own."""
    elsewhere = {"diffinversion", "retrieval", "diffusemix", "datadream", "gif"}
    assert {method.SLUG for method in discover_methods().values()} == set(CONFIG) | elsewhere


class Ours:
    """A planned run whose fits are made, and the latents that its backbone decodes."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.worker = Worker(run, WorkerOptions(only_fits=True))
        with torch.enable_grad():
            self.worker.work()
        self.decoded: list[torch.Tensor] = []
        self.decode = self.worker.context.backbone.decode_float
        self.worker.context.backbone.decode_float = self._listen  # type: ignore[method-assign]

    def _listen(self, z: torch.Tensor) -> torch.Tensor:
        self.decoded.append(z.clone())
        return self.decode(z)

    def generate(self, rows: Sequence[PlanRow], config: MethodConfig | None = None) -> list[Generated]:
        recipe = self.run.recipe
        self.decoded.clear()
        with torch.inference_mode():
            return recipe.method_definition.generate(rows, config or recipe.method_config, self.worker.context)

    @property
    def concepts(self) -> Path | None:
        """Where the tokens are that rows cite first."""
        cited = self.run.plan.rows[0].adapters
        folder = self.run.fit_folder(cited[0]) if cited else None
        return folder if folder and (folder / "learned_embeds.safetensors").exists() else None


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ours]:
    """`ours("diffmix")`: made once a module."""
    known: dict[str, Ours] = {}

    def of(slug: str) -> Ours:
        if slug not in known:
            config = {**CONFIG[slug], "num_inference_steps": N}
            changes = {"config": config, "backbone": {"height": SIZE, "width": SIZE}, "batch_size": 4, "per_class": 3}
            known[slug] = Ours(small_run(tmp_path_factory.mktemp(slug) / "run", slug, **changes))
        return known[slug]

    return of


def four(rows: Sequence[PlanRow]) -> list[PlanRow]:
    """Rows that differ in what they do: in start step and, for mixed labels, in whether their classes differ."""
    kinds = {(row.start_step, len(row.soft_label.classes)): row for row in rows}
    return [*kinds.values(), *[row for row in rows if row not in kinds.values()]][:4]


def expected(slug: str, row: PlanRow, reference: Published, run: Run) -> Expected:
    """What the publication makes of a row's record; the prompt is written here, from the class of the row."""
    tokens = slug in STATES_ITS_PROMPT_WITH_TOKENS
    prompt = "a photo of a " + (f"<class_{row.label}>" if tokens else CLASSES[row.label])
    record = row.model_dump()
    if slug == "genieada":
        return reference.genie_ada(record, prompt, CONFIG[slug]["levels"], N, images_of(run, row.label))
    if slug in ("txt2img", "realgen", "diffgen"):
        latent = reference.from_noise(record, prompt, N)
    elif slug == "genie":
        latent = reference.genie(record, prompt, N, CONFIG[slug]["ratio"])
    elif slug == "diffii":
        assert record["prompt_first"] in {f"{prompt} {suffix['text']}" for suffix in SUFFIXES}
        latent = reference.diff_ii(record, prompt, N, CONFIG[slug]["split_ratio"])
    elif slug == "alia":
        assert record["prompt"] in {f"{prompt} {suffix['text']}" for suffix in SUFFIXES}
        latent = reference.img2img(record, record["prompt"], N, "bilinear", "plms")
    elif slug == "saspa":
        sentence, _, painter = (record["prompt"] or "").partition(", a painting of ")
        assert sentence in {f"{prompt} {suffix['text'].removesuffix('.')}" for suffix in SUFFIXES}
        assert not painter or painter in run.recipe.method_config.painters  # type: ignore[attr-defined]
        latent = reference.saspa(record, N, CONFIG[slug]["low"], CONFIG[slug]["high"], Path(small_controlnet()))
    elif slug == "dreamda":
        latent = reference.dream_da(record, prompt, N)
    else:
        how = "crop" if slug == "img2img" else "bilinear"
        latent = reference.img2img(record, prompt, N, how, "plms" if slug == "dafusion" else "dpm")
    mixed = slug in ("diffmix", "realmix", "timix")
    return Expected([latent], reference.mixed(record, prompt, GAMMA) if mixed else reference.hard(prompt))


def images_of(run: Run, label: int) -> list[str]:
    """The real images of a class."""
    return [real.source_ids[0] for real in run.plan.real if real.label == label]


def sources_are_what_they_should_be(slug: str, row: PlanRow, reference: Published) -> bool:
    """Of the class that the row states; the row's own, another one, or any."""
    classes = [reference.images[source][1] for source in row.source_ids]
    own = {"genie": False, "genieada": False, "diffmix": None, "realmix": None, "timix": None}.get(slug, True)
    return list(row.source_labels) == classes and all(own is None or (c == row.label) is own for c in classes)


@pytest.mark.parametrize("slug", SLUGS)
@torch.no_grad()
def test_latents_and_labels(slug: str, ours: Callable[[str], Ours]) -> None:
    run = ours(slug).run
    reference = Published(ASSETS, SIZE, ours(slug).concepts)
    rows = four(run.plan.rows)
    made = ours(slug).generate(rows)
    for i, (row, image) in enumerate(zip(rows, made, strict=True)):
        wanted = expected(slug, row, reference, run)
        assert sources_are_what_they_should_be(slug, row, reference)
        assert dict(zip(row.soft_label.classes, row.soft_label.weight, strict=True)) == pytest.approx(wanted.label)
        for level, latent in zip(ours(slug).decoded, wanted.latents, strict=True):
            assert float((level[i] - latent[0]).abs().max()) < TOLERANCE
        if wanted.level is not None:
            assert image.measured["d"] == pytest.approx(wanted.distances, abs=2e-3)
            assert image.chosen["strength"] == CONFIG[slug]["levels"][wanted.level]


@torch.no_grad()
def test_ada_with_plain_features(tmp_path: Path) -> None:
    """The paper's formula; the reference tells the two apart."""
    levels = CONFIG["genieada"]["levels"]
    config = {"levels": levels, "num_inference_steps": N, "normalise": False}
    changes = {"config": config, "backbone": {"height": SIZE, "width": SIZE}, "batch_size": 2}
    ours, reference = Ours(small_run(tmp_path / "run", "genieada", **changes)), Published(ASSETS, SIZE)
    row = ours.run.plan.rows[0]
    [made, _] = ours.generate([row] * 2)
    prompt, targets = f"a photo of a {CLASSES[row.label]}", images_of(ours.run, row.label)
    plain, unit = (reference.genie_ada(row.model_dump(), prompt, levels, N, targets, kind) for kind in (False, True))
    assert made.measured["d"] == pytest.approx(plain.distances, rel=2e-3)
    assert made.measured["d"] != pytest.approx(unit.distances, rel=0.1)
    assert made.chosen["strength"] == levels[plain.level or 0]


@pytest.mark.parametrize("slug", ["realguidance", "diffmix", "dafusion", "img2img", "saspa"])
@torch.no_grad()
def test_pictures_come_back_at_the_size_of_their_sources(slug: str, ours: Callable[[str], Ours]) -> None:
    """As the authors of Diff-Mix and DA-Fusion store them; GeNIe's baseline stays at the backbone's size."""
    rows = four(ours(slug).run.plan.rows)
    [image, *_] = ours(slug).generate(rows)
    latent = ours(slug).decoded[0][:1]
    reference = Published(ASSETS, SIZE)
    wanted = np.array(reference.decoded(latent, None if slug == "img2img" else 32))
    assert image.pixels.shape == ((48, 48, 3) if slug == "img2img" else (32, 32, 3))
    assert np.abs(to_uint8(image.pixels).astype(int) - wanted).max() <= 1


STRENGTHS = [0.1, 0.3, 0.5, 0.7, 0.9, 1.0]


@pytest.mark.parametrize("sampler", ["dpm", "plms"])
@torch.no_grad()
def test_img2img_at_every_strength(sampler: str, ours: Callable[[str], Ours]) -> None:
    """Rows of all strengths and start steps in one batch of ten steps."""
    run, reference, n = ours("realguidance").run, Published(ASSETS, SIZE), 10
    config = run.recipe.method_config.model_copy(update={"num_inference_steps": n, "sampler": sampler})
    rows = [
        row.model_copy(update=config.steps(strength))  # type: ignore[attr-defined]
        for row, strength in zip(run.plan.rows, STRENGTHS, strict=False)
    ]
    assert [row.start_step for row in rows] == [9, 7, 5, 3, 1, 0]
    ours("realguidance").decoded.clear()
    run.recipe.method_definition.generate(rows, config, ours("realguidance").worker.context)
    for row, latent in zip(rows, ours("realguidance").decoded[0], strict=True):
        wanted = reference.img2img(row.model_dump(), row.prompt or "", n, "bilinear", sampler)
        assert float((latent - wanted[0]).abs().max()) < TOLERANCE


SAMPLED = ["img2img", "realguidance", "diffmix", "dafusion"]  # the others share all of it with one of these


@pytest.mark.parametrize("slug", [pytest.param(s, marks=pytest.mark.xdist_group(f"published-{s}")) for s in SAMPLED])
@torch.no_grad()
def test_a_source_is_sampled_as_the_pipeline_of_diffusers_does(slug: str, ours: Callable[[str], Ours]) -> None:
    """`encode: sample`: another latent than the mode's, from the posterior seed that the row records."""
    run, reference = ours(slug).run, Published(ASSETS, SIZE, ours(slug).concepts)
    config = run.recipe.method_config.model_copy(update={"encode": "sample"})
    planned = four(run.plan.rows)[0]
    key = RowKey(run.recipe.seed, run.recipe.method, planned.label, planned.k)
    row = planned.model_copy(update=config.drawn(key))  # type: ignore[attr-defined]
    ours(slug).decoded.clear()
    run.recipe.method_definition.generate([row], config, ours(slug).worker.context)
    how, sampler = "crop" if slug == "img2img" else "bilinear", "plms" if slug == "dafusion" else "dpm"
    wanted = reference.img2img_sampled(row.model_dump(), row.prompt or "", N, how, sampler)
    assert float((ours(slug).decoded[0] - wanted).abs().max()) < TOLERANCE
    mode = reference.img2img(row.model_dump(), row.prompt or "", N, how, sampler)
    assert float((wanted - mode).abs().max()) > 10 * TOLERANCE


@pytest.mark.xdist_group("published-dreamda")
@torch.no_grad()
def test_dream_da_under_each_class_s_own_lora(tmp_path: Path) -> None:
    """Rows of two classes in one batch, their sources sampled, as diffusers has them with that class's file loaded."""
    learned = {"epochs": 1, "batch": 2, "rank": 2, "lr": 0.03}
    config = {**CONFIG["dreamda"], "num_inference_steps": N, "lora": learned, "encode": "sample"}
    ours = Ours(small_run(tmp_path / "run", "dreamda", config=config, per_class=1, batch_size=2))
    reference = Published(ASSETS, 32)
    rows = [next(row for row in ours.run.plan.rows if row.label == label) for label in (8, 4)]
    ours.generate(rows)
    assert len({row.adapters for row in rows}) == 2
    for latent, row, other in zip(ours.decoded[0], rows, rows[::-1], strict=True):
        prompt = f"a photo of a {CLASSES[row.label]}"
        wanted = []
        for adapters in (row.adapters, other.adapters):
            reference.use_lora(dict(ours.worker.context.fit(adapters[0])))
            wanted.append(reference.dream_da(row.model_dump(), prompt, N)[0])
        assert float((latent - wanted[0]).abs().max()) < TOLERANCE
        assert float((wanted[1] - wanted[0]).abs().max()) > 10 * TOLERANCE, "the classes' matrices do not differ"


@pytest.mark.parametrize("guidance", [pytest.param(7.5, marks=pytest.mark.full), 1.0])  # 7.5: by `test_contract`
@pytest.mark.parametrize("slug", SLUGS)
def test_declared_cost_is_counted(slug: str, guidance: float, ours: Callable[[str], Ours]) -> None:
    """U-Net rows of one image alone in its batch; guidance 1 needs one prediction a step instead of two."""
    recipe, backbone = ours(slug).run.recipe, ours(slug).worker.context.backbone
    for row in four(ours(slug).run.plan.rows)[:2]:
        scaled = row.model_copy(update={"guidance_scale": guidance})
        before = backbone.rows_evaluated
        ours(slug).generate([scaled])
        assert backbone.rows_evaluated - before == recipe.method_definition.evaluations(recipe.method_config, scaled)


ENDS = [
    pytest.param(
        slug,
        marks=[pytest.mark.xdist_group(f"published-{slug}"), *([] if slug in ENDS_ALONE else [pytest.mark.full])],
    )
    for slug in CONFIG
    if slug != "diffii"
]


@pytest.mark.parametrize("slug", ENDS)
def test_where_sampling_ends_reaches_the_latents(slug: str, ours: Callable[[str], Ours]) -> None:
    """`final` is a key of every method with a sampler, and one that changed nothing would be a promise broken."""
    mine = ours(slug)
    row = mine.run.plan.rows[0]
    ends = []
    for end in ("zero", "alpha_bar_0"):
        config = mine.run.recipe.method_config.model_copy(update={"final": end})
        mine.generate([row], config)
        ends.append(torch.cat(mine.decoded))
    assert ends[0].shape == ends[1].shape and not torch.equal(*ends)
    mine.generate([row])
    kept = "zero" if mine.run.recipe.method_config.sampler == "dpm" else "alpha_bar_0"  # type: ignore[attr-defined]
    assert torch.equal(torch.cat(mine.decoded), ends[kept == "alpha_bar_0"])
