"""A batch's guided predictions as the profiles fast and turbo ask for them: everything but the network is made ready.

Conditions of both branches, timestep labels and guidance scales lie on the device before the first step, and what rows
need is decided on the host, so that a step waits for nothing and adds a handful of small operations to its network
call. Where turbo leaves steps out, `deep_features.Reuse` answers in the U-Net's place. Sizes: b rows, latents [c h w],
conditions [s d].
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.core.profiles import Profile
from diffaug_datasets.families import stable_diffusion
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.deep_features import Reuse
from diffaug_datasets.models.resizing import FILTERS
from diffaug_datasets.numerics.schedule import eps_from_v, eps_from_x0


class QuickGuidance:
    """Classifier-free guidance of one batch, called as `numerics.sampling.Network` is.

    A row of scale 1 is taken from its half of the call of 2b rows where guided rows stand beside it: the profile exact
    makes a call of its own for such rows.
    """

    def __init__(
        self,
        backbone: Backbone,
        profile: Profile,
        last: Float[Tensor, "b s d"],
        uncond: Float[Tensor, "b s d"],
        scale: Sequence[float],
        labels: Sequence[float] = (),
        first: Float[Tensor, "b s d"] | None = None,
        switch: Sequence[int] = (),
    ) -> None:
        """`labels`: all that the batch will see, if they are known; `first`, `switch`: as `denoising.Conditions`."""
        device, dtype = backbone.device, backbone.dtype
        self.backbone, self.profile, self.steps = backbone, profile, len(labels)
        self._schedule = backbone.vp_schedule
        self.rows, self._switch = len(last), tuple(switch) if first is not None else ()
        self._last, self._uncond = last.to(device, dtype), uncond.to(device, dtype)
        self._first = self._last if first is None else first.to(device, dtype)
        self._is_guided = any(w != 1 for w in scale)
        column = torch.tensor(list(scale), dtype=torch.float32).to(device)[:, None, None, None]
        self._scale = column
        self._plain = column == 1 if self._is_guided and any(w == 1 for w in scale) else None
        self._texts: dict[tuple[object, bool], Tensor] = {}
        self._times: dict[tuple[float, int], Tensor] = {}
        for count in {self.rows, 2 * self.rows} if labels else ():
            table = torch.tensor([[label] * count for label in labels]).to(device).unbind()
            self._times |= {(label, count): row for label, row in zip(labels, table, strict=True)}
        self._reuse = Reuse(backbone.unet) if profile.is_turbo and profile.interval > 1 else None
        self._begun: int | None = None

    def __call__(self, xt: Float[Tensor, "b c h w"], t: float, step: int) -> Float[Tensor, "b c h w"]:
        """What the schedule's `prediction` names, guided, float32."""
        self._begun = step if self._begun is None else self._begun
        both = self._is_guided and (not self.steps or self.profile.is_guided(step, self.steps))
        text = self._text(step, both)
        state = torch.cat([xt, xt]) if both else xt
        said = self._said(state, t, text, self.profile.is_whole(step, self._begun))
        if not both:
            return said
        low, high = said.chunk(2)
        guided = torch.addcmul(low, high - low, self._scale)
        return guided if self._plain is None else torch.where(self._plain, high, guided)

    def _text(self, step: int, both: bool) -> Tensor:
        """The conditions of a step [b s d], or of both branches [2b s d]; they change where a prompt switches."""
        early = tuple(step < switch for switch in self._switch)
        key = early, both
        if key not in self._texts:
            text = self._last
            if all(early) and early:
                text = self._first
            elif any(early):
                text = torch.where(torch.tensor(early).to(text.device)[:, None, None], self._first, self._last)
            self._texts[key] = torch.cat([self._uncond, text]) if both else text
        return self._texts[key]

    def _said(self, state: Tensor, t: float, text: Tensor, is_whole: bool) -> Tensor:
        backbone, rows = self.backbone, len(state)
        if (t, rows) not in self._times:
            self._times[t, rows] = torch.tensor([t] * rows).to(backbone.device)
        shown, time = state.to(backbone.dtype), self._times[t, rows]
        reuse = self._reuse
        if reuse is None or is_whole or not reuse.knows(rows):
            backbone.calls += 1
            backbone.rows_evaluated += rows
            ask = backbone.unet if reuse is None else reuse.whole
            predicted: Tensor = ask(shown, time, encoder_hidden_states=text, return_dict=False)[0]
        else:
            backbone.rows_skipped += rows
            predicted = reuse.shallow(shown, time, text)
        return self._as_asked(predicted.float(), state, t)

    def _as_asked(self, predicted: Tensor, state: Tensor, t: float) -> Tensor:
        kind, schedule = self.backbone.prediction_type, self._schedule
        if kind == "epsilon" or schedule.prediction != "epsilon":
            return predicted
        convert = eps_from_v if kind == "v_prediction" else eps_from_x0
        return convert(predicted, state.float(), schedule.level(int(t)))


def can_drive(model: object) -> bool:
    """Whether a model's batches are made ready here: a Stable Diffusion U-Net that sees nothing but a state."""
    if not isinstance(model, Backbone) or model.profile.is_exact or model.is_editor:
        return False
    return model.model.facts.family == stable_diffusion.NAME


def resizes_itself(model: object, kind: str) -> bool:
    """Whether finished pictures are resized by a filter on the model's GPU, which the host then does not wait for."""
    return isinstance(model, Backbone) and can_drive(model) and model.device.type == "cuda" and kind in FILTERS
