"""A method and a builder of somebody else's: the examples of `plugin`, built as a wheel and found by entry points."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from command_line import Answer, Command
from PIL import Image

from diffaug_datasets import plugin
from diffaug_datasets.core import method as core_method
from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.methods import genie

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "diffaug-mirrored"
version = "1.0"

[project.entry-points."diffaug_datasets.methods"]
mirrored = "diffaug_mirrored"

[project.entry-points."diffaug_datasets.builders"]
pins = "diffaug_pins"

[tool.setuptools]
py-modules = ["diffaug_mirrored", "diffaug_pins"]
"""

[METHOD, BUILDER] = re.findall(r"^```python\n(.*?)^```", plugin.__doc__ or "", re.MULTILINE | re.DOTALL)


@pytest.fixture
def install(tmp_path: Path, shell: Command):
    """`install(cost=0, source_label="label")`: builds the wheel, installs it, and returns the folder."""

    def installed(cost: int = 0, source_label: str = "label") -> Path:
        project, site = tmp_path / "project", tmp_path / "site"
        project.mkdir()
        (project / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
        source = METHOD.replace("source_labels=(label,)", f"source_labels=({source_label},)")
        source = source.replace("return 0", f"return {cost}")
        (project / "diffaug_mirrored.py").write_text(source, encoding="utf-8")
        (project / "diffaug_pins.py").write_text(BUILDER, encoding="utf-8")
        build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
        assert shell(sys.executable, "-c", build, cwd=project).code == 0
        [wheel] = project.glob("*.whl")
        offline = ("--quiet", "--no-index", "--no-deps", "--no-compile", "--target", site)
        assert shell(sys.executable, "-m", "pip", "install", *offline, wheel).code == 0
        assert (site / "diffaug_mirrored-1.0.dist-info" / "entry_points.txt").exists()
        return site

    return installed


def contract(shell: Command, site: Path) -> Answer:
    """The contract tests of the plugged-in method alone, where it is installed."""
    here = Path(__file__).resolve()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    path = os.pathsep.join([str(site), str(here.parents[1])])
    return shell(*command, here.with_name("test_contract.py"), "-k", "mirrored", cwd=here.parents[2], PYTHONPATH=path)


def test_a_plugged_in_method_holds_the_contract(install, shell: Command) -> None:
    site = install()
    listed = shell(sys.executable, "-m", "diffaug_datasets", "methods", "mirrored", PYTHONPATH=str(site))
    assert listed.code == 0 and "Mirrored (arXiv 0000.00000)" in listed.out and "noise" in listed.out
    said = contract(shell, site)
    assert said.code == 0, said.out
    assert "8 passed" in said.out


@pytest.mark.full
@pytest.mark.parametrize(
    ("fault", "tests"),
    [
        ({"cost": 2}, {"test_rows_regenerate_and_cost_what_is_declared", "test_what_is_computed_was_priced"}),
        ({"source_label": "label - 1"}, {"test_declared_facts_are_true"}),
    ],
)
def test_a_plugged_in_method_that_says_what_is_not_so_is_caught(
    install, shell: Command, fault, tests: set[str]
) -> None:
    said = contract(shell, install(**fault))
    assert said.code == 1 and f"{8 - len(tests)} passed" in said.out
    assert all(f"::{test}[mirrored]" in said.out for test in tests)


def test_a_plugged_in_builder_reads_a_folder(install, shell: Command, tmp_path: Path) -> None:
    site, photos = install(), tmp_path / "pins" / "photos"
    photos.mkdir(parents=True)
    (tmp_path / "pins" / "pins.txt").write_text("p1 map_pin\np2 push_pin\n", encoding="utf-8")
    for place, name in enumerate(("p1", "p2")):
        Image.new("RGB", (8, 8), (place, 0, 0)).save(photos / f"{name}.png")
    changes = ("--source", tmp_path / "pins", "--set", "per_class=1", "--dry-run", "--json")
    said = shell(sys.executable, "-m", "diffaug_datasets", "plan", "pins_full_mirrored", *changes, PYTHONPATH=str(site))
    assert said.code == 0 and json.loads(said.out)["images_per_class"] == {"map_pin": 1, "push_pin": 1}, said


Plug = Callable[..., ModuleType]


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plug]:
    """`plug_in(module, NAME="x")`: an entry point more, for the example with other facts; None takes one away."""
    points: list[SimpleNamespace] = []
    monkeypatch.setattr(core_method, "entry_points", lambda group: points)

    def plugged(module: str, **facts: object) -> ModuleType:
        made = ModuleType(module)
        exec(METHOD, made.__dict__)
        made.__dict__.update(facts)
        for name in [name for name, value in facts.items() if value is None]:
            delattr(made, name)
        points.append(SimpleNamespace(load=lambda: made))
        return made

    core_method.discover_methods.cache_clear()
    yield plugged
    core_method.discover_methods.cache_clear()


