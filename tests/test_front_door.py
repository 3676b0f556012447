"""The front door: every public name is listed, documented with an example that runs, and cheap until it is used."""

import doctest
import inspect
import sys
from pathlib import Path

import pytest
from command_line import Command

import diffaug_datasets
from diffaug_datasets import errors

NAMES = sorted(diffaug_datasets.__all__)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all examples run, so that a run which several of them use is made once."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_an_example_that_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    text = inspect.getdoc(getattr(diffaug_datasets, name)) or ""
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert example.examples, f"{name} has no example"
    used = "".join(one.source for one in example.examples)
    assert name in used or name in str(example.examples[-1].exc_msg), f"the example of {name} does not use it"
    said: list[str] = []
    outcome = doctest.DocTestRunner(optionflags=FLAGS).run(example, out=said.append)
    assert not outcome.failed, "".join(said)


def test_all_that_a_person_needs_is_listed() -> None:
    wanted = {"Recipe", "Run", "plan", "generate", "publish", "verify", "load", "load_builder", "list_builders"}
    wanted |= {"MixedDataset", "MixedStream", *errors.__all__}
    assert wanted <= set(NAMES)
    assert set(dir(diffaug_datasets)) == {*NAMES, "__version__", "errors"}
    assert all(issubclass(getattr(errors, name), errors.DiffAugError) for name in errors.__all__)
    with pytest.raises(AttributeError, match="module 'diffaug_datasets' has no attribute 'plans'"):
        diffaug_datasets.plans  # noqa: B018


def test_importing_the_package_and_its_errors_loads_nothing_heavy(shell: Command) -> None:
    code = (
        "import sys, diffaug_datasets.errors\nfrom diffaug_datasets import DiffAugError, errors\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & set(sys.argv[1:])))"
    )
    heavy = ("torch", "datasets", "pyarrow", "pydantic", "numpy", "diffusers", "transformers", "typer")
    assert shell(sys.executable, "-c", code, *heavy).out == "[]\n"
