"""Rows per evaluation and site, on two sites and three options."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ranksearch.results.choices import Choices
from ranksearch.results.frames import typed
from ranksearch.results.layers import OptionTable, layers

OPTIONS = (("b", "dense", ()), ("a", "dense", ()), ("a", "tucker2", (3, 4)))
CHOICES = Choices(pa.array(["x", "y"]), ("b", "a"), OPTIONS, np.array([[0, 2], [0, 1]], dtype=np.int32))
TABLE = OptionTable(
    costs={"params": np.array([50, 100, 20]), "macs": np.array([0, 400, 100])},
    dense={"params": np.array([50, 100, 100]), "macs": np.array([0, 400, 400])},
    errors=np.array([0.0, 0.0, 0.25]), descriptions=["", "", "3 x 4 channels"],
)  # fmt: skip


def test_every_evaluation_has_a_row_for_every_site() -> None:
    """An embedding has no MACs, and the second network none at all: shares of nothing do not exist."""
    evaluations = pd.DataFrame(
        {
            "id": typed("id", ["y", "x", "y"]), "fidelity": typed("fidelity", ["full", "full", "half"]), "seed": [0, 1, 2],
            "params": [150, 70, 150], "macs": [0, 200, 400],
        }
    )  # fmt: skip
    found = layers(evaluations, CHOICES, TABLE)
    assert found["id"].tolist() == ["y", "y", "x", "x", "y", "y"] and found["seed"].tolist() == [0, 0, 1, 1, 2, 2]
    assert found["fidelity"].tolist() == ["full"] * 4 + ["half"] * 2 and found["site"].tolist() == ["b", "a"] * 3
    assert found["site"].cat.categories.tolist() == ["b", "a"], "in the order of the model"
    assert found["decomposition"].tolist() == ["dense", "dense", "dense", "tucker2", "dense", "dense"]
    assert found["rank"].tolist() == ["", "", "", "3x4", "", ""] and found["description"].tolist()[3] == "3 x 4 channels"
    assert found["params"].tolist() == [50, 100, 50, 20, 50, 100] and found["relative_error"].tolist() == [0, 0, 0, 0.25, 0, 0]
    assert found["params_rel"].tolist() == pytest.approx([1, 1, 1, 0.2, 1, 1])
    assert found["params_share"].tolist() == pytest.approx([50 / 150, 100 / 150, 50 / 70, 20 / 70, 50 / 150, 100 / 150])
    assert found["macs_rel"].tolist() == pytest.approx([np.nan, 1, np.nan, 0.25, np.nan, 1], nan_ok=True)
    assert found["macs_share"].tolist() == pytest.approx([np.nan, np.nan, 0, 0.5, 0, 1], nan_ok=True)