def test_a_plug_in_stands_beside_the_shipped_methods(plug_in: Plug) -> None:
    shipped = {path.stem for path in Path(genie.__file__).parent.glob("*.py")}
    made = plug_in("theirs")
    methods = core_method.discover_methods()
    assert (methods["mirrored"].module, methods["mirrored"].generate) == ("theirs", made.generate)
    assert methods["genie"].module == genie.__name__ and methods.keys() - {"mirrored"} < shipped
    assert methods["mirrored"].page.startswith("Mirrored: a real image of the class, mirrored")


@pytest.mark.parametrize(
    ("name", "slug", "fact"), [("genie", "mirrored", "NAME 'genie'"), ("mirrored", "genie", "SLUG 'genie'")]
)
def test_a_plug_in_never_replaces_a_shipped_method(
    plug_in: Plug, diffaug: Command, name: str, slug: str, fact: str
) -> None:
    plug_in("theirs", NAME=name, SLUG=slug)
    said = f"methods {genie.__name__} and theirs have the same {fact}; rename or uninstall one."
    assert diffaug("methods").sentence == said
    with pytest.raises(RecipeError, match=re.escape(said)):
        core_method.find_method("img2img")


def test_a_plug_in_never_replaces_another(plug_in: Plug) -> None:
    plug_in("one")
    plug_in("two", SLUG="turned")
    with pytest.raises(RecipeError, match="methods one and two have the same NAME 'mirrored'; rename or uninstall one"):
        core_method.discover_methods()


FAULTS: list[tuple[dict[str, object], str]] = [
    ({"PARITY": None}, "declares no PARITY."),
    ({"generate": None}, "declares no generate."),
    ({"NEED": frozenset()}, "NEED is no fact of a method; a constant of its own begins with an underscore."),
    ({"N_SOURCES": "1"}, "N_SOURCES: got '1', input should be a valid integer."),
    ({"LABEL_RULE": "both"}, "LABEL_RULE: got 'both', input should be 'source', 'target' or 'mixed'."),
    ({"NEEDS": frozenset({"luck"})}, "NEEDS: got 'luck', input should be "),
    ({"PARITY": "close"}, "PARITY: got 'close', string should match pattern "),
    ({"Config": dict}, "Config: got <class 'dict'>, input should be a subclass of MethodConfig."),
    ({"plan": lambda cfg, table: ()}, "plan must take 3 arguments."),
    ({"fit": lambda unit, cfg, ctx: None}, "fits and fit go together; declare both or neither."),
]


@pytest.mark.parametrize(("facts", "said"), FAULTS)
def test_what_a_module_declares_is_checked_where_it_is_found(
    plug_in: Plug, facts: dict[str, object], said: str
) -> None:
    plug_in("theirs", **facts)
    with pytest.raises(RecipeError) as refusal:
        core_method.discover_methods()
    assert str(refusal.value).startswith(f"method theirs: {said}")


def test_plugin_offers_what_it_lists_without_torch(shell: Command) -> None:
    assert set(plugin.__all__) == {name for name in vars(plugin) if not name.startswith("_")}
    code = "import sys, diffaug_datasets.plugin; print('torch' in sys.modules)"
    assert shell(sys.executable, "-c", code).out.strip() == "False"


def test_without_the_folder_it_is_not_there(shell: Command) -> None:
    said = shell(sys.executable, "-m", "diffaug_datasets", "methods", "mirrored")
    assert said.code == 2 and "expected one of" in said.err
