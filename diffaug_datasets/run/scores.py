"""What an encoder and a judge make of finished images, for a person to filter by; no image is changed for it.

A row's scores depend on the row, the plan and the stack alone: the networks see every image at its place of the planned
batch, whoever failed beside it, and what is computed from its features is computed for it alone.

Of the set as a whole, once its shards are done, the process that assembles it measures the nearest test images, how
well inversion went, and who says what the images show (`run.oracle`). What cannot be measured is absent: likeness to
test images where the recipe names no encoder or the run carries no test split, PSNR where nothing is inverted.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from diffaug_datasets.core.errors import RecipeError, SourceError
from diffaug_datasets.core.files import write_atomically
from diffaug_datasets.core.images import decode_image
from diffaug_datasets.core.models import model_name
from diffaug_datasets.core.plan import Plan, Shard, of_split
from diffaug_datasets.core.plan_table import arrow_type, columns_of
from diffaug_datasets.core.recipe import (
    CAPTION_MARGIN,
    CAPTION_PROBABILITY,
    CLASS_PROBABILITY,
    CONFIDENCE_MARGIN,
    LABEL_RANK,
    SHOTS,
    Scores,
)
from diffaug_datasets.core.rows import PlanRow, RowScores, SetScores, column_types
from diffaug_datasets.run.batch import Made
from diffaug_datasets.run.context import WorkContext
from diffaug_datasets.run.kept import kept
from diffaug_datasets.run.oracle import Found, Oracles
from diffaug_datasets.run.store import Receipt, Run

if TYPE_CHECKING:
    from torch import Tensor

    from diffaug_datasets.models.encoders import Encoder, Judge

LOGIT_SCALE = 100.0
UNIT, FILE = "quality", "quality.parquet"
SAMPLE = 32  # real images whose inversion is undone


class ImageScores(RowScores):
    """The scores of one image; `probabilities`, by the names that filters know them by, go into its `measured`."""

    probabilities: Mapping[str, float] = {}


class Scorer:
    """Scores batches with the models a recipe names; scores by models that it does not name stay None."""

    def __init__(self, scores: Scores, plan: Plan, ctx: WorkContext, shape: int) -> None:
        self.names, self.plan, self.ctx, self.shape = scores, plan, ctx, shape
        self.header = plan.header
        self._sources: dict[str, Tensor] = {}

    def score(self, made: Sequence[Made]) -> list[ImageScores]:
        """The scores of images of one planned batch, in order."""
        if not made:
            return []
        images = [Image.fromarray(made[0].pixels)] * self.shape
        for one in made:
            images[one.place] = Image.fromarray(one.pixels)
        places = [one.place for one in made]
        scores = [ImageScores()] * len(made)
        features = None
        if self.names.encoder:
            features = self.encoder.image_features(images, batch_shape=self.shape)[places]
            scores = self._encoded([one.row for one in made], features)
        if self.names.judge:
            by_shots = features if self.names.judge == SHOTS else None
            seen = self._by_judge(images)[places] if by_shots is None else self._by_shots(by_shots)
            best = seen.max(1)
            judged = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            verdicts = [{"judge_confidence": p, "judge_label": i} for p, i in judged]
            scores = [one.model_copy(update=update) for one, update in zip(scores, verdicts, strict=True)]
            labels = [one.row.label for one in made]
            scores = [_with(one, self._judged(p, i)) for one, p, i in zip(scores, seen, labels, strict=True)]
        return scores

    def _judged(self, probabilities: "Tensor", label: int) -> dict[str, float]:
        """What a judge's probabilities [C] of an image say of its label, as far as the recipe asks for it.

        SaSPA (arXiv 2406.14551) drops images whose label is not among the ten likeliest classes; ALIA (arXiv
        2305.16289) those whose confidence lies above the label's threshold, right or wrong.
        """
        said: dict[str, float] = {}
        if self.names.label_rank:
            said[LABEL_RANK] = 1.0 + int((probabilities > probabilities[label]).sum())
        threshold = float(self.thresholds[label]) if self.names.confidence_margin else math.nan
        if math.isfinite(threshold):
            said[CONFIDENCE_MARGIN] = float(probabilities.max()) - threshold
        return said

    @cached_property
    def thresholds(self) -> "Tensor":
        """For every class the judge's mean probability of it in the class's real training images [C]; not a number
        for a class that has none. These are cleanlab's confident thresholds (Northcutt et al., arXiv 1911.00068).
        """
        import torch

        found: list[list[float]] = [[] for _ in self.header.class_names]
        rows = self._training
        for begin in range(0, len(rows), self.shape):
            part = rows[begin : begin + self.shape]
            if self.names.judge == SHOTS:
                seen = self._by_shots(torch.stack([self.source_features(row.source_ids[0]) for row in part]))
            else:
                images = [self.ctx.source(row.source_ids[0]) for row in part]
                seen = self._by_judge(images + [images[-1]] * (self.shape - len(images)))
            for row, probabilities in zip(part, seen, strict=False):
                found[row.label].append(float(probabilities[row.label]))
        return torch.tensor([sum(own) / len(own) if own else math.nan for own in found])

    @cached_property
    def numerics(self) -> str:
        """The fingerprint of the encoder and the judge here; see `run.stacks`."""
        from diffaug_datasets.models.fingerprint import features_fingerprint

        encoders = [self.encoder] if self.names.encoder else []
        judges = [self._judge] if self.names.judge not in (None, SHOTS) else []
        return features_fingerprint([*encoders, *judges], self.shape)

    @cached_property
    def encoder(self) -> "Encoder":
        """The encoder that the recipe names."""
        from diffaug_datasets.models.encoders import Encoder

        name, device = str(self.names.encoder), self.ctx.device
        return kept("scorer", f"{model_name(name)} {device}", lambda: Encoder.load(name, device))

    @cached_property
    def _judge(self) -> "Judge":
        from diffaug_datasets.models.encoders import Judge

        name, device = str(self.names.judge), self.ctx.device
        return kept("judge", f"{model_name(name)} {device}", lambda: Judge.load(name, device))

    @cached_property
    def _prompts(self) -> list[str]:
        return [f"a photo of a {name}" for name in self.header.prompt_names]

    def _encoded(self, rows: Sequence[PlanRow], features: "Tensor") -> list[ImageScores]:
        """What features [n d] of images say: likeness to the class prompts and to the sources, and probabilities."""
        labels = [row.label for row in rows]
        scores = []
        for feature, row in zip(features, rows, strict=True):
            nearness = [_rowwise(feature[None], self.source_features(source)[None]) for source in row.source_ids]
            scores.append(ImageScores(source_similarity=max(map(float, nearness), default=None)))
        if self.encoder.has_text:
            cosines = self._cosines(features, self._prompts)
            margins = [_margin(row.tolist(), label) for row, label in zip(cosines, labels, strict=True)]
            scores = [one.model_copy(update=update) for one, update in zip(scores, margins, strict=True)]
        for name, values in self._probabilities(features, labels).items():
            scores = [_with(one, {name: value}) for one, value in zip(scores, values, strict=True)]
        return scores

    def _cosines(self, features: "Tensor", texts: Sequence[str]) -> "Tensor":
        return _rowwise(features, self.encoder.text_features(texts))

    def _probabilities(self, features: "Tensor", labels: Sequence[int]) -> dict[str, list[float]]:
        """CLIP's zero-shot probability of each row's class, which He et al. keep above 1/C (arXiv 2210.07574), and that
        of the first of the captions, by which Diff-Mix's code drops the lowest tenth; of more than two how far the
        first is ahead: ALIA and SaSPA keep the images where it is the nearest.
        """
        probabilities: dict[str, list[float]] = {}
        if self.names.probability:
            shares = self._shares(features, self._prompts, "probability")
            probabilities[CLASS_PROBABILITY] = [float(row[label]) for row, label in zip(shares, labels, strict=True)]
        if self.names.captions:
            probabilities[CAPTION_PROBABILITY] = self._shares(features, self.names.captions, "captions")[:, 0].tolist()
        if self.names.captions and len(self.names.captions) > 2:
            cosines = self._cosines(features, self.names.captions)
            probabilities[CAPTION_MARGIN] = (cosines[:, 0] - cosines[:, 1:].amax(1)).tolist()
        return probabilities

    def _shares(self, features: "Tensor", texts: Sequence[str], key: str) -> "Tensor":
        if not self.encoder.has_text:
            raise RecipeError(f"scores.{key}: encoder {self.names.encoder} reads no text; name a CLIP model.")
        return (LOGIT_SCALE * self._cosines(features, texts)).softmax(dim=1)

    def source_features(self, source_id: str) -> "Tensor":
        """Features [d] of a real image, encoded once, together with its group.

        Raises:
            SourceError: it cannot be read.
        """
        if source_id not in self._sources:
            self.ctx.source(source_id)
            group = self._groups[source_id]
            images = [self._readable(one) for one in group]
            empty = Image.new("RGB", (8, 8))
            features = self.encoder.image_features([image or empty for image in images], batch_shape=self.shape)
            self._sources |= {one: f for one, image, f in zip(group, images, features, strict=True) if image}
        return self._sources[source_id]

    def _readable(self, source_id: str) -> Image.Image | None:
        try:
            return self.ctx.source(source_id)
        except SourceError:
            return None  # its rows fail for it; its place in the group stays

    @cached_property
    def _groups(self) -> Mapping[str, Sequence[str]]:
        """Source -> those that one batch of the encoder takes with it: the next few that are looked at, in the plan's
        order. So features follow from the plan alone, not from what was made before, where, or who failed.
        """
        rows = [self.plan.rows, *([self._training] if self.names.judge == SHOTS else ())]
        cited = (ids for part in rows for (ids,) in columns_of(part, "source_ids"))
        order = list(dict.fromkeys(source for ids in cited for source in ids))
        groups = [order[i : i + self.shape] for i in range(0, len(order), self.shape)]
        return {source: group for group in groups for source in group}

    @cached_property
    def _training(self) -> Sequence[PlanRow]:
        return of_split(self.plan.real, "train")

    def _by_judge(self, images: list[Image.Image]) -> "Tensor":
        columns = self._judge.columns(self.header.class_names, "scores.judge")
        return self._judge.probabilities(images, batch_shape=self.shape)[:, columns].cpu()

    def _by_shots(self, features: "Tensor") -> "Tensor":
        """Real-Filter's class rule (He et al., arXiv 2210.07574; no code was released): a class's score is the mean
        cosine to its real training images. Probabilities are a softmax at CLIP's largest logit scale.
        """
        return (LOGIT_SCALE * _rowwise(features, self.class_means)).nan_to_num(-math.inf).softmax(dim=1)

    @cached_property
    def class_means(self) -> "Tensor":
        """Mean features [C d] of every class's real training images; not a number for a class that has none."""
        import torch

        size = self.encoder.image_features([Image.new("RGB", (8, 8))], batch_shape=self.shape).shape[1]
        means = torch.full((len(self.header.class_names), size), math.nan)
        of_class: dict[int, list[str]] = {}
        for ids, label in columns_of(self._training, "source_ids", "label"):
            of_class.setdefault(label, []).append(ids[0])
        for label in range(len(means)):
            if known := of_class.get(label):
                means[label] = torch.stack([self.source_features(source) for source in known]).mean(0)
        return means


