"""Both views of a factorized layer, against its dense error and that error's dense derivatives."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from layers import IDS, TYPES, blocks_of, drawn, moment
from torch import Tensor

from ranksearch.decompositions import AnyDecomposition, Kronecker, Moments
from ranksearch.networks.descent.axes import Axes
from ranksearch.networks.descent.contraction import Contraction
from ranksearch.networks.descent.views import SHARE, Answered, View, Whole, view_of
from ranksearch.networks.descent.weighing import Spanned, Weighing
from ranksearch.sites import Site

FORMS = ["dense", "spanned", "spanned, nothing added"]


def metric(form: str, groups: int, outputs: int, inputs: int, two_sided: bool) -> tuple[Weighing, Tensor, Tensor]:
    """A weighing, and G and A written out."""
    g = moment(groups, outputs) if two_sided else None
    written = 3.0 * (torch.eye(outputs, dtype=torch.float64).expand(groups, -1, -1) if g is None else g)
    if form == "dense":
        return Weighing(Moments(a := moment(groups, inputs), g), factor=3.0), written, a
    x = torch.randn(groups, inputs, 5, dtype=torch.float64)
    pull = torch.rand(groups, inputs, dtype=torch.float64) if form == "spanned" else None
    a = x @ x.mT if pull is None else x @ x.mT + torch.diag_embed(pull)
    return Weighing(Moments(None, g), Spanned(x, pull), factor=3.0), written, a


def views(decomposition: AnyDecomposition, site: Site, weighing: Weighing) -> tuple[list[View], list[Tensor]]:
    """All views of a layer, and factors of it."""
    words, factors = drawn(decomposition, site)
    axes, columns = Axes(words, factors, blocks_of(site)), weighing.columns
    assert columns is not None

    def compose(parts: Any) -> Tensor:
        return decomposition.compose(site, tuple(parts)).reshape(blocks_of(site))

    answered = Answered(compose, weighing.spread(), axes, Contraction.of(axes, factors, columns))
    return [Whole(compose, weighing, None), Whole(compose, weighing, axes), answered], factors


@pytest.mark.parametrize("two_sided", [False, True], ids=["one side", "two sides"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("decomposition", "site"), TYPES, ids=IDS)
def test_the_error_and_its_slope_are_those_of_the_weight(decomposition: AnyDecomposition, site: Site, form: str, two_sided: bool) -> None:
    groups, outputs, *patch = shape = blocks_of(site)
    weighing, g, a = metric(form, groups, outputs, prod(patch), two_sided)
    made, factors = views(decomposition, site, weighing)
    away = (weight := torch.randn(shape, dtype=torch.float64)) - decomposition.compose(site, tuple(factors)).reshape(shape)
    error = float(((g @ away.flatten(2) @ a) * away.flatten(2)).sum())
    slope = (g @ away.flatten(2) @ a).reshape(shape)
    for view in made:
        every = [factor.requires_grad_() for factor in factors]
        seen, beside = view.seen_and_beside(every)
        lacking = [one - other for one, other in zip(view.of(weight), seen, strict=True)]
        half = [one - other for one, other in zip(view.beside(view.of(weight)), beside, strict=True)]
        weighed = [part.detach() for part in view.behind(half)]
        squares = [float((one.detach() * other).sum()) for one, other in zip(lacking, weighed, strict=True)]
        assert sum(squares) == pytest.approx(error, rel=1e-9)
        found = torch.autograd.grad(seen, every, weighed)
        whole = decomposition.compose(site, tuple(every)).reshape(shape)
        for one, other in zip(found, torch.autograd.grad(whole, every, slope), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8 * float(other.abs().max()))


@pytest.mark.parametrize("form", FORMS)
def test_in_float32_there_is_the_same_to_be_seen(form: str) -> None:
    """What is seen is in the units of the view in float64, so that the slope of one is that of the other."""
    decomposition, site = next((d, site) for d, site in TYPES if d.name == "tucker2")
    groups, outputs, *patch = blocks_of(site)
    for scale in (2.0**-60, 1.0, 2.0**60):
        weighing, _, _ = metric(form, groups, outputs, prod(patch), two_sided=True)
        spanned = None if weighing.spanned is None else weighing.spanned * scale
        given = weighing.moments.input
        assert given is None or isinstance(given, Tensor)
        moments = Moments(None if given is None else given * scale, weighing.moments.output)
        made, factors = views(decomposition, site, Weighing(moments, spanned, 1 / scale))
        for view in made:
            rough, less = view.rough(), [factor.float() for factor in factors]
            assert rough.dtype == torch.float32
            both = [(one, *one.seen_and_beside(parts)) for one, parts in ((rough, less), (view, factors))]
            for found, expected in zip(*[(*seen, *one.behind(beside)) for one, seen, beside in both], strict=True):
                assert found.dtype == torch.float32
                torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 6, 7, 200])
def test_the_view_of_fewer_macs_is_taken(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank far below the outputs is seen by way of the factors; not where A is no matrix, or axes are unknown, or all is small."""
    monkeypatch.setattr("ranksearch.networks.descent.views.SMALL", 0)
    shape, factors = (1, 64, 16, 1, 1), [torch.randn(64, rank), torch.randn(16, rank)]
    axes = Axes(("o r", "i r"), factors, shape)
    few = Weighing(Moments(), Spanned(torch.randn(1, 16, 1000), torch.rand(1, 16)))
    many = Weighing(Moments(moment(1, 16)))

    def compose(parts: Any) -> Tensor:
        return (parts[0] @ parts[1].mT).reshape(shape)

    for weighing, products in ((few, 2), (many, 1)):  # with so many columns of 16 inputs, each for every output
        there_and_back = 2 * rank * (16 + 64)
        assert type(view_of(compose, factors, weighing, axes)) is (Answered if there_and_back < SHARE * products * 64 * 16 else Whole)
    for weighing in (Weighing(Moments()), Weighing(Moments(Kronecker(moment(1, 16), moment(1, 1))))):
        assert type(view_of(compose, factors, weighing, axes)) is Whole
    assert type(view_of(compose, factors, few, None)) is Whole
    monkeypatch.setattr("ranksearch.networks.descent.views.SMALL", 1 + 2 * 1000 * 64 * 16)
    assert type(view_of(compose, factors, few, axes)) is Whole
