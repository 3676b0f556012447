"""Captions of images, and what many captions have in common: both made once per dataset, before planning."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import InferenceClient
from PIL import Image
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from diffaug_datasets.core.errors import BackboneError, one_line
from diffaug_datasets.core.model_files import brief
from diffaug_datasets.core.models import BackboneSpec, find_backbone
from diffaug_datasets.core.prompts import MOST, Summary, after_prefix
from diffaug_datasets.families.parts.loaders import read_tokenizer
from diffaug_datasets.models.backbone import checked_device
from diffaug_datasets.models.encoders import (
    PROBE_IMAGE,
    fetch_model,
    image_processor,
    probing,
    read_model,
    tokenizer_of,
)
from diffaug_datasets.models.loading import one_sentence

MOST_TOKENS = 40
MOST_REPLY_TOKENS = 512
MOST_SENTENCE_TOKENS = 64
DRAWN_AT_ONCE = 50  # sentences
ENDPOINT_TOKEN = "DIFFAUG_CHAT_TOKEN"
EXAMPLES = (
    *("standing on a branch.", "flying in the sky with the Austin skyline in the background."),
    "playing in a river at night.",
)


class Captioner:
    """An image captioner such as BLIP, greedy, in float32; every image is seen alone."""

    def __init__(self, model: Any, processor: Any, tokenizer: Any, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self._model, self._processor, self._tokenizer = model, processor, tokenizer

    @classmethod
    def load(cls, id_or_path: str, device: str = "cpu") -> "Captioner":
        """A folder or a Hub id, with `@<commit>` to pin it.

        Raises:
            BackboneError: it cannot be reached or read, or does not caption images.
        """
        place, (folder, name) = checked_device(device), fetch_model(id_or_path, "captioner")
        model = read_model(AutoModelForImageTextToText, folder, id_or_path, place)
        tokenizer = tokenizer_of(folder, id_or_path, model)
        captioner = cls(model, image_processor(folder, id_or_path), tokenizer, name, place)
        with probing(id_or_path):
            captioner._continued(PROBE_IMAGE, "a photo of", most=1)
        return captioner

    def caption(self, image: Image.Image, prefix: str) -> str:
        """The picture's caption, which the model continues from the prefix (conditional captioning)."""
        return self._continued(image, prefix, MOST_TOKENS)

    @torch.no_grad()
    def _continued(self, image: Image.Image, prefix: str, most: int) -> str:
        pixels = self._processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"]
        words = self._tokenizer([prefix], return_tensors="pt")
        ids = self._model.generate(
            pixel_values=pixels.to(self.device),
            input_ids=words.input_ids.to(self.device),
            attention_mask=words.attention_mask.to(self.device),
            max_new_tokens=most,
            do_sample=False,
        )
        text: str = self._tokenizer.decode(ids[0], skip_special_tokens=True)
        return " ".join(text.split())


def chat_prompt(captions: Sequence[str], prefix: str) -> str:
    """What a language model is asked; the task, the form and the three examples of Diff-II's appendix, in our words."""
    lines = [
        "Below are captions of the pictures of one dataset.",
        "Sum them up as objective descriptions of scene, action, camera position, zoom and picture quality.",
        f"Give at most {MOST} lines. Each line describes another setting and has the form `{prefix} ...`, for example:",
        *(f"{prefix} {example}" for example in EXAMPLES),
        "Name no species, model, brand or other kind of thing. Write the lines alone, nothing before or after them.",
        "The captions:",
        *captions,
    ]
    return "\n".join(lines)