def _with(scores: ImageScores, measured: Mapping[str, float]) -> ImageScores:
    """The scores with more numbers under `probabilities`."""
    return scores.model_copy(update={"probabilities": {**scores.probabilities, **measured}})


def _margin(cosines: Sequence[float], label: int) -> dict[str, float]:
    """Scores of an image from its cosines to the prompts of all classes."""
    own = cosines[label]
    others = [cosine for i, cosine in enumerate(cosines) if i != label]
    return {"clip_score": own, "clip_margin": own - max(others, default=own)}


def _rowwise(features: "Tensor", others: "Tensor") -> "Tensor":
    """Cosines [n m] of unit-norm features [n d] and [m d], each row computed for itself.

    A matrix product would do, but its last bits depend on how many rows it has, and on where they lie in memory.
    """
    import torch

    return torch.stack([(others * feature).sum(1) for feature in features])


def measure_quality(run: Run, ctx: WorkContext) -> None:
    """Measure what can be measured of a set and write it with its receipt; does nothing where that is done."""
    if run.intact(UNIT):
        return
    oracles = Oracles(run, ctx)
    found = oracles.find()
    rows: dict[str, dict[str, object]] = _made_rows(run, oracles, found)
    rows |= _inversions(run, ctx)
    files = []
    if rows:
        schema = {"row_id": "string", **column_types(SetScores)}
        scores = [{"row_id": row_id, **SetScores.model_validate(row).model_dump()} for row_id, row in rows.items()]
        table = pa.Table.from_pylist(scores, pa.schema([(name, arrow_type(kind)) for name, kind in schema.items()]))
        files.append(write_atomically(run.folder / FILE, lambda path: pq.write_table(table, path)))
    oracle = found.oracle and found.oracle.model_dump(mode="json")
    measured = {"oracle": oracle, "withheld": found.withheld}
    run.write_receipt(Receipt(plan_id=run.plan.id, unit=UNIT, files=tuple(files), rows=len(rows), measured=measured))


