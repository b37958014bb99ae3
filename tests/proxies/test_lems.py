"""LEMS: curves of a made-up measurement by hand, and the depth factor that measures best."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.allocators import Additive, Problem
from ranksearch.decompositions import SVD, SVDIn
from ranksearch.errors import InvalidArgument
from ranksearch.proxies import LEMS
from ranksearch.proxies.lems import anchor, block_of, blocks, deepened, depth
from ranksearch.sites import find_sites
from ranksearch.space import Configuration, SearchSpace, build_space
from ranksearch.space.spectra import Spectra


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(n, m, 3), nn.ReLU()) for n, m in ((3, 12), (12, 12), (12, 16))]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 4, 10)).eval()
    x = torch.randn(2, 3, 8, 8)
    return build_space(Spectra(model, find_sites(model, x), [SVD(), SVDIn()]))


class Loss:
    """Of a single site what it is worth alone; of several how far their share of early sites is from what is wanted."""

    def __init__(self, space: SearchSpace, wanted: Configuration | None = None) -> None:
        self.alone = {ladder.site.name: 0.1 * (k + 1) for k, ladder in enumerate(space.ladders)}
        self.wanted = wanted
        self.asked: list[Configuration] = []

    def __call__(self, configuration: Configuration) -> float:
        self.asked.append(configuration)
        if len(configuration.choices) > 1:
            return 2.0 if configuration == self.wanted else 3.0
        return 0.5 + sum(self.alone[name] for name, _, _ in configuration.choices)


def test_curves_have_the_shape_of_the_errors_and_the_scale_of_one_measurement(space: SearchSpace) -> None:
    loss = Loss(space)
    table = LEMS(loss, trials=1).table(space)
    assert len(loss.asked) == 1 + len(space.ladders)
    for ladder, values in zip(space.ladders, table.values, strict=True):
        (measured,) = (c for c in loss.asked if c.choices and c.choices[0][0] == ladder.site.name)
        _, kind, rank = measured.choices[0]
        options = [option for option in ladder.options if option.decomposition != "dense"]
        at = next(option for option in options if (option.decomposition, option.rank) == (kind, rank))
        far = min(abs(np.log(option.cost["params"] / (0.1 * ladder.options[-1].cost["params"]))) for option in options)
        assert abs(np.log(at.cost["params"] / (0.1 * ladder.options[-1].cost["params"]))) == pytest.approx(far)
        wanted = [loss.alone[ladder.site.name] * (option.frobenius / at.frobenius) ** 2 for option in options]
        np.testing.assert_allclose(values, [*wanted, 0.0], rtol=1e-9)


def test_of_options_of_one_size_the_anchor_is_that_of_the_least_error(space: SearchSpace) -> None:
    for ladder in space.ladders:
        at, params = anchor(ladder), ladder.column("params")
        same = np.flatnonzero(params[:-1] == params[at])
        assert ladder.column("frobenius")[at] == ladder.column("frobenius")[same].min()


def test_the_depth_factor_is_that_of_the_optimum_that_measures_least(space: SearchSpace) -> None:
    budgets = {"macs": 0.4}
    base = LEMS(Loss(space), trials=1).curves(space)
    tables = list(deepened(base, blocks([ladder.site.name for ladder in space.ladders])))
    optima = [space.configuration(Additive().allocate(Problem(space, table, budgets)).indices) for table in tables]
    assert len(tables) == 10 and len({one.id for one in optima}) > 1
    np.testing.assert_allclose(tables[0].values[0], base[0])
    wanted = next(one for one in optima[::-1] if one != optima[0])
    loss = Loss(space, wanted)
    found = LEMS(loss, budgets=budgets).table(space)
    assert space.configuration(Additive().allocate(Problem(space, found, budgets)).indices) == wanted
    assert len(loss.asked) == 1 + len(space.ladders) + len({one.id for one in optima})  # each optimum once


def test_the_depth_factor_falls_from_block_to_block() -> None:
    sums = [sum((k + 1.0) ** -1 for k in range(b, 3)) for b in range(3)]
    wanted = [1 + 2 * value / sums[0] for value in sums]
    np.testing.assert_allclose(depth([0, 0, 1, 2], 1.0, 2.0), [wanted[0], *wanted])
    np.testing.assert_allclose(depth([0, 1, 2], 1.0, 0.0), 1.0)


def test_blocks_are_numbered_in_the_order_in_which_they_come() -> None:
    assert block_of("model.layers.7.mlp.up_proj") == ("model.layers", 7) and block_of("lm_head") == (None, 0)
    assert blocks(["stem", "a.0.one", "a.0.two", "a.1.one", "b.0.one", "fc"]) == [0, 1, 1, 2, 3, 4]


def test_a_budget_that_nothing_meets_leaves_the_depth_factor_out(space: SearchSpace) -> None:
    found = LEMS(Loss(space), budgets={"params": 1e-6}).table(space)
    for values, plain in zip(found.values, LEMS(Loss(space), trials=1).table(space).values, strict=True):
        np.testing.assert_allclose(values, plain)


def test_no_trials_are_refused(space: SearchSpace) -> None:
    with pytest.raises(InvalidArgument, match="trials=0"):
        LEMS(Loss(space), trials=0)
