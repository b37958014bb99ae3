"""Where a study is logged, told by a client that only answers about experiments; what is logged is tested with MLflow itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ranksearch.results.mlflow_runs import log


class Asked(Exception):
    """The run was asked for: nothing further is of interest."""


class Client:
    def __init__(self, known: dict[str, str]) -> None:
        self.known = known

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.known[name]) if name in self.known else None

    def create_experiment(self, name: str) -> str:
        assert name not in self.known
        return f"new {name}"

    def create_run(self, where: str, *, run_name: str) -> Any:
        raise Asked(f"{run_name} in {where}")


@pytest.mark.parametrize(("known", "where"), [({}, "new mine"), ({"mine": "7"}, "7")])
def test_an_experiment_is_made_if_there_is_none_of_its_name(known: dict[str, str], where: str) -> None:
    with pytest.raises(Asked, match=f"^digits in {where}$"):
        log(Client(known), "mine", SimpleNamespace(name="digits"))  # type: ignore[arg-type]