def measured_rows(run: Run) -> Mapping[str, SetScores]:
    """Row id -> scores of every row of which something was measured; empty where nothing was."""
    receipt = run.receipt(UNIT)
    if receipt is None or not receipt.files or not run.intact(UNIT):
        return {}
    return {row.pop("row_id"): SetScores(**row) for row in pq.read_table(run.folder / FILE).to_pylist()}


def _made_rows(run: Run, oracles: Oracles, found: Found) -> dict[str, dict[str, object]]:
    """For each written row the largest cosine to a test image, under the recipe's encoder, and which image that is; and
    the class that the oracle sees, where no column says it. One pass over the images does for both.
    """
    tests = [shard for shard in run.plan.real_shards() if shard.kind == "test"]
    if run.recipe.scores.encoder is None:
        tests = []
    if not tests and found.seen is None:
        return {}
    from diffaug_datasets.numerics.nearest import exact_neighbours

    encoder, shape = oracles.encoder, run.recipe.batch_size
    pool = _features(run, encoder, tests, shape) if tests else None
    ids = [row.source_ids[0] for shard in tests for row in shard.rows]
    scores: dict[str, dict[str, object]] = {}
    for shard in run.plan.shards():
        written = set(run.table(shard).column("row_id").to_pylist())
        if not written:
            continue
        features = _features(run, encoder, [shard], shape)
        columns: dict[str, list[object]] = {}
        if pool is not None:
            nearest = exact_neighbours(features, pool, 1)
            columns["test_similarity"] = nearest.cosine[:, 0].tolist()
            columns["nearest_test"] = [ids[place] for place in nearest.place[:, 0].tolist()]
        if found.seen is not None:
            columns["seen_label"] = found.seen(features).tolist()
        for i, row in enumerate(shard.rows):
            if row.row_id in written:
                scores[row.row_id] = {name: values[i] for name, values in columns.items()}
    return scores


