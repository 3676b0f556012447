"""Pointing the unmodified clients of this process at a Hub on loopback, for the length of a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session, disable_progress_bars

from hub.server import LoopbackHub


@contextmanager
def loopback_hub(folder: Path, *, xet: bool = False) -> Iterator[LoopbackHub]:
    """A Hub that this process's huggingface_hub takes for the real one; its caches lie in `folder`."""
    with pytest.MonkeyPatch.context() as patch, LoopbackHub(folder / "hub", xet=xet) as hub:
        settings = {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": not xet,
            "HF_HUB_CACHE": str(folder / "home" / "hub"),
            "HF_XET_CACHE": str(folder / "home" / "xet"),
            "HF_TOKEN_PATH": str(folder / "home" / "token"),
        }
        for name, value in settings.items():
            patch.setattr(constants, name, value)
        for name, value in hub.environment(folder / "home").items():
            patch.setenv(name, value)
        close_session()
        disable_progress_bars()
        yield hub
        close_session()
