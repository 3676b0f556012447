"""Captions to suffixes: a real (tiny, random) BLIP, a real chat client over loopback HTTP, clusters, the file."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Command

from diffaug_datasets.core.errors import BackboneError, RecipeError
from diffaug_datasets.core.suffix_document import (
    SuffixDocument,
    accepted,
    after_prefix,
    caption_prefix,
    read_suffixes,
)
from diffaug_datasets.data.captions import Wording, write_suffixes
from diffaug_datasets.data.catalogue import config_recipe
from diffaug_datasets.data.prepare import prepare

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

    from diffaug_datasets.models.captions import Captioner

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
    document = write_suffixes(recipe(), Wording(blip, limit=8))
    assert len(document.captions) == 8
    assert document.captions == write_suffixes(recipe(), Wording(blip, limit=8)).captions
    assert document.summary.kind == "clusters"
    assert document.tokens_checked
    assert document.prefix == "a photo of"
    path = tmp_path / "suffixes.json"
    path.write_text(document.to_json())
    assert read_suffixes(path) == document
    assert json.loads(path.read_text())["schema"] == 1


def test_a_plan_takes_the_texts_of_a_file_and_not_its_place(tmp_path: Path, blip: str) -> None:
    document = write_suffixes(recipe(), Wording(blip, limit=4))
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
    document = write_suffixes(recipe(), Wording(blip, "some/chat-model", chat.url, limit=4))
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
    document = write_suffixes(recipe(), Wording(blip, "m", chat.url, limit=2))
    assert chat.headers[0].get("authorization", chat.headers[0].get("Authorization")) == "Bearer for the endpoint"
    assert "for the endpoint" not in document.to_json()


@pytest.mark.parametrize(
    ("status", "reply", "said"), [(503, REPLY, "gave no answer .*503"), (200, "", "no suffix is left")]
)
def test_a_chat_model_that_fails_is_one_sentence(blip: str, chat: Chat, status: int, reply: str, said: str) -> None:
    chat.status, chat.reply = status, reply
    with pytest.raises((BackboneError, RecipeError), match=said) as refusal:
        write_suffixes(recipe(), Wording(blip, "m", chat.url, limit=2))
    assert "summariser" in str(refusal.value)
    assert len(chat.asked) == 1


def test_a_chat_service_that_is_not_there_is_one_sentence(blip: str, chat: Chat) -> None:
    nowhere = chat.url.replace(f":{chat.server_port}", ":9")
    with pytest.raises(BackboneError, match="chat model 'm' gave no answer"):
        write_suffixes(recipe(), Wording(blip, "m", nowhere, limit=2))


def test_clusters_take_the_middle_of_each_kind_of_caption() -> None:
    from diffaug_datasets.models.captions import summarise_by_clusters

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
