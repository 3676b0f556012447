"""The notebooks run from the first cell to the last, on packaged data, and keep no outputs in the repository."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
EXPECTED = {
    "own-photos": "70 rows, 20 of them synthetic",
    "publish": "bit-equal to the stored image",
    "did-it-help": "no difference seen",
}


def test_every_notebook_is_executed_and_kept_without_outputs() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == EXPECTED.keys()
    for path in FOLDER.glob("*.ipynb"):
        cells = nbformat.read(path, 4).cells
        assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code"), (
            path
        )


@pytest.mark.full
@pytest.mark.parametrize("name", EXPECTED)
def test_the_notebook_runs(name: str, tmp_path: Path) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in said if output.output_type == "stream")
    assert EXPECTED[name] in text, text
    assert any(output.output_type == "execute_result" for output in said) == (name != "did-it-help")
