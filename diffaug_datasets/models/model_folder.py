"""Whether a model can be driven, judged by its folder without torch: asked at plan, and again before it is loaded.

Read are JSON, the headers of safetensors weights, and the words of a tokenizer; whatever is wrong with a file is a
`Damage`, whose text names it and reads on in a sentence about the model. Of diffusion models only Stable Diffusion 1.x
and 2.x can be driven: one U-Net that takes time and text, one CLIP text encoder, one autoencoder. Of encoders and
judges the folder must be whole.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.models import (
    ORACLE,
    PACKAGED,
    TINY,
    BackboneSpec,
    ModelRef,
    find_backbone,
    find_model,
    oracle_folder,
    oracle_weights,
)
from diffaug_datasets.models.weight_headers import TensorInfo, read_header
from diffaug_datasets.numerics.timesteps import SchedulerSettings, Timeline, Unfit, read_settings

FLOATS = ("F64", "F32", "F16", "BF16")
MOST_JSON = 100_000_000
MOST_REASON = 250
NO_LIMIT = 1e20  # transformers writes a length above it where a tokenizer has none
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# A table may be longer than its vocabulary (padded, or with rows for words of a fine-tune); half of it is none.
LEAST_SHARE = 0.9
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
SCHEDULER = "scheduler/scheduler_config.json"
EDITOR = "StableDiffusionInstructPix2PixPipeline"
SUBJECTS = ("BlipDiffusionPipeline", "BlipDiffusionControlNetPipeline")  # Stable Diffusion, fine-tuned, and more parts
DRIVEN = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", EDITOR, *SUBJECTS)
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
CLASSES: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "ContextCLIPTextModel"),  # the same weights; vectors may stand among its words
}
CLASSES |= {"tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast")}
UNUSED: tuple[str, ...] = ("scheduler", "safety_checker", "feature_extractor", "image_encoder")
UNUSED += ("qformer", "controlnet", "image_processor")  # of BLIP-Diffusion; read where a recipe names their folders
EXTRA_INPUTS: tuple[str, ...] = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim")
EXTRA_INPUTS += ("encoder_hid_dim_type",)
FEW_STEP = re.compile(r"xl[-_]?turbo|(?:sd|xl)[-_]?lightning|hyper[-_]?sd|(?:^|[-_/])(?:lcm|tcd)(?:[-_]|$)", re.I)

TURBO = re.compile(r"(?:^|[-_/])sd[-_]?turbo", re.I)


def brief(error: Exception) -> str:
    """What a library said, as a part of a sentence: its first line, or the kind of the error where it said nothing."""
    first = " ".join(str(error).strip().split("\n")[0].split()).rstrip(".: ")
    return f"{first[:MOST_REASON]}..." if len(first) > MOST_REASON else first or type(error).__name__


class Damage(ValueError):
    """A file that is missing, garbled, cut short or does not fit the others."""


def read_object(folder: Path, name: str) -> Mapping[str, object]:
    """The JSON object in a file.

    Raises:
        Damage: it is missing, or holds something else.
    """
    path = folder / name
    try:
        if path.stat().st_size > MOST_JSON:
            raise Damage(f"{name} has {path.stat().st_size:,} bytes, expected a configuration")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise Damage(f"{name} is missing") from None
    except OSError as error:
        raise Damage(f"{name} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, Damage):
            raise
        state = "is empty" if not path.stat().st_size else "is no valid JSON"
        raise Damage(f"{name} {state}") from None
    if not isinstance(content, dict):
        raise Damage(f"{name} holds no JSON object")
    return content


def whole_number(config: Mapping[str, object], key: str, name: str, default: int | None = None) -> int:
    """A positive whole number of a configuration.

    Raises:
        Damage: it is something else, or missing where there is no default.
    """
    value = config.get(key, default)
    if type(value) is not int or not 1 <= value <= 2**31:
        raise Damage(f"{name} has {key} {value!r}, expected a whole number above 0")
    return value


def read_weights(folder: Path, stem: str) -> dict[str, TensorInfo] | None:
    """Name -> dtype and shape of all weights of `stem.safetensors` or its shards; None where none of these is here.

    Raises:
        Damage: a file is garbled or cut short, a shard is missing, or numbers are no floats; or only pickles are here.
    """
    whole = folder / f"{stem}.safetensors"
    files = [whole] if whole.is_file() else _shards(folder, stem)
    if not files:
        pickles = sorted(p.name for p in whole.parent.glob("*") if p.suffix in PICKLES)
        if pickles:
            where = Path(stem).parent / pickles[0]
            raise Damage(
                f"{where} is a pickle, which may run code and is never opened, and {stem}.safetensors is missing"
            )
        return None
    weights: dict[str, TensorInfo] = {}
    for path in files:
        name = path.relative_to(folder)
        try:
            entries = read_header(path)
        except ValueError as error:
            raise Damage(f"{name} {error}") from None
        except OSError as error:
            raise Damage(f"{name} cannot be read: {error.strerror}") from None
        parameters = {key: entry for key, entry in entries.items() if key.endswith((".weight", ".bias"))}
        whole_numbers = [key for key, entry in parameters.items() if entry.dtype not in FLOATS]
        if whole_numbers:
            held = f"{entries[whole_numbers[0]].dtype} numbers in {whole_numbers[0]}"
            raise Damage(f"{name} has {held}, expected floats: quantised weights are not read")
        weights |= entries
    if not weights:
        raise Damage(f"{files[0].relative_to(folder)} holds no weights")
    return weights


def _shards(folder: Path, stem: str) -> list[Path]:
    path = folder / f"{stem}.safetensors"
    shards = sorted(path.parent.glob(f"{path.stem}-*-of-*.safetensors"))
    counts = {int(m[1]) for p in shards if (m := re.search(r"-of-(\d+)\.safetensors$", p.name))}
    if shards and (len(counts) != 1 or counts != {len(shards)}):
        raise Damage(f"{stem} comes in {max(counts, default=0)} shards, of which {len(shards)} are here")
    return shards


def check_vocabulary(folder: Path, rows: int) -> None:
    """Whether a tokenizer folder holds words, as many as its text encoder has embedding rows.

    Raises:
        Damage: none, fewer than nine tenths of the rows, or more than there are rows.
    """
    name = f"{folder.name}/tokenizer_config.json"
    if (folder / "tokenizer_config.json").is_file():
        longest = read_object(folder.parent, name).get("model_max_length") or NO_LIMIT
        is_whole = type(longest) is int and longest >= 3
        if not is_whole and not (isinstance(longest, float) and longest >= NO_LIMIT):
            raise Damage(f"{name} has model_max_length {longest!r}, expected a whole number of 3 or more")
    vocabulary = _words(folder)
    if vocabulary is None:
        return
    name, words, highest = vocabulary
    if highest >= rows or words < LEAST_SHARE * rows:
        raise Damage(f"{name} has {words:,} words up to number {highest:,} for {rows:,} embeddings of its text encoder")


def _words(folder: Path) -> tuple[str, int, int] | None:
    """The file with the vocabulary, how many words it has, and the highest number of one; None where JSON has none."""
    where = folder.name
    if (folder / "tokenizer.json").is_file():
        name = f"{where}/tokenizer.json"
        content = read_object(folder.parent, name)
        model, added = content.get("model"), content.get("added_tokens") or []
        if not isinstance(added, list):
            raise Damage(f"{name} has added_tokens that are no list")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(vocabulary, list):  # a unigram model: a word and its weight, numbered in order
            vocabulary = {str(i): i for i in range(len(vocabulary))}
        numbers = _numbers(vocabulary, name)
        try:
            numbers |= {token["id"] for token in added}
        except (TypeError, KeyError):
            raise Damage(f"{name} has added_tokens without numbers") from None
        return name, len(numbers), max(numbers)
    if (folder / "vocab.json").is_file():
        name = f"{where}/vocab.json"
        if not (folder / "merges.txt").is_file():
            raise Damage(f"{where}/merges.txt is missing beside vocab.json")
        numbers = _numbers(read_object(folder.parent, name), name)
        try:
            merges = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError):
            raise Damage(f"{where}/merges.txt cannot be read as text") from None
        if not any(line.strip() and not line.startswith("#version") for line in merges):
            raise Damage(f"{where}/merges.txt is empty")
        if (folder / "added_tokens.json").is_file():
            numbers |= _numbers(
                read_object(folder.parent, f"{where}/added_tokens.json"), f"{where}/added_tokens.json", 0
            )
        return name, len(numbers), max(numbers)
    if (folder / "vocab.txt").is_file() or any(folder.glob("*.model")):
        return None
    raise Damage(f"{where}/ has no vocabulary: expected tokenizer.json, or vocab.json and merges.txt")


def _numbers(vocabulary: object, name: str, least: int = 1) -> set[int]:
    numbers: list[int] = list(vocabulary.values()) if isinstance(vocabulary, dict) else [-1]
    if len(numbers) < least or not all(type(n) is int and n >= 0 for n in numbers):
        raise Damage(f"{name} has no vocabulary of words and their numbers")
    return set(numbers)


def unreadable(name: str, error: Exception) -> BackboneError:
    """A model whose files are missing, damaged, of another kind, or need code of their own, as a library found it."""
    needs_code = "trust_remote_code" in str(error)
    reason = "it brings code of its own, which is never run" if needs_code else brief(error)
    return BackboneError(
        f"model {name!r} cannot be loaded ({reason}): expected a transformers folder with config.json and "
        "safetensors weights of the kind that is asked for and, where it sees images, preprocessor_config.json."
    )


def check_model(id_or_path: str, kind: Literal["encoder", "judge"], *, texts: bool = False) -> None:
    """Look at what lies on this machine of a model that sees images; a Hub id that is not cached is not looked at.

    `texts`: whether it must read texts too.

    Raises:
        BackboneError: a file is missing, damaged or a pickle, the package of its weights is not installed, or it sees
            images alone where texts are compared.
    """
    if id_or_path == ORACLE and not oracle_folder().is_dir():
        oracle_weights()
    if id_or_path == ORACLE and texts:
        raise sees_images_alone(id_or_path)
    if id_or_path in PACKAGED:
        return
    model = find_model(id_or_path, kind)
    if model.folder is None:
        return
    try:
        _check(model.folder, kind, model.is_local)
    except Damage as error:
        raise unreadable(id_or_path, error) from None
    if texts and not _reads_texts(read_object(model.folder, "config.json")):
        raise sees_images_alone(id_or_path)


def sees_images_alone(name: str) -> BackboneError:
    """An encoder that has no text side."""
    return BackboneError(f"encoder {name!r} sees images alone: name a CLIP model where texts are compared.")


def _reads_texts(config: Mapping[str, object]) -> bool:
    """Whether a configuration is that of a model of images and texts; those of CLIP may leave out its text side."""
    return "text_config" in config or "clip" in str(config["model_type"])


def _check(folder: Path, kind: str, is_whole: bool) -> None:
    config = read_object(folder, "config.json")
    if not isinstance(config.get("model_type"), str):
        raise Damage(f"config.json has model_type {config.get('model_type')!r}, expected a name")
    if config.get("quantization_config"):
        raise Damage("config.json has a quantization_config, expected weights of plain floats")
    weights = read_weights(folder, "model")
    if weights is None and is_whole:
        raise Damage("model.safetensors is missing")
    processors = [name for name in PROCESSORS if (folder / name).is_file()]
    if not processors and is_whole:
        raise Damage(f"{PROCESSORS[0]} is missing")
    for name in processors:
        read_object(folder, name)
    if kind == "judge":
        _check_classes(config)
    text = config.get("text_config")
    if kind == "encoder" and isinstance(text, dict) and (is_whole or (folder / "tokenizer_config.json").is_file()):
        check_vocabulary(folder, whole_number(text, "vocab_size", "config.json", _rows(weights)))


def _check_classes(config: Mapping[str, object]) -> None:
    names = config.get("id2label", {})
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise Damage("config.json has an id2label that gives no names of classes")
    if set(names) != {str(i) for i in range(len(names))}:
        raise Damage("config.json has an id2label whose numbers do not run from 0")


def _rows(weights: Mapping[str, TensorInfo] | None) -> int | None:
    """Words of the embedding table, where the configuration leaves them to its class's default."""
    tables = [entry.shape[0] for key, entry in (weights or {}).items() if key.endswith("token_embedding.weight")]
    return tables[0] if tables else None


