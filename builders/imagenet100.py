"""ImageNet-100: the hundred ImageNet classes of Contrastive Multiview Coding, which UniDiffDA takes.

Labels are WordNet ids in sorted order; prompts use the phrases of `names/imagenet.json`. Read from a copy of these
classes or from all of ImageNet; tested on test/ where there is one, else on the validation images.
"""

from pathlib import Path

from diffaug_datasets.core.sources import Listed, Listing
from diffaug_datasets.sources.real import class_phrases

NAME = "imagenet100"
TITLE = "ImageNet-100"
HOMEPAGE = "https://arxiv.org/abs/1906.05849"
LICENCE = "ImageNet terms of access: non-commercial research and education"
LICENCE_ID = "other"
LICENCE_URL = "https://image-net.org/download"
OFFICIAL = {"classes": 100}
CITATION = """@inproceedings{imagenet100,
  title = {Contrastive Multiview Coding},
  author = {Tian, Yonglong and Krishnan, Dilip and Isola, Phillip},
  booktitle = {European Conference on Computer Vision},
  year = {2020}
}"""

IMAGES = (".jpg", ".jpeg", ".png")
PLACES = ("", "ImageNet100/", "ILSVRC/Data/CLS-LOC/")
CLASSES = (
    *("n01558993", "n01692333", "n01729322", "n01735189", "n01749939", "n01773797", "n01820546", "n01855672"),
    *("n01978455", "n01980166", "n01983481", "n02009229", "n02018207", "n02085620", "n02086240", "n02086910"),
    *("n02087046", "n02089867", "n02089973", "n02090622", "n02091831", "n02093428", "n02099849", "n02100583"),
    *("n02104029", "n02105505", "n02106550", "n02107142", "n02108089", "n02109047", "n02113799", "n02113978"),
    *("n02114855", "n02116738", "n02119022", "n02123045", "n02138441", "n02172182", "n02231487", "n02259212"),
    *("n02326432", "n02396427", "n02483362", "n02488291", "n02701002", "n02788148", "n02804414", "n02859443"),
    *("n02869837", "n02877765", "n02974003", "n03017168", "n03032252", "n03062245", "n03085013", "n03259280"),
    *("n03379051", "n03424325", "n03492542", "n03494278", "n03530642", "n03584829", "n03594734", "n03637318"),
    *("n03642806", "n03764736", "n03775546", "n03777754", "n03785016", "n03787032", "n03794056", "n03837869"),
    *("n03891251", "n03903868", "n03930630", "n03947888", "n04026417", "n04067472", "n04099969", "n04111531"),
    *("n04127249", "n04136333", "n04229816", "n04238763", "n04336792", "n04418357", "n04429376", "n04435653"),
    *("n04485082", "n04493381", "n04517823", "n04589890", "n04592741", "n07714571", "n07715103", "n07753275"),
    *("n07831146", "n07836838", "n13037406", "n13040303"),
)


def prompt_name(label: str) -> str:
    """ "n01558993" -> "robin"."""
    return class_phrases("imagenet").get(label) or label.split(",")[0].replace("_", " ")


def read(folder: Path) -> Listing | None:
    """train/<wnid>/ and test/ or val/, those classes that are there; None where none of the hundred is."""
    place = next((place for place in PLACES if _split(folder, f"{place}train/")), None)
    if place is None:
        return None
    test = next((found for name in ("test/", "val/") if (found := _split(folder, place + name))), None)
    return Listing(CLASSES, _split(folder, f"{place}train/"), test).present()


def _split(folder: Path, place: str) -> tuple[Listed, ...]:
    """The images of a split, class by class, in the order of their names."""
    folders = ((label, wnid) for label, wnid in enumerate(CLASSES) if (folder / place / wnid).is_dir())
    return tuple(
        Listed(f"{place}{wnid}/{path.name}", label)
        for label, wnid in folders
        for path in sorted((folder / place / wnid).iterdir())
        if path.suffix.lower() in IMAGES
    )