def summarise_by_chat(
    captions: Sequence[str], prefix: str, model: str, endpoint: str | None
) -> tuple[list[str], Summary]:
    """Suffixes proposed by a chat model: one on the Hub's inference providers, or any OpenAI-like `endpoint` URL.

    An endpoint gets no Hub token; it gets the one in DIFFAUG_CHAT_TOKEN, if that is set. One request, temperature 0.

    Raises:
        BackboneError: the model does not answer, or with nothing.
    """
    prompt = chat_prompt(captions, prefix)
    try:
        client = _client(endpoint)
        answer = client.chat_completion([{"role": "user", "content": prompt}], model=model, temperature=0, seed=0)
        reply = answer.choices[0].message.content or ""
    except Exception as error:  # of whichever HTTP library this release of huggingface_hub stands on
        reason = one_line(str(error).split("\n")[0])
        raise BackboneError(
            f"chat model {model!r} gave no answer ({type(error).__name__}: {reason}); check the id, the endpoint and "
            "the login, or use --summariser clusters, which needs no model."
        ) from None
    return _proposed(reply, prefix), Summary(kind="chat", model=model, prompt=prompt, reply=reply)


def _client(endpoint: str | None) -> InferenceClient:
    if endpoint is None:
        return InferenceClient(timeout=120)
    # Without a token of its own the client would hand the Hub login to whoever serves the endpoint.
    return InferenceClient(base_url=endpoint, api_key=os.environ.get(ENDPOINT_TOKEN) or "none", timeout=120)


def _proposed(reply: str, prefix: str) -> list[str]:
    """The suffixes in a language model's reply: of the lines that hold the prefix, or of all where none does."""
    lines = [line for line in reply.splitlines() if line.strip()]
    formed = [line for line in lines if prefix.casefold() in line.casefold()]
    return [after_prefix(line, prefix) for line in formed or lines]


