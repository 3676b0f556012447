"""The labels of a model that nobody has looked at yet: by the sampler, which says of what kind it must be."""

from diffaug_datasets.numerics.flow import FlowSchedule, FlowTimeline
from diffaug_datasets.numerics.timesteps import Labels, Timeline

ORIGINAL_STEPS = 50  # that consistency models are distilled from


def usual_timeline(sampler: str) -> Labels:
    """Stable Diffusion's; of `lcm` those of a consistency model, of `euler` those of a flow that is not shifted."""
    if sampler == "euler":
        return FlowTimeline(FlowSchedule())
    return Timeline(original_steps=ORIGINAL_STEPS) if sampler == "lcm" else Timeline()
