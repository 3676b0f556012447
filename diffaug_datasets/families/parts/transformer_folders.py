"""Looking at a folder of a pipeline with a transformer, without torch: what its families ask in their `check`.

Beside `diffusers_folders`: text encoders that are language models, VAEs other than `AutoencoderKL`, flows, and whether
parts fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from diffaug_datasets.core.family import ModelFacts
from diffaug_datasets.core.model_files import Damage, check_vocabulary, read_object, whole_number
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.families.parts.diffusers_folders import (
    SCHEDULER,
    Header,
    check_network,
    read_header_of,
    read_part,
    widths_of,
)
from diffaug_datasets.numerics.flow import FlowSchedule, FlowTimeline, Grid
from diffaug_datasets.numerics.flow_settings import read_flow
from diffaug_datasets.numerics.timesteps import Unfit

CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
T5_TOKENIZERS = ("T5TokenizerFast", "T5Tokenizer")
QWEN_TOKENIZERS = ("Qwen2TokenizerFast", "Qwen2Tokenizer")
GEMMA_TOKENIZERS = ("GemmaTokenizerFast", "GemmaTokenizer")
TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*.jinja")

Config = Mapping[str, object]


@dataclass(frozen=True)
class Parts:
    """What lies in a folder: configurations and headers by part; None where a file is still to come from the Hub."""

    index: Config
    configs: Mapping[str, Config | None]
    headers: Mapping[str, Header]

    def config(self, part: str) -> Config | None:
        """The configuration of a part."""
        return self.configs[part]


def read_parts(folder: Path, spec: BackboneSpec, index: Config, parts: Mapping[str, str], is_whole: bool) -> Parts:
    """Configurations and headers of the weights of all parts (folder of a part -> stem of its files)."""
    configs = {part: read_part(folder, part, is_whole) for part in parts}
    headers = {part: read_header_of(folder, part, stem, spec, is_whole) for part, stem in parts.items()}
    return Parts(index, configs, headers)


def files_of(*tokenizers: str) -> tuple[str, ...]:
    """The patterns of tokenizers' files, to fetch."""
    return tuple(f"{folder}/{pattern}" for folder in tokenizers for pattern in TOKENIZER_FILES)


def check_language_model(
    folder: Path, parts: Parts, part: str, tokenizer: str, width_key: str, is_whole: bool
) -> int | None:
    """Whether a text encoder and its tokenizer fit together; the width of its states, None where it is to come."""
    stated = parts.config(part)
    if stated is None:
        return None
    name = f"{part}/config.json"
    if "quantization_config" in stated:
        raise Unfit("has a quantised text encoder", "one of plain floats")
    nested = stated.get("text_config")
    config = nested if isinstance(nested, dict) else stated
    rows, width = whole_number(config, "vocab_size", name), whole_number(config, width_key, name)
    header = parts.headers[part]
    tables = ("embed_tokens.weight", "shared.weight", "token_embedding.weight")
    for key, entry in (header or {}).items():
        if key.endswith(tables) and entry.shape != (rows, width):
            raise Damage(f"{part} has {key} of shape {list(entry.shape)}, but its config.json says {[rows, width]}")
    if (folder / tokenizer).is_dir() or is_whole:
        check_vocabulary(folder / tokenizer, rows)
    return width


def check_transformer(
    parts: Parts, kind: str, switches: Mapping[str, tuple[object, ...]] | None = None
) -> Config | None:
    """The transformer's configuration, once its class fits and its `switches` have values that are honoured."""
    config = parts.config("transformer")
    if config is None:
        return None
    check_network(config, "transformer/config.json", kind)
    for key, allowed in (switches or {}).items():
        if (value := config.get(key, allowed[0])) not in allowed:
            usual = " or ".join(repr(one) for one in allowed)
            raise Unfit(f"has a transformer with {key} {value!r}", f"{usual} there")
    return config


def check_widths(transformer: Config | None, key: str, got: int | None, text: str) -> None:
    """Raises Unfit where the states of a text are not as wide as the transformer takes them."""
    if transformer is None or got is None:
        return
    wanted = whole_number(transformer, key, "transformer/config.json")
    if wanted != got:
        raise Unfit(f"has {text} of width {got}", f"the {wanted} that its transformer takes ({key})")


def check_channels(transformer: Config | None, vae: Config | None, key: str, per_token: int, default: int) -> None:
    """Raises Unfit where the transformer's tokens are not `per_token` latents; `key`: of the VAE's channels."""
    if transformer is None or vae is None:
        return
    latents = whole_number(vae, key, "vae/config.json", default)
    taken = whole_number(transformer, "in_channels", "transformer/config.json", per_token * latents)
    if taken != per_token * latents:
        raise Unfit(f"has a transformer that takes {taken} channels", f"{per_token * latents}, as its VAE gives them")


def check_other_vae(parts: Parts, kind: str) -> Config | None:
    """The configuration of a VAE that is no `AutoencoderKL`, once its class fits and it is of plain floats."""
    config = parts.config("vae")
    if config is not None:
        check_network(config, "vae/config.json", kind)
    return config


def kl_measures(vae: Config | None) -> tuple[int, int]:
    """Channels of a latent of an `AutoencoderKL`, and pixels per latent on a side; usual ones where it is to come."""
    if vae is None:
        return 16, 8
    name = "vae/config.json"
    return whole_number(vae, "latent_channels", name, 4), 2 ** (len(widths_of(vae, name, [64])) - 1)


def levels_in(vae: Config, key: str, default: int) -> int:
    """How many levels a VAE has: the length of a list in its configuration."""
    value = vae.get(key)
    if value is None:
        return default
    if not isinstance(value, list) or not value:
        raise Damage(f"vae/config.json has {key} {value!r}, expected a list")
    return len(value)


def numbers_of(config: Config, key: str, name: str, count: int) -> None:
    """Raises Damage where a key holds anything but so many numbers."""
    value = config.get(key)
    numbers = value if isinstance(value, list) else []
    if len(numbers) != count or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise Damage(f"{name} has {key} {str(value)[:80]}, expected {count} numbers")


def read_flow_of(folder: Path, is_whole: bool, *, grid: Grid = "scheduler", tokens: int = 0) -> FlowSchedule | None:
    """The flow of a folder's scheduler; None where it is still to come."""
    if not is_whole and not (folder / SCHEDULER).is_file():
        return None
    return read_flow(read_object(folder, SCHEDULER), grid=grid, tokens=tokens)


def flow_facts(
    family: str,
    kind: str,
    schedule: FlowSchedule | None,
    *,
    size: tuple[int, int] | None = None,
    latents: tuple[int, int] = (1, 8),
    tokens: int = 16,
    **facts: object,
) -> ModelFacts:
    """The facts of a model on a rectified flow.

    `size`: (height, width) in pixels; `latents`: channels of one and its pixels on a side; `tokens`: pixels of a token
    on a side, of which sizes are multiples and a shift may depend on their number.
    """
    timeline = FlowTimeline(schedule or FlowSchedule())
    known = ModelFacts(
        family,
        kind,
        prediction="flow_prediction",
        process="flow",
        timeline=timeline,
        multiple_of=tokens,
        **facts,  # type: ignore[arg-type]
    )
    if size is None:
        return known
    height, width = size
    channels, factor = latents
    if schedule is not None:
        count = (height // tokens) * (width // tokens)
        timeline = FlowTimeline(replace(schedule, tokens=count))
    shape = (channels, height // factor, width // factor)
    return replace(known, timeline=timeline, latent_shape=shape, height=height, width=width)
