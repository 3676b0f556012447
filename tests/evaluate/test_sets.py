"""What a set says of itself."""

from pathlib import Path

import pytest

from diffaug_datasets.evaluate.sets import usual_encoder


@pytest.mark.parametrize(
    ("stated", "taken"),
    [
        ("efficientnet-lite0", "efficientnet-lite0"),
        ("openai/clip-vit-base-patch32", "tiny"),  # not on this machine
        ("null", "tiny"),
    ],
)
def test_a_set_is_seen_by_the_encoder_of_its_scores(stated: str, taken: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"builder: fashion\nprotocol: 5shot\nmethod: txt2img\nscores: {{encoder: {stated}}}\n", "utf-8")
    assert usual_encoder(str(recipe)) == taken


def test_what_cannot_be_read_is_left_to_whoever_reads_it() -> None:
    assert usual_encoder("runs/nowhere") == "tiny"
