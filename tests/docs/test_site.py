"""The site is built strictly: links, anchors and the list of pages hold, nothing comes from elsewhere or is stale."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffaug_datasets.cli.verbs import app
from diffaug_datasets.core.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
PAGE = "docs/guides/train.md"
FAULTS = {
    "a page that is not there": (PAGE, "[x](nowhere.md)", "target 'guides/nowhere.md' is not found"),
    "an anchor that is not there": (PAGE, "[x](publish.md#nowhere)", "does not contain an anchor '#nowhere'"),
    "a page that is not listed": ("docs/guides/more.md", "# More", 'are not included in the "nav" configuration'),
    "an asset from elsewhere": (PAGE, "![x](https://example.org/x.png)", "is fetched from another machine"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the site is built from, in a folder of its own."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "docs", folder / "docs")
    (folder / "scripts").mkdir()
    for name in ("mkdocs.yml", "scripts/docs_pages.py", "scripts/docs_doctests.py"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "diffaug_datasets").symlink_to(ROOT / "diffaug_datasets")  # mkdocstrings reads the sources
    return folder


def build(project: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(project / "site")]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


@pytest.mark.full
def test_the_site_is_built_and_carries_all_it_needs(project: Path) -> None:
    done = build(project)
    assert done.returncode == 0, done.stderr
    built = {path.relative_to(project / "site").as_posix() for path in (project / "site").rglob("*.html")}
    assert {"index.html", "reference/verbs.html", "reference/python.html", "notebooks/publish.html"} <= built
    verbs = (project / "site" / "reference" / "verbs.html").read_text(encoding="utf-8")
    assert all(f'id="{verb.callback.__name__}"' in verbs for verb in app.registered_commands if not verb.hidden)
    recipe = (project / "site" / "reference" / "recipe.html").read_text(encoding="utf-8")
    nested = ("schema_", "backbone", "scores")  # an alias, and keys with keys of their own
    assert all(f"<code>{key}</code>" in recipe for key in Recipe.model_fields if key not in nested)


@pytest.mark.full
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_page_fails_the_build(project: Path, fault: str) -> None:
    place, text, said = FAULTS[fault]
    path = project / place
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.write_text(f"{before or ''}\n{text}\n", encoding="utf-8")
    done = build(project)
    path.unlink() if before is None else path.write_text(before, encoding="utf-8")
    assert done.returncode != 0 and said in done.stderr, done.stderr[-3000:]


def test_every_page_that_is_written_from_the_code_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import docs_pages

    pages = docs_pages.pages()
    assert all(text.startswith("# ") and len(text) > 500 for text in pages.values())
    assert "| `per_class` |" in pages["reference/recipe.md"] and "| `schema` |" in pages["reference/recipe.md"]
    assert "### withdraw" in pages["reference/verbs.md"]
    assert "Example: diffaug withdraw" in pages["reference/verbs.md"]
    assert "::: diffaug_datasets.release.publishing.publish" in pages["reference/python.md"]
    assert docs_pages.ASSET.search('<script async src="https://x.org/a.js">')
    assert not docs_pages.ASSET.search('<a href="https://arxiv.org/abs/1">') and docs_pages.STYLE.search(
        "url('//x.org/f')"
    )


def test_examples_of_docstrings_become_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from docs_doctests import fenced

    text = "One line.\n\n>>> 1 + 1\n2\n\n>>> 2 + 2\n4\n\nMore."
    assert fenced(text) == "One line.\n\n```pycon\n>>> 1 + 1\n2\n\n>>> 2 + 2\n4\n```\n\nMore."
