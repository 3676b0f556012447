"""What the pages name exists: messages, files, verbs, options, extras, folders and the files of a run."""

import ast
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

import pytest
from command_line import Command
from typer.main import get_command

from diffaug_datasets.cli import main
from diffaug_datasets.cli.verbs import app
from diffaug_datasets.report.page import write_report
from diffaug_datasets.run.store import Run

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
PLACES = re.compile(r"`((?:scripts|builders|tests|docs|diffaug_datasets)/[\w./-]*|\.ci/run|CITATION\.cff)`")


def messages() -> list[str]:
    """The messages that the page quotes."""
    return re.findall(r"^#### `(.+)`$", TEXTS["docs/guides/troubleshooting.md"], re.M)


def said_by_the_code() -> list[str]:
    """Every text in the package; what is filled in stands as `...`."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "diffaug_datasets").rglob("*.py")]
    return [text for tree in trees for text in texts(tree)]


def texts(node: ast.AST) -> Iterator[str]:
    """The texts of a tree, with those that are put together from parts."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value
        elif isinstance(inner, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in inner.values)


def is_said(message: str, known: list[str]) -> bool:
    """Whether one text of the code has all parts of a message, in their order."""
    parts = ".*?".join(re.escape(part) for part in re.split(r"\.{3}", message) if part.strip(" .`"))
    return any(re.search(parts, text, re.S) for text in known)


def test_every_message_that_the_page_explains_is_in_the_code() -> None:
    known = said_by_the_code()
    assert len(messages()) > 25
    assert [message for message in messages() if not is_said(message, known)] == []
    assert not is_said("...: begins with no bilder; expected one of ...", known)


def test_what_the_architecture_names_exists() -> None:
    text = TEXTS["docs/architecture.md"]
    places = re.findall(
        r"`((?:core|numerics|models|methods|sources|run|planning|release|evaluate|report|train|cli)/[\w./]+)`", text
    )
    assert len(places) > 15
    for place in places:
        assert (ROOT / "diffaug_datasets" / place).exists(), place
    folders = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert set(folders) == {path.parent.name for path in (ROOT / "diffaug_datasets").glob("*/__init__.py")}


def test_files_that_the_pages_name_exist() -> None:
    named = {name for text in TEXTS.values() for name in PLACES.findall(text)}
    assert len(named) > 15
    assert sorted(name for name in named if not (ROOT / name).exists()) == []
    family = re.findall(
        r"`(?:diffaug_datasets/)?((?:core|families/parts)/\w+\.py)`\s\(([^)]*)\)", TEXTS["docs/contributing/family.md"]
    )
    assert len(family) > 1
    for file, names in family:
        text = (ROOT / "diffaug_datasets" / file).read_text(encoding="utf-8")
        assert all(name in text for name in re.findall(r"`(\w+)`", names)), (file, names)


def lines() -> Iterator[tuple[str, str]]:
    """(page, command line) of every `diffaug` line in a block of commands."""
    for page, text in TEXTS.items():
        for _, block in re.findall(r"^```(sh|console)\n(.*?)^```$", text, re.M | re.S):
            for line in block.splitlines():
                words = line.removeprefix("$ ").partition("  #")[0]
                if words.startswith("diffaug "):
                    yield page, words


def test_command_lines_that_the_pages_show_parse() -> None:
    shown = list(lines())
    assert len(shown) > 20
    for page, line in shown:
        verb, *words = shlex.split(line)[1:]
        assert get_command(app).commands[verb].make_context(verb, words), (page, line)


def test_verbs_and_extras_that_the_pages_name_exist(diffaug: Command) -> None:
    text = "\n".join(TEXTS.values())
    verbs = set(re.findall(r"`diffaug ([a-z]+)", text))
    assert len(verbs) > 10
    for verb in verbs:
        assert diffaug(verb, "--help").code == 0, verb
    extras = {extra for group in re.findall(r"\.\[([a-z,]+)\]", text) for extra in group.split(",")}
    assert extras and extras <= set(metadata("diffaug-datasets").get_all("Provides-Extra") or ())


def test_numbers_that_the_choice_rests_on_were_measured() -> None:
    measured = TEXTS["docs/measured.md"]
    shown = re.findall(r"\d+\.\d \+- \d\.\d", TEXTS["docs/guides/choose-a-method.md"])
    assert len(shown) > 10
    assert [number for number in shown if number not in measured] == []


@pytest.mark.parametrize(("page", "least"), [("guides/choose-a-method", 8), ("results", 3)])
def test_intervals_that_a_page_tells_stand_in_the_tables_of_a_bench(page: str, least: int) -> None:
    tables = "\n".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "bench").glob("*.csv")))
    shown = re.findall(r"[+-]?\d+\.\d \([+-]?\d+\.\d to [+-]?\d+\.\d\)", TEXTS[f"docs/{page}.md"])
    shown += re.findall(r"\(([+-]\d+\.\d, [+-]\d+\.\d to [+-]\d+\.\d)\)", TEXTS[f"docs/{page}.md"])
    told = {number.replace(" (", ", ").rstrip(")") for number in shown}
    assert len(told) >= least
    assert [number for number in told if number not in tables.replace(" (", ", ").replace(")", "")] == []


def test_the_readme_is_short() -> None:
    readme = TEXTS["README.md"].splitlines()
    assert len(readme) < 120
    assert next(number for number, line in enumerate(readme) if line.startswith("loader = ")) < 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with a fit, measures and a report."""
    from diffaug_datasets import generate, plan

    few = {"num_inference_steps": 2, "inversion_steps": 2, "concepts": {"steps": 1}}
    run = plan("fashion_2shot_diffii", tmp_path_factory.mktemp("run") / "run", per_class=1, config=few)
    generate(run, workers=1)
    with pytest.raises(SystemExit, match="0"):
        main(["measure", str(run.folder)])
    write_report([run], run.folder / "report.html")
    return run


def test_the_page_lists_the_files_of_a_run_folder(run: Run) -> None:
    named = set(re.findall(r"^\| `(.+?)`", TEXTS["docs/reference/run-folder.md"], re.M))
    paths = [path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()]
    forms = {re.sub(r"^(fits/).*", r"\1NAME/", re.sub(r"-\d{5}\.", "-NNNNN.", path)) for path in paths}
    assert forms == named