def unfit(name: str, got: str, expected: str) -> BackboneError:
    """A model that is whole, but of another kind."""
    return BackboneError(
        f"backbone {name!r} {got}, expected {expected}: choose another model, or set `backbone: tiny`."
    )


def unloadable(name: str, reason: str) -> BackboneError:
    """A model whose files are missing, damaged, or do not fit together."""
    return BackboneError(
        f"backbone {name!r} cannot be loaded ({reason}): check that the folder is complete and holds safetensors "
        "weights of the stated variant, download it again, or set `backbone: tiny`."
    )


def unreachable(model: ModelRef, reason: str) -> BackboneError:
    """A model whose files are not here and cannot be brought."""
    revision = f" --revision {model.wanted}" if model.wanted else ""
    download = "" if model.is_local else f"run `hf download {model.id}{revision}` where there is a network, "
    return BackboneError(
        f"backbone {model.given!r} cannot be reached ({reason}): {download}"
        "give the path of a local folder in diffusers format, or set `backbone: tiny`."
    )


def check_backbone(spec: BackboneSpec) -> SchedulerSettings | None:
    """The model's schedule, once all that can be checked without torch fits; None where it is not on this machine yet.

    Raises:
        BackboneError: a file is missing or damaged, or the model is of a kind that cannot be driven.
    """
    model = find_backbone(spec)
    if FEW_STEP.search(spec.id) and not model.is_local:
        raise unfit(spec.id, "is made for a few steps, as its name says", "an ordinary model")
    folder = model.folder
    if folder is None:
        return None
    if not (folder / "model_index.json").is_file():
        raise unreachable(model, f"{str(folder)!r} has no model_index.json")
    check_folder(folder, spec, is_whole=model.is_local)
    return read_scheduler(folder, spec.id) if model.is_local or (folder / SCHEDULER).is_file() else None