def _features(run: Run, encoder: "Encoder", shards: Sequence[Shard], shape: int) -> "Tensor":
    """Unit-norm features [n d] of the image of every planned row of some shards, in order; of a row without one they
    mean nothing, but hold its place, so that no other row's bits depend on who failed.
    """
    nothing = Image.new("RGB", (8, 8))

    def pictures() -> Iterator[Image.Image]:
        for shard in shards:
            table = run.table(shard)
            column, names = table.column("image"), table.column("row_id").to_pylist()
            places = {name: i for i, name in enumerate(names)}
            for row in shard.rows:
                place = places.get(row.row_id)
                yield nothing if place is None else decode_image(bytes(column[place].as_py()["bytes"]))

    return encoder.image_features(pictures(), batch_shape=shape)


def _inversions(run: Run, ctx: WorkContext) -> dict[str, dict[str, object]]:
    """What can be said of the inversions of a few real images, spread evenly: PSNR, and what the method adds."""
    method, config = run.recipe.method_definition, run.recipe.method_config
    measure, more = method.inversion_psnr, method.inversion_facts
    units = [unit for unit in run.plan.fits if unit.kind == "inversions"]
    if measure is None or not units:
        return {}
    rows = {f"{row.source_ids[0]}/{row.label}": row.row_id for row in run.plan.real if row.split == "train"}
    images = [(unit, image) for unit in units for image in unit.content["images"] if image in rows]
    chosen = images[:: max(1, len(images) // SAMPLE)][:SAMPLE]
    scores: dict[str, dict[str, object]] = {}
    for unit in units:
        names = [image for home, image in chosen if home is unit]
        if not names:
            continue
        facts = more(unit, names, config, ctx) if more else [{} for _ in names]
        for name, value, others in zip(names, measure(unit, names, config, ctx), facts, strict=True):
            found = {"inversion_psnr": value, **others}
            if known := {key: number for key, number in found.items() if math.isfinite(number)}:
                scores[rows[name]] = dict(known)
    return scores
