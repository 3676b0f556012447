"""What a person decides when publishing."""

from dataclasses import dataclass

from diffaug_datasets.data.release import FileFormat


@dataclass(frozen=True)
class PublishOptions:
    """How a run goes out.

    `revision`: a branch (made if missing). `create_pr`: as a pull request. `recipe_only`: everything but pixels.
    `allow`: names of gates that may say no; the card states each. `with_rights`: the publisher holds the rights to
    derivatives of images that may not be redistributed.
    """

    file_format: FileFormat = "arrow"
    private: bool = False
    create_pr: bool = False
    revision: str | None = None
    with_rights: bool = False
    recipe_only: bool = False
    allow: tuple[str, ...] = ()