def is_turbo(spec: BackboneSpec) -> bool:
    """Whether a model's Hub id says that it is SD-Turbo, for where its files are not on this machine yet."""
    return not find_backbone(spec).is_local and TURBO.search(spec.id) is not None


def timeline_of(spec: BackboneSpec) -> Timeline:
    """The labels of a model that `check_backbone` let pass; Stable Diffusion's where it is not on this machine yet."""
    model = find_backbone(spec)
    if model.folder is None or not (model.is_local or (model.folder / SCHEDULER).is_file()):
        return Timeline()
    return read_scheduler(model.folder, spec.id).timeline


def check_folder(folder: Path, spec: BackboneSpec, *, is_whole: bool = True) -> None:
    """`is_whole`: what is missing is not still to come.

    Raises:
        BackboneError: a file of a folder in diffusers format is missing or damaged, or the model cannot be driven.
    """
    try:
        is_editor = _check_index(folder) == EDITOR
        configs = {part: _config(folder, f"{part}/config.json", is_whole) for part in STEMS}
        headers = {part: _header(folder, part, spec, is_whole) for part in STEMS}
        if (unet := configs["unet"]) is not None:
            _check_unet(unet, headers["unet"])
        if (vae := configs["vae"]) is not None:
            _check_vae(vae, headers["vae"])
        if (text := configs["text_encoder"]) is not None:
            _check_text(folder, text, headers["text_encoder"], is_whole)
        if unet is not None and vae is not None and text is not None:
            _check_together(unet, vae, text, is_editor)
    except Damage as error:
        raise unloadable(spec.id, str(error)) from None
    except Unfit as error:
        raise unfit(spec.id, error.got, error.expected) from None
    if is_whole or (folder / SCHEDULER).is_file():
        read_scheduler(folder, spec.id)


