"""Numbers that a person filters by: what an encoder and a judge make of a finished image. Never used to delete one."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.plan import Plan
from diffaug_datasets.core.recipe import CAPTION_PROBABILITY, CLASS_PROBABILITY, SHOTS, Scores
from diffaug_datasets.run.batch import Made
from diffaug_datasets.run.context import WorkContext

if TYPE_CHECKING:
    from torch import Tensor

    from diffaug_datasets.models.features import Encoder, Judge

LOGIT_SCALE = 100.0


class Scorer:
    """Scores batches with the models a recipe names; columns of models it does not name stay null."""

    def __init__(self, scores: Scores, plan: Plan, ctx: WorkContext, shape: int) -> None:
        self.names, self.plan, self.ctx, self.shape = scores, plan, ctx, shape
        self.header = plan.header
        self._sources: dict[str, Tensor] = {}

    def score(self, made: Sequence[Made]) -> list[dict[str, Any]]:
        """The score columns of every image, in order; under `measured`, what goes into that column."""
        if not made:
            return []
        images = [Image.fromarray(one.pixels) for one in made]
        encoded = self._encoded(made, images) if self.names.encoder else [{}] * len(made)
        judged = self._judged(images) if self.names.judge else [{}] * len(made)
        return [{**a, **b} for a, b in zip(encoded, judged, strict=True)]

    @cached_property
    def _encoder(self) -> "Encoder":
        from diffaug_datasets.models.features import Encoder

        return Encoder.load(str(self.names.encoder), self.ctx.device)

    @cached_property
    def _judge(self) -> "Judge":
        from diffaug_datasets.models.features import Judge

        return Judge.load(str(self.names.judge), self.ctx.device)

    @cached_property
    def _prompts(self) -> list[str]:
        return [f"a photo of a {name}" for name in self.header.prompt_names]

    def _encoded(self, made: Sequence[Made], images: list[Image.Image]) -> list[dict[str, Any]]:
        features = self._encoder.image_features(images, batch_shape=self.shape)
        cosines = self._cosines(features, self._prompts) if self._encoder.has_text else None
        probabilities = self._probabilities(features, [one.row.label for one in made])
        scored: list[dict[str, Any]] = []
        for i, one in enumerate(made):
            margins = self._margin(cosines[i], one.row.label) if cosines is not None else {}
            similarity = {"source_similarity": self._nearest(features[i], one.row.source_ids)}
            measured = {"measured": {name: values[i] for name, values in probabilities.items()}}
            scored.append({**margins, **similarity, **(measured if probabilities else {})})
        return scored

    def _cosines(self, features: "Tensor", texts: Sequence[str]) -> "Tensor":
        return (features @ self._encoder.text_features(texts).T).cpu()

    def _probabilities(self, features: "Tensor", labels: Sequence[int]) -> dict[str, list[float]]:
        """CLIP's zero-shot probability of each row's class, which He et al. keep above 1/C (arXiv 2210.07574), and that
        of the first of two captions, by which Diff-Mix's code drops the lowest tenth.
        """
        found: dict[str, list[float]] = {}
        if self.names.probability:
            shares = self._shares(features, self._prompts, "probability")
            found[CLASS_PROBABILITY] = [float(row[label]) for row, label in zip(shares, labels, strict=True)]
        if self.names.captions:
            found[CAPTION_PROBABILITY] = self._shares(features, self.names.captions, "captions")[:, 0].tolist()
        return found

    def _shares(self, features: "Tensor", texts: Sequence[str], key: str) -> "Tensor":
        if not self._encoder.has_text:
            raise RecipeError(f"scores.{key}: encoder {self.names.encoder} reads no text; name a CLIP model.")
        return (LOGIT_SCALE * self._cosines(features, texts)).softmax(dim=1)

    def _margin(self, cosines: "Tensor", label: int) -> dict[str, float]:
        own = float(cosines[label])
        others = [float(c) for i, c in enumerate(cosines) if i != label]
        return {"clip_score": own, "clip_margin": own - max(others, default=own)}

    def _nearest(self, feature: "Tensor", sources: Sequence[str]) -> float | None:
        return max((float(feature @ self._source(s)) for s in sources), default=None)

    def _source(self, source_id: str) -> "Tensor":
        if source_id not in self._sources:
            image = self.ctx.source(source_id)
            self._sources[source_id] = self._encoder.image_features([image], batch_shape=self.shape)[0]
        return self._sources[source_id]

    def _judged(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        probabilities = self._by_shots(images) if self.names.judge == SHOTS else self._by_judge(images)
        best = probabilities.max(1)
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [{"judge_confidence": p, "judge_label": i} for p, i in pairs]

    def _by_judge(self, images: list[Image.Image]) -> "Tensor":
        columns = self._judge.columns(self.header.class_names, "scores.judge")
        return self._judge.probabilities(images, batch_shape=self.shape)[:, columns].cpu()

    def _by_shots(self, images: list[Image.Image]) -> "Tensor":
        """Real-Filter's class rule (He et al., arXiv 2210.07574; no code was released): a class's score is the mean
        cosine to its real training images. Probabilities are a softmax at CLIP's largest logit scale.
        """
        features = self._encoder.image_features(images, batch_shape=self.shape)
        return (LOGIT_SCALE * (features @ self._shots.T)).nan_to_num(-math.inf).softmax(dim=1)

    @cached_property
    def _shots(self) -> "Tensor":
        """Mean features [C d] of every class's real training images; not a number for a class that has none."""
        import torch

        size = self._encoder.image_features([Image.new("RGB", (8, 8))], batch_shape=self.shape).shape[1]
        means = torch.full((len(self.header.class_names), size), math.nan)
        for label in range(len(means)):
            known = [r.source_ids[0] for r in self.plan.real if r.split == "train" and r.label == label]
            if known:
                means[label] = torch.stack([self._source(source) for source in known]).mean(0)
        return means
