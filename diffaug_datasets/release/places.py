"""What a name that a person typed means: a run, in a folder or an object store, or else a published set."""

import os
from importlib.util import find_spec
from pathlib import Path

from diffaug_datasets.core.errors import PublishError, shown
from diffaug_datasets.release.repository import address_errors, inside, open_address
from diffaug_datasets.run.place import SCHEMES, ObjectPlace, scheme_of
from diffaug_datasets.run.store import Run

PLAN_JSON = "plan.json"  # which no published set has at its root


def run_at(where: str | os.PathLike[str]) -> Run | None:
    """The run that lies in a folder or at an address; None where no plan is there.

    Raises:
        RunError: the plan cannot be read, or does not belong to the recipe beside it.
    """
    return Run.open(where) if is_run(where) else None


def is_run(where: str | os.PathLike[str]) -> bool:
    """Whether a run lies in a folder or at an address, whatever state it is in.

    An address is asked once, by the client that reads published sets, or by obstore where there is none for it. One
    that does not answer holds no run: whoever reads published sets says what is wrong there.
    """
    name = os.fspath(where)
    scheme = scheme_of(name)
    if scheme is None:
        return (Path(name) / PLAN_JSON).is_file()
    if scheme not in SCHEMES or shown(name) != name:
        return False
    try:
        files, root = open_address(name)
        return bool(files.exists(inside(root, PLAN_JSON)))
    except PublishError:  # fsspec has no client for it here
        return find_spec("obstore") is not None and ObjectPlace(name).get(PLAN_JSON) is not None
    except address_errors(ValueError, ImportError):
        return False
