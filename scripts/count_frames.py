"""Follow one row and its recipe through the package, as it runs: which frames, and which modules, in their order.

    python scripts/count_frames.py

Plans, generates and publishes ten images of the embedded data in a temporary folder, in one process on the CPU, with a
profiling function that looks at every call of this package. It prints

- the frames of the package from `main()` down to the method's `generate`;
- the modules whose functions are given or give back the row (its plan, its outcome, its columns, or something that
  directly holds it), from the recipe to the published set;
- the modules whose functions are given or give back the recipe while a plan is drawn, and how often the way comes into
  each of them.
"""

import io
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import CodeType, FrameType

import pyarrow as pa

from diffaug_datasets.cli import main as diffaug
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.run.store import Run

PACKAGE = "diffaug_datasets."
CONFIG = "fashion_5shot_genie"
FEW = ("per_class=1", "include_test=false", "config.num_inference_steps=2")
ITEMS = 64  # of a container that are looked at
LEAVES = {  # they are given a row or a recipe, answer with a text or a number, and change nothing
    "core.identity": "digests and seeds",
    "core.recipe": "the recipe itself: checks of its keys",
    "methods._editing": "what a row costs",
    "planning.catalogue": "the name of a config",
    "planning.price": "what a plan costs",
    "run.shown": "how many images show their class",
    "run.work": "what a unit takes",
}


@dataclass
class Trail:
    """The functions of the package that were given or gave back what is followed, in their order."""

    holds: Callable[[object, int], bool]
    steps: list[tuple[str, str]] = field(default_factory=list)

    def see(self, module: str, code: CodeType, value: object) -> None:
        """Take in a value that goes into a function or comes out of it."""
        step = (module, code.co_qualname.partition(".<locals>")[0])
        if (not self.steps or self.steps[-1] != step) and self.holds(value, 2):
            self.steps.append(step)

    @property
    def modules(self) -> dict[str, list[str]]:
        """Module -> its functions, in the order of the first visit."""
        visited: dict[str, list[str]] = {}
        for module, function in self.steps:
            functions = visited.setdefault(module, [])
            if function not in functions:
                functions.append(function)
        return visited

    @property
    def visits(self) -> Counter[str]:
        """Module -> how often the way comes into it from another one."""
        modules = [module for module, _ in self.steps]
        return Counter(here for before, here in zip(["", *modules], modules, strict=False) if here != before)


def module_of(frame: FrameType) -> str | None:
    """`run.worker`; None for code that is not the package's."""
    name = frame.f_globals.get("__name__", "")
    return name.removeprefix(PACKAGE) if isinstance(name, str) and name.startswith(PACKAGE) else None


@contextmanager
def followed(trail: Trail) -> Iterator[None]:
    """Every call of the package inside is looked at, in all threads."""

    def look(frame: FrameType, event: str, value: object) -> None:
        is_written = not frame.f_code.co_filename.startswith("<")  # by somebody, not by dataclasses
        module = module_of(frame) if event in ("call", "return") and is_written else None
        if module is None:
            return
        if event == "return":
            trail.see(module, frame.f_code, value)
            return
        count = frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount
        for name in frame.f_code.co_varnames[:count]:
            trail.see(module, frame.f_code, frame.f_locals.get(name))

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


@contextmanager
def frames_to(function: CodeType, found: list[str]) -> Iterator[None]:
    """Fills a list with the package's frames above the first call of a function."""

    def look(frame: FrameType, event: str, value: object) -> None:  # noqa: ARG001
        if event == "call" and frame.f_code is function and not found:
            here: FrameType | None = frame
            while here is not None:
                is_inlined = here.f_code.co_name in ("<listcomp>", "<genexpr>")  # from Python 3.12 on, mostly
                if (module := module_of(here)) and not is_inlined:
                    found.insert(0, f"{module}.{here.f_code.co_qualname}")
                here = here.f_back

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)


def holds_row(row_id: str) -> Callable[[object, int], bool]:
    """Whether a value is the row, in any of its forms, or directly holds it."""

    def holds(value: object, depth: int) -> bool:
        if isinstance(value, str):
            return value == row_id
        if isinstance(value, pa.Table | pa.RecordBatch):
            return "row_id" in value.schema.names and row_id in value.column("row_id").to_pylist()
        if getattr(value, "row_id", None) == row_id:
            return True
        if depth == 0:
            return False
        if isinstance(value, dict):
            return any(holds(item, depth - 1) for item in list(value.values())[:ITEMS])
        if isinstance(value, list | tuple):
            return any(holds(item, depth - 1) for item in value[:ITEMS])
        if is_dataclass(value) and not isinstance(value, type):
            return any(holds(getattr(value, each.name, None), depth - 1) for each in fields(value))
        return False

    return holds


def holds_recipe(value: object, depth: int) -> bool:  # noqa: ARG001
    """Whether a value is the recipe or a thing that has one."""
    return isinstance(value, Recipe) or isinstance(getattr(value, "__dict__", {}).get("recipe"), Recipe)


def call(*words: object) -> None:
    """A command line, in silence; ends this script where it fails."""
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            diffaug([str(word) for word in words])
    except SystemExit as left:
        if left.code:
            sys.exit(f"count_frames: diffaug {words[0]} ended with {left.code}: {said.getvalue()}")


def show(title: str, trail: Trail, with_visits: bool = False) -> None:
    """A line per module; leaves, which a reader of the way need not open, come last with what they do."""
    way = [module for module in trail.modules if module not in LEAVES]
    print(f"{title}: {len(way)} modules")
    for module in way:
        visits = f" ({trail.visits[module]} visits)" if with_visits else ""
        print(f"  {module}{visits}: {', '.join(trail.modules[module])}")
    for module in (module for module in trail.modules if module in LEAVES):
        print(f"  and the leaf {module}: {LEAVES[module]}")


def main() -> None:
    """Run the three steps once to know the row, then once more with each follower."""
    with tempfile.TemporaryDirectory(prefix="diffaug-") as folder:
        plan = ("plan", CONFIG, *(word for change in FEW for word in ("--set", change)), "--run")
        call(*plan, Path(folder, "first"))
        run = Run.open(Path(folder, "first"))
        frames: list[str] = []
        with frames_to(run.recipe.method_definition.generate.__code__, frames):
            call("generate", run.folder, "--workers", 1, "--device", "cpu")
        print(f"from main() to generate: {len(frames)} frames")
        print("".join(f"  {frame}\n" for frame in frames))
        row, recipe = Trail(holds_row(run.plan.rows[0].row_id)), Trail(holds_recipe)
        second = Path(folder, "second")
        with followed(row):
            call(*plan, second)
            call("generate", second, "--workers", 1, "--device", "cpu")
            call("publish", second, Path(folder, "shelf").as_uri())
        show("a row, from its recipe to the published set", row)
        with followed(recipe):
            call(*plan, Path(folder, "third"))
        print()
        show("a recipe, through planning", recipe, with_visits=True)


if __name__ == "__main__":
    main()