class LanguageModel:
    """A causal or sequence-to-sequence language model that answers a prompt, greedy, in float32."""

    def __init__(self, model: Any, tokenizer: Any, name: str, given: str) -> None:
        self.name = name
        self._model, self._tokenizer, self._given = model, tokenizer, given

    @classmethod
    def load(cls, id_or_path: str, device: str = "cpu") -> "LanguageModel":
        """A folder or a Hub id, with `@<commit>` to pin it.

        Raises:
            BackboneError: it cannot be reached or read, or is no language model.
        """
        place, given = checked_device(device), Path(id_or_path).expanduser()
        if given.is_dir() and not (given / "config.json").is_file():
            raise _no_language_model(id_or_path, "it has no config.json")
        folder, name = fetch_model(id_or_path, "summariser")
        kind, tokenizer = _language_model_class(folder, id_or_path), _language_model_tokenizer(folder, id_or_path)
        return cls(read_model(kind, folder, id_or_path, place), tokenizer, name, id_or_path)

    @torch.no_grad()
    def answer(self, prompt: str) -> str:
        """The reply to one prompt of a user, in the form of the tokenizer's chat template where it has one.

        Raises:
            BackboneError: the prompt is longer than the model can read.
        """
        words = self._asked(prompt)
        ids = words["input_ids"].to(self._model.device)
        self._check_room(ids.shape[1])
        mask = words["attention_mask"].to(self._model.device)
        output = self._model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=MOST_REPLY_TOKENS, do_sample=False, num_beams=1
        )[0]
        reply = output if self._model.config.is_encoder_decoder else output[ids.shape[1] :]
        text: str = self._tokenizer.decode(reply, skip_special_tokens=True)
        return text

    @torch.no_grad()
    def drawn(self, prompt: str, count: int, seed: int) -> list[str]:
        """So many replies to one prompt, drawn word by word at temperature 1; the seed and the model decide them.

        Raises:
            BackboneError: the prompt is longer than the model can read.
        """
        words = self._asked(prompt)
        ids = words["input_ids"].to(self._model.device)
        self._check_room(ids.shape[1])
        mask = words["attention_mask"].to(self._model.device)
        keep = {"max_new_tokens": MOST_SENTENCE_TOKENS, "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        replies: list[str] = []
        with torch.random.fork_rng(devices=[self._model.device] if self._model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            while len(replies) < count:
                more = min(count - len(replies), DRAWN_AT_ONCE)
                found = self._model.generate(input_ids=ids, attention_mask=mask, num_return_sequences=more, **keep)
                said = found if self._model.config.is_encoder_decoder else found[:, ids.shape[1] :]
                replies += self._tokenizer.batch_decode(said, skip_special_tokens=True)
        return replies

    def _asked(self, prompt: str) -> Any:
        if not self._tokenizer.chat_template:
            return self._tokenizer([prompt], return_tensors="pt")
        message = {"role": "user", "content": prompt}
        return self._tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )

    def _check_room(self, asked: int) -> None:
        config = self._model.config
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
        needed = asked if config.is_encoder_decoder else asked + MOST_REPLY_TOKENS
        if most is not None and needed > most:
            raise BackboneError(
                f"summariser {self._given!r} has room for {most} tokens, but the captions and the reply need {needed}; "
                "give a lower --limit, or a model with a longer context."
            )


def _language_model_class(folder: Path, name: str) -> Any:
    """How transformers opens a folder, by its config.json alone; code that lies in the folder is never run."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of whichever kind this release of transformers checks a config with
        raise _no_language_model(name, brief(error)) from error
    if config.is_encoder_decoder and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return AutoModelForSeq2SeqLM
    if not config.is_encoder_decoder and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    raise _no_language_model(name, f"its config.json says {config.model_type!r}")


def _language_model_tokenizer(folder: Path, name: str) -> Any:
    try:
        return read_tokenizer(AutoTokenizer, folder)
    except Exception as error:  # of whichever kind this release of transformers reads a tokenizer with
        raise _no_language_model(name, brief(error)) from error


def _no_language_model(name: str, reason: str) -> BackboneError:
    return BackboneError(
        f"summariser {name!r} holds no language model ({reason}): expected a transformers folder with config.json, a "
        "tokenizer and safetensors weights of a text model that generates, or use --summariser clusters, which needs "
        "no model."
    )


def summarise_locally(captions: Sequence[str], prefix: str, model: LanguageModel) -> tuple[list[str], Summary]:
    """Suffixes proposed by a language model that runs here; the prompt and the reading of the reply are a chat's.

    Raises:
        BackboneError: the captions are more than the model can read.
    """
    prompt = chat_prompt(captions, prefix)
    reply = model.answer(prompt)
    return _proposed(reply, prefix), Summary(kind="local", model=model.name, prompt=prompt, reply=reply)


def summarise_by_clusters(captions: Sequence[str], prefix: str) -> tuple[list[str], Summary]:
    """Suffixes without a language model: captions in up to ten clusters of their words, the middle one of each.

    The largest cluster comes first. Departs from the papers, which ask a language model.
    """
    counts = Counter(after_prefix(caption, prefix) for caption in captions)
    texts = sorted(text for text in counts if text)
    summary = Summary(kind="clusters", model="tf-idf, k-means")
    if len(texts) <= MOST:
        return sorted(texts, key=lambda text: (-counts[text], text)), summary
    return _middles(texts, [counts[text] for text in texts]), summary


def _middles(texts: Sequence[str], weights: Sequence[int]) -> list[str]:
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    places = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform(texts).toarray()
    clusters = KMeans(MOST, n_init=10, random_state=0).fit(places, sample_weight=weights)
    distances = clusters.transform(places)
    middles = []
    for number in range(MOST):
        own = np.flatnonzero(clusters.labels_ == number).tolist()
        if own:
            middle = texts[min(own, key=lambda i: (distances[i, number], texts[i]))]
            middles.append((-sum(weights[i] for i in own), middle))
    return [text for _, text in sorted(middles)]


def length_check(spec: BackboneSpec, longest_prompt: str) -> Callable[[str], bool] | None:
    """Whether the backbone's text encoder cuts a suffix behind the prompt; None where its tokenizer is not here."""
    folder = find_backbone(spec).folder
    if folder is None or not (folder / "tokenizer").is_dir():
        return None
    with one_sentence(spec):
        tokenizer = read_tokenizer(AutoTokenizer, folder / "tokenizer")
    most = min(int(tokenizer.model_max_length), 77)
    return lambda suffix: len(tokenizer(f"{longest_prompt} {suffix}", verbose=False).input_ids) > most
