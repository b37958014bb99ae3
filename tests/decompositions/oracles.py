"""Dense oracles shared by the tests of single types."""

from __future__ import annotations

import torch
from torch import Tensor

from ranksearch.decompositions import AnyDecomposition, Moments
from ranksearch.sites import Call, Site


def conv(c_out: int = 8, c_in: int = 6, kernel: tuple[int, int] = (3, 3), groups: int = 1) -> tuple[Site, Tensor]:
    site = Site("x", "conv2d", c_out, c_in, kernel=kernel, groups=groups, calls=(Call(1, (8, 8), (8, 8)),), bias=False)
    return site, torch.randn(site.shape, dtype=torch.float64)


def moments(site: Site, *, output: bool = True, seed: int = 0) -> Moments:
    """Second moments of correlated inputs (neighbours in the patch overlap) and gradients."""
    random = torch.Generator().manual_seed(seed)
    _, c, kh, kw = site.shape
    d, m = c * kh * kw, site.c_out // site.groups
    x = torch.randn(site.groups, 4 * d, d, generator=random, dtype=torch.float64)
    x = x + 0.8 * x.roll(1, dims=2) + 0.5 * x.roll(kw, dims=2)
    x = x * torch.rand(d, generator=random, dtype=torch.float64).mul(2).exp()
    y = torch.randn(site.groups, 4 * m, m, generator=random, dtype=torch.float64)
    y = y @ torch.randn(m, m, generator=random, dtype=torch.float64)
    return Moments(x.mT @ x / x.shape[1], y.mT @ y / y.shape[1] if output else None)


def squared_error(site: Site, residual: Tensor, m: Moments) -> float:
    """tr(G R A R^T), densely."""
    r = residual.reshape(site.groups, site.c_out // site.groups, -1)
    a = torch.eye(r.shape[2], dtype=r.dtype).expand(len(r), -1, -1) if m.input is None else m.input
    g = torch.eye(r.shape[1], dtype=r.dtype).expand(len(r), -1, -1) if m.output is None else m.output
    return float(torch.einsum("gop,gpi,gij,goj->", g, r, a, r))


def assert_no_neighbour_is_better(decomposition: AnyDecomposition, site: Site, weight: Tensor, m: Moments, rank: tuple[int, ...]) -> None:
    """At a minimum, random steps in the factors raise the error; steps so small that what sweeps leave over shows are not taken."""
    factors = decomposition.factors(decomposition.prepare(site, weight, m), rank)
    best = squared_error(site, weight - decomposition.compose(site, factors), m)
    for size in (1.0, 0.3, 0.1):
        for _ in range(20):
            moved = tuple(f + size * f.norm() / f.numel() ** 0.5 * torch.randn_like(f) for f in factors)
            assert squared_error(site, weight - decomposition.compose(site, moved), m) > best


def descend(decomposition: AnyDecomposition, site: Site, weight: Tensor, m: Moments, start: tuple[Tensor, ...], steps: int = 400) -> float:
    """The squared error that L-BFGS on the factors reaches from ``start``: an oracle that knows no closed form."""
    factors = [f.clone(memory_format=torch.contiguous_format).requires_grad_() for f in start]
    optimizer = torch.optim.LBFGS(factors, max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=1e-14, tolerance_grad=1e-10)

    def loss() -> Tensor:
        optimizer.zero_grad()
        r = (weight - decomposition.compose(site, tuple(factors))).reshape(site.groups, site.c_out // site.groups, -1)
        seen = r if m.input is None else r @ m.input
        value = (r * (seen if m.output is None else m.output @ seen)).sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    with torch.no_grad():
        return squared_error(site, weight - decomposition.compose(site, tuple(factors)), m)
