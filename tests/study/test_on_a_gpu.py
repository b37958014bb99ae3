"""Everything that a study does, on a GPU: the same numbers as on the processor, and nothing left behind on either. Skipped without one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ranksearch as rs
from ranksearch.decompositions import DECOMPOSITIONS, Moments
from ranksearch.evaluation import Evaluator, Fidelity, Request
from ranksearch.latency import Latency, Precision
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration, all_types, build_space, mixture
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import GivenLabels, collect
from ranksearch.study import Study
from ranksearch.tasks import Classification

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 4),
    )  # fmt: skip


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(count, 3, 8, 8)
    y = 2 * (x.mean(dim=(1, 2, 3)) > 0).long() + (x[:, 0].mean(dim=(1, 2)) > 0).long()
    return x, y


@pytest.fixture
def task() -> Classification:
    x, y = images(192)
    return Classification(train=(x[:128], y[:128]), validation=(x[128:], y[128:]), batch_size=32, learning_rate=0.02)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))


def study(task: Classification, model: nn.Module, tmp_path: Path, **changes: Any) -> Study:
    arguments: dict[str, Any] = {"space": mixture(cp=False), "fidelity": Fidelity(epochs=0.5, recalibration=2, reconstruction=1)}
    return Study("gpu", model=model, task=task, store=tmp_path / "s.db", **{**arguments, **changes})


def middle(spectra: Spectra, name: str) -> Configuration:
    """The middle rank of a type in every layer that it is defined for."""
    decomposition = spectra.decomposition(name)
    choices = {}
    for site in spectra.sites:
        if decomposition.undefined(site) is None and len(ranks := decomposition.options(site)):
            choices[site.name] = (name, tuple(int(entry) for entry in ranks[len(ranks) // 2]))
    return Configuration(choices)


@pytest.mark.parametrize("name", [d.name for d in DECOMPOSITIONS if d.name not in ("dense", "adaptive")])
def test_a_type_is_built_as_on_the_processor(name: str) -> None:
    model = network().double().eval()
    x = images(8)[0].double()
    sites = find_sites(model, x[:1])
    there = copy.deepcopy(model).cuda()
    wanted, found = Spectra(model, sites), Spectra(there, find_sites(there, x[:1]))
    configuration = middle(wanted, name)
    built = build(found, configuration)
    assert {parameter.device.type for parameter in built.parameters()} == {"cuda"}
    assert (built(x.cuda()).cpu() - build(wanted, configuration)(x)).abs().max() < 1e-8
    assert next(there.parameters()).device.type == "cuda"


def test_statistics_are_those_of_the_processor() -> None:
    model = network().double().eval()
    x, y = images(32)
    sites = find_sites(model, x[:1].double())
    batches = [(x.double(), y)]
    found: list[dict[str, Moments]] = []
    for place in ("cpu", "cuda"):
        net = copy.deepcopy(model).to(place)
        found.append(collect(net, sites, batches, labels=GivenLabels()).moments("fisher"))
    for site in sites:
        for which in ("input", "output"):
            here, there = (getattr(moments[site.name], which) for moments in found)
            assert (here - there.cpu()).abs().max() < 1e-6 * here.abs().max()  # what feeds the sums is float32


@pytest.mark.parametrize("name", ["svd", "tucker2", "spatial"])
def test_reconstruction_runs_where_the_network_is(name: str) -> None:
    model = network().eval()
    x = images(64)[0]
    sites = find_sites(model, x[:1])
    errors = []
    for place in ("cpu", "cuda"):
        net = copy.deepcopy(model).to(place)
        spectra = Spectra(net, sites)
        configuration = middle(spectra, name)
        built = build(spectra, configuration).eval()
        reconstruct(built, spectra, configuration, [x[:32], x[32:]])
        with torch.no_grad():
            errors.append(float((built(x.to(place)).cpu() - model(x)).norm() / model(x).norm()))
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


def test_a_search_with_latency_finds_a_front(task: Classification, tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(192, 768), nn.ReLU(), nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 4)).cuda()
    latency = Latency(runtime="cuda_graph", batch=4096, precision=Precision(least=3, most=5), networks=3)  # what low rank is faster for
    one = study(task, wide, tmp_path, costs=(*rs.COSTS, latency))
    one.run(trials=6, runner="local")
    rows = one.evaluations()
    assert len(rows) == 6 and set(rows["status"]) == {"done"}
    assert (rows["latency"] > 0).all()
    small = one.build(one.best("macs <= 0.9")["id"])
    assert next(small.parameters()).device.type == "cuda"


def test_the_same_network_measures_the_same(task: Classification) -> None:
    """Without training: an evaluation on a GPU is that of the processor within the rounding of float32."""
    model = network().eval()
    sites = find_sites(model, images(1)[0])
    found = []
    for place in ("cpu", "cuda"):
        spectra = Spectra(copy.deepcopy(model).to(place), sites)
        configuration = middle(spectra, "svd")
        found.append(Evaluator(spectra, task)(Request(configuration, Fidelity(epochs=0, recalibration=2), 0)).metrics["loss"])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_compress_with_recovery(task: Classification) -> None:
    small = rs.compress(network().cuda().eval(), task, macs=0.5, epochs=1.0, refits=1)
    assert next(small.model.parameters()).device.type == "cuda"
    assert np.isfinite(list(task.measure(small.model).values())).all()


def test_a_supernet_is_trained_and_measured(task: Classification, tmp_path: Path) -> None:
    one = study(task, network().cuda(), tmp_path)
    trained = one.supernets.train("sandwich", epochs=1.0, recalibration=2)
    assert trained is not None


def test_a_bfloat16_network_is_compressed(task: Classification) -> None:
    model = network().cuda().to(torch.bfloat16).eval()
    x = images(1)[0]
    sites = find_sites(model, x)
    spectra = Spectra(model, sites, all_types().decompositions[:4])
    built = build(spectra, middle(spectra, "svd"))
    assert {parameter.dtype for parameter in built.parameters()} == {torch.bfloat16}
    assert built(images(4)[0].cuda().to(torch.bfloat16)).shape == (4, 4)
    assert build_space(spectra).size > 1
