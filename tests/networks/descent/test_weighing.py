"""G R A against dense products, in both precisions and at any scale."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ranksearch.decompositions import Moments
from ranksearch.decompositions.kronecker import Kronecker
from ranksearch.networks.descent.weighing import Spanned, Weighing

SHAPE = (2, 5, 4, 2, 2)  # groups, outputs, inputs and a kernel of 2 x 2: A has a side of 16
FORMS = ["dense", "kronecker", "spanned", "none"]


def moment(*shape: int) -> Tensor:
    factor = torch.randn(*shape, 2 * shape[-1], dtype=torch.float64)
    return factor @ factor.mT


def made(form: str) -> tuple[Weighing, Tensor]:
    """A weighing, and its A written out."""
    output = moment(2, 5)
    if form == "dense":
        return Weighing(Moments(whole := moment(2, 16), output)), whole
    if form == "kronecker":
        channel, tap = moment(2, 4), moment(2, 4)
        whole = torch.stack([torch.kron(*one) for one in zip(channel, tap, strict=True)])
        return Weighing(Moments(Kronecker(channel, tap), output)), whole
    if form == "spanned":
        x, pull = torch.randn(2, 16, 3, dtype=torch.float64), torch.rand(2, 16, dtype=torch.float64)
        return Weighing(Moments(None, output), Spanned(x, pull)), x @ x.mT + torch.diag_embed(pull)
    return Weighing(Moments(None, output)), torch.eye(16, dtype=torch.float64).expand(2, 16, 16)


@pytest.mark.parametrize("form", FORMS)
def test_changes_are_weighed_by_both_moments(form: str) -> None:
    weighing, whole = made(form)
    change = torch.randn(SHAPE, dtype=torch.float64)
    output = weighing.moments.output
    assert output is not None
    expected = (output @ change.flatten(2) @ whole).reshape(SHAPE)
    torch.testing.assert_close(weighing(change), expected, rtol=1e-12, atol=1e-12)
    one_sided = replace(weighing, moments=Moments(weighing.moments.input))
    torch.testing.assert_close(one_sided(change), (change.flatten(2) @ whole).reshape(SHAPE), rtol=1e-12, atol=1e-12)
    unit = weighing.in_unit_of(change)
    assert 0.5 <= float((change * unit(change)).sum()) <= 1.0
    torch.testing.assert_close(unit(change), expected * unit.factor, rtol=1e-12, atol=0)


@pytest.mark.parametrize("exponent", [-300, 0, 300])
@pytest.mark.parametrize("form", FORMS)
def test_float32_knows_any_scale_of_moments(form: str, exponent: int) -> None:
    weighing, _ = made(form)
    change, scale = torch.randn(SHAPE, dtype=torch.float64), 2.0**exponent
    input, output = weighing.moments.input, weighing.moments.output
    assert output is not None
    moments = Moments(None if input is None else input * scale, output * scale)
    spanned = None if weighing.spanned is None else weighing.spanned * scale
    scaled = Weighing(moments, spanned).in_unit_of(change)
    rough = scaled.rough()
    found = rough(change.float())
    assert rough.dtype == found.dtype == torch.float32
    expected = scaled(change)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_what_float32_does_not_reach_stays_in_float64() -> None:
    weighing, _ = made("dense")
    tiny = torch.full(SHAPE, 1e-30, dtype=torch.float64)
    far = weighing.in_unit_of(tiny)
    assert far.rough() is far and torch.isfinite(far(tiny)).all()


@pytest.mark.parametrize("sided", [True, False], ids=["two sides", "one side"])
@pytest.mark.parametrize("form", FORMS)
def test_marginals_are_traces_over_the_other_axes(form: str, sided: bool) -> None:
    weighing, whole = made(form)
    if not sided:
        weighing = replace(weighing, moments=Moments(weighing.moments.input))
    found = replace(weighing, factor=2.0).marginals(SHAPE)
    parts = whole.reshape(2, 4, 2, 2, 4, 2, 2)
    trace = whole.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    output = weighing.moments.output
    expected = {
        "o": torch.eye(5, dtype=torch.float64).expand(2, 5, 5) * 2 if output is None else 2 * output,
        "i": torch.einsum("gahwbhw->gab", parts),
        "h": torch.einsum("giawibw->gab", parts) / trace,
        "w": torch.einsum("gihaihb->gab", parts) / trace,
    }
    assert found.keys() == expected.keys()
    for letter, one in expected.items():
        torch.testing.assert_close(found[letter].expand_as(one), one, rtol=1e-10, atol=1e-12)
