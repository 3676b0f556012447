"""The shipped class-name tables: complete, unique, fit for a prompt."""

import re

import pytest

from diffaug_datasets.sources.real import class_phrases, find_builder

SIZES = {"cub": 200, "imagenet": 1000, "flowers": 102}


@pytest.mark.parametrize("table", SIZES)
def test_tables_are_complete_and_every_phrase_is_unique_and_plain(table):
    phrases = class_phrases(table)
    assert len(phrases) == SIZES[table]
    assert len({phrase.casefold() for phrase in phrases.values()}) == SIZES[table]
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z' -]*[A-Za-z]", phrase) for phrase in phrases.values())


def test_imagenet_labels_are_wordnet_ids_in_sorted_order():
    ids = list(class_phrases("imagenet"))
    assert ids == sorted(ids)
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in ids)
    assert (ids[0], ids[-1]) == ("n01440764", "n15075141")


def test_names_that_two_imagenet_classes_share_are_told_apart():
    phrase = class_phrases("imagenet")
    told_apart = {
        ("n02012849", "n03126707"): ("crane bird", "construction crane"),
        ("n03710637", "n03710721"): ("dancer's maillot tights", "one-piece maillot bathing suit"),
        ("n02113186", "n02963159"): ("Cardigan Welsh corgi", "cardigan sweater"),
        ("n03773504", "n04008634"): ("missile", "projectile"),
        ("n04355933", "n04356056"): ("sunglass lens", "sunglasses"),
        ("n12144580", "n13133613"): ("corn", "ear of corn"),
    }
    for ids, phrases in told_apart.items():
        assert tuple(phrase[wnid] for wnid in ids) == phrases


def test_cub_labels_are_numbered_and_follow_the_plain_rule_but_for_set_names():
    table = class_phrases("cub")
    assert [label[:4] for label in table] == [f"{n:03d}." for n in range(1, 201)]
    plain = {label: label[4:].replace("_", " ").lower() for label in table}
    assert sum(table[label] != plain[label] for label in table) == 22
    assert table["001.Black_footed_Albatross"] == "black footed albatross"
    assert table["009.Brewer_Blackbird"] == "brewer's blackbird"
    assert table["022.Chuck_will_Widow"] == "chuck-will's-widow"
    assert table["141.Artic_Tern"] == "arctic tern"


@pytest.mark.parametrize(
    ("builder", "label", "phrase"),
    [
        ("cub", "001.Black_footed_Albatross", "black footed albatross"),
        ("cub", "Scott_Oriole", "scott oriole"),
        ("waterbirds", "105.Whip_poor_Will", "whip-poor-will"),
        ("imagenet", "n02012849", "crane bird"),
        ("imagenet", "tench, Tinca tinca", "tench"),
        ("imagenet_lt", "n01440764", "tench"),
        ("imagenette", "n03000684", "chain saw"),
        ("mini_imagenet", "n02110341", "dalmatian dog"),
        ("tiered_imagenet", "n02012849", "crane bird"),
        ("fashion", "T-shirt/top", "t-shirt"),
        ("fashion", "T - shirt / top", "t-shirt"),
        ("fashion", "Ankle boot", "ankle boot"),
        ("aircraft", "737-200", "737-200"),
        ("cars", "AM_General_Hummer_SUV_2000", "AM General Hummer SUV 2000"),
        ("pets", "Egyptian_Mau", "egyptian mau"),
        ("flowers", "1", "pink primrose"),
        ("flowers", "desert_rose", "desert rose"),
        ("food101", "apple_pie", "apple pie"),
        ("caltech256", "145.motorbikes-101", "motorbikes"),
        ("caltech256", "101.head-phones", "head phones"),
        ("caltech101", "Faces_easy", "faces easy"),
        ("caltech101", "BACKGROUND_Google", "background google"),
        ("coco", "traffic light", "traffic light"),
        ("dtd", "polka-dotted", "polka-dotted"),
        ("imagenet100", "n02701002", "ambulance"),
        ("inat", "Corvus_corax", "Corvus corax"),
        ("pascal", "potted plant", "potted plant"),
        ("cifar10", "airplane", "airplane"),
        ("cifar100", "cra", "crab"),
        ("cifar100", "lawn_mower", "lawn mower"),
        ("stl10", "ship", "ship"),
        ("eurosat", "AnnualCrop", "annual crop"),
        ("pathmnist", "smooth muscle", "smooth muscle"),
        ("dermamnist", "basal cell carcinoma", "basal cell carcinoma"),
        ("bloodmnist", "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)", "immature granulocytes"),
        ("imagefolder", "golden_retriever", "golden retriever"),
    ],
)
def test_prompts_read_labels_plainly(builder, label, phrase):
    assert find_builder(builder).prompt_name(label) == phrase