def read_scheduler(folder: Path, name: str) -> SchedulerSettings:
    """What decides the schedule of a folder in diffusers format; `name`: the model's, for the message.

    Raises:
        BackboneError: it is missing, damaged, or asks for something that no sampler here does.
    """
    try:
        config = dict(read_object(folder, SCHEDULER))
        if name == TINY:  # whose file states its class's defaults, and whose images are older than the rule for that
            config.pop("timestep_spacing", None)
        return read_settings(config)
    except Damage as error:
        raise unloadable(name, str(error)) from None
    except Unfit as error:
        raise unfit(name, error.got, error.expected) from None


def _config(folder: Path, name: str, is_whole: bool) -> Mapping[str, object] | None:
    if not is_whole and not (folder / name).is_file():
        return None
    return read_object(folder, name)


def _header(folder: Path, part: str, spec: BackboneSpec, is_whole: bool) -> dict[str, TensorInfo] | None:
    variant = f".{spec.variant}" if spec.variant else ""
    stem = f"{part}/{STEMS[part]}{variant}"
    header = read_weights(folder, stem)
    if header is None and is_whole:
        others = sorted(path.name for path in (folder / part).glob("*.safetensors"))
        held = f"; there is {others[0]}, so check backbone.variant" if others else ""
        raise Damage(f"{stem}.safetensors is missing{held}")
    return header


