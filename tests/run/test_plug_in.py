"""A method of somebody else's, built as a wheel, installed into a folder and found through its entry point."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from command_line import Answer, Command

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

[tool.setuptools]
py-modules = ["diffaug_mirrored"]
"""

METHOD = '''"""Mirrored: a real image of the class, mirrored, under a little latent noise.

1. a real image of the class                  `plan`, role `source`
2. its mirror image, encoded, plus noise      `generate`
"""

from pydantic import BaseModel, ConfigDict

from diffaug_datasets.core.method import Generated, new_row
from diffaug_datasets.core.identity import RowKey

NAME, SLUG, VERSION, TITLE, PAPER = "mirrored", "mirrored", 1, "Mirrored", "0000.00000"
PARITY = "matches nothing published"
N_SOURCES, LABEL_RULE, NEEDS = 1, "source", frozenset()


class Config(BaseModel):
    """How much noise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise: float = 0.1


class Draw(BaseModel):
    """Only the source and the noise are drawn."""


def plan(cfg, table, spec):
    for label, images in table.by_class().items():
        for k in range(spec.count(len(images)) if images else 0):
            key = RowKey(spec.seed, NAME, label, k)
            source = key.choice("source", images)
            yield new_row(VERSION, key, spec, source_ids=(source.id,), source_labels=(SOURCE_LABEL,))


def fits(cfg, table, spec, rows):
    return ()


def fit(unit, cfg, ctx):
    raise LookupError(unit.name)


def evaluations(cfg, row):
    return COST


def generate(rows, cfg, ctx):
    import torch

    pixels = [ctx.backbone.preprocess(ctx.source(row.source_ids[0]), "bilinear").flip(-1) for row in rows]
    latents = ctx.backbone.encode(torch.stack(pixels)) + cfg.noise * ctx.noise(rows)
    return [Generated(image.permute(1, 2, 0)) for image in ctx.backbone.decode_float(latents)]
'''


@pytest.fixture
def install(tmp_path: Path, shell: Command):
    """`install(cost=0, source_label="label")`: builds the wheel, installs it, and returns the folder."""

    def installed(cost: int = 0, source_label: str = "label") -> Path:
        project, site = tmp_path / "project", tmp_path / "site"
        project.mkdir()
        (project / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
        source = METHOD.replace("SOURCE_LABEL", source_label).replace("COST", str(cost))
        (project / "diffaug_mirrored.py").write_text(source, encoding="utf-8")
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


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], ModuleType]]:
    """`plug_in(module, name, slug)`: an entry point more, for a module that only says who it is."""
    points: list[SimpleNamespace] = []
    monkeypatch.setattr(core_method, "entry_points", lambda group: points)

    def plugged(module: str, name: str, slug: str) -> ModuleType:
        made = ModuleType(module)
        made.NAME, made.SLUG = name, slug
        points.append(SimpleNamespace(load=lambda: made))
        return made

    core_method.discover_methods.cache_clear()
    yield plugged
    core_method.discover_methods.cache_clear()


def test_a_plug_in_stands_beside_the_shipped_methods(plug_in) -> None:
    shipped = {path.stem for path in Path(genie.__file__).parent.glob("*.py")}
    made = plug_in("theirs", "mirrored", "mirrored")
    methods = core_method.discover_methods()
    assert methods["mirrored"] is made
    assert methods["genie"] is genie and methods.keys() - {"mirrored"} < shipped


@pytest.mark.parametrize(
    ("name", "slug", "fact"), [("genie", "mirrored", "NAME 'genie'"), ("mirrored", "genie", "SLUG 'genie'")]
)
def test_a_plug_in_never_replaces_a_shipped_method(plug_in, diffaug: Command, name: str, slug: str, fact: str) -> None:
    plug_in("theirs", name, slug)
    said = f"methods {genie.__name__} and theirs have the same {fact}; rename or uninstall one."
    assert diffaug("methods").sentence == said
    with pytest.raises(RecipeError, match=re.escape(said)):
        core_method.find_method("img2img")


def test_a_plug_in_never_replaces_another(plug_in) -> None:
    plug_in("one", "mirrored", "mirrored")
    plug_in("two", "mirrored", "turned")
    with pytest.raises(RecipeError, match="methods one and two have the same NAME 'mirrored'; rename or uninstall one"):
        core_method.discover_methods()


def test_without_the_folder_it_is_not_there(shell: Command) -> None:
    said = shell(sys.executable, "-m", "diffaug_datasets", "methods", "mirrored")
    assert said.code == 2 and "expected one of" in said.err
