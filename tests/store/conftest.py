"""Makes ``store_cases`` importable, whatever the import mode, and gives stores in a folder of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from store_cases import STUDY, record

from ranksearch.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "deep" / "x.db"


@pytest.fixture
def filled(path: Path) -> Path:
    with Store.open(path, **STUDY, details={"objectives": ["accuracy"]}) as store:
        assert all(store.add(record(i)) for i in range(3))
    return path
