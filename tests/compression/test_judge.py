"""The judge of networks: what it measures, with which statistics of batch norms."""

from __future__ import annotations

import copy

import pytest
import torch
from compress_cases import network, task
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.compression import judge
from ranksearch.networks.batch_norm import recalibrate


def test_without_a_distribution_the_loss_is_the_tasks() -> None:
    class Own:
        predictive = None
        batch_dim = 0

        def divergence(self, outputs: Tensor, reference: Tensor) -> None:
            return None

        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return F.mse_loss(outputs, targets)

    model = nn.Linear(3, 2)
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    a, b = torch.randn(2, 3), torch.randn(2, 2)
    measure = judge(model, Own(), [(x, y), (a, b)])  # type: ignore[arg-type]
    with torch.no_grad():
        expected = torch.cat([(model(x) - y).square(), (model(a) - b).square()]).mean()
    assert measure(model) == pytest.approx(float(expected), rel=1e-6)


def test_a_judge_takes_a_network_with_statistics_of_its_own_and_leaves_it_as_it_was() -> None:
    model, data = network(), task()
    recalibrate(model, data.calibration(3))
    small = copy.deepcopy(model)
    with torch.no_grad():
        small.get_parameter("0.weight").mul_(2)
    before = copy.deepcopy(small.state_dict())
    held_out = list(data.labelled(10))[-2:]
    measure = judge(model, data, held_out, statistics=3)
    assert measure.as_given(model) == pytest.approx(0, abs=1e-6) and measure.passes == 2 + 3
    assert measure(small) < measure.as_given(small), "the norm after the layer undoes what was done to it"
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    recalibrate(small, data.calibration(3))
    assert measure(small) == pytest.approx(measure.as_given(small), rel=1e-5)


def test_without_batch_norm_a_judge_takes_no_passes_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), task()
    monkeypatch.setattr(data, "calibration", lambda batches: pytest.fail("data for norms that are not there"))
    assert judge(model, data, list(data.labelled(2)), statistics=16).passes == 2


def test_what_is_not_a_number_is_infinitely_bad() -> None:
    model = nn.Linear(3, 2)
    measure = judge(model, task(), [(torch.randn(5, 3), torch.zeros(5))])
    assert measure(model) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    assert measure(model) == float("inf")
