"""Captions to suffixes: real (tiny, random) models, a real chat client over loopback HTTP, clusters, lists."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Command

from diffaug_datasets.core.errors import BackboneError, RecipeError
from diffaug_datasets.core.method import find_method
from diffaug_datasets.core.prompts import (
    SuffixDocument,
    accepted,
    after_prefix,
    caption_prefix,
    read_suffixes,
    shipped_suffixes,
    suffix_list,
    suffixes_for,
)
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare
from diffaug_datasets.planning.suffixes import CaptionOptions, write_suffixes

WORDS = ("a", "photo", "of", "on", "the", "wooden", "table", "in", "sun", "snow", "standing", "white", "background")
PREFIX = "a photo of a bird"
REPLY = f"""Here is the list:
- {PREFIX} standing on a branch.
2. {PREFIX} in the snow
* "{PREFIX} standing on a branch."
{PREFIX} beside an Ankle boot.
{PREFIX} {"far " * 80}away.
"""


@pytest.fixture(scope="session")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BLIP with random weights and a vocabulary of a few words, through transformers' own classes."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor

    folder = tmp_path_factory.mktemp("blip")
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {word: i for i, word in enumerate((*special, *WORDS))}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**sizes, **ends, "vocab_size": len(vocabulary), "encoder_hidden_size": 32, "max_position_embeddings": 64}
    config = BlipConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = BlipForConditionalGeneration(config)
        for name, weight in model.named_parameters():
            if "embeddings" in name or "predictions" in name:  # else all pictures and words look alike
                weight.data.normal_()
    model.save_pretrained(folder)
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


TEMPLATE = "{% for message in messages %}photo sun {{ message['content'] }}{% endfor %} table"


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A language model with random weights that knows a few words and the line break: `language_model("llama")`."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        T5Config,
        T5ForConditionalGeneration,
    )

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 4096}
    llama = {"hidden_size": 32, "intermediate_size": 64, "tie_word_embeddings": False, **sizes}
    t5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    kinds = {"llama": (LlamaConfig, LlamaForCausalLM, llama), "t5": (T5Config, T5ForConditionalGeneration, t5)}

    def made(kind: str, template: str | None = None, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("words")
        vocabulary = {word: i for i, word in enumerate(("<pad>", "<end>", "<unk>", "\n", "Below", "captions", *WORDS))}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\S+"), "removed", invert=True)
        special = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unk>"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, chat_template=template, **special)
        tokenizer.save_pretrained(folder)
        configuration, network, own = kinds[kind]
        ends = {"vocab_size": len(vocabulary), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            model = network(configuration(**{**own, **ends, **changes}))
            for weight in model.parameters():  # else it says one word for ever
                weight.data.normal_(std=0.6)
        model.bfloat16().save_pretrained(folder)  # to be run in float32 all the same
        return folder

    return made


def their_reply(folder: Path, prompt: str, is_chat: bool = False, most: int = 512) -> str:
    """What transformers alone makes of a prompt."""
    from transformers import AutoTokenizer, LlamaForCausalLM, T5ForConditionalGeneration

    words = AutoTokenizer.from_pretrained(folder)
    is_t5 = json.loads((folder / "config.json").read_text())["model_type"] == "t5"
    model = (T5ForConditionalGeneration if is_t5 else LlamaForCausalLM).from_pretrained(folder).float().eval()
    asked = words(f"photo sun {prompt} table" if is_chat else prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        ids = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=most, do_sample=False)[0]
    return words.decode(ids if is_t5 else ids[asked.shape[1] :], skip_special_tokens=True)


class Chat(ThreadingHTTPServer):
    """An OpenAI-like chat service that remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.status, self.reply = 200, REPLY

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Chat

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({**body, "path": self.path})
        self.server.headers.append(dict(self.headers))
        message = {"role": "assistant", "content": self.server.reply}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        data = json.dumps({**answer, "system_fingerprint": "", "usage": usage}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Chat]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # loopback is no network
    server = Chat()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def recipe() -> Any:
    return config_recipe("fashion_1shot_diffii")


