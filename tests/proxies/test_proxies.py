"""Proxies against direct computation on built networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.decompositions import SVD, Moments, SVDIn
from ranksearch.errors import InvalidArgument
from ranksearch.networks.surgery import build
from ranksearch.proxies import (
    PROXIES,
    ActivationError,
    Calibrated,
    CalibrationLoss,
    DiagonalFisher,
    Energy,
    FisherError,
    Frobenius,
    LastFeature,
    ProxyContext,
    SingleSiteLoss,
    TableProxy,
    free_proxies,
    make_proxies,
    score,
)
from ranksearch.sites import find_sites
from ranksearch.space import Configuration, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.space.table import Table
from ranksearch.statistics import SampledLabels, collect
from ranksearch.tasks import Classification


class Fixture:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 10, 3, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 6),
        ).eval()  # fmt: skip
        self.x, self.y = torch.randn(64, 3, 8, 8), torch.randint(0, 6, (64,))
        self.sites = find_sites(self.model, self.x[:1])
        self.statistics = collect(self.model, self.sites, [self.x], labels=SampledLabels(samples=20), diagonal=True)
        self.spectra = Spectra(self.model, self.sites, [SVD(), SVDIn()])
        self.space = build_space(self.spectra, max_options=6)
        self.indices = self.space.sample(12, seed=1)
        self.task = Classification(train=(self.x, self.y), validation=(self.x, self.y), batch_size=32, learning_rate=0.1)
        self.measure = CalibrationLoss(self.spectra, [(self.x, self.y)], nn.functional.cross_entropy)


@pytest.fixture(scope="module")
def f() -> Fixture:
    return Fixture()


def test_every_proxy_of_the_table_fits_the_space_and_gives_dense_nothing(f, tmp_path, monkeypatch):
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path))
    made, left_out = make_proxies(ProxyContext(f.space, f.spectra, f.task, calibration=2, batches=1))
    assert [proxy.name for proxy in made] == [kind.name for kind in PROXIES] and not left_out
    assert {proxy.name for proxy in free_proxies()} <= {kind.name for kind in PROXIES if kind.needs == "space"}
    variants = [
        FisherError(f.spectra, f.statistics, center=True, exact_trace=True), DiagonalFisher(f.spectra, f.statistics, rows=True),
        SingleSiteLoss(f.measure, points=3), Calibrated(Frobenius(), f.measure, f.space, f.space.sample(12, seed=2)),
    ]  # fmt: skip
    sites = {l.site.name for l in f.space.ladders}
    for proxy in (*made, *variants):
        scores = score(proxy, f.space, np.stack([f.space.dense, *f.indices]))
        assert scores.shape == (13,) and np.isfinite(scores).all(), proxy.name
        assert scores[0] == pytest.approx(0, abs=1e-10) and (scores >= -1e-10).all(), proxy.name
        assert {name.split(":")[0] for name in proxy.uncovered(f.space)} <= sites
        if isinstance(proxy, TableProxy):
            table = proxy.table(f.space)
            assert tuple(len(v) for v in table.values) == f.space.shape, proxy.name
            assert all(np.isfinite(v).all() and (v >= 0).all() and v[-1] == 0 for v in table.values), proxy.name
            assert np.array_equal(scores[1:], table.score(f.indices)) and set(proxy.poor_budgets(f.space)) <= set(f.space.costs)


def test_proxies_are_left_out_for_what_was_not_asked_for(f):
    made, left_out = make_proxies(ProxyContext(f.space, f.spectra, f.task, calibration=0, batches=2))
    needs = {kind.name: kind.needs for kind in PROXIES}
    assert {needs[proxy.name] for proxy in made} == {"space"} and {needs[name] for name in left_out} == {"statistics", "networks"}
    for name, reason in left_out.items():
        assert reason == ("needs a calibration pass" if needs[name] == "statistics" else "runs networks") + ", which was not asked for"


def test_weights_hold_in_a_space_of_the_same_sites_alone(f):
    proxy = Calibrated(Frobenius(), f.measure, f.space, f.space.sample(12, seed=2))
    narrow = build_space(f.spectra, max_options=3)
    for weight, ours, base in zip(proxy.fit.weights, proxy.table(narrow).values, Frobenius().table(narrow).values, strict=True):
        np.testing.assert_allclose(ours, weight * base, rtol=1e-12)
    sites = find_sites(f.model, f.x[:1], exclude="0")
    with pytest.raises(InvalidArgument, match="calibrate for this space"):
        proxy.table(build_space(Spectra(f.model, sites, [SVD()]), max_options=3))


def test_frobenius_is_the_sum_of_squared_relative_errors(f):
    for row in (f.space.dense, *f.indices[:5]):
        wanted = 0.0
        for name, decomposition, rank in f.space.configuration(row).choices:
            site = f.sites[name]
            weight = f.model.get_submodule(name).weight.detach().double().reshape(site.shape)
            stand_in = f.spectra.decomposition(decomposition).compose(site, f.spectra.factors(site, decomposition, rank))
            wanted += float((weight - stand_in).square().sum() / weight.square().sum())
        assert float(Frobenius().table(f.space).score(row)) == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def test_activation_error_is_the_output_error_of_each_layer(f):
    column = ActivationError(f.spectra, f.statistics).table(f.space).values[0]
    site = f.space.ladders[0].site
    option = f.space.ladders[0].options[0]
    network = build(f.spectra, Configuration({site.name: (option.decomposition, option.rank)}))
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(f.model[0].weight)
        wanted = layer(f.x)
        error = (network[0](f.x) - f.model[0](f.x)).square().sum() / wanted.square().sum()
    assert column[0] == pytest.approx(float(error), rel=2e-2)  # shrinkage


def test_fisher_error_is_the_energy_of_a_fisher_space(f):
    """In spectra of its own metric the option's energy is the same number, computed another way."""
    moments = f.statistics.moments("fisher")
    spectra = Spectra(f.model, f.sites, [SVD()], moments=moments)
    space = build_space(spectra, max_options=6)
    ours, theirs = FisherError(spectra, f.statistics).table(space), Energy().table(space)
    for a, b in zip(ours.values, theirs.values, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-9 + 1e-5 * b.max())
    assert space.metric == "fisher" and isinstance(moments["0"], Moments)


