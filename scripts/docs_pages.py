"""MkDocs hook: pages that are written from the code at every build, so that none can be stale, and notebooks as pages.

`mkdocs build` calls `on_files` with the files of docs/ and `on_post_build` with the built site, in which nothing may
come from another machine. `pages()` is what is generated, for tests too.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from typer.core import TyperCommand
from typer.main import get_command

import diffaug_datasets
from diffaug_datasets import plugin
from diffaug_datasets.cli.grouping import GROUPS
from diffaug_datasets.cli.look import _parameters
from diffaug_datasets.cli.verbs import app
from diffaug_datasets.core import rows
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.profiles import Profile
from diffaug_datasets.core.recipe import Filter, Recipe
from diffaug_datasets.planning.presets import SETTING, families, presets, shown_value
from diffaug_datasets.sources.real import builder_facts, discover_builders

NOTEBOOKS = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
WRITTEN = "Written from the code when this site is built.\n"
ASSET = re.compile(r"""<(?:script|img|iframe|source|link(?![^>]*rel="?canonical))\b[^>]*?(?:src|href)="?(https?:)?//""")
STYLE = re.compile(r"url\(['\"]?(?:https?:)?//|@import\s+['\"](?:https?:)?//")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of docs/, and the pages that the code writes."""
    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, config: MkDocsConfig, **_: object) -> str:
    """A page with its tables and the examples of `diffaug_datasets.plugin` put in, where it asks for them."""
    markdown = re.sub(r"<!-- table: (\S+) -->", lambda match: csv_table(Path(config.docs_dir) / match[1]), markdown)
    examples = re.findall(r"^```python\n.*?^```$", plugin.__doc__ or "", re.M | re.S)
    return re.sub(r"<!-- plugin: (\d) -->", lambda match: examples[int(match[1])], markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Every asset of the site lies in the site.

    Raises:
        PluginError: a page or a style sheet fetches something from another machine.
    """
    for path in sorted(Path(config.site_dir).rglob("*")):
        sign = {".html": ASSET, ".css": STYLE}.get(path.suffix)
        if sign and (found := sign.search(path.read_text(encoding="utf-8"))):
            raise PluginError(f"{path}: {found[0]}... is fetched from another machine; keep it in docs/.")


def pages() -> dict[str, str]:
    """Place in the site -> text of every page that is written from the code."""
    written = {
        "reference/verbs.md": verbs(),
        "reference/recipe.md": recipe(),
        "reference/columns.md": columns(),
        "reference/parameters.md": parameters(),
        "reference/builders.md": builders(),
        "reference/presets.md": published(),
        "reference/python.md": names("Python", "diffaug_datasets", diffaug_datasets.__all__),
        "reference/plugin.md": names(
            "For authors: `diffaug_datasets.plugin`", "diffaug_datasets.plugin", plugin.__all__
        ),
    }
    return written | {f"notebooks/{path.stem}.md": notebook(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))}


def table(head: tuple[str, ...], lines: Iterator[tuple[object, ...]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    cells = [" | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) for line in lines]
    return f"| {' | '.join(head)} |\n|{' --- |' * len(head)}\n" + "".join(f"| {line} |\n" for line in cells)


def csv_table(path: Path) -> str:
    """A CSV file as a Markdown table."""
    with path.open(encoding="utf-8", newline="") as file:
        head, *lines = csv.reader(file)
    return table(tuple(head), (tuple(line) for line in lines))


def verbs() -> str:
    """Every verb by its group, with the whole of its help."""
    group = get_command(app)
    text = f"# Command line\n\n{WRITTEN}`diffaug --help` and `diffaug VERB --help` print the same. `--debug`, anywhere "
    text += "on the line, shows the traceback of an error.\n"
    shown = [verb for verb in group.commands.values() if isinstance(verb, TyperCommand) and not verb.hidden]
    for title in GROUPS:
        text += f"\n## {title}\n"
        for verb in (verb for verb in shown if verb.rich_help_panel == title):
            context = verb.make_context(
                verb.name, [], resilient_parsing=True, parent=group.make_context("diffaug", ["x"])
            )
            text += f"\n### {verb.name}\n\n```text\n{verb.get_help(context).rstrip()}\n```\n"
    return text


def recipe() -> str:
    """The keys of a recipe and of its parts."""
    text = f"# Recipe keys\n\n{WRITTEN}A recipe is a YAML file. An unknown key is an error that names the nearest one. "
    text += "The keys of `config` are those of the method: see [Parameters of methods](parameters.md).\n"
    text += f"\n{fields(Recipe)}\n## An entry of `filters`\n\n{fields(Filter)}"
    return f"{text}\n## Keys of `profile`\n\n{fields(Profile)}"


def fields(model: type[BaseModel]) -> str:
    """A table of the keys of a pydantic model; those of a model inside have dotted names."""
    names = {name: info.alias or name for name, info in model.model_fields.items()}
    lines = (
        (f"`{names.get(p['key'], p['key'])}`", p["type"], f"`{p['default']}`", p["meaning"] or "-")
        for p in _parameters(model)
    )
    return table(("key", "type", "default", "meaning"), lines)


def columns() -> str:
    """The columns of a published set and of its provenance."""
    meanings, types = rows.column_meanings(), rows.published_columns()
    text = f"# Columns\n\n{WRITTEN}Real and synthetic rows have the same columns; what does not apply is null.\n\n"
    text += "## Of a set\n\n" + table(
        ("column", "type", "meaning"), ((f"`{n}`", rows.KINDS[k].text, meanings[n]) for n, k in types.items())
    )
    more = {
        name: k
        for model in (rows.Ending, rows.SourceFacts, rows.SetScores)
        for name, k in rows.column_types(model).items()
    }
    text += "\n## Of its provenance, besides\n\n" + table(
        ("column", "type", "meaning"), ((f"`{n}`", rows.KINDS[k].text, meanings[n]) for n, k in more.items())
    )
    return text


def parameters() -> str:
    """What each method says of itself, and the keys of its `config`."""
    text = f"# Parameters of methods\n\n{WRITTEN}`diffaug methods NAME` prints the same. All methods at a glance: "
    text += "[Methods](../methods.md).\n"
    for name, method in sorted(discover_methods().items()):
        text += f"\n## {name}\n\n```text\n{method.page.strip()}\n```\n\n{fields(method.Config)}"
    return text


def builders() -> str:
    """The real datasets."""
    text = (
        f"# Builders\n\n{WRITTEN}A builder says how the images of a real dataset are named and laid out. `imagefolder` "
    )
    text += "takes any folder with one folder per class; `diffaug builders` prints this list.\n\n"

    def lines() -> Iterator[tuple[object, ...]]:
        for name in discover_builders():
            facts = builder_facts(name)
            may = "yes" if facts.redistributable else "no"
            counts = ", ".join(f"{count:,} {what}" for what, count in facts.official.items()) or "-"
            yield f"`{name}`", facts.title, counts, f"`{facts.hub_id}`" if facts.hub_id else "-", facts.licence, may

    return text + table(("name", "title", "official counts", "on the Hub", "licence", "real rows published"), lines())


def published() -> str:
    """Every preset, what it is, what it changes, and where each value stands."""
    text = (
        f"# Presets\n\n{WRITTEN}A preset is a published setting of a method on a dataset. It is a recipe: `diffaug cp "
    )
    text += "NAME mine.yaml` makes a file of it. A name that ends in `_code` is what the authors' code does. Every "
    text += "value says where it stands, or why it is ours; `diffaug methods NAME` prints the same of one preset.\n"
    for method in sorted({preset.method for preset in presets().values()}):
        text += f"\n## {method}\n"
        for group in families(method):
            names = ", ".join(f"`{preset.name}`" for preset in group)
            lines = (
                (f"`{key}`", "as named" if key == SETTING else f"`{shown_value(value)}`", origin.text)
                for key, value, origin in group[0].values()
            )
            text += f"\n{names}: {group[0].about}\n\n" + table(("value", "is", "where it stands"), lines)
    return text


def names(title: str, module: str, offered: list[str]) -> str:
    """The documentation of public names, each read from its docstring by mkdocstrings."""
    scope = diffaug_datasets if module == "diffaug_datasets" else plugin
    text = f"# {title}\n\n{WRITTEN}All of these are imported from `{module}`.\n"
    for name in sorted(offered, key=str.lower):
        value = getattr(scope, name)
        home = getattr(value, "__module__", "")
        if scope is plugin and name in diffaug_datasets.__all__:  # a name has one place, for links
            text += f"\n## {name}\n\nSee [Python](python.md).\n"
            continue
        if not home.startswith("diffaug_datasets"):  # a name for a type
            text += f"\n## {name}\n\n`{re.sub(r'typing[.]', '', str(value))}`\n"
            continue
        text += f"\n::: {home}.{name}\n{_members(value)}"
    return text


def _members(value: Any) -> str:
    """mkdocstrings' options: a class that is no error shows its public methods too."""
    if not isinstance(value, type) or issubclass(value, Exception):
        return ""
    return '    options:\n      members: null\n      filters: ["!^_"]\n      heading_level: 2\n'


def notebook(path: Path) -> str:
    """A notebook as a page: its text, its code, and the texts that stand under it."""
    text = ""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        text += f"{source}\n\n" if cell["cell_type"] == "markdown" else f"```python\n{source}\n```\n\n"
        said = "".join("".join(out.get("text", "")) for out in cell.get("outputs", ()))
        text += f"```text\n{said.rstrip()}\n```\n\n" if said else ""
    first, _, rest = text.partition("\n")
    return f"{first}\n\nThis page is the notebook `docs/notebooks/{path.name}`; the tests execute it.\n{rest}"
