"""Run the notebooks of docs/notebooks as a user does, and test what they show."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"


def result_of(cell):
    """Return the value of a cell's last line as text; progress bars are other outputs."""
    outputs = [output for output in cell.outputs if output.output_type == "execute_result"]
    return "".join(output.data["text/plain"] for output in outputs)


def outputs_of(cell, kind):
    """Return the outputs of a cell as text of a MIME type."""
    datas = [output.get("data", {}) for output in cell.get("outputs", ())]
    return "".join(data.get(kind, "") for data in datas)


def execute(name, folder):
    """Run a notebook in a folder; return its code cells with their outputs."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    client.execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


def test_first_steps(tmp_path):
    cells = execute("first_steps", tmp_path)
    by_source = {cell.source.splitlines()[-1]: cell for cell in cells}
    ran = by_source["result"]
    assert "12 queries ranked against 48 gallery images" in outputs_of(ran, "text/html")
    assert outputs_of(ran, "text/html").count("<img") == 3 * 7
    messages = "".join(output.get("text", "") for output in ran.outputs)
    assert "embed gallery: 48/48 images" in messages
    assert "<progress" not in str(ran.outputs)  # removed at the end
    shown = by_source['matches.show(["q0001.jpg", "q0002.jpg", "q0003.jpg"], matches=5)']
    assert outputs_of(shown, "text/html").count("data:image/jpeg;base64,") == 3 * 6
    assert outputs_of(cells[-2], "text/html").count("<img") == 6
    assert "(48, " in outputs_of(cells[-1], "text/plain")


def test_own_vectors(tmp_path):
    cells = execute("own_vectors", tmp_path)
    texts = [result_of(cell) for cell in cells]
    assert texts[2] == "1.0"
    assert float(texts[3].removeprefix("np.float64(").removesuffix(")")) > 0.95
    assert texts[5] == "True"
    assert "item" in texts[6]
    assert (tmp_path / ".index.inputs" / "embeddings.parquet").exists()
    assert outputs_of(cells[-2], "text/html").count("data:image/jpeg;base64,") == 3 * 4
    assert texts[-1] == "True"
