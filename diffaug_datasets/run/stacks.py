"""Which stack made what: library versions, and fingerprints of what the machine computes (`models.fingerprint`).

`numerics` is of the backbone, `numerics_encoder` of the method's encoder, `numerics_scores` of the encoder and judge of
the scores; a unit states those of the networks that it needs. The name of the device is information, as is how a
profile computes there (`kernels`): they bind only where no fingerprint is known.
"""

import os
from collections.abc import Iterable, Mapping

from diffaug_datasets.core.profiles import EXACT, Profile

NUMERICS = ("numerics", "numerics_encoder", "numerics_scores")
INFORMATION = ("device", "kernels")
Stack = Mapping[str, str]


def stack(device: str, profile: Profile = EXACT) -> dict[str, str]:
    """Device kind, versions, and the profile unless it is plainly exact: the part that is known without a model."""
    import diffusers
    import peft
    import torch
    import transformers

    kind = torch.cuda.get_device_name(device) if device.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
    versions = {m.__name__: str(m.__version__) for m in (torch, diffusers, transformers, peft)}
    return {"device": kind, **versions} | ({} if profile.is_plain else {"profile": profile.words})


def set_determinism(threads: int) -> None:
    """Set what must not depend on the environment: CPU threads, deterministic kernels."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def same_stack(one: Stack, other: Stack) -> bool:
    """Whether two stacks have the same versions and compute the same bits, as far as both say.

    How many processes shared a batch is written there too, but binds nobody who continues.
    """
    shared = [key for key in NUMERICS if key in one and key in other]
    free = {*NUMERICS, "processes", *(INFORMATION if shared else ["kernels"])}
    stated = (one.keys() | other.keys()) - free
    return all(one.get(key) == other.get(key) for key in (*stated, *shared))


def merged_stacks(stacks: Iterable[Stack]) -> tuple[dict[str, str], ...]:
    """The different ones; units of one stack that needed different networks state it together."""
    merged: list[dict[str, str]] = []
    for stack in stacks:
        known = next((one for one in merged if same_stack(one, stack) and _processes(one) == _processes(stack)), None)
        if known is None:
            merged.append(dict(stack))
        else:
            known.update({key: value for key, value in stack.items() if key not in known})
    return tuple(merged)


def _processes(stack: Stack) -> str:
    return stack.get("processes", "1")


def difference(theirs: Iterable[Stack], ours: Stack) -> str:
    """In words, how this stack differs from those that made a set: `another CPU: AVX512, numerics 1f.. there, ...`."""
    others = [stack for stack in theirs if not same_stack(stack, ours)]
    keys = [
        key
        for key in ours
        if key not in INFORMATION and any(stack.get(key, ours[key]) != ours[key] for stack in others)
    ]
    if any(key not in NUMERICS for key in keys):
        kind = "other versions"
    else:
        kind = "another CPU" if all(_is_cpu(stack) for stack in (*others, ours)) else "another device"
    there = " and ".join(_words(stack, keys) for stack in others)
    return f"{kind}: {there} there, {_words(ours, keys)} here"


def _words(stack: Stack, keys: Iterable[str]) -> str:
    return " ".join([stack.get("device", "unknown"), *[f"{key} {stack.get(key, 'unknown')}" for key in keys]])


def _is_cpu(stack: Stack) -> bool:
    """torch names a CPU by one word for its capability, such as AVX2; a GPU has a maker and a model."""
    return " " not in stack.get("device", "")
