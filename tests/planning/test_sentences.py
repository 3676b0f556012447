"""He et al.'s language enhancement: class names become sentences, once, before planning."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Command
from test_suffixes import language_model  # noqa: F401, the same small models

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.sentences import SPARE, SentenceOptions, write_sentences


def test_sentences_are_those_that_were_said_first_each_once() -> None:
    asked: list[tuple[str, int]] = []

    def say(words: str, count: int, seed: int) -> list[str]:
        asked.append((words, count))
        assert 0 <= seed < 2**62
        return [f"a {words} {i % 3} {{x}}" for i in range(count - 1)] + ["  "]

    found = write_sentences(config_recipe("fashion_5shot_txt2img"), SentenceOptions("m", 2, "a photo of "), say)
    assert len(found.by_label) == 10 and {count for _, count in asked} == {2 + SPARE}
    assert found.by_label["Ankle boot"] == ["a photo of a ankle boot 0 x", "a photo of a ankle boot 1 x"]
    assert found.fewer == () and json.loads(found.to_json()) == found.by_label
    less = write_sentences(config_recipe("fashion_5shot_txt2img"), SentenceOptions("m", 5), say)
    assert len(less.fewer) == 10 and all(len(texts) == 3 for texts in less.by_label.values())


def test_a_class_without_a_sentence_is_refused() -> None:
    with pytest.raises(RecipeError, match="the model says nothing of class 'T-shirt/top'; use another --model"):
        write_sentences(config_recipe("fashion_5shot_txt2img"), SentenceOptions("m", 2), lambda *_: [" ", ""])


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_model_draws_other_sentences_at_every_seed(
    language_model: Callable[..., Path],  # noqa: F811
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from diffaug_datasets.models.captioning import LanguageModel

    monkeypatch.setattr("diffaug_datasets.models.captioning.MOST_SENTENCE_TOKENS", 6)
    monkeypatch.setattr("diffaug_datasets.models.captioning.MOST_REPLY_TOKENS", 6)
    model = LanguageModel.load(str(language_model(kind)))
    first = model.drawn("photo sun", 3, 7)
    assert first == model.drawn("photo sun", 3, 7) and first != model.drawn("photo sun", 3, 8)
    assert len(first) == 3 == len(set(first)) and first[:3] != [model.answer("photo sun")] * 3


def test_the_command_writes_the_file_that_prompts_are_read_from(
    diffaug: Command,
    language_model: Callable[..., Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("diffaug_datasets.models.captioning.MOST_SENTENCE_TOKENS", 4)
    monkeypatch.setattr("diffaug_datasets.planning.sentences.SPARE", 0)
    out = tmp_path / "sentences.json"
    words = ("sentences", "fashion_5shot_txt2img", "--out", out, "--model", language_model("t5"), "--per-class", 3)
    done = diffaug(*words, "--prefix", "a photo of ")
    assert done.code == 0 and f"--set config.prompts={out}" in done.out
    found = json.loads(out.read_text(encoding="utf-8"))
    assert len(found) == 10 and all(text.startswith("a photo of ") for texts in found.values() for text in texts)
    again = diffaug(*words)
    assert again.code != 0 and "is there already" in again.err
