"""Fashion-MNIST: ten kinds of clothing, 28 x 28 grey. A part of it (200 + 100 images per class) is inside the package.

Without a source, that part is read, so everything runs without a download; a folder or Hub id gives the full 70,000.
"""

NAME = "fashion"
TITLE = "Fashion-MNIST"
HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"
LICENCE = "MIT"
LICENCE_ID = "mit"
LICENCE_URL = "https://github.com/zalandoresearch/fashion-mnist/blob/master/LICENSE"
REDISTRIBUTABLE = True
HUB_ID = "zalando-datasets/fashion_mnist"
OFFICIAL = {"classes": 10, "train": 60_000, "test": 10_000}
EMBEDDED = {"train": "assets/tiny/fashion/pool.parquet", "test": "assets/tiny/fashion/test.parquet"}
POOL = "tiny"
CITATION = """@article{fashion_mnist,
  title = {Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},
  author = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  journal = {arXiv:1708.07747},
  year = {2017}
}"""


def prompt_name(label: str) -> str:
    """ "T-shirt/top" -> "t-shirt", "Ankle boot" -> "ankle boot"."""
    return label.lower().replace(" - ", "-").split("/")[0].strip()
