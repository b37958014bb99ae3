"""The fast way of evaluating gives what the slow one does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Evaluator, Fidelity, Request
from ranksearch.networks.batch_norm import batch_statistics, recalibrate
from ranksearch.proxies import CalibrationLoss, LastFeature
from ranksearch.rankbench.composed import ComposedEvaluator, Protocol
from ranksearch.space import mixture
from ranksearch.space.spectra import Spectra
from ranksearch.tasks import Classification

BATCHES = 3  # of 16, 16 and 8 examples: as many as there are


def task() -> Classification:
    random = np.random.default_rng(0)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        return random.normal(size=(count, 2, 6, 6)), random.integers(0, 3, count)

    return Classification(train=split(40), validation=split(21), learning_rate=0.1, batch_size=16, classes=3)


def network(norm: Any = nn.BatchNorm2d) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 8, 3, padding=1), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False), norm(8), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).double().eval()


def test_what_stages_remember_is_of_the_same_options() -> None:
    model, one = network(), task()
    spec = mixture()
    spectra = Spectra(model, spec.sites(model, one.example()), spec.decompositions)
    space = spec.build(spectra)
    plain, staged = (ComposedEvaluator(spectra, space, Protocol(one, 2, chunk=8), stages=of) for of in ((), ("0", "1", "3")))
    calls = []
    staged._layers[1].register_forward_hook(lambda *_: calls.append(1))
    rows = space.sample(4, seed=2)
    family = [np.array([*rows[0][:2], option]) for option in (0, 1)] + [np.array([rows[0][0], rows[1][1], 0]), *rows[2:], rows[0]]
    for indices in family:
        assert staged(indices) == pytest.approx(plain(indices), rel=1e-9)
    distinct = sum((family[k][:2] != family[k - 1][:2]).any() for k in range(1, len(family))) + 1
    assert len(calls) == distinct * 4  # the batches that norms are estimated on in one pass, and three parts


@pytest.mark.parametrize("chunk", [5, 64])
def test_a_protocol_is_re_estimation_and_then_measuring(chunk: int) -> None:
    one, two = network(), task()
    slow = copy.deepcopy(one)
    recalibrate(slow, two.normalization(BATCHES))
    prepared = Protocol(two, BATCHES, chunk=chunk).prepared(copy.deepcopy(one))
    prepared.estimate()
    assert prepared.measure() == pytest.approx(two.measure(slow), rel=1e-9)
    assert two.measure(one) != pytest.approx(two.measure(slow), rel=1e-3)  # re-estimating does something here


def test_composed_weights_give_what_built_networks_do() -> None:
    model, one = network(), task()
    spec = mixture()
    spectra = Spectra(model, spec.sites(model, one.example()), spec.decompositions)
    space = spec.build(spectra)
    fast, slow, fidelity = ComposedEvaluator(spectra, space, Protocol(one, BATCHES)), Evaluator(spectra, one), Fidelity(0.0, BATCHES)
    labelled = list(one.labelled(BATCHES))
    calibration = CalibrationLoss(spectra, labelled, one.loss, normalization="batch")
    kinds: set[str] = set()
    for indices in [*space.sample(12, seed=0), space.dense]:
        configuration = space.configuration(indices)
        kinds |= {kind for _, kind, _ in configuration.choices}
        found, expected = fast(indices), slow(Request(configuration, fidelity, 0)).metrics
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-7)
        assert found["calibration_loss"] == pytest.approx(calibration(configuration), rel=1e-7)
    assert len(kinds) > 3  # types that such a network has
    assert fast(space.dense)["last_feature"] == pytest.approx(0, abs=1e-12)


def test_the_last_feature_is_that_of_batches_by_their_own_statistics() -> None:
    model, one = network(), task()
    spec = mixture()
    spectra = Spectra(model, spec.sites(model, one.example()), spec.decompositions)
    space = spec.build(spectra)
    inputs = [batch for batch, _ in one.labelled(BATCHES)]
    indices = space.sample(1, seed=1)[0]
    loss = CalibrationLoss(spectra, list(one.labelled(BATCHES)), one.loss, normalization="batch")
    built = loss.build(space.configuration(indices))
    dense = copy.deepcopy(model)
    with batch_statistics(built), batch_statistics(dense):
        expected = LastFeature(dense, lambda _configuration: built, inputs).score(space, indices[None])[0]
    assert ComposedEvaluator(spectra, space, Protocol(one, BATCHES))(indices)["last_feature"] == pytest.approx(expected, rel=1e-7)


def test_norms_without_running_statistics_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="no running statistics"):
        Protocol(task(), 1).prepared(network(lambda width: nn.BatchNorm2d(width, track_running_stats=False)))
