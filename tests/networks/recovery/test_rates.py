"""Rates of factors: by their curvature beside the dense layer's, however its scale is divided among them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidArgument
from ranksearch.networks.recovery import factor_rates
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.tasks import Classification, FromLoss

BATCHES = [(torch.randn(16, 6, generator=torch.Generator().manual_seed(k)).double(), torch.arange(16) % 4) for k in range(3)]
TASK = FromLoss(BATCHES, BATCHES, nn.functional.cross_entropy, learning_rate=0.1)  # no distribution: gradients at the given targets


def _pair() -> tuple[nn.Module, nn.Module]:
    """A dense network, and one whose first layer is two factors of rank 2."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double().eval()
    short = build(Spectra(dense, find_sites(dense, BATCHES[0][0][:1])), Configuration({"0": ("svd", (2,))})).eval()
    return dense, short


def _squares(network: nn.Module, name: str, batches: Sequence[tuple[Tensor, Tensor]] = BATCHES) -> float:
    """The sum over batches of the squared gradient of one parameter, by backward passes of its own."""
    network, total = copy.deepcopy(network), 0.0
    for x, y in batches:
        network.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        total += float(dict(network.named_parameters())[name].grad.square().sum())  # type: ignore[union-attr]
    return total


def _factors(network: nn.Module) -> list[str]:
    return [name for name, parameter in network.named_parameters() if name.startswith("0.") and parameter.ndim == 2]


def test_rates_are_ratios_of_curvatures() -> None:
    dense, short = _pair()
    rates = factor_rates(short, dense, TASK, BATCHES)
    assert list(rates) == _factors(short) and len(rates) == 2  # biases and the dense layer have rate 1
    for name, rate in rates.items():
        assert rate == pytest.approx(_squares(dense, "0.weight") / (2 * _squares(short, name)), rel=1e-9)


def test_how_scale_is_divided_makes_no_difference() -> None:
    dense, short = _pair()
    other = copy.deepcopy(short)
    first, second = _factors(short)
    with torch.no_grad():
        dict(other.named_parameters())[first].mul_(8)
        dict(other.named_parameters())[second].div_(8)
    plain, scaled = factor_rates(short, dense, TASK, BATCHES), factor_rates(other, dense, TASK, BATCHES)
    assert scaled[first] == pytest.approx(64 * plain[first], rel=1e-9)
    assert scaled[second] == pytest.approx(plain[second] / 64, rel=1e-9)


def test_flat_factors_get_no_boundless_rate() -> None:
    dense, short = _pair()
    first, second = _factors(short)
    parameters = dict(short.named_parameters())
    with torch.no_grad():
        parameters[first].zero_()
    assert factor_rates(short, dense, TASK, BATCHES) == {}  # one has no size, the other no gradient
    blind = [(x * torch.tensor([1, 1, 1, 1, 1, 0.0]), y) for x, y in BATCHES]
    with torch.no_grad():  # nearly all of the first factor reads an input that is always 0, so the second hardly matters
        parameters[first].fill_(1e-3)
        parameters[first][:, 5] = 1
    rates = factor_rates(short, dense, TASK, blind)
    sizes = {name: float(parameters[name].detach().square().sum()) for name in (first, second)}
    curvature = {name: _squares(short, name, blind) * sizes[name] for name in (first, second)}
    assert curvature[second] < 1e-3 * curvature[first]
    reference = _squares(dense, "0.weight", blind) / 2
    assert rates[first] == pytest.approx(reference * sizes[first] / curvature[first], rel=1e-9)
    assert rates[second] == pytest.approx(reference * sizes[second] / (1e-3 * curvature[first]), rel=1e-9)


def test_frozen_factors_take_no_step() -> None:
    dense, short = _pair()
    first, second = _factors(short)
    short.get_parameter(second).requires_grad_(False)
    assert list(factor_rates(short, dense, TASK, BATCHES)) == [first]


def test_networks_stay_as_they_are() -> None:
    dense, short = _pair()
    short[2].requires_grad_(False)  # type: ignore[index]
    dense.requires_grad_(False)
    before = [copy.deepcopy(one.state_dict()) for one in (dense, short)]
    factor_rates(short, dense.train(), TASK, BATCHES)
    assert dense.training and not short.training
    for one, state in zip((dense, short), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
        assert all(parameter.grad is None for parameter in one.parameters())
    assert not any(parameter.requires_grad for parameter in dense.parameters())
    assert [parameter.requires_grad for parameter in short[2].parameters()] == [False, False]  # type: ignore[index]


def test_the_dense_network_has_no_factors() -> None:
    dense, _ = _pair()
    assert factor_rates(copy.deepcopy(dense), dense, TASK, BATCHES) == {}


def test_no_batches() -> None:
    with pytest.raises(InvalidArgument, match="batches is empty"):
        factor_rates(*reversed(_pair()), TASK, [])


def test_targets_are_drawn_where_the_task_knows_how() -> None:
    class Certain(Classification):  # type: ignore[misc]
        """Draws what the network answers, and remembers from what stream."""

        def sample_targets(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
            seeds.append(generator.initial_seed())
            return outputs.argmax(dim=1)

    seeds: list[int] = []
    (x, y), _, _ = BATCHES
    task = Certain(train=(x, y), validation=(x, y), learning_rate=0.1)
    dense, short = _pair()
    answers = [[(x, one(x).argmax(dim=1))] for one in (dense, short)]
    expected = {}
    for name in _factors(short):
        theirs, mine = (_squares(one, of, given) for one, of, given in zip((dense, short), ("0.weight", name), answers, strict=True))
        expected[name] = pytest.approx(theirs / (2 * mine), rel=1e-9)
    assert factor_rates(short, dense, task, [(x, y)], seed=7) == expected
    assert set(seeds) == {torch.Generator().manual_seed(7).initial_seed()}
