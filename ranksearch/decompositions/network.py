"""Tensor networks over the modes of a weight: one core per mode, a bond between any two of them (the fully connected
network of Zheng et al. 2021; a bond of width 1 is no edge), fitted by alternating least squares, and stored as the cores
of a parametrized dense layer. A node past the modes is a *hub*: a core with bonds only, the centre of a Tucker form.

Functions on cores take leading batch dimensions, the same for every core: networks of equal widths are then fitted together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ranksearch.decompositions.balanced_factors import balanced_factors
from ranksearch.decompositions.chain import Link, chain_module
from ranksearch.decompositions.decomposition import BEYOND
from ranksearch.decompositions.singular import svd
from ranksearch.decompositions.symmetric import cholesky_ex, eigh
from ranksearch.errors import RanksearchError
from ranksearch.sites import Site

Bonds = tuple[int, ...]  # widths of all pairs of nodes, upper triangle row by row
CAP = 64  # a mode is reduced to so many leading directions before a network is fitted
DAMPING = 1e-14  # of least squares, per unknown, relative to the squared norm of each one's column
ROUNDING = 1e-12  # relative singular values below this are rounding
GRAM_ROUNDING = 1e-7  # and those below this, where they come from a Gram matrix


def pairs(nodes: int) -> list[tuple[int, int]]:
    """All pairs of nodes in the order of ``Bonds``."""
    return [(i, j) for i in range(nodes) for j in range(i + 1, nodes)]


def node_count(bonds: Bonds) -> int:
    """Number of nodes of a network with these bonds: the n of n (n - 1) / 2 pairs."""
    return round((1 + math.sqrt(1 + 8 * len(bonds))) / 2)


def core_shapes(sizes: Sequence[int], bonds: Bonds) -> list[tuple[int, ...]]:
    """Shapes of the cores: the bonds to all other nodes in order, then the mode (a hub has none)."""
    nodes = node_count(bonds)
    width = dict(zip(pairs(nodes), bonds, strict=True))
    return [
        (*(width[min(k, j), max(k, j)] for j in range(nodes) if j != k), *((sizes[k],) if k < len(sizes) else ()))
        for k in range(nodes)
    ]  # fmt: skip


def stored(sizes: Sequence[int], bonds: Bonds) -> int:
    """Numbers stored in the cores."""
    return sum(math.prod(shape) for shape in core_shapes(sizes, bonds))


def contract(cores: Sequence[Tensor], modes: int, skip: int | None = None) -> Tensor:
    """The tensor of a network, shape (*batch, n_1, ..., n_modes); without node ``skip``, shape (*batch, the other modes in
    order, then the bonds of the missing node that are wider than 1). Differentiable in the cores."""
    batch = cores[0].shape[: cores[0].ndim - len(cores)]
    shapes = tuple(tuple(c.shape[len(batch) :]) for c in cores)
    terms, steps, final, _ = _plan(shapes, modes, skip)
    tensors = [cores[k].reshape(*batch, *shape) for k, shape in terms]
    for a, b, left, right, out in steps:
        second, first = tensors.pop(b), tensors.pop(a)
        tensors.append(torch.einsum(first, [..., *left], second, [..., *right], [..., *out]))
    return tensors[0].permute(*range(len(batch)), *(len(batch) + axis for axis in final))


@lru_cache(maxsize=4096)
def _plan(shapes: tuple[tuple[int, ...], ...], modes: int, skip: int | None) -> tuple[Any, Any, Any, int]:
    """Pairwise contractions, always the cheapest next (greedy), and their multiply-adds. A product that sums over nothing is none: it
    adds nothing up, like other elementwise arithmetic."""
    labels, sizes, wanted = _labels(shapes, modes, skip)
    terms = tuple((k, tuple(sizes[label] for label in kept)) for k, kept in labels)
    indices = [kept for _, kept in labels]
    steps = []
    macs = 0
    while len(indices) > 1:
        # lists instead of generators and keys: torch.compile traces this
        choices = list(pairs(len(indices)))
        costs = [math.prod([sizes[label] for label in {*indices[one], *indices[two]}]) for one, two in choices]
        a, b = choices[costs.index(min(costs))]
        right, left = indices.pop(b), indices.pop(a)
        needed = {*wanted, *(label for others in indices for label in others)}
        every = dict.fromkeys(left + right)
        out = [label for label in every if label in needed]
        macs += math.prod([sizes[label] for label in every]) if len(out) < len(every) else 0
        steps.append((a, b, left, right, out))
        indices.append(out)
    return terms, tuple(steps), tuple(indices[0].index(label) for label in wanted), macs


def _labels(
    shapes: tuple[tuple[int, ...], ...], modes: int, skip: int | None
) -> tuple[list[tuple[int, list[int]]], dict[int, int], list[int]]:
    """Indices of the network without node ``skip``: those of every other node, the width of each, and those that the result has, in its
    order. Bonds of width 1 have none; modes keep theirs."""
    nodes = len(shapes)
    number = {pair: k for k, pair in enumerate(pairs(nodes))}
    bonds = [[number[min(k, j), max(k, j)] for j in range(nodes) if j != k] for k in range(nodes)]
    own = [[len(number) + k] if k < modes else [] for k in range(nodes)]
    sizes = {label: n for k, shape in enumerate(shapes) for label, n in zip(bonds[k] + own[k], shape, strict=True)}
    wide = [[label for label in ends if sizes[label] > 1] for ends in bonds]
    others = [k for k in range(nodes) if k != skip]
    wanted = [label for k in others for label in own[k]] + (wide[skip] if skip is not None else [])
    return [(k, wide[k] + own[k]) for k in others], sizes, wanted


def sweep(tensor: Tensor, cores: Sequence[Tensor], nodes: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """One sweep of alternating least squares: each of ``nodes`` is solved for in turn while the others are fixed.

    Each solution is a damped step from the present core (proximal alternating least squares), so that the error never
    rises, singular systems have a solution, and the damping moves no minimum.

    Args:
        tensor: shape (n_1, ..., n_modes), float64, common to the batch.
        cores: each of shape (*batch, ...), see `core_shapes`.

    Returns:
        The cores, and the squared errors after the last node, shape: batch."""
    current = list(cores)
    batch = current[0].shape[: current[0].ndim - len(current)]
    errors = tensor.new_full(batch, math.inf)
    for k in nodes:
        rest = [m for m in range(tensor.ndim) if m != k]
        target = tensor.permute(*rest, k).flatten(0, -2) if k < tensor.ndim else tensor.reshape(-1, 1)
        core = current[k].reshape(*batch, -1, target.shape[-1])
        frame = contract(current, tensor.ndim, skip=k).reshape(*batch, len(target), core.shape[-2])
        residual = target - frame @ core
        step = solve_damped(frame.mT @ frame, frame.mT @ residual)
        current[k] = (core + step).reshape(current[k].shape)
        errors = (residual - frame @ step).square().sum((-1, -2))
    return current, errors


def solve_damped(gram: Tensor, right: Tensor) -> Tensor:
    """(G + D)^-1 right with a damping D of rounding size, relative to the diagonal of G: badly scaled and singular systems have a
    finite solution, and what G does not see stays zero.

    Args:
        gram: positive semidefinite, shape (*batch, w, w); right: shape (*batch, w, n)."""
    scale = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))[..., None]
    damping = DAMPING * gram.shape[-1]
    scaled = gram / scale / scale.mT
    scaled.diagonal(dim1=-2, dim2=-1).add_(damping)
    factor, failed = cholesky_ex(scaled)
    if not bool(failed.any()):
        return torch.cholesky_solve(right / scale, factor) / scale
    values, vectors = eigh(scaled)
    return (vectors @ ((vectors.mT @ (right / scale)) / values.clamp_min(damping)[..., None])) / scale


def fit(
    tensor: Tensor, cores: Sequence[Tensor], *, sweeps: int, nodes: Sequence[int] | None = None, tolerance: float = 0.0
) -> tuple[list[Tensor], float]:
    """At most ``sweeps`` of alternating least squares over ``nodes`` (all of them) of one network, see `sweep`.

    Returns the cores and the squared error; stops early once a sweep lowers the squared error by less than
    ``tolerance`` of itself. Of a zero tensor the cores are zero, which damped steps would only come near to."""
    current = list(cores)
    order = tuple(nodes) if nodes is not None else tuple(reversed(range(len(current))))  # the last first: see `widen`
    if not bool(tensor.any()):
        return [torch.zeros_like(core) if k in order else core for k, core in enumerate(current)], 0.0
    error = math.inf
    for _ in range(sweeps):
        before = error
        current, errors = sweep(tensor, current, order)
        error = float(errors)
        if before - error <= tolerance * error:
            break
    return current, error


def directions(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors and singular values of ``matrix``, shape (m, n), the largest first; min(m, n) of them. Each vector's
    sign is fixed by its product with one generic vector, as LAPACK leaves it to the processor."""
    wide = matrix.shape[1] > matrix.shape[0]
    # of a wide matrix, the triangle of a QR decomposition of the transpose has the same left vectors and values
    vectors, values, _ = svd(torch.linalg.qr(matrix.mT, mode="r")[1].mT if wide else matrix)
    return _signed(vectors), values


