"""How a set was made, as far as it says: its recipe, and what its images took. No image is opened."""

import json
from dataclasses import dataclass
from pathlib import Path

from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.core.protocols import parse_protocol
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.release.places import run_at
from diffaug_datasets.release.repository import Repository
from diffaug_datasets.run.assembly import Assembled, finished


@dataclass(frozen=True)
class Making:
    """The recipe of a set, and the U-Net rows that it took.

    `written`: synthetic images that were made, also those that a filter dropped; `evaluations`: of all of them and of
    what was learned before; `learned`: of the latter alone, 0 where that is not known apart.
    """

    recipe: Recipe
    written: int
    evaluations: int
    learned: int = 0

    @property
    def protocol(self) -> str:
        """Builder and protocol without its trial, such as `fashion 5shot`: sets of one such are draws of one thing."""
        protocol = parse_protocol(self.recipe.protocol)
        return f"{self.recipe.builder} {protocol.name.removesuffix(f'_seed{protocol.trial_seed}')}"

    def cost(self, used: int) -> int:
        """U-Net rows of so many of its images: what was learned counts whole, the rest in proportion."""
        return self.learned + round((self.evaluations - self.learned) * used / max(1, self.written))


def is_long_tail(recipe: Recipe) -> bool:
    """Whether a recipe takes a long tail of real images."""
    return parse_protocol(recipe.protocol).kind == "long_tail" or recipe.builder == "imagenet_lt"


def making_of(where: str, config: str | None = None) -> Making | None:
    """What a run folder or a published set says of its making; None where it says nothing that can be read."""
    folder = Path(where)
    try:
        if (folder / "plan.json").is_file():
            done = Assembled.model_validate_json((folder / "run.json").read_text("utf-8"))
            receipts = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("fits/*/receipt.json"))]
            learned = sum(int(receipt["evaluations"]) for receipt in receipts)
            return _making(Recipe.from_yaml(folder / "recipe.yaml"), done, learned)
        if run := run_at(where):  # at an address
            assembled = finished(run)
            fits = [receipt for unit in run.plan.fits if (receipt := run.receipt(unit.name))]
            learned = sum(receipt.evaluations for receipt in fits)
            return _making(run.recipe, assembled, learned) if assembled else None
        repository = Repository.open(where)
        release = repository.release(config)
        return _making(Recipe.from_yaml(repository.checked(release, "recipe.yaml"), folder=None), release)
    except (DiffAugError, OSError, ValueError, KeyError, TypeError):
        return None


def _making(recipe: Recipe, done: Assembled, learned: int = 0) -> Making:
    return Making(recipe, sum(count.written for count in done.counts), done.evaluations, learned)
