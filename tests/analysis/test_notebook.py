"""The notebook runs from its first cell to its last, with a shorter search of a network that was trained for less long."""

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
    quicker = {"TRIALS = 14": "TRIALS = 7", "digits(epochs=0.5, training_epochs=8)": "digits(epochs=0, training_epochs=1, metric='weight')"}
    for text, other in quicker.items():
        assert sum(text in cell.source for cell in notebook.cells) == 1
        for cell in notebook.cells:
            cell.source = cell.source.replace(text, other)
    nbclient.NotebookClient(notebook, timeout=150, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    assert (tmp_path / "home" / "digits.db").exists()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "model.safetensors" in printed and "parameters" in printed
