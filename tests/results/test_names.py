"""Names that metrics and costs may have: those that conditions and columns can use."""

from __future__ import annotations

import pytest

from ranksearch.errors import InvalidArgument
from ranksearch.results.conditions import Condition
from ranksearch.results.names import COUNTED, EVALUATION_COLUMNS, FRONT_COLUMNS, METRICS, RESERVED, check_metrics, unusable
from ranksearch.tasks import Metric


@pytest.mark.parametrize("name", sorted({*RESERVED, *COUNTED}))
def test_names_of_columns_and_costs_are_refused_when_the_metric_is_made(name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        Metric(name, "min")


@pytest.mark.parametrize("name", ["lambda", "None", "True", "not", "in", "is", "top 1", "f1-score", "1st", "", "ﬁt", "µ", 5, None])
def test_names_that_conditions_cannot_read_are_refused(name: object) -> None:
    with pytest.raises(InvalidArgument, match="name="):
        Metric(name, "max")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["accuracy", "loss", "f1", "top5", "rmse", "match", "type", "_", "_rank", "error_rate", "μ", "größe"])
def test_what_is_taken_can_be_used_in_conditions(name: str) -> None:
    assert unusable(Metric(name, "max").name) is None
    assert Condition.parse(f"{name} < 2 and macs < 0.5").names == {name, "macs"}


def test_every_column_that_is_no_metric_and_no_cost_is_reserved() -> None:
    assert {"error", "seconds", "seed", "seeds", "id", "baseline"} <= RESERVED
    assert {c for c in (*EVALUATION_COLUMNS, *FRONT_COLUMNS) if c.islower()} <= RESERVED and METRICS not in RESERVED


def test_metrics_that_are_costs_are_none_of_their_own() -> None:
    assert check_metrics([("loss", "min"), ("macs", "min"), ("accuracy", "max")], ["params", "macs"]) == ["loss", "accuracy"]


@pytest.mark.parametrize("name", ["macs_delta", "bytes_delta", "macs_rel", "loss_delta"])
def test_columns_of_costs_and_metrics_are_no_metrics(name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        check_metrics([("loss", "min"), (name, "max")], ["params", "macs", "bytes"])
