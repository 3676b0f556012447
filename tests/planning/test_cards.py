"""What a card holds, from configurations alone."""

import pytest

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.profiles import Profile
from diffaug_datasets.planning.cards import Shape, Work, card_line, judge, need, read_bytes
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import check_models, prepare

SD15 = Shape()
GENERATES = Work(512, 512, 8, 2)
LEARNS = Work(512, 512, 8, 2, learned=8)


def test_eight_gigabytes_generate_and_learn_at_512_pixels() -> None:
    found = judge(SD15, LEARNS, Profile(), read_bytes("8GB"))
    assert found.switches is not None
    assert "checkpointing" in found.switches
    tried = Profile(**dict.fromkeys(found.switches, True))
    assert need(SD15, LEARNS._replace(rows=found.rows), tried).most <= 8 * 10**9


def test_switches_take_what_they_say() -> None:
    plain = need(SD15, LEARNS, Profile())
    assert need(SD15, LEARNS, Profile(checkpointing=True)).fit < plain.fit
    assert need(SD15, LEARNS, Profile(vae_slicing=True)).generate < plain.generate
    large = Work(1024, 1024, 1, 2)
    assert need(SD15, large, Profile(vae_tiling=True)).generate < need(SD15, large, Profile()).generate
    assert need(SD15, large, Profile(offload=True)).generate < need(SD15, large, Profile()).generate


def test_what_fits_needs_no_switch_and_what_cannot_says_so() -> None:
    assert judge(SD15, GENERATES, Profile(), read_bytes("80GB")).switches == ()
    assert judge(SD15, GENERATES, Profile(), read_bytes("1GB")).switches is None


@pytest.mark.parametrize(("text", "count"), [("8GB", 8 * 10**9), ("7.5 GiB", int(7.5 * 2**30)), ("500mb", 5 * 10**8)])
def test_memory_is_read(text: str, count: int) -> None:
    assert read_bytes(text) == count


@pytest.mark.parametrize("text", ["8", "lots", "GB", "-3GB", "1e9", "", "nanGB", "infGB"])
def test_other_memory_is_a_sentence(text: str) -> None:
    with pytest.raises(RecipeError, match="expected the memory of a card, such as 8GB"):
        read_bytes(text)


def test_a_plan_says_what_fits() -> None:
    prepared = prepare(config_recipe("fashion_2shot_txt2img", per_class=1, include_test=False))
    assert card_line(prepared, read_bytes("8GB")).endswith("it fits")
    assert "no switch makes it fit" in card_line(prepared, read_bytes("500MB"))
    assert card_line(prepared, None) == ""


def test_eight_bit_moments_need_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffaug_datasets.planning.prepare.find_spec", lambda _: None)
    with pytest.raises(RecipeError, match="adamw8bit needs bitsandbytes, which is not installed"):
        check_models(config_recipe("fashion_2shot_txt2img", profile={"optimiser": "adamw8bit"}))
