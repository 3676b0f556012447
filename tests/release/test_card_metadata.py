"""The metadata of a card: what people wrote is read strictly and comes back; what no library may see is refused."""

import pytest
from huggingface_hub import DatasetCard

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.release.card_metadata import card_text, parse_card


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("to_dict: 1", "cannot be read ('to_dict' is no key of a card's metadata)"),
        ("self: 1", "cannot be read ('self' is no key"),
        ("ignore_metadata_errors: true", "cannot be read ('ignore_metadata_errors' is no key"),
        ("a: &a [1]\nb: *a", "cannot be read (line 2 holds the alias *a"),
        ("a: !!python/object/apply:os.system [id]", "cannot be read (line 1 holds the tag"),
        ("license: mit\nlicense: other", "cannot be read (line 2 has the key 'license'"),
        ("a: " + "[" * 3000, "cannot be read ("),
        ("license: [mit", "cannot be read ("),
        ("- license", "is no mapping; put it right"),
        ("just words", "is no mapping; put it right"),
    ],
)
def test_a_hostile_head_is_refused_in_one_sentence(head: str, reason: str) -> None:
    with pytest.raises(PublishError) as refused:
        parse_card(f"---\n{head}\n---\n# Birds\n")
    assert str(refused.value).startswith("README.md: its YAML head ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_people_wrote_comes_back_in_its_order() -> None:
    """And means the same to the Hub's own client: `no` is a language, not a lie."""
    head = "pretty_name: Birds of Norway 路\nlanguage:\n- 'no'\nlicense: mit\nyear: 2024\ntrain-eval-index: [{a: 1}]"
    metadata, body = parse_card(f"---\n{head.replace(chr(39), '')}\n---\n# Birds\n\n---\nnot a head\n---\n")
    assert body == "# Birds\n\n---\nnot a head\n---\n"
    text = card_text(metadata, body)
    assert parse_card(text) == (metadata, body)
    assert list(metadata)[:3] == ["pretty_name", "language", "license"]
    assert DatasetCard(text).data.language == ["no"]
    assert DatasetCard(text).data.to_dict() == metadata


@pytest.mark.parametrize("text", ["# Birds\n", "", "---\n\n---\n# Birds\n"])
def test_a_card_without_metadata(text: str) -> None:
    metadata, body = parse_card(text)
    assert metadata == {}
    assert body == text.removeprefix("---\n\n---\n")
