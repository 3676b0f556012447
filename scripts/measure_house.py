"""Count what the house rules are about: `python scripts/measure_house.py [FOLDER]`, one line per measure.

Reads source files as text and syntax trees alone; imports nothing but the standard library. Give it the package folder
of another commit (`git worktree add`), or of another project, to compare.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

Function = ast.FunctionDef | ast.AsyncFunctionDef


def main(arguments: list[str]) -> None:
    """Print every measure of a package folder; the default is this package."""
    folder = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1] / "diffaug_datasets"
    paths = sorted(folder.rglob("*.py"))
    if not paths:
        sys.exit(f"{folder}: holds no Python file; give a package's folder.")
    for name, value in measures([path.read_text(encoding="utf-8") for path in paths], paths):
        print(f"{name:<46} {value}")


def measures(texts: list[str], paths: list[Path]) -> Iterator[tuple[str, str]]:
    """Name and value of every measure, in a fixed order."""
    trees = [ast.parse(text) for text in texts]
    lines = [text.count("\n") for text in texts]
    functions = [[node for node in ast.walk(tree) if isinstance(node, Function)] for tree in trees]
    lengths = sorted((node.end_lineno or 0) - node.lineno + 1 for found in functions for node in found)
    total = sum(lines)
    yield "modules", f"{len(paths)}, {sum(path.name != '__init__.py' for path in paths)} without __init__.py"
    yield "lines in all", f"{total:,}"
    yield "lines per module, median and largest", f"{median(lines):.0f}, {max(lines)}"
    yield "functions per module, mean", f"{len(lengths) / len(paths):.1f}"
    yield (
        "lines per function, median, 90th, largest",
        (f"{median(lengths):.0f}, {lengths[len(lengths) * 9 // 10]}, {lengths[-1]}"),
    )
    once = sum(map(helpers_used_once, trees))
    yield "private helpers used once, of all functions", f"{once}, {once / max(1, len(lengths)):.0%}"
    yield "imports in functions per 1,000 lines", f"{1000 * sum(map(imports_in_functions, trees)) / total:.1f}"
    yield "import lines", f"{sum(map(import_lines, trees)) / total:.1%}"
    names = Counter(path.name for path in paths if path.name != "__init__.py")
    twice = sorted(name for name, count in names.items() if count > 1)
    yield "file names that occur twice", f"{len(twice)}{': ' + ', '.join(twice) if twice else ''}"
    yield "functions with more than six parameters", f"{sum(parameters(f) > 6 for found in functions for f in found)}"
    yield "annotations with Any", f"{sum(map(any_names, trees))}"
    yield "annotations dict[str, Any]", f"{sum(map(open_dicts, trees))}"
    yield "getattr with a literal name", f"{sum(map(literal_getattrs, trees))}"


def helpers_used_once(tree: ast.Module) -> int:
    """Private functions and methods that their own module names just once."""
    named = Counter(
        node.attr if isinstance(node, ast.Attribute) else node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute | ast.Name)
    )
    functions = {node.name for node in ast.walk(tree) if isinstance(node, Function)}
    helpers = {name for name in functions if name.startswith("_") and not name.endswith("__")}
    return sum(named[name] == 1 for name in helpers)


def _imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))


def imports_in_functions(tree: ast.Module) -> int:
    """Import statements inside functions."""
    return len({i for node in ast.walk(tree) if isinstance(node, Function) for i in _imports(node)})


def import_lines(tree: ast.Module) -> int:
    """Lines that import statements take."""
    return sum((node.end_lineno or 0) - node.lineno + 1 for node in _imports(tree))


def parameters(function: Function) -> int:
    """Parameters of a function, `self` and `cls` left out."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def any_names(tree: ast.Module) -> int:
    """Uses of the name Any, its import left out."""
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))


def open_dicts(tree: ast.Module) -> int:
    """Subscripts dict[str, Any] and Mapping[str, Any]."""
    subscripts = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    return sum(text in ("dict[str, Any]", "Mapping[str, Any]") for text in subscripts)


def literal_getattrs(tree: ast.Module) -> int:
    """Calls getattr(thing, "name"...): facts that no type declares."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return sum(
        call.func.id == "getattr" and len(call.args) > 1 and isinstance(call.args[1], ast.Constant)
        for call in calls
        if isinstance(call.func, ast.Name)
    )


if __name__ == "__main__":
    main(sys.argv[1:])
