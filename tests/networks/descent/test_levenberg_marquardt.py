"""Descent over all factors at once, against dense algebra on the Jacobian, and against solutions that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import ranksearch.networks.descent.levenberg_marquardt as module
from ranksearch.decompositions import Moments
from ranksearch.decompositions.metric import residual_energy
from ranksearch.networks.descent.axes import Axes
from ranksearch.networks.descent.contraction import Contraction
from ranksearch.networks.descent.curvature import Curvature
from ranksearch.networks.descent.levenberg_marquardt import DAMPING, _Linearized, _Place, descend
from ranksearch.networks.descent.views import Answered, Compose, View, Whole
from ranksearch.networks.descent.weighing import Weighing

SHAPE = (1, 6, 5, 2, 2)
AXES = ("o r", "i r", "hw r")


@pytest.fixture(autouse=True, params=[0, 10**9], ids=["float32", "float64"])
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """From how many entries on steps are made in float32: from none on, or never."""
    monkeypatch.setattr("ranksearch.networks.descent.levenberg_marquardt.LARGE", request.param)
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(autouse=True, params=[Whole, Answered])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[View]:
    """What errors are taken of, whatever costs less; of factors whose axes nobody knows always the weight."""

    def made(compose: Compose, factors: Sequence[Tensor], weighing: Weighing, axes: Axes | None) -> View:
        if axes is None or request.param is Whole:
            return Whole(compose, weighing, axes)
        return Answered(compose, weighing.spread(), axes, Contraction.of(axes, factors, 20))

    monkeypatch.setattr("ranksearch.networks.descent.levenberg_marquardt.view_of", made)
    return request.param  # type: ignore[no-any-return]


def three(factors: Sequence[Tensor]) -> Tensor:
    """A tensor of components: out, in, kernel."""
    a, b, c = factors
    return torch.einsum("or,ir,hr->oih", a, b, c).reshape(SHAPE)


def drawn(rank: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, rank, dtype=torch.float64, generator=generator) for n in (6, 5, 4)]


def moment(size: int, seed: int) -> Tensor:
    factor = torch.randn(size, 3 * size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return factor @ factor.mT / size


def metric(seed: int = 3) -> Moments:
    return Moments(moment(20, seed)[None], moment(6, seed + 100)[None])


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Next to nothing is added to curvatures."""
    monkeypatch.setattr("ranksearch.networks.descent.curvature.LEAST", 1e-14)


@pytest.mark.parametrize("axes", [None, AXES], ids=["numbers", "blocks"])
def test_a_step_solves_the_damped_normal_equations(axes: tuple[str, ...] | None, exact: None) -> None:
    """M is the Kronecker product of both moments, J the Jacobian of the composed weight in all factors, written out; what is damped, a
    number for every factor, or its curvature, with a moment of the inputs that is the product of its marginals."""
    moments, factors, weight, damping = metric(), drawn(3, 1), torch.randn(SHAPE, dtype=torch.float64), 0.3
    if axes:
        moments = replace(moments, input=torch.kron(moment(5, 1), torch.kron(moment(2, 2), moment(2, 4)))[None])
    assert isinstance(moments.input, Tensor) and moments.output is not None
    weighing = replace(Weighing(moments), factor=2.0)
    known = Axes(axes, factors, SHAPE) if axes else None
    view = module.view_of(three, factors, weighing, known)
    place = _Place.first(view, weight, factors, range(3))
    whole = 2.0 * torch.kron(moments.output[0], moments.input[0])
    parts = torch.autograd.functional.jacobian(lambda *f: three(f).flatten(), tuple(factors))
    jacobian = torch.cat([part.reshape(120, -1) for part in parts], dim=1)
    residual = (weight - three(factors)).flatten()
    gradient, curvature = jacobian.mT @ whole @ residual, jacobian.mT @ whole @ jacobian
    damped, at = [], 0
    for factor in factors:
        mine = slice(at, at + factor.numel())
        along, block = gradient[mine], curvature[mine, mine]
        damped.append(block if axes else torch.eye(factor.numel(), dtype=torch.float64) * (along @ block @ along / (along @ along)))
        at += factor.numel()
    expected = torch.linalg.solve(curvature + damping * torch.block_diag(*damped), gradient)
    made = Curvature(known, weighing, weight.device) if known else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SOLVED", 1e-24)
        for one, rtol, atol in ((view, 1e-6, 1e-9), (view.rough(), 1e-2, 1e-3)):
            found = torch.cat([part.flatten() for part in _Linearized(place, one, made).solve(damping, 400)])
            assert found.dtype == one.dtype
            torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=atol * float(expected.abs().max()))
    assert place.error == pytest.approx(2.0 * residual_energy(weight - three(factors), moments), rel=1e-9)


