"""What this machine can do, said before a long run finds out."""

import os
import platform
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from diffaug_datasets import __version__
from diffaug_datasets.cli.screen import say, say_facts, say_json
from diffaug_datasets.core.backbone_spec import DEFAULT_ID, TINY, BackboneSpec, backbone_revision, hub_cache, resolve
from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.core.extras import install
from diffaug_datasets.data.price import cores, memory_free, size

LIBRARIES = ("datasets", "huggingface_hub", "pyarrow", "torch", "diffusers", "transformers", "peft", "accelerate")
FLAGS = ("HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_DATASETS_CACHE", "CUDA_VISIBLE_DEVICES")


def print_doctor(as_json: bool) -> int:
    """All findings; 1 where images cannot be generated here."""
    loads, tiny = _tiny()
    facts = {**_machine(), **_software(), "default backbone": _default_backbone(), "packaged backbone": tiny}
    if as_json:
        say_json({**facts, "can_generate": loads})
    else:
        say_facts(facts)
        say("doctor: ready to generate" if loads else "doctor: can plan and load, but not generate; see above")
    return 0 if loads else 1


def _machine() -> dict[str, str]:
    free = memory_free()
    return {
        "diffaug": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "cores": str(cores()),
        "memory": f"{size(free)} free" if free is not None else "unknown",
        "disk": f"{size(shutil.disk_usage(Path.cwd()).free)} free in {Path.cwd()}",
        "devices": _devices(),
    }


def _devices() -> str:
    if find_spec("torch") is None:
        return "cpu (torch is not installed)"
    import torch

    found = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *found])


def _software() -> dict[str, str]:
    flags = [f"{name}={os.environ[name]}" for name in FLAGS if name in os.environ]
    return {**{name: _version(name) for name in LIBRARIES}, "environment": ", ".join(flags) or "no HF or CUDA settings"}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _default_backbone() -> str:
    spec = resolve(BackboneSpec(id=DEFAULT_ID))
    folder = hub_cache() / f"models--{spec.id.replace('/', '--')}" / "snapshots" / backbone_revision(spec)
    if folder.is_dir():
        return f"{DEFAULT_ID} is in the cache, {folder}"
    return f"{DEFAULT_ID} is not in {hub_cache()}; `hf download {DEFAULT_ID} --revision {spec.revision}` fetches it"


def _tiny() -> tuple[bool, str]:
    """Whether the packaged model loads, and how fast or why not."""
    begin = time.perf_counter()
    try:
        from diffaug_datasets.models.backbone import Backbone

        name = Backbone.load(BackboneSpec(id=TINY), "cpu").name
    except DiffAugError as error:
        return False, str(error)
    except ModuleNotFoundError as error:
        return False, f"needs {error.name}: {install('generate')} ({sys.executable})"
    return True, f"{name} loads in {time.perf_counter() - begin:.1f} s"