def _check_index(folder: Path) -> str:
    """The class of the pipeline."""
    index = read_object(folder, "model_index.json")
    family = index.get("_class_name")
    if isinstance(family, list):
        code = "one of diffusers' own: code of a model folder is never run"
        raise Unfit(f"brings a pipeline of its own ({', '.join(map(str, family))})", code)
    if family not in DRIVEN:
        raise Unfit(
            f"is a {family}, but only Stable Diffusion 1.x and 2.x can be driven",
            "a StableDiffusionPipeline (one U-Net, one text encoder)",
        )
    for part, declared in index.items():
        if part in CLASSES or (part in UNUSED and isinstance(declared, list)):
            _check_part(part, declared)
        elif isinstance(declared, list) and any(declared) and part not in UNUSED:
            got = f"has a part {part!r} ({declared[-1]}) that nothing here uses"
            raise Unfit(got, "U-Net, VAE and text encoder alone")
    return str(family)


def _check_part(part: str, declared: object) -> None:
    if not isinstance(declared, list) or len(declared) != 2:
        raise Damage(f"model_index.json has {part} {declared!r}, expected its library and class")
    library, kind = declared
    if part in CLASSES and kind not in CLASSES[part]:
        raise Unfit(f"has a {part} of the class {kind}", f"a {CLASSES[part][0]}")
    if library not in ("diffusers", "transformers", "stable_diffusion", "blip_diffusion", None):
        code = "one of diffusers or transformers: code of a model folder is never run"
        raise Unfit(f"has a {part} of its own ({library})", code)


def _check_unet(unet: Mapping[str, object], header: Mapping[str, TensorInfo] | None) -> None:
    name = "unet/config.json"
    _check_network(unet, name, "UNet2DConditionModel")
    if unet.get("time_cond_proj_dim") is not None:
        raise Unfit(
            "has a U-Net that takes the guidance scale (time_cond_proj_dim), as few-step models do", "an ordinary one"
        )
    for key in EXTRA_INPUTS:
        if unet.get(key) is not None:
            raise Unfit(f"has a U-Net with an extra input ({key})", "one that takes time and text alone")
    if unet.get("attention_type", "default") != "default":
        raise Unfit(f"has a U-Net with {unet['attention_type']!r} attention", "one that takes time and text alone")
    taken, given = (whole_number(unet, key, name, 4) for key in ("in_channels", "out_channels"))
    if given == 2 * taken:
        raise Unfit("has a U-Net that predicts a variance too", "one that predicts noise alone")
    sides = unet.get("sample_size")
    for side in sides if isinstance(sides, list) and len(sides) == 2 else [sides]:
        if side is not None:
            whole_number({"sample_size": side}, "sample_size", name)
    widths = _widths(unet, name, [320, 640, 1280, 1280])
    width = whole_number(unet, "cross_attention_dim", name)
    if header is None:
        return
    _check_shape(header, "conv_in.weight", {0: widths[0], 1: taken}, "unet")
    _check_shape(header, "conv_out.weight", {0: given, 1: widths[0]}, "unet")
    for key in header:
        if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            _check_shape(header, key, {1: width}, "unet")


