"""What samplings draw: never outside the space, in the distribution that they state, the same for the same seed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.allocators import Additive, Minimax, Problem
from ranksearch.errors import InvalidArgument
from ranksearch.proxies import Frobenius, OperatorNorm
from ranksearch.sites import canonical_weight, find_sites
from ranksearch.space import DENSE, SearchSpace, build_space, named
from ranksearch.space.spectra import Spectra
from ranksearch.supernet.sampling import SAMPLINGS, FrontGuided, Ratio, SmallRank, UniformCost, restrict


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))


NET = network()
SITES = find_sites(NET, torch.zeros(1, 3, 12, 12))


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return build_space(Spectra(NET, SITES, named("svd", "spatial", "tucker2", "cp")))


@pytest.fixture(scope="module")
def svd_space() -> SearchSpace:
    return build_space(Spectra(NET, SITES, named("svd")))


def share(space: SearchSpace, configuration, name: str = "macs") -> float:
    return getattr(space.cost(space.indices(configuration)), name) / getattr(space.baseline, name)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_draws_are_in_the_space_and_repeat_with_the_seed(name, space):
    sampling = SAMPLINGS[name](space)
    first, again, other = ([sampling.draw(g) for _ in range(100)] for g in map(np.random.default_rng, (3, 3, 4)))
    assert first == again and first != other
    assert len(set(first)) > 20
    for configuration in (*first, sampling.smallest(), sampling.largest()):
        space.indices(configuration)  # raises outside
    assert sampling.largest() == DENSE
    costs = [share(space, c) for c in first]
    assert share(space, sampling.smallest()) <= min(costs) + 0.05


@pytest.mark.parametrize("name", ["uniform_cost", "small_rank", "front_guided"])
def test_only_the_types_asked_for(name, space):
    sampling = SAMPLINGS[name](space, types=("svd", "tucker2"))
    generator = np.random.default_rng(0)
    drawn = [sampling.draw(generator) for _ in range(50)]
    assert {kind for c in drawn for _, kind, _ in c.choices} == {"svd", "tucker2"}
    for configuration in drawn:
        space.indices(configuration)


def test_restriction_refuses_what_is_not_there(space, svd_space):
    with pytest.raises(InvalidArgument, match=r"types=\['svdd'\].*known are"):
        restrict(space, ("svdd",))
    with pytest.raises(InvalidArgument, match=r"types=\['tucker2'\].*it has svd"):
        restrict(svd_space, ("tucker2",))


@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_costs_are_uniform(cost, spread, space):
    sampling = UniformCost(space, low=0.2, high=0.9, cost=cost, spread=spread)
    generator = np.random.default_rng(0)
    found = np.sort([share(space, sampling.draw(generator), cost) for _ in range(600)])
    expected = np.linspace(0.2, 0.9, len(found))
    assert np.abs(found - expected).max() < 0.055  # Kolmogorov: 5 % point 1.36 / sqrt(600) of the range 0.7, and the ladders' steps
    # sites differ: were all at one place, one would tell the others
    places = np.array([space.indices(sampling.draw(generator)) / np.array(space.shape) for _ in range(400)])
    assert np.corrcoef(places[:, 1:4].T)[~np.eye(3, dtype=bool)].max() < 0.9


def test_a_target_cost_is_met_as_closely_as_ladders_allow(space):
    sampling = UniformCost(space)
    generator = np.random.default_rng(0)
    step = max(float(np.diff(np.sort(ladder.column("macs"))).max()) for ladder in space.ladders) / space.baseline.macs
    for target in np.linspace(sampling.low, 1.0, 30):
        found = share(space, sampling.at(float(target), generator.standard_normal(len(space.ladders))))
        assert abs(found - target) <= step + 1e-9


def test_a_low_end_below_the_space_is_raised_to_it(space):
    assert UniformCost(space, low=1e-6).low == space.smallest("macs") / space.baseline.macs
    assert FrontGuided(space, low=1e-6, points=3).low == space.smallest("macs") / space.baseline.macs


def test_small_ranks_are_as_much_more_likely_as_they_are_smaller(svd_space):
    generator = np.random.default_rng(0)
    for power in (0.0, 1.0):
        sampling = SmallRank(svd_space, power=power)
        drawn = np.array([svd_space.indices(sampling.draw(generator)) for _ in range(6000)])
        for site, ladder in enumerate(svd_space.ladders):
            bias = ladder.site.c_out
            size = ladder.column("params") - bias
            expected = size**-power / (size**-power).sum()
            found = np.bincount(drawn[:, site], minlength=len(size)) / len(drawn)
            assert np.abs(found - expected).max() < 4 * np.sqrt(expected.max() / len(drawn))
            if power == 1.0:  # of SVD options: inversely proportional to the rank
                ranks = np.array([o.rank[0] for o in ladder.options[:-1]])
                assert np.allclose(expected[:-1] * ranks, expected[0] * ranks[0])


def test_fronts_are_the_exact_ones(space):
    sampling = FrontGuided(space, low=0.2, points=5, jitter=0.0)
    shares = np.linspace(0.2, 1.0, 5)
    for row, (proxy, solver) in enumerate(zip((Frobenius(), OperatorNorm()), (Additive(), Minimax()), strict=True)):
        table = proxy.table(space)
        for point, budget in enumerate(shares):
            exact = solver.allocate(Problem(space, table, {"macs": float(budget)}))
            assert float(table.score(sampling.front[row, point])) == pytest.approx(exact.value, rel=1e-9)
            assert share(space, space.configuration(sampling.front[row, point])) <= budget + 1e-9
    points = {tuple(p) for p in sampling.front.reshape(-1, len(space.ladders)).tolist()}
    generator = np.random.default_rng(0)
    drawn = {tuple(space.indices(sampling.draw(generator)).tolist()) for _ in range(300)}
    assert drawn == points  # without jitter nothing else, and all of them


def test_jitter_moves_some_sites_a_little(space):
    generator = np.random.default_rng(0)
    sampling = FrontGuided(space, points=4, jitter=0.1, move=0.5)
    points = sampling.front.reshape(-1, len(space.ladders))
    lengths = np.array(space.shape)
    far, moved = [], []
    for _ in range(200):
        drawn = space.indices(sampling.draw(generator))
        nearest = points[np.argmin((np.abs(points - drawn) / lengths).sum(axis=1))]
        far.append(np.abs(nearest - drawn) / lengths)
        moved.append((nearest != drawn).mean())
    assert 0.2 < np.mean(moved) < 0.7
    assert 0 < np.mean(far) < 0.1


def singular_values() -> list[np.ndarray]:
    weights = [canonical_weight(NET.get_submodule(s.name), s).double().flatten(1) for s in SITES]
    return [torch.linalg.svdvals(w).numpy() for w in weights]


@pytest.mark.parametrize("criterion", ["relative", "cost_aware", "raw"])
@pytest.mark.parametrize("least", [1, 5])
def test_ratio_keeps_the_largest_bases_of_all_layers(criterion, least, svd_space):
    sampling = Ratio(svd_space, criterion=criterion, least=least)
    sampling.observe({s.name: canonical_weight(NET.get_submodule(s.name), s) for s in SITES})
    costs = np.array([[s.cost.params, s.cost.macs] for s in SITES], dtype=float)
    c2 = (1 - costs[:, 0] / costs[:, 0].sum()) * (1 - costs[:, 1] / costs[:, 1].sum())
    sigma = singular_values()
    scale = [1.0 if criterion == "raw" else 1 / s[0] for s in sigma]
    scale = [f * (w if criterion == "cost_aware" else 1.0) for f, w in zip(scale, c2, strict=True)]
    every = sorted(((-v * f, i) for i, (s, f) in enumerate(zip(sigma, scale, strict=True)) for v in s), key=lambda e: e[0])
    for z in (0.05, 0.2, 0.5, 0.9):
        kept = [i for _, i in every[: round(z * len(every))]]
        configuration = sampling.at(z)
        for i, site in enumerate(SITES):
            rank = max(kept.count(i), least)
            options = sorted(o.rank[0] for o in svd_space.ladders[i].options[:-1])
            expected = next((("svd", (r,)) for r in options if r >= rank), ("dense", ()))
            assert configuration[site.name] == expected, (z, site.name)


def test_ladders_alone_give_the_same_ratios_as_the_weights(svd_space):
    from_ladders, observed = Ratio(svd_space), Ratio(svd_space)
    observed.observe({s.name: canonical_weight(NET.get_submodule(s.name), s) for s in SITES})
    for z in (0.05, 0.1, 0.2):  # up to the ranks that pay, ladders know the values exactly
        a, b = from_ladders.at(z), observed.at(z)
        ranks = [(a[s.name][1] or (99,))[0] - (b[s.name][1] or (99,))[0] for s in SITES]
        assert max(map(abs, ranks)) <= 1


def test_ratio_follows_the_weights_and_its_state_travels_as_json(svd_space):
    sampling = Ratio(svd_space, low=0.1, high=0.6)
    before = sampling.at(0.3)
    generator = torch.Generator().manual_seed(1)
    weights = {s.name: torch.randn(s.shape, generator=generator) for s in SITES}
    first = next(iter(weights))
    weights[first] = torch.ones_like(weights[first])  # rank one
    sampling.observe(weights)
    assert sampling.at(0.3) != before and sampling.at(0.3)[first] == ("svd", (1,))
    other = Ratio(svd_space, low=0.1, high=0.6)
    other.load_state_dict(json.loads(json.dumps(sampling.state_dict())))
    assert [other.at(z) for z in np.linspace(0.1, 1, 30)] == [sampling.at(z) for z in np.linspace(0.1, 1, 30)]
    with pytest.raises(InvalidArgument, match="another space"):
        other.load_state_dict({"sigma": [[1.0]]})


@pytest.mark.parametrize("seed", range(4))
def test_ratio_in_a_mixture_takes_the_best_option_of_the_same_cost(seed):
    types = ("svd", "spatial", "tucker2")
    net = network(seed)
    with torch.no_grad():  # of Tucker ranks (2, 2), which cost less than one singular direction
        net[4].weight.copy_(torch.einsum("or,rskl,is->oikl", torch.randn(24, 2), torch.randn(2, 2, 3, 3), torch.randn(24, 2)))
    sites = find_sites(net, torch.zeros(1, 3, 12, 12))
    space, svd_space = (build_space(Spectra(net, sites, named(*names))) for names in (types, ("svd",)))
    mixed, plain = Ratio(space, types=types), Ratio(svd_space)
    for sampling in (mixed, plain):
        sampling.observe({s.name: canonical_weight(net.get_submodule(s.name), s) for s in sites})
    for z in (0.05, 0.1, 0.2, 0.4, 0.8):
        a, b = mixed.at(z), plain.at(z)
        for ladder, other in zip(space.ladders, svd_space.ladders, strict=True):
            name = ladder.site.name
            options = {(o.decomposition, o.rank): o for o in ladder.options}
            allowed = next(o.cost.macs for o in other.options if (o.decomposition, o.rank) == b[name])
            fitting = [o for o in ladder.options if o.cost.macs <= allowed and o.decomposition in (*types, "dense")]
            best = min(fitting or [min(ladder.options, key=lambda o: o.cost.macs)], key=lambda o: o.frobenius)
            assert options[a[name]].frobenius == best.frobenius
    assert mixed.at(0.05)["4"][0] == "tucker2" and mixed.at(1.0) == DENSE
    low = [space.cost(space.indices(mixed.at(z))).macs for z in (0.05, 0.3, 0.6, 1.0)]
    assert low == sorted(low) and low[0] < 0.3 * low[-1]


def test_ratio_of_grouped_layers_and_other_foldings():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 16, 3, groups=2), nn.ReLU(), nn.Conv2d(16, 16, 3))
    for kind in ("svd", "svd_in", "spatial"):
        space = build_space(Spectra(net, find_sites(net, torch.zeros(1, 8, 9, 9)), named(kind)))
        sampling = Ratio(space, decomposition=kind)
        sampling.observe({s.name: canonical_weight(net.get_submodule(s.name), s) for s in find_sites(net, torch.zeros(1, 8, 9, 9))})
        found = [space.cost(space.indices(sampling.at(z))).params for z in (0.05, 0.2, 0.5, 1.0)]
        assert found == sorted(found) and found[-1] == space.baseline.params and found[0] < found[-1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ratio", {"low": 0.0}, "low=0.0"),
        ("ratio", {"low": 0.5, "high": 0.4}, "low=0.5, high=0.4"),
        ("ratio", {"high": float("nan")}, "high=nan"),
        ("ratio", {"criterion": "c1"}, "criterion='c1' is none of relative"),
        ("ratio", {"least": 0}, "least=0"),
        ("ratio", {"follow": -1}, "follow=-1"),
        ("ratio", {"decomposition": "tucker2"}, "decomposition='tucker2'"),
        ("uniform_cost", {"cost": "flops"}, "cost='flops' is none of params, macs"),
        ("uniform_cost", {"spread": -1.0}, "spread=-1.0"),
        ("uniform_cost", {"low": 1e-5, "high": 1e-4}, "high=0.0001: the smallest share"),
        ("small_rank", {"power": float("inf")}, "power=inf"),
        ("front_guided", {"points": 1}, "points=1"),
        ("front_guided", {"jitter": 2.0}, "jitter=2.0"),
        ("front_guided", {"move": -0.1}, "move=-0.1"),
        ("front_guided", {"proxies": ()}, "proxies=\\(\\)"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message, space):
    with pytest.raises(InvalidArgument, match=message):
        SAMPLINGS[name](space, **options)
