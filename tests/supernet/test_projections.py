"""Projections against the decompositions themselves and against dense projectors built column by column."""

from __future__ import annotations

import itertools

import pytest
import supernet_cases as cases
import torch

from ranksearch.decompositions import DECOMPOSITIONS, Kronecker, Moments
from ranksearch.errors import InvalidArgument
from ranksearch.sites import find_sites
from ranksearch.supernet import PROJECTIONS
from ranksearch.supernet.cp_projection import CPProjection
from ranksearch.supernet.projections import GramProjection, solve


def sites_of(name: str):
    model = cases.Net().double()
    sites = find_sites(model, torch.randn(1, 4, 9, 9, dtype=torch.float64))
    return [(site, cases.weight_of(model, site)) for site in sites if cases.BY_NAME[name].undefined(site) is None]


def some_ranks(name: str, site) -> list[tuple[int, ...]]:
    rows = cases.BY_NAME[name].ranks(site)
    return [tuple(int(v) for v in rows[i]) for i in sorted({0, len(rows) // 3, len(rows) // 2, len(rows) - 1})]


def test_the_table_names_decompositions() -> None:
    assert set(PROJECTIONS) <= {d.name for d in DECOMPOSITIONS}
    assert all(PROJECTIONS[d.name].labels == d.labels for d in cases.TYPES if d.name in PROJECTIONS)


@pytest.mark.parametrize("name", list(PROJECTIONS))
def test_fresh_bases_give_the_decomposition(name: str) -> None:
    decomposition, projection = cases.BY_NAME[name], PROJECTIONS[name]
    found = sites_of(name)
    assert found
    for site, weight in found:
        state = decomposition.prepare(site, weight)
        for rank in some_ranks(name, site):
            bases = projection.bases(site, weight, rank)
            wanted = decomposition.factors(state, rank)
            best = decomposition.reconstruct(site, state, rank)
            for balanced in (False, True):
                factors = projection.factors(site, weight, bases, rank, balanced=balanced)
                assert [f.shape for f in factors] == [f.shape for f in wanted]
                dense = decomposition.compose(site, factors)
                if projection.fitted:  # its last step is the best output factor
                    assert (weight - dense).norm() <= (weight - best).norm() * (1 + 1e-9)
                else:
                    assert (dense - best).abs().max() < 1e-9
            if name not in ("tucker2", "cp"):  # the balanced factors are the decomposition's own, up to signs
                for one, other in zip(factors, wanted, strict=True):
                    assert (one.abs() - other.abs()).abs().max() < 1e-6


@pytest.mark.parametrize("name", list(PROJECTIONS))
@pytest.mark.parametrize("kind", ["input", "output", "both"])
def test_in_a_metric_the_projector_is_that_of_the_whitened_weight(name: str, kind: str) -> None:
    """Full rank gives the weight back, projecting twice changes nothing, and no error is below the decomposition's own."""
    decomposition, projection = cases.BY_NAME[name], PROJECTIONS[name]
    for site, weight in sites_of(name):
        moments = cases.moments_of(site, input=kind != "output", output=kind != "input")
        state = decomposition.prepare(site, weight, moments)
        *_, full = some_ranks(name, site)
        for rank in some_ranks(name, site):
            bases = projection.bases(site, weight, rank, moments)
            dense = decomposition.compose(site, projection.factors(site, weight, bases, rank))
            again = decomposition.compose(site, projection.factors(site, dense, bases, rank))
            assert (dense - again).abs().max() < 1e-9
            if rank == full and decomposition.exact:
                assert (dense - weight).abs().max() < 1e-9
            best = decomposition.reconstruct(site, state, rank)
            if name == "svd" or (kind == "output" and name in ("svd_in", "spatial", "spatial_t", "tucker2")):  # closed forms
                assert (dense - best).abs().max() < 1e-8
                laid_out = projection.factors(site, weight, bases, rank, balanced=True)  # the decomposition's own, up to signs
                for one, other in zip(laid_out, decomposition.factors(state, rank), strict=True):
                    assert (one.abs() - other.abs()).abs().max() < 1e-6 * max(1.0, float(other.abs().max()))
            mine, least = energy(site, weight - dense, moments), energy(site, weight - best, moments)
            assert mine <= least * (1 + 1e-7) if projection.fitted else mine > least * (1 - 1e-7) - 1e-12


def energy(site, residual: torch.Tensor, moments: Moments) -> float:
    flat = residual.reshape(site.groups, site.c_out // site.groups, -1)
    seen = flat if moments.input is None else flat @ moments.input
    return float(((flat if moments.output is None else moments.output @ flat) * seen).sum())


@pytest.mark.parametrize("name", list(PROJECTIONS))
def test_a_metric_kept_as_a_product_is_that_of_the_whole_moment(name: str) -> None:
    decomposition, projection = cases.BY_NAME[name], PROJECTIONS[name]
    for site, weight in sites_of(name):
        channels, taps = site.shape[1], site.kernel[0] * site.kernel[1]
        roots = [torch.randn(site.groups, n, 2 * n, dtype=torch.float64) for n in (channels, taps)]
        product = Kronecker(*(root @ root.mT / root.shape[1] for root in roots))
        whole = torch.stack([torch.kron(c, t) for c, t in zip(product.channel, product.tap, strict=True)])
        output = cases.moments_of(site, input=False).output
        rank = some_ranks(name, site)[1]
        found = []
        for moments in (Moments(product, output), Moments(whole, output)):
            bases = projection.bases(site, weight, rank, moments)
            found.append(decomposition.compose(site, projection.factors(site, weight, bases, rank)))
        assert (found[0] - found[1]).norm() <= (1e-2 if projection.fitted else 1e-7) * weight.norm()


@pytest.mark.parametrize("name", list(PROJECTIONS))
@pytest.mark.parametrize("scale", [(0.0, 0.0), (1.0, 1.0), (1e-30, 1e30), (1e30, 1e30), (1e-30, 1e-30)], ids=str)
def test_moments_of_any_rank_and_scale_in_float32(name: str, scale: tuple[float, float]) -> None:
    """Rank-one moments: bases and factors are finite in float32, full rank gives the weight back."""
    decomposition, projection = cases.BY_NAME[name], PROJECTIONS[name]
    found = [(site, weight) for site, weight in sites_of(name) if site.name in ("first", "grouped", "linear")]
    assert found
    for site, weight in found:
        weight = weight.float()
        generator = torch.Generator().manual_seed(0)
        sizes = (weight[0].numel(), site.c_out // site.groups)
        vectors = [torch.randn(site.groups, size, 1, generator=generator, dtype=torch.float64) for size in sizes]
        moments = Moments(*(s * v @ v.mT for s, v in zip(scale, vectors, strict=True)))
        *_, half, full = some_ranks(name, site)
        for rank in (half, full):
            bases = projection.bases(site, weight, rank, moments)
            assert all(bool(t.isfinite().all()) for side in bases.sides for t in (side.out, side.into, side.energies))
            for balanced in (False, True):
                factors = projection.factors(site, weight, bases, rank, balanced=balanced)
                assert all(bool(f.isfinite().all()) for f in factors)
                if rank == full and decomposition.exact:
                    assert (decomposition.compose(site, factors) - weight).norm() <= 1e-2 * weight.norm()


@pytest.mark.parametrize("name", list(PROJECTIONS))
def test_the_gradient_is_the_projected_gradient(name: str) -> None:
    """Against a dense oracle: the projector as a matrix, from the projection of every unit weight."""
    decomposition, projection = cases.BY_NAME[name], PROJECTIONS[name]
    site, weight = sites_of(name)[0]
    rank = some_ranks(name, site)[1]
    bases = projection.bases(site, weight, rank)
    units = torch.eye(weight.numel(), dtype=torch.float64).reshape(-1, *weight.shape)
    columns = [decomposition.compose(site, projection.factors(site, unit, bases, rank)).flatten() for unit in units]
    projector = torch.stack(columns, dim=1)
    assert (projector @ projector - projector).abs().max() < 1e-9
    assert (projector - projector.T).abs().max() < 1e-9  # orthogonal in the weight metric
    g = torch.randn(weight.shape, dtype=torch.float64)
    variable = weight.clone().requires_grad_()
    (decomposition.compose(site, projection.factors(site, variable, bases, rank)) * g).sum().backward()
    assert variable.grad is not None
    assert (variable.grad.flatten() - projector @ g.flatten()).abs().max() < 1e-9


def test_gradient_of_svd_is_u_u_t_g() -> None:
    site, weight = sites_of("svd")[0]
    bases = PROJECTIONS["svd"].bases(site, weight, (3,))
    u = torch.linalg.svd(weight.flatten(1))[0][:, :3]
    g = torch.randn(weight.shape, dtype=torch.float64)
    variable = weight.clone().requires_grad_()
    dense = cases.BY_NAME["svd"].compose(site, PROJECTIONS["svd"].factors(site, variable, bases, (3,)))
    (dense * g).sum().backward()
    assert variable.grad is not None
    assert (variable.grad - (u @ u.T @ g.flatten(1)).reshape(weight.shape)).abs().max() < 1e-9


def test_bases_made_together_are_those_made_alone() -> None:
    wanted = []
    for name, projection in PROJECTIONS.items():
        if not isinstance(projection, GramProjection):
            continue
        for site, weight in sites_of(name):
            labels = some_ranks(name, site)[-1][: projection.labels]
            wanted.append((projection, site, weight, labels, projection.metric(site, weight, labels, None)))
    for one, together in zip(wanted, solve(wanted), strict=True):
        (alone,) = solve([one])
        assert alone.left == together.left
        for a, b in zip(alone.sides, together.sides, strict=True):
            assert torch.equal(a.out, b.out)
            assert torch.equal(a.energies, b.energies)


@pytest.mark.parametrize(
    ("name", "rank"),
    [("svd", (0,)), ("svd", (99,)), ("svd", (1, 1)), ("tucker2", (1, 99)), ("grouped_svd", (3, 1)), ("tiled_svd", (2, 0, 1))],
)
def test_ranks_that_do_not_exist_are_refused(name: str, rank: tuple[int, ...]) -> None:
    site, weight = sites_of(name)[0]
    with pytest.raises(InvalidArgument, match=name):
        PROJECTIONS[name].bases(site, weight, rank)


@pytest.mark.parametrize("kind", ["none", "input", "both"])
def test_a_fit_of_cp_goes_on_from_its_kernels(kind: str) -> None:
    """Towards another weight every sweep lowers the error; at the weight that they were made for it hardly moves them. The
    projection is the least-squares one: no other output factor is better."""
    projection = PROJECTIONS["cp"]
    assert isinstance(projection, CPProjection)
    site, weight = sites_of("cp")[0]
    moments = None if kind == "none" else cases.moments_of(site, output=kind == "both")
    rank = some_ranks("cp", site)[2]
    bases = projection.bases(site, weight, rank, moments)
    moved = weight + 0.3 * torch.randn_like(weight)
    before = (weight.clone(), moved.clone())

    def error(of: torch.Tensor, found) -> float:
        return energy(site, of - cases.BY_NAME["cp"].compose(site, projection.factors(site, of, found, rank)), moments or Moments())

    errors = [error(moved, bases)]
    for _ in range(4):
        bases = projection.fit(site, moved, projection.kernels(bases), moments)
        errors.append(error(moved, bases))
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(errors)) and errors[-1] < 0.98 * errors[0]
    out, *kernels = projection.factors(site, moved, bases, rank)
    for _ in range(5):
        other = (out + 1e-3 * torch.randn_like(out), *kernels)
        assert energy(site, moved - cases.BY_NAME["cp"].compose(site, other), moments or Moments()) > errors[-1]
    assert torch.equal(weight, before[0]) and torch.equal(moved, before[1])
    nothing = torch.zeros_like(weight)
    zero = projection.fit(site, nothing, projection.kernels(bases), moments)
    assert torch.equal(cases.BY_NAME["cp"].compose(site, projection.factors(site, nothing, zero, rank)), nothing)


def test_half_precision_has_bases_in_float32() -> None:
    site, weight = sites_of("svd")[0]
    bases = PROJECTIONS["svd"].bases(site, weight.bfloat16(), (2,))
    assert bases.sides[0].out.dtype == torch.float32
    assert PROJECTIONS["svd"].factors(site, weight.bfloat16(), bases, (2,))[0].dtype == torch.bfloat16