def _signed(vectors: Tensor) -> Tensor:
    generic = torch.arange(1, len(vectors) + 1, dtype=vectors.dtype, device=vectors.device).mul(math.sqrt(2.0)).cos()
    return torch.where(generic @ vectors < 0, -vectors, vectors)


def start(tensor: Tensor) -> list[Tensor]:
    """The rank-one network of the leading directions of every mode."""
    leading = [directions(tensor.movedim(mode, 0).flatten(1))[0][:, 0] for mode in range(tensor.ndim)]
    return [v.reshape(*[1] * (tensor.ndim - 1), -1) for v in leading]


def widen(cores: Sequence[Tensor], bonds: Bonds, generator: torch.Generator) -> list[Tensor]:
    """The same tensor with wider bonds: of the two ends of a bond the first gets random new slices, the second zeros;
    solving for the second end then makes use of them."""
    modes = sum(1 for k, c in enumerate(cores) if c.ndim == len(cores))
    shapes = core_shapes([c.shape[-1] for c in cores[:modes]], bonds)
    wider = []
    for k, (core, shape) in enumerate(zip(cores, shapes, strict=True)):
        scale = float(core.square().mean()) ** 0.5
        noise = scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(core)
        ends = [j for j in range(len(cores)) if j != k]
        for axis, other in enumerate(ends):
            if other < k:  # the second end of the bond: nothing of the new slices yet
                noise.narrow(axis, core.shape[axis], shape[axis] - core.shape[axis]).zero_()
        noise[tuple(slice(0, n) for n in core.shape)] = core
        wider.append(noise)
    return wider


