"""Makes ``contract_cases`` importable, whatever the import mode; trains are measured at fewer ranks in a metric."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ranksearch.decompositions import tensor_train

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _few_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank is fitted by itself, and tests look at four of them: the others would take most of the time of this folder."""
    monkeypatch.setattr(tensor_train, "MEASURED", 10)
