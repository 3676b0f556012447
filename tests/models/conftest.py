"""One random pipeline of each prediction type for the whole run.

Shapes and dtypes of our own modules are checked at run time, so they are imported after the hook.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sd_tiny
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from diffaug_datasets.models.backbone import Backbone

CHECKED = ["models.adapters", "models.backbone", "models.concepts", "models.encoders", "models.training"]
CHECKED += ["families.parts.clip_text", "families.parts.driven", "families.parts.unets"]
install_import_hook(
    [f"diffaug_datasets.{module}" for module in CHECKED],
    # The tower lets an int stand for a float, as mypy does.
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SD-1.5-shaped pipeline that predicts eps."""
    return sd_tiny.build(tmp_path_factory.mktemp("sd") / "epsilon")


@pytest.fixture(scope="session")
def v_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, said to predict v, as SD 2.1 does."""
    return sd_tiny.build(tmp_path_factory.mktemp("sd") / "v", prediction_type="v_prediction")


@pytest.fixture(scope="session")
def _loaded(sd_folder: Path) -> "Backbone":
    from diffaug_datasets.core.models import BackboneSpec
    from diffaug_datasets.models.backbone import Backbone

    return Backbone.load(BackboneSpec(id=str(sd_folder)))


@pytest.fixture
def backbone(_loaded: "Backbone") -> "Backbone":
    """The random pipeline, without concepts, prompts or counts of the test before."""
    _loaded.use_concepts(None)
    _loaded.calls = _loaded.rows_evaluated = 0
    return _loaded
