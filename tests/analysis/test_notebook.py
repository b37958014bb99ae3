"""The notebook runs from its first cell to its last, with a shorter search."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "analysis" / "study.ipynb"


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="what runs notebooks is not installed")
    nbclient = pytest.importorskip("nbclient", reason="what runs notebooks is not installed")
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert sum("TRIALS = 14" in cell.source for cell in notebook.cells) == 1
    for cell in notebook.cells:
        cell.source = cell.source.replace("TRIALS = 14", "TRIALS = 7")
    nbclient.NotebookClient(notebook, timeout=150, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    assert (tmp_path / "home" / "digits.db").exists()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "model.safetensors" in printed and "parameters" in printed
