"""Declared spaces: what is checked when they are made, and the packaged ones."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InvalidArgument
from ranksearch.sites import find_sites
from ranksearch.space import SpaceSpec, build_space, mixture, named
from ranksearch.space.specs import PACKAGED, all_types, declared, svd_only
from ranksearch.space.spectra import Spectra


def names(spec: SpaceSpec) -> list[str]:
    return [decomposition.name for decomposition in spec.decompositions]


def test_the_types_of_packaged_spaces() -> None:
    assert names(svd_only()) == ["svd"] and names(all_types()) == [d.name for d in DECOMPOSITIONS]
    assert sorted(names(mixture())) == ["cp", "grouped_svd", "spatial", "spatial_t", "svd", "svd_in", "tucker2"]
    assert names(mixture(cp=False)) == [name for name in names(mixture()) if name != "cp"]


@pytest.mark.parametrize("made", PACKAGED.values(), ids=PACKAGED.keys())
def test_what_packaged_spaces_are_told_is_what_they_are(made) -> None:
    known = set(inspect.signature(made).parameters) & {"round_to", "max_options"}
    assert made() == SpaceSpec(made().decompositions, round_to=1, max_options=None)
    for name in known:
        assert made(**{name: 8}) == made().replace(**{name: 8})
    assert PACKAGED[made.__name__] is made


def test_types_by_name_are_in_the_order_of_the_table() -> None:
    table = [d.name for d in DECOMPOSITIONS]
    assert [d.name for d in named(*reversed(table))] == table and named() == ()
    with pytest.raises(InvalidArgument, match=r"\['svdd', 'none'\]: none of these is known; known are: .*svd"):
        named("svd", "svdd", "none")


@pytest.mark.parametrize(
    "wrong", [{"round_to": -1}, {"max_options": 0}, {"max_options": 1.5}, {"metric": "loss"}, {"calibration": 0}], ids=str
)
def test_attributes_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        SpaceSpec(named("svd"), **wrong)
    least = SpaceSpec(named("svd"), round_to=1, max_options=1, calibration=1)
    assert (least.round_to, least.max_options, least.calibration) == (1, 1, 1)
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        least.replace(**wrong)


def test_learned_groups_are_an_option_of_the_default_space() -> None:
    assert set(names(mixture(learned_groups=True))) - set(names(mixture())) == {"grouped_svd_learned"}


def test_a_space_that_was_declared_is_known_by_its_declaration() -> None:
    net = nn.Sequential(nn.Linear(16, 16))
    spectra = Spectra(net, find_sites(net, torch.zeros(1, 16)), named("svd"))
    spec = svd_only(round_to=2)
    assert declared(spec.build(spectra)) is spec and declared(spec) is spec
    assert declared(None) == mixture() and declared("svd_only") == svd_only()
    with pytest.raises(InvalidArgument, match="was not made by a SpaceSpec"):
        declared(build_space(spectra))
