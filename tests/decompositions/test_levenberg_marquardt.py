"""Descent over all factors at once, against dense algebra on the Jacobian, and against solutions that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ranksearch.decompositions import Moments
from ranksearch.decompositions.levenberg_marquardt import DAMPING, _Linearized, _Place, descend
from ranksearch.decompositions.metric import residual_energy
from ranksearch.decompositions.weighing import Weighing

SHAPE = (1, 6, 5, 2, 2)


@pytest.fixture(autouse=True, params=[0, 10**9], ids=["float32", "float64"])
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """From how many entries on steps are made in float32: from none on, or never."""
    monkeypatch.setattr("ranksearch.decompositions.levenberg_marquardt.LARGE", request.param)
    return request.param  # type: ignore[no-any-return]


def three(factors: Sequence[Tensor]) -> Tensor:
    """A tensor of components: out, in, kernel."""
    a, b, c = factors
    return torch.einsum("or,ir,hr->oih", a, b, c).reshape(SHAPE)


def drawn(rank: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, rank, dtype=torch.float64, generator=generator) for n in (6, 5, 4)]


def metric(seed: int = 3) -> Moments:
    generator = torch.Generator().manual_seed(seed)

    def moment(size: int) -> Tensor:
        factor = torch.randn(1, size, 3 * size, dtype=torch.float64, generator=generator)
        return factor @ factor.mT / size

    return Moments(moment(20), moment(6))


def test_a_step_solves_the_damped_normal_equations() -> None:
    """M is the Kronecker product of both moments, J the Jacobian of the composed weight in all factors, written out."""
    moments, factors, weight, damping = metric(), drawn(3, 1), torch.randn(SHAPE, dtype=torch.float64), 0.3
    assert isinstance(moments.input, Tensor) and moments.output is not None
    weighing = replace(Weighing(moments), factor=2.0)
    place = _Place(three, factors, weight, weighing)
    whole = 2.0 * torch.kron(moments.output[0], moments.input[0])
    parts = torch.autograd.functional.jacobian(lambda *f: three(f).flatten(), tuple(factors))
    jacobian = torch.cat([part.reshape(120, -1) for part in parts], dim=1)
    residual = (weight - three(factors)).flatten()
    gradient, curvature = jacobian.mT @ whole @ residual, jacobian.mT @ whole @ jacobian
    scales, at = [], 0
    for factor in factors:
        mine = torch.zeros_like(gradient)
        mine[at : at + factor.numel()] = gradient[at : at + factor.numel()]
        scales.append(torch.full((factor.numel(),), float(mine @ curvature @ mine / (mine @ mine)), dtype=torch.float64))
        at += factor.numel()
    expected = torch.linalg.solve(curvature + damping * torch.diag(torch.cat(scales)), gradient)
    import ranksearch.decompositions.levenberg_marquardt as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SOLVED", 1e-24)
        for one, rtol, atol in ((weighing, 1e-6, 1e-9), (weighing.rough(), 1e-2, 1e-3)):
            found = torch.cat([part.flatten() for part in _Linearized(place, one).solve(damping, 400)])
            assert found.dtype == one.dtype
            torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=atol * float(expected.abs().max()))
    assert place.error == pytest.approx(2.0 * residual_energy(weight - three(factors), moments), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_weight_that_factors_can_be_is_found(seed: int) -> None:
    planted = drawn(2, seed)
    weight, moments = three(planted), metric(seed)
    generator = torch.Generator().manual_seed(100 + seed)
    start = [f + 0.1 * torch.randn(f.shape, dtype=torch.float64, generator=generator) for f in planted]
    found = descend(three, start, weight, Weighing(moments), steps=10, inner=60)
    assert residual_energy(weight - three(found), moments) < 1e-12 * residual_energy(weight, moments)


@pytest.mark.parametrize("steps", [0, 1, 3, 10])
def test_the_error_never_grows(steps: int) -> None:
    moments, weight, start = metric(), torch.randn(SHAPE, dtype=torch.float64), drawn(3, 5)
    kept, energies = [f.clone() for f in start], []
    for inner in (1, 4, 30):
        found = descend(three, start, weight, Weighing(moments), steps=steps, inner=inner)
        energies.append(residual_energy(weight - three(found), moments))
    before = residual_energy(weight - three(start), moments)
    assert all(torch.equal(a, b) for a, b in zip(start, kept, strict=True))
    assert all(energy < before for energy in energies) if steps else energies == [before] * 3


@pytest.mark.parametrize("seed", range(4))
def test_steps_that_overshoot_are_tried_again_with_more_damping(seed: int) -> None:
    """Of small factors the weight is next to linear in none: a step that forgets it is hundreds of times too large."""
    moments, weight, start = metric(seed), torch.randn(SHAPE, dtype=torch.float64), [0.01 * f for f in drawn(3, seed)]
    weighing = Weighing(moments)
    place = _Place(three, start, weight, weighing)
    assert place.moved(_Linearized(place, weighing).solve(DAMPING, 30)).error > 10 * place.error
    before = residual_energy(weight - three(start), moments)
    found = descend(three, start, weight, Weighing(moments), steps=10, inner=30)
    assert residual_energy(weight - three(found), moments) < 0.9 * before


def test_units_and_scales_make_no_difference() -> None:
    moments, weight, start = metric(), torch.randn(SHAPE, dtype=torch.float64), drawn(3, 6)
    assert isinstance(moments.input, Tensor) and moments.output is not None
    found = descend(three, start, weight, Weighing(moments), steps=5, inner=10)
    for scale in (2.0**-400, 2.0**400):
        other = descend(three, start, weight, Weighing(Moments(scale * moments.input, moments.output)), steps=5, inner=10)
        assert all(torch.equal(a, b) for a, b in zip(found, other, strict=True))


def test_where_there_is_nothing_to_gain_factors_stay() -> None:
    start = drawn(2, 7)
    for weight in (three(start), torch.zeros(SHAPE, dtype=torch.float64)):
        zero = [torch.zeros_like(f) for f in start] if not weight.any() else start
        found = descend(three, zero, weight, Weighing(metric()), steps=5, inner=5)
        assert all(torch.equal(a, b) for a, b in zip(found, zero, strict=True))


def test_integers_stay() -> None:
    order = torch.tensor([4, 2, 0, 1, 3])

    def ordered(factors: Sequence[Tensor]) -> Tensor:
        a, b, c, places = factors
        return three((a, b[places], c))

    start = [*drawn(2, 8), order]
    weight = torch.randn(SHAPE, dtype=torch.float64)
    found = descend(ordered, start, weight, Weighing(metric()), steps=5, inner=10)
    assert found[3] is not order and torch.equal(found[3], order)
    assert residual_energy(weight - ordered(found), metric()) < residual_energy(weight - ordered(start), metric())
