"""The contract that every training method keeps, in a loop of one's own."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from method_cases import (
    batch,
    make,
    network,
    optimizer_of,
    steps,
    supernet,
)
from torch import Tensor

from ranksearch.errors import InvalidArgument
from ranksearch.sites import find_sites
from ranksearch.space import DENSE, Configuration, build_space, named
from ranksearch.space.spectra import Spectra
from ranksearch.supernet import RankSupernet
from ranksearch.supernet.methods import METHODS, LossModule, Plain


def test_the_table_has_every_method_once():
    assert {"plain", "joint", "sandwich", "trp", "distortion", "regularized"} <= set(METHODS)
    assert all(METHODS[name].name == name for name in METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_training_lowers_the_loss_in_a_loop_of_ones_own(name):
    net = supernet()
    method, data = make(name, net), batch()
    optimizer = optimizer_of(net)
    before = float(method.dense(data).detach())
    for step in range(1, 25):
        optimizer.zero_grad()
        method.loss(data).backward()
        optimizer.step()
        method.after_step(step)
    assert float(method.dense(data).detach()) < before


@pytest.mark.parametrize("name", METHODS)
def test_the_seed_decides_everything(name):
    runs = []
    for seed in (5, 5, 6):
        net = supernet()
        runs.append((steps(make(name, net, seed=seed), optimizer_of(net), 1, 5), net.weight("3").detach().clone()))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    if name in ("joint", "sandwich"):  # the methods that draw
        assert runs[0][0] != runs[2][0]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("done", [2, 3])  # with period 3: one step before what the method does, and right after it
def test_a_restored_run_goes_on_as_if_it_had_not_stopped(name, done):
    net = supernet(refresh=1)
    method, optimizer = make(name, net), optimizer_of(net)
    steps(method, optimizer, 1, done)
    state = method.state_dict()
    tensors = {k: v.clone() for k, v in state.items() if isinstance(v, Tensor)}
    plain = json.loads(json.dumps({k: v for k, v in state.items() if k not in tensors}))  # all the rest is JSON
    weights, momentum = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    expected = steps(method, optimizer, done + 1, 8)

    other = supernet(refresh=1)
    resumed, optimizer = make(name, other, seed=99), optimizer_of(other)
    other.load_state_dict(weights)
    optimizer.load_state_dict(momentum)
    resumed.load_state_dict(plain | tensors)
    assert steps(resumed, optimizer, done + 1, 8) == expected
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_a_state_of_another_method_is_refused(name):
    method = make(name, supernet())
    with pytest.raises(InvalidArgument, match=f"'another'.*{name}"):
        method.load_state_dict(method.state_dict() | {"method": "another"})


@pytest.mark.parametrize("name", METHODS)
def test_nan_surfaces(name):
    net = supernet()
    method = make(name, net)
    inputs, targets = batch()
    inputs[0, 0, 0, 0] = float("nan")
    loss = method.loss((inputs, targets))
    assert loss.isnan()
    loss.backward()
    assert net.weight("3").grad.isnan().any()


@pytest.mark.parametrize("name", METHODS)
def test_every_step_is_counted_by_the_supernet(name):
    net = supernet()
    calls: list[int] = []
    original = net.tick
    net.tick = lambda: (calls.append(1), original())[1]
    steps(make(name, net), optimizer_of(net), 1, 4)
    assert len(calls) == 4


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_a_module_for_wrappers_of_forward(name):
    net, twin = supernet(), supernet()
    module = make(name, net).module()
    assert isinstance(module, LossModule)
    assert {id(p) for p in module.parameters()} == {id(p) for p in net.parameters()}
    a, b = module(*batch()), make(name, twin).loss(batch())
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", METHODS)
def test_inputs_may_be_positional_or_by_keyword(name):
    inputs, targets = batch()
    losses = [make(name, supernet()).loss((given, targets)) for given in (inputs, (inputs,), {"input": inputs})]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("plain", {"seed": -1}, "seed=-1: must be a whole number"),
    ("joint", {"weight": 1.0}, "weight=1.0: must be a finite number above 0 and below 1"),
    ("joint", {"weight": float("nan")}, "weight=nan"),
    ("joint", {"gradient": "full"}, "gradient='full' is none of projection, svd"),
    ("sandwich", {"random": -1}, "random=-1"),
    ("sandwich", {"weight": 0}, "weight=0: must be a finite number above 0"),
    ("sandwich", {"temperature": 0}, "temperature=0: must be a finite number above 0"),
    ("trp", {"folding": "rows"}, "folding='rows' is none of channel, spatial, decoupled"),
    ("trp", {"period": 0}, "period=0"),
    ("trp", {"loss_of_energy": 1.0}, "loss_of_energy=1.0"),
    ("trp", {"nuclear": -1e-4}, "nuclear=-0.0001"),
    ("trp", {"sites": ("nowhere",)}, "site='nowhere' is not a site"),
    ("trp", {"sites": ()}, "sites: none is left"),
    ("distortion", {"decomposition": "cp"}, "decomposition='cp' is none of tucker2, svd, tiled_svd"),
    ("distortion", {"ratio": 0.0}, "ratio=0.0"),
    ("distortion", {"period": 1.5}, "period=1.5"),
    ("distortion", {"schedule": "cosine"}, "schedule='cosine' is none of constant, linear"),
    ("distortion", {"schedule": "linear", "steps": None}, "steps=None.*linear"),
    ("distortion", {"ramp": 2.0}, "ramp=2.0"),
    ("distortion", {"target": DENSE}, "target: it is the dense network"),
    ("distortion", {"target": Configuration({"9": ("tucker2", (1, 1))})}, "target: tucker2 is not defined for '9'"),
    ("regularized", {"strength": 0.0}, "strength=0.0"),
    ("regularized", {"form": "exact"}, "form='exact' is none of gram, subgradient"),
    ("regularized", {"every": 0}, "every=0"),
    ("regularized", {"modes": {"depth": 1.0}}, "modes=.*out, in, height, width"),
    ("regularized", {"modes": {"out": -1.0}}, "modes\\['out'\\]=-1.0"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_hyper_parameters_out_of_range_are_refused(name, options, message):
    seed = options.get("seed", 0)
    with pytest.raises(InvalidArgument, match=message):
        make(name, supernet(), **{**options, "seed": seed})


def test_a_loss_that_cannot_be_called_is_refused():
    with pytest.raises(InvalidArgument, match="loss=3: must be callable"):
        Plain(supernet(), 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in METHODS), ("regularized", {"form": "gram"}), ("joint", {"gradient": "svd"})]
)
def test_autocast_changes_no_weight_by_more_than_its_precision(name, options):
    weights = []
    for enabled in (False, True):
        model = network().float()
        spectra = Spectra(model, find_sites(model, torch.zeros(1, 3, 8, 8)), named("svd", "tucker2"))
        net = RankSupernet(model, build_space(spectra), spectra=spectra)
        method, optimizer = make(name, net, **options), optimizer_of(net)
        for step in range(1, 5):
            optimizer.zero_grad()
            inputs, targets = batch(step)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = method.loss((inputs.float(), targets))
                loss.backward()
                optimizer.step()
                method.after_step(step)
            assert loss.isfinite()
        weights.append(torch.cat([p.detach().flatten() for p in net.model.parameters()]))
        assert all(p.dtype == torch.float32 for p in net.model.parameters())
    assert (weights[0] - weights[1]).norm() < 0.05 * weights[0].norm()
