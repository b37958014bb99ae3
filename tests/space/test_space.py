"""The search space: ladders, configurations, costs, budgets."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ranksearch.costs import COSTS, CostModel, DenseNetwork, LayerOptions
from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import EmptySpace, InvalidArgument
from ranksearch.sites import Cost, find_sites
from ranksearch.space import DENSE, Configuration, Ladder, SearchSpace, build_space
from ranksearch.space.spectra import Spectra

RANKS = {"svd": 1, "spatial": 1, "spatial_t": 1, "tucker2": 2}


def _spectra() -> Spectra:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(6, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 10, 3, stride=2), nn.Flatten(), nn.Linear(90, 20))
    kept = [d for d in DECOMPOSITIONS if d.name in RANKS]
    return Spectra(net, find_sites(net, torch.randn(1, 6, 8, 8)), kept)


@pytest.fixture(scope="module")
def spectra() -> Spectra:
    return _spectra()


@pytest.fixture(scope="module")
def space(spectra: Spectra) -> SearchSpace:
    return build_space(spectra)


def test_ladders_are_exactly_the_options_that_nothing_beats(spectra: Spectra, space: SearchSpace) -> None:
    for ladder in space.ladders:
        points = {("dense", ()): (ladder.site.cost.params, ladder.site.cost.macs, 0.0)}
        for name in RANKS:
            profile = spectra.profile(ladder.site, name)
            if profile is not None:
                for i, rank in enumerate(profile.ranks):
                    points[name, tuple(rank)] = (profile.params[i], profile.macs[i], profile.frobenius[i])
        beaten = {
            key
            for key, p in points.items()
            if any(all(a <= b for a, b in zip(q, p, strict=True)) and q != p for q in points.values())
        }
        kept = {(o.decomposition, o.rank) for o in ladder.options}
        assert kept.isdisjoint(beaten)
        values = {points[key] for key in kept}
        assert values == {points[key] for key in points if key not in beaten}
        assert ladder.options[-1].decomposition == "dense"


def test_ladders_rise_in_the_sum_of_the_shares_of_their_costs(space: SearchSpace) -> None:
    told_apart = False
    for ladder in space.ladders:
        shares = [ladder.column(name) / ladder.column(name)[-1] for name in ("params", "macs")]
        assert (np.diff(shares[0] + shares[1])[:-1] >= -1e-12).all()
        told_apart |= bool((np.diff(shares[0])[:-1] < 0).any() and (np.diff(shares[1])[:-1] < 0).any())
    assert told_apart  # by neither cost alone


def test_size_is_an_exact_integer(space: SearchSpace) -> None:
    assert space.size == math.prod(space.shape) and isinstance(space.size, int)
    wide = SearchSpace(space.ladders[:1] * 40, space.baseline)
    assert wide.size == space.shape[0] ** 40


def test_configurations_round_trip(space: SearchSpace) -> None:
    for indices in space.sample(50, seed=0):
        configuration = space.configuration(indices)
        again = Configuration.from_json(configuration.to_json())
        assert again == configuration and hash(again) == hash(configuration) and again.id == configuration.id
        assert space.configuration(space.indices(configuration)) == configuration
    assert space.configuration(space.dense) == DENSE and DENSE.id == Configuration({"0": ("dense", ())}).id


@given(st.dictionaries(st.text(min_size=1), st.tuples(st.sampled_from(list(RANKS)), st.lists(st.integers(1, 99), max_size=3))))
def test_order_and_dense_do_not_change_the_id(choices: dict[str, tuple[str, list[int]]]) -> None:
    shuffled = dict(reversed(choices.items())) | {"a dense site " + "".join(choices): ("dense", [])}
    assert Configuration(choices).id == Configuration(shuffled).id
    assert Configuration.from_json(Configuration(choices).to_json()) == Configuration(choices)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": ["svd"]}', '{"a": ["svd", ["x"]]}', "null"])
def test_bad_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Configuration.from_json(text)


def test_round_to_keeps_multiples_only(spectra: Spectra) -> None:
    for ladder in build_space(spectra, round_to=4).ladders:
        assert all(r % 4 == 0 for o in ladder.options for r in o.rank)
    with pytest.raises(EmptySpace, match="round_to"):
        build_space(spectra, round_to=512)


def test_round_to_leaves_types_that_are_stored_alone(spectra: Spectra) -> None:
    kept = [d for d in DECOMPOSITIONS if d.name in ("svd", "tensor_ring")]
    mixed = Spectra(spectra.model, spectra.sites, kept)
    free, rounded = (build_space(mixed, round_to=n) for n in (1, 4))
    stored = [{o.rank for ladder in s.ladders for o in ladder.options if o.decomposition == "tensor_ring"} for s in (free, rounded)]
    assert any(r % 4 for rank in stored[1] for r in rank) and stored[0] <= stored[1]
    assert all(o.rank[0] % 4 == 0 for ladder in rounded.ladders for o in ladder.options if o.decomposition == "svd")


def test_what_a_cost_does_not_offer_is_on_no_ladder(spectra: Spectra) -> None:
    class Even(type(COSTS[0])):  # type: ignore[misc]
        def offered(self, layer):
            return layer.ranks[:, 0] % 2 == 0

    offered = 0
    for ladder in build_space(spectra, costs=(Even(), *COSTS[1:])).ladders:
        for option in ladder.options[:-1]:
            profile = spectra.profile(ladder.site, option.decomposition)
            assert profile is not None and option.rank[0] % 2 == 0
            (row,) = np.flatnonzero((profile.ranks == option.rank).all(axis=1))
            assert option.cost["params"] == profile.params[row] and option.frobenius == profile.frobenius[row]
            offered += 1
    assert offered


def test_a_space_of_some_types_is_that_of_spectra_with_these_alone(spectra: Spectra) -> None:
    alone = Spectra(spectra.model, spectra.sites, [d for d in DECOMPOSITIONS if d.name == "svd"])
    assert build_space(spectra, types=["svd"]) == build_space(alone)
    with pytest.raises(InvalidArgument, match="decomposition='cp'"):
        build_space(spectra, types=["cp"])


def test_max_options_spreads_over_the_errors(spectra: Spectra, space: SearchSpace) -> None:
    thin = build_space(spectra, max_options=5)
    for full, ladder in zip(space.ladders, thin.ladders, strict=True):
        assert len(ladder.options) == min(6, len(full.options))
        assert {o.rank for o in ladder.options} <= {o.rank for o in full.options}
        assert max(o.frobenius for o in ladder.options) == max(o.frobenius for o in full.options)


def test_samples_are_seeded_and_inside(space: SearchSpace) -> None:
    a, b = space.sample(200, seed=5), space.sample(200, seed=5)
    assert np.array_equal(a, b) and not np.array_equal(a, space.sample(200, seed=6))
    assert (a >= 0).all() and (a <= space.dense).all()
    many = space.sample(100 * max(space.shape), seed=5)
    assert (many.min(0) == 0).all() and (many.max(0) == space.dense).all()


def test_limits_are_relative_up_to_one(space: SearchSpace) -> None:
    dense = space.baseline.macs
    assert space.limit("macs", 0.5) == dense // 2 and space.limit("macs", 1) == dense and space.limit("macs", 5000) == 5000
    for macs in range(dense - 50, dense):
        assert space.limit("macs", macs / dense) == macs
    for bad in (0, -1, float("nan"), float("inf"), "0.5"):
        with pytest.raises(InvalidArgument, match="macs"):
            space.limit("macs", bad)  # type: ignore[arg-type]


def test_budgets_on_what_is_no_cost_are_refused(space: SearchSpace) -> None:
    with pytest.raises(InvalidArgument, match="budget 'watts' is not a cost; costs are: params, macs"):
        space.limit("watts", 0.5)


def test_tables_of_errors_have_no_offset_and_unknown_norms_are_a_whole_layer(space: SearchSpace) -> None:
    ladder = space.ladders[0]
    unknown = Ladder.of(ladder.site, [replace(option, operator=math.nan) for option in ladder.options])
    some = SearchSpace((unknown, *space.ladders[1:]), space.baseline)
    assert some.table("operator", "max").score(some.dense * 0) >= 1.0 and some.table("operator").values[0].tolist() == [1.0] * len(ladder)
    assert some.table("frobenius").offset == 0.0 and some.table("macs").offset == some.fixed["macs"]


def test_sizes_are_told_by_params_where_there_are_no_macs(space: SearchSpace) -> None:
    assert space.leading_cost == "macs"
    idle = SearchSpace(space.ladders, Cost(params=space.baseline.params, macs=0))
    assert idle.leading_cost == "params"


def test_the_fingerprint_is_of_the_options_and_the_metric(space: SearchSpace) -> None:
    again = SearchSpace(tuple(Ladder.of(ladder.site, [*ladder.options]) for ladder in space.ladders), space.baseline, metric=space.metric)
    assert again.fingerprint == space.fingerprint and len(space.fingerprint) == 16
    fewer = SearchSpace((space.ladders[0].take(range(1, len(space.ladders[0]))), *space.ladders[1:]), space.baseline, metric=space.metric)
    other = SearchSpace(space.ladders, space.baseline, metric="fisher")
    assert len({space.fingerprint, fewer.fingerprint, other.fingerprint}) == 3


def test_ranks_are_multiples_of_the_least_that_a_cost_says(spectra: Spectra) -> None:
    def says(multiple: int | None) -> CostModel:
        class Says(CostModel):
            name, label, unit = f"says{multiple}", "x", ""

            def options(self, layer: LayerOptions) -> np.ndarray:
                return layer.params

            def rest(self, network: DenseNetwork) -> int:
                return 0

            def round_to(self, network: DenseNetwork) -> int | None:
                return multiple

        return Says()

    found = build_space(spectra, round_to=0, costs=(*COSTS, says(None), says(4), says(8)))
    assert [*found.ladders] == [*build_space(spectra, round_to=4, costs=(*COSTS, says(None), says(4), says(8))).ladders]
    with pytest.raises(InvalidArgument, match="round_to=0 takes"):
        build_space(spectra, round_to=0, costs=(*COSTS, says(None)))


def test_one_option_beside_the_dense_one_is_the_least(spectra: Spectra, space: SearchSpace) -> None:
    assert [len(ladder) for ladder in build_space(spectra, max_options=1).ladders] == [min(2, n) for n in space.shape]
    with pytest.raises(InvalidArgument, match="max_options"):
        build_space(spectra, max_options=0)


def test_a_configuration_says_what_each_site_is() -> None:
    configuration = Configuration({"a": ("svd", (3,)), "b": ("tucker2", (1, 2))})
    assert configuration["b"] == ("tucker2", (1, 2)) and configuration["a"] == ("svd", (3,)) and configuration["c"] == ("dense", ())


def test_a_budget_is_what_gives_the_amount_as_a_limit(space: SearchSpace) -> None:
    for amount in (1, 2, 5000, space.baseline.macs):
        assert space.limit("macs", space.budget("macs", amount)) == amount
    assert space.budget("macs", 2) == 2 and space.budget("macs", 1) == 1 / space.baseline.macs


def test_indices_outside_the_space_are_refused(space: SearchSpace) -> None:
    for bad in ([0], [0, 0, -1], [10**6, 0, 0]):
        with pytest.raises(InvalidArgument, match="indices"):
            space.configuration(bad)
    with pytest.raises(InvalidArgument, match="not in the space"):
        space.indices(Configuration({"9": ("svd", (1,))}))
    with pytest.raises(InvalidArgument, match="ladder"):
        space.indices(Configuration({"0": ("svd", (999,))}))


def test_space_without_sites_or_options_is_refused() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(EmptySpace, match="cheaper"):
        build_space(Spectra(net, find_sites(net, torch.randn(1, 2))))
    with pytest.raises(EmptySpace, match="no site"):
        build_space(Spectra(net, find_sites(net, torch.randn(1, 2), exclude="*")))
