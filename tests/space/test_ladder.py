"""A ladder is arrays; its options are made of them."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.errors import InvalidArgument
from ranksearch.sites import find_sites
from ranksearch.space import Ladder, build_space, mixture
from ranksearch.space.ladder import _spread
from ranksearch.space.spectra import Spectra


@pytest.fixture(scope="module")
def ladder() -> Ladder:
    """Of several types, with ranks of one and of two entries."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1))
    spec = mixture(cp=False)
    (ladder,) = build_space(Spectra(net, find_sites(net, torch.zeros(1, 12, 6, 6)), spec.decompositions)).ladders
    assert {len(option.rank) for option in ladder.options} == {0, 1, 2}
    return ladder


def test_options_are_rows_of_the_arrays(ladder: Ladder) -> None:
    assert len(ladder.options) == len(ladder) == len(ladder.which) and ladder.options[-1] == ladder.option(len(ladder) - 1)
    for i, option in enumerate(ladder.options):
        assert (option.decomposition, option.rank) == ladder.choice(i) and option.rank == ladder.rank(i)
        assert ladder.position(option.decomposition, option.rank) == i
        assert option.cost == ladder.cost(i) and all(type(amount) is int for amount in option.cost.values())
        for name in ("frobenius", "energy"):
            assert getattr(option, name) == ladder.column(name)[i]
        assert option.cost["macs"] == ladder.column("macs")[i] and ladder.column("macs").dtype == np.int64
    assert [option.rank for option in ladder.options[2:5]] == [ladder.rank(i) for i in (2, 3, 4)]
    assert ladder.choice(-1) == ("dense", ()) and ladder.position("svd", (10**6,)) is None and ladder.position("none", ()) is None


def test_a_ladder_of_its_options_is_the_same(ladder: Ladder) -> None:
    again = Ladder.of(ladder.site, [*ladder.options])
    assert again == ladder and hash(again) == hash(ladder) and pickle.loads(pickle.dumps(ladder)) == ladder
    shorter = ladder.take(np.arange(1, len(ladder)))
    assert shorter != ladder and [*shorter.options] == [*ladder.options][1:]
    rows = [*range(len(ladder))]
    rows[0], rows[1] = rows[1], rows[0]
    assert ladder.take(rows) != ladder


def test_taken_by_type(ladder: Ladder) -> None:
    names = np.array([option.decomposition for option in ladder.options])
    assert ladder.present == set(names) and np.array_equal(ladder.mask({"svd", "dense"}), (names == "svd") | (names == "dense"))
    part = ladder.take(np.flatnonzero(ladder.mask({"tucker2", "dense"})))
    assert part.present == {"tucker2", "dense"} and all(part.position(*ladder.choice(i)) is None for i in np.flatnonzero(names == "svd"))
    assert [*part.options] == [option for option in ladder.options if option.decomposition in ("tucker2", "dense")]


def test_ladders_without_an_operator_norm_are_equal_and_may_be_taken_lazily(ladder: Ladder) -> None:
    unknown = [replace(option, operator=math.nan) for option in ladder.options]
    assert Ladder.of(ladder.site, unknown) == Ladder.of(ladder.site, unknown) != ladder
    assert ladder.take(i for i in (0, 2)) == ladder.take(np.array([0, 2])) == ladder.take([0, 2])


def test_columns_are_views_that_cannot_be_changed(ladder: Ladder) -> None:
    assert ladder.column("params") is ladder.column("params")
    with pytest.raises(ValueError, match="read-only"):
        ladder.column("params")[0] = 0
    for array in (ladder.which, ladder.ranks, ladder.column("macs"), ladder.column("frobenius"), ladder.take([0]).which):
        assert not array.flags.writeable
    with pytest.raises(InvalidArgument, match="'watts' is neither a cost nor an error; there are params, macs, frobenius, operator"):
        ladder.column("watts")


def test_options_are_spread_over_the_errors_that_are_known() -> None:
    errors = np.array([np.inf, 1.0, np.inf, 1e-1, 1e-2, 1e-3, 1e-4])
    assert _spread(errors, 3).tolist() == [0, 4, 6]
    assert _spread(np.full(4, np.inf), 2).tolist() == [0, 1]