def _check_vae(vae: Mapping[str, object], header: Mapping[str, TensorInfo] | None) -> None:
    name = "vae/config.json"
    _check_network(vae, name, "AutoencoderKL")
    if vae.get("latents_mean") is not None:
        raise Unfit("has a VAE with latents_mean", "one with a plain scaling_factor")
    for key in ("in_channels", "out_channels"):
        if (channels := whole_number(vae, key, name, 3)) != 3:
            raise Unfit(f"has a VAE of {channels} channels", "the 3 of RGB images")
    scale, shift = vae.get("scaling_factor", 0.18215), vae.get("shift_factor") or 0
    for key, value in (("scaling_factor", scale), ("shift_factor", shift)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
            raise Damage(f"{name} has {key} {value!r}, expected a number")
    if scale == 0:
        raise Damage(f"{name} has scaling_factor 0, expected a number that is not 0")
    latents, widths = whole_number(vae, "latent_channels", name, 4), _widths(vae, name, [64])
    if header is not None:
        _check_shape(header, "encoder.conv_in.weight", {0: widths[0], 1: 3}, "vae")
        _check_shape(header, "decoder.conv_in.weight", {0: widths[-1], 1: latents}, "vae")


def _check_text(
    folder: Path, text: Mapping[str, object], header: Mapping[str, TensorInfo] | None, is_whole: bool
) -> None:
    name = "text_encoder/config.json"
    kinds = text.get("architectures") or ["CLIPTextModel"]
    if kinds not in (["CLIPTextModel"], ["CLIPModel"], ["ContextCLIPTextModel"]):
        raise Unfit(f"has a text encoder of the class {kinds}", "a CLIPTextModel")
    if "quantization_config" in text:
        raise Unfit("has a quantised text encoder", "one of plain floats")
    rows, width = (whole_number(text, key, name, least) for key, least in (("vocab_size", 49408), ("hidden_size", 512)))
    places = whole_number(text, "max_position_embeddings", name, 77)
    if header is not None:
        _check_shape(header, "embeddings.token_embedding.weight", {0: rows, 1: width}, "text_encoder")
        _check_shape(header, "embeddings.position_embedding.weight", {0: places, 1: width}, "text_encoder")
    if (folder / "tokenizer").is_dir() or is_whole:
        check_vocabulary(folder / "tokenizer", rows)


def _check_together(
    unet: Mapping[str, object], vae: Mapping[str, object], text: Mapping[str, object], is_editor: bool
) -> None:
    channels, latents = unet.get("in_channels", 4), whole_number(vae, "latent_channels", "vae/config.json", 4)
    if is_editor and channels != 2 * latents:
        raise Unfit(f"has a U-Net that takes {channels} channels", f"{2 * latents}: latents, and those of the image")
    if not is_editor and channels != latents:
        raise Unfit(f"has a U-Net that takes {channels} channels", f"the {latents} of its VAE's latents")
    if (given := unet.get("out_channels", 4)) != latents:
        raise Unfit(f"has a U-Net that gives {given} channels", f"the {latents} of its VAE's latents")
    width, wanted = text.get("hidden_size", 512), unet["cross_attention_dim"]
    if width != wanted:
        raise Unfit(f"has a text encoder of width {width}", f"the {wanted} that its U-Net attends to")


def _check_network(config: Mapping[str, object], name: str, kind: str) -> None:
    if config.get("_class_name", kind) != kind:
        raise Unfit(f"has a {config['_class_name']} in {name}", f"a {kind}")
    if config.get("quantization_config"):
        raise Unfit(f"has quantised weights ({name})", "plain floats")


def _widths(config: Mapping[str, object], name: str, default: list[int]) -> list[int]:
    widths = config.get("block_out_channels", default)
    if not isinstance(widths, list) or not widths or not all(type(w) is int and 0 < w < 2**20 for w in widths):
        raise Damage(f"{name} has block_out_channels {widths!r}, expected a list of whole numbers")
    return widths


def _check_shape(header: Mapping[str, TensorInfo], ending: str, wanted: Mapping[int, int], part: str) -> None:
    """The tensor's sides at these places; what is not there is found when it is loaded."""
    for key, entry in header.items():
        is_it = key == ending or key.endswith(f".{ending}")
        if is_it and any(axis >= len(entry.shape) or entry.shape[axis] != size for axis, size in wanted.items()):
            sides = " and ".join(f"{size} at side {axis}" for axis, size in wanted.items())
            raise Damage(f"{part} has {key} of shape {list(entry.shape)}, but its config.json says {sides}")