@pytest.mark.parametrize("free", range(3))
def test_blocks_solve_for_a_single_factor_at_once(free: int, large: int, exact: None) -> None:
    """With a moment of the inputs that is the product of its marginals one conjugate gradient ends at the best such factor, but for the
    damping: by least squares, written out."""
    moments = replace(metric(), input=torch.kron(moment(5, 1), torch.kron(moment(2, 2), moment(2, 4)))[None])
    assert isinstance(moments.input, Tensor) and moments.output is not None
    weight, start = torch.randn(SHAPE, dtype=torch.float64), drawn(3, 11)
    found = descend(three, start, weight, Weighing(moments), steps=1, inner=1, axes=AXES, free=[free])

    def one(part: Tensor) -> Tensor:
        return three([*start[:free], part, *start[free + 1 :]]).flatten()

    whole = torch.kron(moments.output[0], moments.input[0])
    jacobian = torch.autograd.functional.jacobian(one, start[free]).reshape(120, -1)
    best = torch.linalg.solve(jacobian.mT @ whole @ jacobian, jacobian.mT @ whole @ weight.flatten())
    expected = start[free] + (best.reshape(start[free].shape) - start[free]) / (1 + DAMPING)
    rtol = 1e-8 if large else 1e-3
    torch.testing.assert_close(found[free], expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


def test_how_factors_share_out_their_product_makes_no_difference_to_blocks(large: int, exact: None) -> None:
    """Columns of one factor are larger by what those of another are smaller: the composed weight goes the same way."""
    moments, weight, start = metric(), torch.randn(SHAPE, dtype=torch.float64), drawn(3, 9)
    other = [start[0] * 8.0, start[1] * torch.tensor([1.0, 0.5, 2.0]), start[2] / torch.tensor([8.0, 4.0, 16.0])]
    found = [three(descend(three, one, weight, Weighing(moments), steps=2, inner=4, axes=AXES)) for one in (start, other)]
    rtol = 1e-6 if large else 1e-2
    torch.testing.assert_close(found[0], found[1], rtol=rtol, atol=rtol * float(weight.abs().max()))


@pytest.mark.parametrize("axes", [None, AXES], ids=["numbers", "blocks"])
def test_factors_that_are_not_free_stay(axes: tuple[str, ...] | None) -> None:
    moments, weight, start = metric(), torch.randn(SHAPE, dtype=torch.float64), drawn(3, 10)
    found = descend(three, start, weight, Weighing(moments), steps=5, inner=10, axes=axes, free=[0, 2])
    assert torch.equal(found[1], start[1]) and not torch.equal(found[0], start[0]) and not torch.equal(found[2], start[2])
    assert residual_energy(weight - three(found), moments) < residual_energy(weight - three(start), moments)


@pytest.mark.parametrize("axes", [None, AXES], ids=["numbers", "blocks"])
@pytest.mark.parametrize("seed", range(4))
def test_a_weight_that_factors_can_be_is_found(seed: int, axes: tuple[str, ...] | None) -> None:
    planted = drawn(2, seed)
    weight, moments = three(planted), metric(seed)
    generator = torch.Generator().manual_seed(100 + seed)
    start = [f + 0.1 * torch.randn(f.shape, dtype=torch.float64, generator=generator) for f in planted]
    found = descend(three, start, weight, Weighing(moments), steps=10, inner=60, axes=axes)
    assert residual_energy(weight - three(found), moments) < 1e-12 * residual_energy(weight, moments)


@pytest.mark.parametrize("axes", [None, AXES], ids=["numbers", "blocks"])
@pytest.mark.parametrize("steps", [0, 1, 3, 10])
def test_the_error_never_grows(steps: int, axes: tuple[str, ...] | None) -> None:
    moments, weight, start = metric(), torch.randn(SHAPE, dtype=torch.float64), drawn(3, 5)
    kept, energies = [f.clone() for f in start], []
    for inner in (1, 4, 30):
        found = descend(three, start, weight, Weighing(moments), steps=steps, inner=inner, axes=axes)
        energies.append(residual_energy(weight - three(found), moments))
    before = residual_energy(weight - three(start), moments)
    assert all(torch.equal(a, b) for a, b in zip(start, kept, strict=True))
    assert all(energy < before for energy in energies) if steps else energies == [before] * 3


@pytest.mark.parametrize("seed", range(4))
def test_steps_that_overshoot_are_tried_again_with_more_damping(seed: int) -> None:
    """Of small factors the weight is next to linear in none: a step that forgets it is hundreds of times too large."""
    moments, weight, start = metric(seed), torch.randn(SHAPE, dtype=torch.float64), [0.01 * f for f in drawn(3, seed)]
    place = _Place.first(view := Whole(three, Weighing(moments), None), weight, start, range(3))
    assert place.moved(_Linearized(place, view).solve(DAMPING, 30)).error > 10 * place.error
    before = residual_energy(weight - three(start), moments)
    found = descend(three, start, weight, Weighing(moments), steps=10, inner=30)
    assert residual_energy(weight - three(found), moments) < 0.9 * before


@pytest.mark.parametrize("axes", [None, AXES], ids=["numbers", "blocks"])
def test_units_and_scales_make_no_difference(axes: tuple[str, ...] | None) -> None:
    moments, weight, start = metric(), torch.randn(SHAPE, dtype=torch.float64), drawn(3, 6)
    assert isinstance(moments.input, Tensor) and moments.output is not None
    found = descend(three, start, weight, Weighing(moments), steps=5, inner=10, axes=axes)
    for scale in (2.0**-400, 2.0**400):
        other = descend(three, start, weight, Weighing(Moments(scale * moments.input, moments.output)), steps=5, inner=10, axes=axes)
        assert all(torch.equal(a, b) for a, b in zip(found, other, strict=True))


@pytest.mark.parametrize("axes", [None, AXES], ids=["numbers", "blocks"])
def test_where_there_is_nothing_to_gain_factors_stay(axes: tuple[str, ...] | None) -> None:
    start = drawn(2, 7)
    for weight in (three(start), torch.zeros(SHAPE, dtype=torch.float64)):
        zero = [torch.zeros_like(f) for f in start] if not weight.any() else start
        found = descend(three, zero, weight, Weighing(metric()), steps=5, inner=5, axes=axes)
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
