"""What somebody else needs to make the rows of a release again, and what of it nobody else has."""

from dataclasses import dataclass
from typing import Any

from diffaug_datasets.core.backbone_spec import TINY
from diffaug_datasets.core.local_places import PACKAGED
from diffaug_datasets.publish.contents import Contents


@dataclass(frozen=True)
class Needs:
    """Models by the names that the plan records: a folder of the publisher goes by `name@digest`, without a slash.

    `backbone`, `encoder`, `scorers`: those that lie in folders of the publisher alone; '' or none where none does.
    `packaged`: the diffusion model is that of this package. `images`: rows start from real images that are not
    published here. `public`: where those are to be had is known.
    """

    backbone: str
    encoder: str
    scorers: tuple[str, ...]
    packaged: bool
    images: bool
    public: bool

    @property
    def anybody(self) -> bool:
        """Whether a stranger can make every row again."""
        return not (self.backbone or self.encoder or (self.images and not self.public))

    @property
    def options(self) -> str:
        """What `verify --sample` and `regen` are told besides."""
        given = {"--source YOUR_IMAGES": self.images, "--backbone MODEL_FOLDER": bool(self.backbone)}
        return "".join(f" {option}" for option, needed in given.items() if needed)


def needs(contents: Contents) -> Needs:
    """What the rows of a release rest on."""
    header, facts, release = contents.run.plan.header, contents.facts, contents.release
    scores, config = header.recipe.get("scores") or {}, header.recipe.get("config") or {}
    packaged = contents.run.recipe.backbone.id == TINY
    uses_backbone = any(row.backbone for row in contents.run.plan.rows)
    return Needs(
        backbone=header.backbone if uses_backbone and not packaged and _private(header.backbone) else "",
        encoder=_name(config.get("encoder")),
        scorers=tuple(dict.fromkeys(filter(None, (_name(scores.get(key)) for key in ("encoder", "judge"))))),
        packaged=packaged,
        images=not release.real and any(row.source_ids for row in contents.run.plan.rows),
        public=bool(facts.hub_id or facts.homepage),
    )


def _name(model: Any) -> str:
    return str(model) if model and model not in PACKAGED and _private(str(model)) else ""


def _private(model: str) -> bool:
    """A Hub id has a slash; a plan records a folder by its bare name and digest."""
    return "/" not in model
