"""Input on which a method's published code fails or goes on in silence, and what happens here instead.

`FALLBACKS` says in words what the column `fallback` holds; `CASES` is the whole list, for the docs and for a test.
"""

from collections.abc import Mapping
from types import MappingProxyType

FALLBACKS: Mapping[str, str] = MappingProxyType(
    {
        "noise_partner": "the class has one image: its partner is noise of the same norm",
        "self_noise": "the class has one image: it is turned towards noise by at most a quarter circle",
        "diff_aug": "the class has one image: it is edited instead of interpolated",
        "coincident_noise_partner": "the two inversions coincide: the partner is noise of the same norm",
        "antipodal_noise_partner": "the two inversions are opposite: the partner is noise of the same norm",
        "ada_skipped": "the target class has no image to compare with: the largest level is kept",
        "source_equals_target": "source and target look the same to the encoder: the largest level is kept",
        "no_partner": "the class has one image: its embedding is varied by noise alone",
    }
)

CASES: Mapping[str, str] = MappingProxyType(
    {
        "one_image": "no pair: `single_image_policy` of diff_ii decides, diffusion_inversion varies by noise alone",
        "no_image": "refused, unless the method makes images of a class from its name or from other classes",
        "coincident_latents": "noise takes the partner's place; the row says so",
        "antipodal_latents": "noise takes the partner's place; the row says so",
        "cosine_above_one": "angles are computed in float64 and held inside [-1, 1]",
        "negative_cosine": "no special case",
        "unequal_norms": "kept as in the paper, an ellipse, unless diff_ii has `norm: geodesic`; norms are measured",
        "not_finite": "tried again with other seeds, then a failed row with its reason",
        "target_without_images": "genie plans it; genie_ada keeps its largest level",
        "source_equals_target": "genie_ada keeps its largest level",
        "tied_jumps": "genie_ada takes the first of the largest jumps",
        "class_names": "classes are ids; a name is only shown and prompted, and clashing names are refused",
        "small_class": "`on_small_class`: every image once and a warning, an error, or images drawn again",
        "odd_images": "turned upright and converted to RGB; an unreadable one is refused, or fails its rows alone",
        "dotted_stems": "images are known by the digest of their bytes, never by their file's name",
        "emptied_class": "a filter's `min_keep` keeps the best; without it, the class is named in a warning",
    }
)


def fallback_text(fallback: str) -> str:
    """What a row's `fallback` means; the value itself where a plug-in method coined it."""
    return FALLBACKS.get(fallback, fallback)