def test_the_caption_is_what_transformers_generates(blip: str) -> None:
    from PIL import Image
    from transformers import BertTokenizer, BlipForConditionalGeneration, BlipImageProcessor

    from diffaug_datasets.models.captioning import Captioner

    images = [Image.new("RGB", (40, 30), colour) for colour in ("red", "navy", "white")]
    model, words = BlipForConditionalGeneration.from_pretrained(blip).eval(), BertTokenizer.from_pretrained(blip)
    theirs = []
    for image in images:
        pixels = BlipImageProcessor.from_pretrained(blip)(image, return_tensors="pt").pixel_values
        asked = words("a photo of", return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(pixels, asked.input_ids, asked.attention_mask, max_new_tokens=40, do_sample=False)
        theirs.append(words.decode(ids[0], skip_special_tokens=True))
    captioner = Captioner.load(blip)
    ours = [captioner.caption(image, "a photo of") for image in images]
    assert ours == theirs
    assert all(text.startswith("a photo of") for text in ours)
    assert captioner.name.startswith(Path(blip).name + "@")


def test_clusters_need_no_model_and_the_file_tells_the_whole_story(blip: str, tmp_path: Path) -> None:
    document = write_suffixes(recipe(), CaptionOptions(blip, limit=8))
    assert len(document.captions) == 8
    assert document.captions == write_suffixes(recipe(), CaptionOptions(blip, limit=8)).captions
    assert document.summary.kind == "clusters"
    assert document.tokens_checked
    assert document.prefix == "a photo of"
    path = tmp_path / "suffixes.json"
    path.write_text(document.to_json())
    assert read_suffixes(path) == document
    assert json.loads(path.read_text())["schema"] == 1


def test_a_plan_takes_the_texts_of_a_file_and_not_its_place(tmp_path: Path, blip: str) -> None:
    document = write_suffixes(recipe(), CaptionOptions(blip, limit=4))
    plans = []
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(document.to_json())
        plans.append(prepare(config_recipe("fashion_1shot_diffii", config={"suffixes": str(tmp_path / name)})))
    assert plans[0].plan.id == plans[1].plan.id
    firsts = {row.prompt_first for row in plans[0].plan.rows}
    assert all(any((first or "").endswith(suffix) for suffix in document.suffixes) for first in firsts)


def test_a_chat_model_is_asked_once_and_its_reply_is_kept(blip: str, chat: Chat, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    chat.reply = REPLY.replace(PREFIX, "a photo of")
    document = write_suffixes(recipe(), CaptionOptions(blip, "some/chat-model", chat.url, limit=4))
    assert document.suffixes == ("standing on a branch.", "in the snow.")
    reasons = {one.reason.split(" '")[0] for one in document.dropped}
    assert reasons == {"said before", "names the class", "too long for the text encoder"}
    [asked] = chat.asked
    assert asked["path"] == "/v1/chat/completions"
    assert (asked["model"], asked["temperature"]) == ("some/chat-model", 0)
    [message] = asked["messages"]
    assert all(caption.text in message["content"] for caption in document.captions)
    assert "a photo of standing on a branch." in message["content"]
    assert document.summary.model_dump() == {
        "kind": "chat", "model": "some/chat-model", "prompt": message["content"], "reply": chat.reply
    }  # fmt: skip
    assert "hf_secret" not in json.dumps(chat.headers) + document.to_json()


def test_an_endpoint_gets_its_own_token(blip: str, chat: Chat, monkeypatch: Any) -> None:
    monkeypatch.setenv("DIFFAUG_CHAT_TOKEN", "for the endpoint")
    document = write_suffixes(recipe(), CaptionOptions(blip, "m", chat.url, limit=2))
    assert chat.headers[0].get("authorization", chat.headers[0].get("Authorization")) == "Bearer for the endpoint"
    assert "for the endpoint" not in document.to_json()


@pytest.mark.parametrize(
    ("status", "reply", "said"), [(503, REPLY, "gave no answer .*503"), (200, "", "no suffix is left")]
)
def test_a_chat_model_that_fails_is_one_sentence(blip: str, chat: Chat, status: int, reply: str, said: str) -> None:
    chat.status, chat.reply = status, reply
    with pytest.raises((BackboneError, RecipeError), match=said) as refusal:
        write_suffixes(recipe(), CaptionOptions(blip, "m", chat.url, limit=2))
    assert "summariser" in str(refusal.value)
    assert len(chat.asked) == 1


def test_a_chat_service_that_is_not_there_is_one_sentence(blip: str, chat: Chat) -> None:
    nowhere = chat.url.replace(f":{chat.server_port}", ":9")
    with pytest.raises(BackboneError, match="chat model 'm' gave no answer"):
        write_suffixes(recipe(), CaptionOptions(blip, "m", nowhere, limit=2))


@pytest.mark.parametrize(("kind", "template"), [("llama", None), ("llama", TEMPLATE), ("t5", None)])
def test_a_local_model_replies_what_transformers_generates(
    language_model: Callable[..., Path], kind: str, template: str | None
) -> None:
    from diffaug_datasets.models.captioning import LanguageModel

    folder = language_model(kind, template)
    model = LanguageModel.load(str(folder))
    prompts = ["a photo of snow", "Below the table\nin the sun"]
    theirs = [their_reply(folder, prompt, template is not None) for prompt in prompts]
    assert [model.answer(prompt) for prompt in prompts] == theirs
    assert theirs[0] != theirs[1] and all(theirs)


def test_the_file_holds_what_a_local_model_was_asked_and_said(
    blip: str, language_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffaug_datasets.models.captioning.MOST_REPLY_TOKENS", 24)
    folder = language_model("llama")
    document = write_suffixes(recipe(), CaptionOptions(blip, str(folder), limit=4))
    summary = document.summary
    assert summary.kind == "local"
    assert summary.model.startswith(f"{folder.name}@") and str(folder) not in document.to_json()
    assert summary.prompt is not None and summary.reply
    assert all(caption.text in summary.prompt for caption in document.captions)
    assert summary.reply == their_reply(folder, summary.prompt, most=24)
    lines = {f"{' '.join(line.split())}." for line in summary.reply.splitlines()}
    assert set(document.suffixes) <= lines
    assert SuffixDocument.model_validate_json(document.to_json()) == document


def test_a_chat_and_a_local_reply_are_read_alike(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffaug_datasets.models.captioning import LanguageModel, summarise_by_chat, summarise_locally

    local = LanguageModel(None, None, "some@1", "some")
    monkeypatch.setattr(local, "answer", lambda prompt: REPLY)
    captions = [f"{PREFIX} in the rain"]
    by_chat, by_model = summarise_by_chat(captions, PREFIX, "m", chat.url), summarise_locally(captions, PREFIX, local)
    assert by_chat[0] == by_model[0]
    assert by_chat[0][:2] == ["standing on a branch.", "in the snow."]
    assert (by_chat[1].prompt, by_chat[1].reply) == (by_model[1].prompt, by_model[1].reply)
    assert (by_model[1].kind, by_model[1].model) == ("local", "some@1")


def test_a_local_model_of_the_hub_is_taken_from_the_cache(
    language_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffaug_datasets.models.captioning import LanguageModel

    commit, folder = "0123456789abcdef" * 2 + "01234567", language_model("llama")
    place = tmp_path / "models--some--model"
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    model = LanguageModel.load("some/model")
    assert model.name == f"some/model@{commit[:12]}"
    assert model.answer("a photo") == their_reply(folder, "a photo")


def test_an_endpoint_is_asked_even_where_its_model_is_called_like_a_folder(blip: str, chat: Chat) -> None:
    chat.reply = "a photo of in the snow"
    assert write_suffixes(recipe(), CaptionOptions(blip, blip, chat.url, limit=2)).suffixes == ("in the snow.",)
    assert chat.asked[0]["model"] == blip


@pytest.mark.parametrize(
    ("removed", "config", "said"),
    [
        ("config.json", None, "holds no language model (it has no config.json)"),
        ("", "{", "holds no language model (It looks like the config file"),
        ("", '{"model_type": "resnet"}', "holds no language model (its config.json says 'resnet')"),
        ("", '{"auto_map": {"AutoConfig": "a.B"}}', "holds no language model ("),
        ("", '{"model_type": "llama", "hidden_size": "x"}', "holds no language model ("),
        ("tokenizer*", None, "holds no language model ("),
        ("tokenizer*", '{"model_type": "gpt2"}', "has no vocabulary: all texts are alike to its tokenizer)"),
        ("*.safetensors", None, "cannot be loaded ("),
    ],
)
def test_a_folder_without_a_language_model_is_one_sentence(
    blip: str,
    language_model: Callable[..., Path],
    diffaug: Command,
    tmp_path: Path,
    removed: str,
    config: str | None,
    said: str,
) -> None:
    folder, out = language_model("llama"), tmp_path / "s.json"
    for path in folder.glob(removed or "nothing"):
        path.unlink()
    if config is not None:
        (folder / "config.json").write_text(config)
    words = ("captions", "fashion_1shot_diffii", "--captioner", blip, "--limit", "2", "--out", out, "--summariser")
    assert said in diffaug(*words, folder).sentence
    assert not out.exists()


def test_a_wrong_local_model_is_refused_before_any_image_is_captioned(
    blip: str, language_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr("diffaug_datasets.models.captioning.Captioner.caption", lambda *given: seen.append(given))
    cases = {
        blip: r"holds no language model \(its config.json says 'blip'\)",
        "local:no such": "summariser 'no such' is neither a folder nor a Hub id",
        "local:nobody/nothing": "summariser 'nobody/nothing' cannot be reached",
    }
    for summariser, said in cases.items():
        with pytest.raises(BackboneError, match=said):
            write_suffixes(recipe(), CaptionOptions(blip, summariser, limit=2))
    assert not seen


def test_captions_that_a_local_model_cannot_hold_are_one_sentence(
    blip: str, language_model: Callable[..., Path]
) -> None:
    short = language_model("llama", max_position_embeddings=600)
    with pytest.raises(BackboneError, match=r"has room for 600 tokens, but .* need \d+; give a lower --limit"):
        write_suffixes(recipe(), CaptionOptions(blip, str(short), limit=8))


# sha256 of the texts of a list with line breaks between them: Diff-II, appendix A.5.1, and the embedded data's own.
LISTS = {
    "cub_5shot": "b06de1a1a327b931e417a9b90d8d9e166ca9c0e0a85f88b697af3cf24a968b1b",
    "cub_10shot": "9f9c2cc0ac5f26ef2735b30b48ed35e601cdbd8c8998b223a5894ab8c779124a",
    "car_5shot": "160a3fbfd26a431c8ed3380640266550d903dffe8fbc3e66d84f5919afd7fd37",
    "car_10shot": "eee6e5e787d401420453874e46b775138bd760cd7da1f0622c557ff95fab814a",
    "aircraft_5shot": "7c96f240c33d9f141220df41001d2e1be47d76928e485358a5572b0dcd3d7b55",
    "aircraft_10shot": "51b57b656c7d2bcffa2f51866286bd1b8c95e3b65ceccef6d1b4d96ffaf6f198",
    "pet_5shot": "80e0a0751751293201697929cb506ac7ff060bb34ad4a6ec934278a6a5dcb04b",
    "pet_10shot": "59527501fb0a53be8d27a0fb2353e3c20fbb0194497a1bb1fdca8e19054cc5b5",
    "cub_lt_if10": "884fb9af24e748c8cad95ad048676992012ccd6d8aa31dfd6b9800c00efbacbd",
    "cub_lt_if20": "99c6c14876e0ef249357582893b917df0921ee002ebeb7f2b629826643abe0df",
    "cub_lt_if100": "0946dc76efb99b7c0e003bc7ad0b4ad0639bbe7dcab06077edac813597d76a8d",
    "flower_lt_if10": "e395717cdc6b7185f2c0856f969ba8b99e89fc2ed963e16f3cc5fca11eef6893",
    "flower_lt_if20": "6b8ec2791bdacf04371feb09dced36a2fced2cdc6ea3bbfe855669788ad22df4",
    "flower_lt_if100": "e395717cdc6b7185f2c0856f969ba8b99e89fc2ed963e16f3cc5fca11eef6893",
    "fashion": "7ddd3a2626f8ce3d111c2fc9793b46f0b4b12be8aa86b64d3dd5e7678fa191aa",
}


def digest_of(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def test_the_shipped_lists_are_those_that_were_read_from_the_paper() -> None:
    assert {name: digest_of(suffix_list(name)) for name in shipped_suffixes()} == LISTS


@pytest.mark.parametrize(
    ("builder", "protocol", "name"),
    [
        *(("cub", "5shot", "cub_5shot"), ("cub", "10shot", "cub_10shot")),
        *(("cars", "5shot", "car_5shot"), ("cars", "10shot", "car_10shot")),
        *(("aircraft", "5shot", "aircraft_5shot"), ("aircraft", "10shot", "aircraft_10shot")),
        *(("pets", "5shot", "pet_5shot"), ("pets", "10shot", "pet_10shot")),
        *(("cub", "lt10", "cub_lt_if10"), ("cub", "lt20", "cub_lt_if20"), ("cub", "lt100", "cub_lt_if100")),
        *(("flowers", "lt10", "flower_lt_if10"), ("flowers", "lt20", "flower_lt_if20")),
        *(("flowers", "lt100", "flower_lt_if100"), ("fashion", "5shot", "fashion")),
        *(("aircraft", "10shot_seed2", "aircraft_10shot"), ("cub", "lt20_seed1", "cub_lt_if20")),
        *(("cub", "full", "cub_5shot"), ("cars", "10pct", "car_5shot"), ("fashion", "full", "fashion")),
    ],
)
def test_a_dataset_and_a_protocol_have_their_own_list_by_default(builder: str, protocol: str, name: str) -> None:
    assert digest_of(suffixes_for(builder, protocol)) == LISTS[name]
    assert find_method("diff_ii").Config().model_dump()["suffixes"] == "auto"


@pytest.mark.parametrize("builder", ["caltech256", "cifar10", "imagenet", "imagenet_lt", "imagefolder", "waterbirds"])
def test_a_dataset_without_a_list_gets_none(builder: str) -> None:
    assert suffixes_for(builder, "5shot") == ()


def test_a_plan_uses_the_default_list_and_no_other() -> None:
    firsts = [row.prompt_first for row in prepare(config_recipe("fashion_5shot_diffii")).plan.rows]
    used = {first.split(" ", 5)[-1] for first in firsts if first}
    assert used and all(any(text.endswith(suffix) for suffix in suffix_list("fashion")) for text in used)


def test_clusters_take_the_middle_of_each_kind_of_caption() -> None:
    from diffaug_datasets.models.captioning import summarise_by_clusters

    kinds = ("on a branch", "in the water", "on the ground", "at a feeder", "under the moon", "by a red car")
    kinds += ("inside an old cage", "behind green leaves", "near two people", "against blue sky")
    captions = [f"{PREFIX} {kind} {detail}" for kind in kinds for detail in ("", "today", "alone")]
    captions += [f"{PREFIX} in the water"] * 4
    proposed, summary = summarise_by_clusters(captions, PREFIX)
    assert len(proposed) == 10
    assert sorted(kind for kind in kinds for text in proposed if text.startswith(kind)) == sorted(kinds)
    assert proposed[0].startswith("in the water")
    assert summary.kind == "clusters"
    assert summarise_by_clusters(captions[:2], PREFIX)[0] == ["on a branch today.", "on a branch."]


def test_prefixes_and_marks() -> None:
    assert caption_prefix("bird") == PREFIX
    assert caption_prefix("aircraft") == "a photo of an aircraft"
    assert caption_prefix("") == "a photo of"
    for line in (
        f"- {PREFIX} in snow",
        f"3. {PREFIX} in snow.",
        f'"{PREFIX} in snow"',
        f"\u2022 {PREFIX.title()} in snow",
    ):
        assert after_prefix(line, PREFIX) == "in snow."
    assert after_prefix(PREFIX, PREFIX) == ""
    assert after_prefix("in snow", PREFIX) == "in snow."


def test_what_is_accepted() -> None:
    proposed = [f"in place {i}." for i in range(12)] + ["In place 0.", " .", "with a Crane nearby.", "cranes above."]
    taken, dropped = accepted(proposed, ["crane"], lambda text: "5" in text)
    assert taken == tuple(f"in place {i}." for i in range(11) if i != 5)
    reasons = {one.text: one.reason for one in dropped}
    assert reasons["in place 11."] == reasons["cranes above."] == "one too many"
    assert reasons["In place 0."] == "said before"
    assert reasons[" ."] == "empty"
    assert reasons["with a Crane nearby."] == "names the class 'crane'"
    assert reasons["in place 5."] == "too long for the text encoder"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"suffixes": []}, "expected at least one suffix"),
        ({"suffixes": ["a.", "A."]}, "stands there twice"),
        ({"suffixes": ["a\nb"]}, "line breaks"),
        ({"schema": 2}, "schema"),
        ({"more": 1}, "more: Extra inputs"),
        ({"captions": [{"source_id": "../x", "text": ""}]}, r"captions\.0\.source_id"),
    ],
)
def test_a_changed_file_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    plain = {"builder": "cub", "protocol": "5shot", "prefix": PREFIX, "captioner": "x@1", "captions": []}
    plain |= {"summary": {"kind": "clusters", "model": "m"}, "tokens_checked": True, "suffixes": ["in snow."]}
    assert SuffixDocument.model_validate({"schema": 1, **plain}).suffixes == ("in snow.",)
    (tmp_path / "s.json").write_text(json.dumps({"schema": 1, **plain, **change}))
    with pytest.raises(RecipeError, match=said):
        read_suffixes(tmp_path / "s.json")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot be read .*`diffaug captions` makes one"):
        prepare(config_recipe("fashion_1shot_diffii", config={"suffixes": str(tmp_path / "none.json")}))


def test_the_verb_writes_a_file_once(blip: str, tmp_path: Path, diffaug: Command) -> None:
    out = tmp_path / "mine.json"
    words = ("captions", "fashion_1shot_diffii", "--captioner", blip, "--limit", "3", "--out", out)
    said = diffaug(*words)
    assert said.code == 0, said.err
    assert all(suffix in said.out for suffix in read_suffixes(out).suffixes)
    assert f"--set config.suffixes={out}" in said.out
    assert diffaug(*words).sentence.startswith(f"{out}: is there already")
    other = ("captions", "fashion_1shot_diffii", "--captioner", "no such", "--out", tmp_path / "n.json")
    assert "captioner 'no such' is neither a folder nor a Hub id" in diffaug(*other).sentence
    assert not (tmp_path / "n.json").exists()
