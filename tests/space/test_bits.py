"""Spaces whose options have types, ranks and bits: what declares them, what is on their ladders, exact choices under a budget of bytes, and
the networks that they are."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.allocators import Additive, Problem
from ranksearch.costs import COSTS, Bytes
from ranksearch.decompositions import DECOMPOSITIONS, with_bits
from ranksearch.errors import InvalidArgument
from ranksearch.networks.surgery import build
from ranksearch.proxies import Energy
from ranksearch.sites import find_sites
from ranksearch.space import Configuration, SearchSpace, SpaceSpec, all_types, build_space, mixture, named, svd_only
from ranksearch.space.spectra import Spectra

EXAMPLE = torch.zeros(2, 3, 6, 6)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    features = (nn.Conv2d(3, 9, 3, padding=1), nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 6, 3, bias=False), nn.ReLU())
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(96, 5)).eval()


@cache
def made(cost: Bytes = Bytes(), dtype: torch.dtype = torch.float32) -> tuple[Spectra, SearchSpace]:  # noqa: B008
    spec = SpaceSpec(with_bits(named("svd", "tucker2"), (8, 4)), max_options=12)
    model = network().to(dtype)
    spectra = Spectra(model, find_sites(network(), EXAMPLE), spec.decompositions)
    return spectra, spec.build(spectra, costs=(*COSTS, cost))


def test_bits_are_declared_beside_types_and_by_default_there_are_none() -> None:
    assert [d.name for d in svd_only(bits="8,4").decompositions] == ["svd", "dense@int8", "dense@int4", "svd@int8", "svd@int4"]
    assert all("@" not in d.name for spec in (mixture(), svd_only(), all_types()) for d in spec.decompositions)
    kept = [d.name for d in DECOMPOSITIONS if not d.storage_only]
    assert [d.name for d in all_types(bits="4").decompositions[len(DECOMPOSITIONS) :]] == [f"{name}@int4" for name in kept]
    assert [d.name for d in named("svd@int4", "svd")] == ["svd", "svd@int4"]
    for wrong in ("2", "8;4", "eight"):
        with pytest.raises(InvalidArgument, match="8, 4"):
            mixture(bits=wrong)
    with pytest.raises(InvalidArgument, match="svd@int8"):
        named("svd@int3")


def test_options_of_few_bits_stand_on_ladders_where_bytes_count_and_are_refused_where_they_do_not() -> None:
    spectra, space = made()
    for ladder in space.ladders:
        assert {name.partition("@")[2] for name in ladder.present} == {"", "int8", "int4"}
        cheapest = ladder.decompositions[ladder.which[int(np.argmin(ladder.costs["bytes"]))]]
        assert cheapest.endswith("@int4")
        assert {"dense@int8", "dense"} <= ladder.present  # with params and MACs of the dense layer
    assert {name for _, name, _ in spectra._held} == {"dense", "svd", "tucker2"}  # one preparation for all bits
    with pytest.raises(InvalidArgument, match="--cost bytes"):
        build_space(spectra)


def test_names_are_readable_and_come_back_and_those_of_before_stay() -> None:
    configuration = Configuration({"0": ("dense@int8", ()), "3": ("svd@int4", (2,)), "6": ("dense", ())})
    assert configuration.to_json() == '{"0":["dense@int8",[]],"3":["svd@int4",[2]]}'
    assert Configuration.from_json(configuration.to_json()) == configuration
    assert Configuration({"a": ("svd", (3,))}).id == "7389645a0fa1"  # as earlier versions wrote it


@pytest.mark.parametrize(
    ("cost", "dtype"), [(Bytes(), torch.float32), (Bytes(), torch.bfloat16), (Bytes("bfloat16"), torch.float32)], ids=str
)
def test_the_bytes_counted_are_those_of_the_state_of_the_network(cost: Bytes, dtype: torch.dtype) -> None:
    spectra, space = made(cost, dtype)
    for indices in (*space.sample(8, seed=1), space.dense):
        candidate = space.candidate(indices)
        built = build(spectra, candidate.configuration)
        built = built if cost.dtype is None else built.to(getattr(torch, cost.dtype))
        assert sum(t.numel() * t.itemsize for t in built.state_dict().values()) == candidate.cost["bytes"]


@pytest.mark.parametrize(
    "budgets", [{"bytes": 0.5}, {"bytes": 0.2}, {"bytes": 0.12}, {"bytes": 0.4, "macs": 0.6}, {"bytes": 0.3, "params": 0.5}]
)
def test_allocation_over_types_ranks_and_bits_is_exact(budgets: dict[str, float]) -> None:
    _, space = made()
    table = Energy().table(space)
    found = Additive().allocate(Problem(space, table, budgets))
    every = np.array(list(itertools.product(*map(range, space.shape))))
    values, fits = table.score(every), np.ones(len(every), dtype=bool)
    for name, bound in budgets.items():
        fits &= space.cost_tables[name].score(every) <= space.limit(name, bound)
    assert table.score(found.indices) == pytest.approx(values[fits].min(), rel=1e-9)
    assert all(space.cost(found.indices)[name] <= space.limit(name, bound) for name, bound in budgets.items())


def test_a_built_network_computes_what_its_rounded_weights_do() -> None:
    spectra, space = made()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 3, 6, 6, generator=generator)
    for indices in space.sample(4, seed=2):
        configuration = space.configuration(indices)
        built, plain = build(spectra, configuration).eval(), network().eval()
        with torch.no_grad():
            for name, kind, rank in configuration.choices:
                site = spectra.sites[name]
                weight = spectra.decomposition(kind).compose(site, spectra.factors(site, kind, rank))
                stored = plain.get_submodule(name).get_parameter("weight")
                stored.copy_(weight.reshape(stored.shape))
            torch.testing.assert_close(built(x), plain(x), rtol=1e-4, atol=1e-5)
