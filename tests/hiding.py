"""Make installed packages look absent, in a process that calls `hide` before it imports anything else."""

import sys
from importlib.machinery import ModuleSpec
from typing import Any

GENERATING = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "jaxtyping")


class _Without:
    """A finder that knows nothing of some packages and asks another one about the rest."""

    def __init__(self, inner: Any, names: tuple[str, ...]) -> None:
        self.inner, self.names = inner, names

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        hidden = name.partition(".")[0] in self.names
        return None if hidden else self.inner.find_spec(name, path, target)


def hide(*names: str) -> None:
    """From now on `import name` raises ModuleNotFoundError and `find_spec(name)` gives None."""
    sys.meta_path[:] = [_Without(finder, names) for finder in sys.meta_path]