def even(cores: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same networks with cores of equal norm, so that weight decay and step sizes treat them alike; a network with a zero
    core is left as it is."""
    batch = cores[0].ndim - len(cores)
    norms = torch.stack([c.flatten(batch).norm(dim=-1) for c in cores])  # shape: (nodes, *batch)
    level = norms.log().mean(0).exp()
    scales = torch.where((level > 0) & level.isfinite(), level / norms, torch.ones_like(norms))
    return tuple(c * s.reshape(*s.shape, *[1] * (c.ndim - batch)) for c, s in zip(cores, scales, strict=True))


def balanced(cores: Sequence[Tensor]) -> list[Tensor]:
    """The same network in a gauge of its own: across every bond in turn, the singular values of the two ends' product are shared evenly, so
    that what a bond carries is its slices' size, and no end makes up for the other. Least squares leaves slices of one end
    large where those of the other are small, further with every fit, until their products are lost to rounding and the last bits decide how
    `widen` and the next fit go on. Slices that carry nothing, to rounding, are zero; the cores have equal norm, see `even`."""
    current = list(cores)
    for i, j in pairs(len(current)):
        at_i, at_j = j - 1, i  # where the bond is among the axes of its ends
        width = current[i].shape[at_i]
        if width == 1:
            continue
        ends = current[i].movedim(at_i, -1), current[j].movedim(at_j, -1)
        (q_i, r_i), (q_j, r_j) = (torch.linalg.qr(end.flatten(0, -2)) for end in ends)
        left, values, right = torch.linalg.svd(r_i @ r_j.mT, full_matrices=False)
        root = torch.where(values > ROUNDING * values[0], values, torch.zeros_like(values)).sqrt()
        outer = _signed(q_i @ left)
        signs = (outer * (q_i @ left)).sum(0)  # 1 or -1: what `_signed` did
        for node, axis, end, slices in ((i, at_i, ends[0], outer), (j, at_j, ends[1], q_j @ right.mT * signs)):
            whole = torch.nn.functional.pad(slices * root, (0, width - len(root)))
            current[node] = whole.reshape(end.shape).movedim(-1, axis)
    return list(even(current))


@dataclass(frozen=True)
class Reduced:
    """A tensor in the leading directions of its modes."""

    core: Tensor
    bases: tuple[Tensor, ...]  # shape: (n_k, kept_k), orthonormal columns
    lost: float  # squared norm outside

    def lift(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """Cores of the reduced tensor as cores of the whole one."""
        return [*(c @ b.mT for c, b in zip(cores, self.bases, strict=False)), *cores[len(self.bases) :]]


def reduce(tensor: Tensor) -> Reduced:
    """At most ``CAP`` directions of every mode (higher-order SVD, De Lathauwer et al. 2000), and none that the tensor does
    not have, to rounding."""
    bases = []
    for mode in range(tensor.ndim):
        unfolding = tensor.movedim(mode, 0).flatten(1)
        if len(unfolding) > CAP:  # which the Gram matrix gives sooner, and as precisely as leading directions need
            values, vectors = eigh(unfolding @ unfolding.mT)
            vectors, values = _signed(vectors.flip(-1)), values.flip(-1).clamp_min(0.0).sqrt()
        else:
            vectors, values = directions(unfolding)
        tolerance = GRAM_ROUNDING if len(unfolding) > CAP else ROUNDING
        count = int((values > tolerance * values[0]).sum())
        bases.append(vectors[:, : max(1, min(count, CAP))])
    core = tensor
    for basis in bases:
        core = torch.tensordot(core, basis, dims=([0], [0]))  # pyright: ignore[reportArgumentType]  # moves each mode to the end: the order comes round
    return Reduced(core, tuple(bases), max(0.0, float(tensor.square().sum() - core.square().sum())))


class CoreWeight(nn.Module):
    """Parametrization of a weight by the cores of a tensor network: ``weight = contract(cores)``."""

    def __init__(self, cores: Sequence[Tensor], modes: int) -> None:
        super().__init__()
        self.modes = modes
        self._initial: tuple[Tensor, ...] | None = tuple(c.detach().clone() for c in cores)
        self._shape: torch.Size | None = None

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        if self._initial is None:
            raise RanksearchError("weight: a layer stored as cores takes no dense weight; set parametrizations.weight.original0, ...")
        cores, self._initial, self._shape = self._initial, None, weight.shape
        return cores

    def forward(self, *cores: Tensor) -> Tensor:
        assert self._shape is not None
        return contract(cores, self.modes).reshape(self._shape)


def stored_costs(site: Site, sizes: Sequence[int], networks: Sequence[Bonds]) -> tuple[np.ndarray, np.ndarray]:
    """Params and MACs of `stored_module` for every network, int64 arrays of shape (n_networks,). The weight is put together in
    every call of the layer, whatever the size of the batch: its MACs count in full for one example."""
    shapes = [tuple(core_shapes(sizes, bonds)) for bonds in networks]
    params = np.array([sum(map(math.prod, cores)) for cores in shapes], dtype=np.int64) + (site.c_out if site.bias else 0)
    contraction = np.array([_plan(cores, len(sizes), None)[3] for cores in shapes], dtype=np.int64)
    return params, site.cost.macs + len(site.calls) * contraction


def stored_module(site: Site, cores: Sequence[Tensor], modes: int, bias: Tensor | None) -> nn.Module:
    """The dense layer of ``site`` with its weight parametrized by ``cores``. Wrap inference loops in
    ``torch.nn.utils.parametrize.cached()``: then the weight is put together once, not once per call."""
    weight = contract(cores, modes).reshape(site.shape)
    layer = chain_module(site, [Link(site.c_in, site.c_out, (True, True), site.groups)], (weight,), bias)
    parametrize.register_parametrization(layer, "weight", CoreWeight(cores, modes))
    return layer


def storage_undefined(site: Site) -> str | None:
    """Why a site has no form that is stored as the cores of a network."""
    if site.window is not None:
        return BEYOND
    if site.kind == "embedding":
        return "the whole table would be put together for every batch"
    if site.groups > 1:
        return f"groups={site.groups}: networks of grouped weights are not provided"
    if site.kernel == (1, 1) and (balanced_factors(site.c_out, 2) is None or balanced_factors(site.c_in, 2) is None):
        return "a matrix needs dimensions that factor, and one of these is prime or 1"
    return None


def matrix_modes(site: Site) -> tuple[int, int, int, int]:
    """The modes (o_1, o_2, i_1, i_2) of a matrix: balanced factors of c_out and c_in."""
    out, into = balanced_factors(site.c_out, 2), balanced_factors(site.c_in, 2)
    assert out is not None and into is not None, "asked of a site that the type is undefined for"
    return out[0], out[1], into[0], into[1]
