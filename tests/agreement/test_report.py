"""Reports on proxies against measurements whose answer is known."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.agreement import report as proxy_report
from ranksearch.decompositions import SVD, Moments
from ranksearch.errors import InvalidArgument
from ranksearch.networks.surgery import build
from ranksearch.proxies import (
    PROXIES,
    Calibrated,
    Energy,
    Frobenius,
    LastFeature,
    ProxyContext,
    ScoreProxy,
    SingleSiteLoss,
    TableProxy,
    free_proxies,
    make_proxies,
)
from ranksearch.sites import find_sites
from ranksearch.space import DENSE, Configuration, SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.space.table import Table
from ranksearch.store import Record
from ranksearch.tasks import Metric, Task

TUNED, PLAIN = "full:epochs=1,recalibration=8", "full:epochs=0,recalibration=8"


def _spectra() -> Spectra:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))
    return Spectra(model, find_sites(model, torch.randn(1, 24)), [SVD()])


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return build_space(_spectra())


def record(space: SearchSpace, configuration: Configuration, value: float, fidelity: str = TUNED, **changes) -> Record:
    cost = space.cost(space.indices(configuration)) if changes.pop("known", True) else space.baseline
    fields = {"seed": 0, "status": "done", "metrics": {"accuracy": value}} | changes
    return Record(
        configuration.id, configuration.to_json(), fidelity, fields["seed"], fields["status"], fields["metrics"], cost,
        None, 1.0, "test", datetime.now(UTC),
    )  # fmt: skip


def records(space: SearchSpace, count: int = 20) -> list[Record]:
    """Accuracy falls with the Frobenius error at one fidelity, and rises with it at the other."""
    rows = np.unique(space.sample(count, seed=0), axis=0)
    rows = rows[(rows != space.dense).any(1)]  # the dense network is no candidate
    scores = Frobenius().table(space).score(rows)
    found = []
    for row, score in zip(rows, scores, strict=True):
        found.append(record(space, space.configuration(row), 1 - score / 10))
        found.append(record(space, space.configuration(row), score / 10, PLAIN))
    return found


def test_a_proxy_that_is_right_at_one_fidelity_and_wrong_at_another(space: SearchSpace) -> None:
    data = proxy_report.measured(records(space), space, "accuracy", larger_is_better=True)
    frame = proxy_report.agreements(data, [Frobenius(), Energy()], k=4)
    assert tuple(frame.columns) == proxy_report.agreement_columns(["params", "macs"]) and len(frame) == 4
    of = {(row["proxy"], row["fidelity"]): row for row in frame.to_dict("records")}
    good, bad = of["frobenius", TUNED], of["frobenius", PLAIN]
    assert (good["kendall"], good["spearman"], good["recall"]) == pytest.approx((1, 1, 1))
    assert (bad["kendall"], bad["spearman"], bad["recall"]) == pytest.approx((-1, -1, 0))
    assert good["count"] == len(data.ids) and good["k"] == 4 and good["metric"] == "accuracy"
    for cost in ("params", "macs"):
        assert good[f"kendall_{cost}"] == pytest.approx(1) and good[f"regret_{cost}"] == pytest.approx(0)
        assert good[f"pairs_{cost}"] > 0 and bad[f"regret_{cost}"] >= bad[f"chance_{cost}"] > 0
    assert set(frame.dtypes[["kendall", "regret_macs"]].astype(str)) == {"float64"} and frame["count"].dtype == "int64"


def test_scores_are_those_of_the_whole_space(space: SearchSpace) -> None:
    every = records(space, 6)
    data = proxy_report.measured(every, space, "accuracy", larger_is_better=True, fidelity=TUNED)
    assert list(data.values) == [TUNED] and data.space.size < space.size
    frame = proxy_report.scores(data, proxy_report.solve(free_proxies(), data.space))
    assert tuple(frame.columns) == (*proxy_report.SCORE_COLUMNS, "params_rel", "macs_rel")
    names = [proxy.name for proxy in free_proxies()]
    assert set(frame["proxy"]) == set(names) and len(frame) == len(names) * len(data.ids)
    values = {r.configuration_id: r for r in every if r.fidelity == TUNED}
    for proxy in free_proxies():
        for row in frame[frame["proxy"] == proxy.name].to_dict("records"):
            mine = values[row["id"]]
            indices = space.indices(Configuration.from_json(mine.configuration))[None]
            assert row["score"] == pytest.approx(proxy.table(space).score(indices)[0])
            assert row["measured"] == mine.metrics["accuracy"]
            assert row["macs_rel"] == pytest.approx(mine.costs["macs"] / space.baseline.macs)
            assert row["params_rel"] == pytest.approx(mine.costs["params"] / space.baseline.params)


def test_what_counts(space: SearchSpace) -> None:
    every = records(space)
    first = Configuration.from_json(every[0].configuration)
    elsewhere = Configuration({"0": ("tucker2", (1, 1))})
    noise = [
        record(space, DENSE, 1.0), record(space, elsewhere, 0.5, known=False), record(space, first, 0.0, seed=1),
        record(space, space.configuration(space.sample(1, seed=9)[0]), 0.5, status="failed", metrics={}),
        record(space, first, 0.5, "one:epochs=9"),
    ]  # fmt: skip
    data = proxy_report.measured([*every, *noise], space, "accuracy", larger_is_better=True)
    assert set(data.values) == {TUNED, PLAIN} and DENSE.id not in data.ids and elsewhere.id not in data.ids
    seeds_mean = data.values[TUNED][data.ids.index(first.id)]
    assert seeds_mean == pytest.approx(every[0].metrics["accuracy"] / 2)
    assert len(data.ids) == len(every) // 2


def test_smaller_is_better_turns_the_order(space: SearchSpace) -> None:
    data = proxy_report.measured(records(space), space, "accuracy", larger_is_better=False, fidelity=PLAIN)
    assert proxy_report.agreements(data, [Frobenius()])["kendall"].tolist() == pytest.approx([1])


def test_too_few_and_unknown_fidelities(space: SearchSpace) -> None:
    every = records(space)
    with pytest.raises(InvalidArgument, match="1 factorized networks of this space are measured; at least 3"):
        proxy_report.measured([*every[:2], record(space, DENSE, 1.0)], space, "accuracy", larger_is_better=True)
    with pytest.raises(InvalidArgument, match="0 factorized networks"):
        proxy_report.measured([], space, "accuracy", larger_is_better=True, fidelity=TUNED)
    with pytest.raises(InvalidArgument, match=f"fidelity='x': nothing was measured at it; the store has {PLAIN}, {TUNED}"):
        proxy_report.measured(every, space, "accuracy", larger_is_better=True, fidelity="x")


class Partial(TableProxy):
    name = "partial"
    in_metric = True

    def table(self, space: SearchSpace) -> Table:
        return Frobenius().table(space)

    def uncovered(self, space: SearchSpace) -> dict[str, str]:
        return {"0": "no reason", "2": "none either"}


class Whole(ScoreProxy):
    name = "whole"

    def score(self, space: SearchSpace, indices: np.ndarray) -> np.ndarray:
        return indices.sum(axis=1).astype(np.float64)


def test_what_a_proxy_does_not_cover_is_told(space: SearchSpace) -> None:
    data = proxy_report.measured(records(space), space, "accuracy", larger_is_better=True, fidelity=TUNED)
    frame = proxy_report.agreements(data, [*proxy_report.solve([Partial()], data.space, {"4": "besides"}), Whole()])
    assert frame["uncovered"].tolist() == ["4: besides; 0: no reason; 2: none either", ""]


def test_sites_without_moments_are_told_only_where_others_have_some() -> None:
    plain = _spectra()
    assert proxy_report.without_moments(plain) == {}
    some = Spectra(plain.model, plain.sites, [SVD()], moments={"0": Moments(torch.eye(24, dtype=torch.float64)[None])})
    assert set(proxy_report.without_moments(some)) == {"2", "4"}


def test_every_proxy_is_judged_or_left_out_with_a_reason() -> None:
    names = {kind.name for kind in PROXIES}
    assert len(names) == len(PROXIES)
    space = build_space(_spectra())
    data = proxy_report.measured(records(space, 8), space, "accuracy", larger_is_better=True)
    for calibration, batches in ((2, 2), (2, 0), (0, 2), (0, 0)):
        context = ProxyContext(space, _spectra(), Regression(), calibration=calibration, batches=batches)
        judged = proxy_report.judge(data, context)
        found, without = {p.name for p in judged.proxies}, set(judged.left_out)
        assert found | without == names and not found & without
        assert ("fisher" in found) == (calibration > 0) and ("calibrated" in found) == (calibration > 0 and batches > 0)
        frame, scores = judged.agreements(), judged.scores()
        assert set(frame["proxy"]) == found and scores["score"].notna().all() and len(scores) == len(found) * 2 * len(data.ids)


class Regression(Task):
    """Answers of a network, or of a fixed linear map, to random inputs."""

    metrics = (Metric("loss", "min"),)

    def __init__(self, teacher: nn.Module | None = None) -> None:
        self.teacher = teacher

    def fingerprint(self) -> str:
        return "regression"

    def example(self) -> torch.Tensor:
        return torch.zeros(1, 24)

    def labelled(self, batches: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        random = torch.Generator().manual_seed(0)
        for _ in range(batches):
            x = torch.randn(16, 24, generator=random)
            yield x, x[:, :4].cumsum(1) if self.teacher is None else self.teacher(x).detach()

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square().mean()

    def fine_tune(self, model: nn.Module, *, epochs: float, seed: int) -> None:
        raise AssertionError("not asked for")

    def measure(self, model: nn.Module, split: str = "validation") -> dict[str, float]:
        raise AssertionError("not asked for")


@pytest.mark.parametrize("own", [True, False])
def test_proxies_that_run_networks_say_what_those_networks_do(own: bool) -> None:
    """Against the losses of networks built one by one, which rise where the dense network's own answers are wanted and may fall where
    others are; the last feature of a network that ends in its only linear layer is not moved by that layer."""
    spectra = _spectra()
    task = Regression(spectra.model if own else None)
    space = build_space(spectra)
    data = proxy_report.measured(records(space, 8), space, "accuracy", larger_is_better=True)
    context = ProxyContext(space, spectra, task, calibration=1, batches=3)
    found, missing = make_proxies(context, (SingleSiteLoss, Calibrated, LastFeature))
    assert not missing
    single, calibrated, feature = found
    assert (single.name, calibrated.name, feature.name) == ("single_site_loss", "calibrated", "last_feature")

    def loss(configuration: Configuration) -> float:
        model = build(spectra, configuration)
        with torch.no_grad():
            return float(np.mean([task.loss(model(x), y).item() for x, y in task.labelled(3)]))

    assert isinstance(single, TableProxy) and isinstance(calibrated, TableProxy) and isinstance(feature, ScoreProxy)
    rises = []
    for ladder, column in zip(data.space.ladders, single.table(data.space).values, strict=True):
        best = int(np.argmin(ladder.column("frobenius")[:-1]))  # always measured, and nothing better raises it
        option = ladder.options[best]
        rises.append(loss(Configuration({ladder.site.name: (option.decomposition, option.rank)})) - loss(DENSE))
        assert column[best] == pytest.approx(max(rises[-1], 0), rel=1e-4, abs=1e-6)
    assert not own or min(rises) > 0
    assert all((v >= 0).all() and v[-1] == 0 for v in calibrated.table(data.space).values)
    last = [len(l.options) - 1 for l in data.space.ladders]
    last[-1] = 0  # only the last layer is factorized: what it is given stays
    assert feature.score(data.space, np.array([last]))[0] == pytest.approx(0, abs=1e-12) and "4" in feature.uncovered(data.space)
