"""The documentation's notebooks run, from top to bottom, in a kernel of Jupyter; they are kept without their output."""

from pathlib import Path

import pytest
from needs import needs

pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
needs("nbclient", reason="the dev extra is not installed")

NOTEBOOKS = sorted((Path(__file__).parents[3] / "docs/notebooks").glob("*.ipynb"))


@pytest.mark.slow
def test_notebooks_run(tmp_path):
    """All in one kernel, each with a clean slate, since importing the libraries takes longer than they do."""
    import nbclient
    import nbformat

    together = nbformat.v4.new_notebook()
    for path in NOTEBOOKS:
        home = f"import os; os.environ['MAGPOLICY_HOME'] = {str(tmp_path / path.stem)!r}"
        together.cells += [nbformat.v4.new_code_cell("%reset -f"), nbformat.v4.new_code_cell(home)]
        together.cells += nbformat.read(path, as_version=4).cells
    nbclient.NotebookClient(together, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert sum(bool(cell.get("outputs")) for cell in together.cells) > 2 * len(NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_output(path):
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
    assert path.stat().st_size < 20_000