class Branches(nn.Module):
    """Half of the inputs decides half of the logits: branches of uncorrelated inputs have no Fisher information in common."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 6, bias=False), nn.Linear(8, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.left(x[:, :8]), self.right(x[:, 8:])], dim=1)


def divergence(model: nn.Module, other: nn.Module, x: torch.Tensor) -> float:
    """The mean of KL(p || q) over the examples, in nats."""
    with torch.no_grad():
        old, new = model(x).log_softmax(1), other(x).log_softmax(1)
    return float((old.exp() * (old - new)).sum(1).mean())


def test_fisher_error_is_the_divergence_where_nothing_is_neglected():
    """Outputs near the uniform distribution, whose gradients depend on no input, and layers of uncorrelated inputs: what K-FAC takes as
    independent is independent, the sum over sites leaves nothing out, and the second order is all there is."""
    model = Branches().double().eval()
    with torch.no_grad():
        model.left.weight.mul_(0.01)
        model.right.weight.mul_(0.01)
    turned = torch.linalg.qr(torch.randn(2, 8, 8, dtype=torch.float64))[0]
    mixing = torch.block_diag(*torch.linspace(0.5, 2.0, 8, dtype=torch.float64)[:, None] * turned)
    x = torch.linalg.qr(torch.randn(96, 16, dtype=torch.float64))[0] * 96**0.5 @ mixing
    x = x.repeat(40, 1)  # so many examples that moments are shrunk by little
    sites = find_sites(model, x[:1])
    statistics = collect(model, sites, [x], labels=SampledLabels(samples=8))
    spectra = Spectra(model, sites, [SVD()])
    space = build_space(spectra)
    proxy = FisherError(spectra, statistics)
    for row in space.sample(12, seed=5):
        expected = divergence(model, build(spectra, space.configuration(row)).eval(), x)
        assert score(proxy, space, row[None])[0] == pytest.approx(expected, rel=0.1, abs=1e-12)


def test_diagonal_fisher_by_hand(f):
    ladder = f.space.ladders[1]
    option = ladder.options[0]
    column = DiagonalFisher(f.spectra, f.statistics).table(f.space).values[1]
    decomposition = f.spectra.decomposition(option.decomposition)
    stand_in = decomposition.compose(ladder.site, f.spectra.factors(ladder.site, option.decomposition, option.rank))
    s = f.statistics.of[ladder.site.name]
    wanted = (s.fisher_diagonal / s.sampled * (f.model[2].weight.detach().double() - stand_in).square()).sum() / 2
    assert column[0] == pytest.approx(float(wanted), rel=1e-9)
    bare = collect(f.model, f.sites, [f.x[:4]])
    with pytest.raises(InvalidArgument, match="diagonal=True"):
        DiagonalFisher(f.spectra, bare).table(f.space)


def test_last_feature_is_the_error_before_the_last_linear_layer(f):
    proxy = LastFeature(f.model, lambda c: build(f.spectra, c), [f.x[:40], f.x[40:]])
    assert proxy.module == "6" and set(proxy.uncovered(f.space)) == {"6"}
    found = score(proxy, f.space, np.stack([f.space.dense, f.indices[0]]))
    network = build(f.spectra, f.space.configuration(f.indices[0]))
    with torch.no_grad():
        old, new = f.model[:6](f.x).double(), network[:6](f.x).double()
    assert found[0] == pytest.approx(0, abs=1e-10)
    assert found[1] == pytest.approx(float((new - old).square().sum() / old.square().sum()), rel=1e-4)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in f.model.modules())
    with pytest.raises(InvalidArgument):
        LastFeature(f.model, lambda c: build(f.spectra, c), [])


def test_single_site_loss_is_measured_and_monotone(f):
    proxy = SingleSiteLoss(f.measure, points=100)
    column = proxy.table(f.space).values[1]
    ladder = f.space.ladders[1]
    dense = f.measure(Configuration())
    order = np.argsort(np.square(ladder.column("frobenius")), kind="stable")
    rises = [max(f.measure(Configuration({"2": (ladder.options[i].decomposition, ladder.options[i].rank)})) - dense, 0) for i in order]
    np.testing.assert_allclose(column[order], np.maximum.accumulate(rises), rtol=1e-6, atol=1e-7)
    assert (np.diff(column[order]) >= 0).all()
    assert not proxy.uncovered(f.space) and SingleSiteLoss(f.measure, points=2).uncovered(f.space)


def test_calibration_recovers_weights_and_reports_what_it_did_not_see(f):
    """Measurements made by a hidden weighted table: the fit finds its order, the uncalibrated table does not."""
    base = Frobenius().table(f.space)
    hidden = np.array([3.0, 0.4, 1.0])
    truth = Table(tuple(w * v for w, v in zip(hidden, base.values, strict=True)))
    calls = []

    def measure(configuration):
        calls.append(configuration)
        return 1.0 + float(truth.score(f.space.indices(configuration)))

    proxy = Calibrated(Frobenius(), measure, f.space, f.space.sample(48, seed=3))
    fit = proxy.fit
    assert fit.measurements == len(calls) == 49
    assert fit.held_out > 0.97 and fit.held_out > fit.before
    fresh = f.space.sample(100, seed=4)
    assert np.corrcoef(proxy.table(f.space).score(fresh), truth.score(fresh))[0, 1] > 0.99
    assert len(calls) == 49  # once per space
    with pytest.raises(InvalidArgument):
        Calibrated(Frobenius(), measure, f.space, f.space.sample(4, seed=0))


def test_last_feature_is_the_divergence_where_the_last_layer_keeps_lengths():
    """A head with orthonormal columns, orthogonal to the constant vector and small: near the uniform distribution of c classes the
    divergence is the squared error of the features times scale^2 / 2 c."""
    scale, c = 1e-3, 9
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )  # fmt: skip
    model = nn.Sequential(body, nn.Linear(8, c, bias=False)).double().eval()
    columns = torch.linalg.qr(torch.cat([torch.ones(c, 1), torch.randn(c, 8)], dim=1).double())[0][:, 1:]
    with torch.no_grad():
        model[1].weight.copy_(scale * columns)
    x = torch.randn(48, 3, 8, 8, dtype=torch.float64)
    spectra = Spectra(model, find_sites(model, x[:1], exclude="1"), [SVD(), SVDIn()])
    space = build_space(spectra, max_options=6)
    with torch.no_grad():
        energy = float(body(x).square().sum(1).mean())
    indices = space.sample(12, seed=5)
    found = score(LastFeature(model, lambda c: build(spectra, c), [x]), space, indices)
    for row, value in zip(indices, found, strict=True):
        expected = divergence(model, build(spectra, space.configuration(row)).eval(), x)
        assert value * energy * scale**2 / (2 * c) == pytest.approx(expected, rel=0.02, abs=1e-15)


def test_layers_that_are_kept_stay_within_their_room_and_change_nothing(f):
    small = CalibrationLoss(f.spectra, [(f.x, f.y)], nn.functional.cross_entropy, cache_bytes=2000)
    for row in f.indices:
        assert small(f.space.configuration(row)) == pytest.approx(f.measure(f.space.configuration(row)), rel=1e-5)
        kept = [sum(p.nbytes for p in layer.parameters()) for layer in small._layers.values()]
        assert sum(kept) <= max([2000, *kept[-1:]])
    assert len(small._layers) < len(f.measure._layers)
