"""Adaptive tensor networks: the topology is learned from the weight (STN, arXiv 2205.15198, whose formulas could not be
obtained). From the paper: a structure per layer learned from the trained weight, ranks chosen under a storage
constraint. Ours: growth from a rank-one fully connected network by the bond that lowers the squared error most per
parameter, and the search by cut ranks that finds exact structures."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.decompositions.decomposition import Decomposition, Errors, Rank
from ranksearch.decompositions.metric import Moments, conditioned, residual_energy
from ranksearch.decompositions.network import (
    CAP,
    Bonds,
    Reduced,
    contract,
    core_shapes,
    even,
    fit,
    pairs,
    reduce,
    start,
    stored,
    stored_costs,
    stored_module,
    widen,
)  # fmt: skip
from ranksearch.decompositions.tensor_ring import storage_undefined
from ranksearch.decompositions.tensor_train import _factors
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site

STEPS = 24  # of growth per site
FRESH = 3  # bonds tried per step: those that bought most when last tried
SHARE = 0.9  # of the dense parameters: the storage constraint that ends the growth
WORK = 4e8  # multiply-adds of one least-squares solve; growth ends before larger ones
EXACT = 1e-10  # relative error at which a network *is* the weight
TRIALS = 60  # structures tried in the search for an exact one
TRIAL_WORK = 3e9  # multiply-adds that this search may take; small tensors alone are searched to the end


@dataclass(frozen=True)
class AdaptiveState:
    """The networks on the path of growth, and their measured errors."""

    ranks: np.ndarray  # int64, shape: (n_steps, pairs of modes and hub)
    cores: tuple[tuple[Tensor, ...], ...]
    reduced: Reduced
    frobenius: np.ndarray
    norm: float


class Adaptive(Decomposition[AdaptiveState]):
    """Rank: the widths of all bonds, upper triangle row by row, of the modes and, last, a hub without a mode (the
    core of a Tucker form; all its bonds are 1 where there is none). Width 1 is no edge, so that the topology is part of the
    rank; see `topology`. Which ranks exist is learned from the weight: `ranks` knows only where growth starts."""

    name = "adaptive"
    nested = False
    exact = False
    storage_only = True

    def undefined(self, site: Site) -> str | None:
        return storage_undefined(site)

    def ranks(self, site: Site) -> np.ndarray:
        nodes = len(modes(site)) + 1
        return np.ones((1, nodes * (nodes - 1) // 2), dtype=np.int64)

    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes = tuple(modes(site).values())
        return stored_costs(site, sizes, [_active(tuple(row), len(sizes)) for row in ranks.tolist()])

    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> AdaptiveState:
        dense = weight.double()
        metric = conditioned(moments, dense)
        sizes = tuple(modes(site).values())
        norm = residual_energy(dense[None], metric) ** 0.5
        reduced = reduce(dense.reshape(sizes))
        path = learn(reduced, sizes)
        energies = []
        for _, cores in path:
            residual = dense - contract(reduced.lift(cores), len(sizes)).reshape(dense.shape)
            energies.append(residual_energy(residual[None], metric))
        frobenius = np.sqrt(np.array(energies)) / norm if norm > 0 else np.zeros(len(path))
        ranks = np.array([bonds for bonds, _ in path], dtype=np.int64)
        return AdaptiveState(ranks, tuple(tuple(cores) for _, cores in path), reduced, frobenius, norm)

    def errors(self, state: AdaptiveState) -> Errors:
        nothing = np.full(len(state.ranks), np.nan)
        return Errors(state.ranks, state.frobenius, nothing, state.norm, frobenius_is="measured", operator_is="measured")

    def factors(self, state: AdaptiveState, rank: Rank) -> tuple[Tensor, ...]:
        position = np.flatnonzero((state.ranks == np.array(rank)).all(axis=1))
        if not len(position):
            raise InvalidArgument(f"rank={rank} of adaptive is not on the path learned; ranks are {state.ranks.tolist()}")
        return even(state.reduced.lift(state.cores[int(position[0])]))

    def empty_factors(self, site: Site, rank: Rank) -> tuple[Tensor, ...]:
        """The path, and with it the ranks that exist, is that of one weight: a stored network may have another.

        Raises:
            InvalidArgument: no rank of this site's modes."""
        sizes = tuple(modes(site).values())
        count = len(sizes)
        if len(rank) != len(pairs(count + 1)) or min(rank) < 1:
            raise InvalidArgument(f"rank={rank} of adaptive: {site.name!r} has {len(pairs(count + 1))} bonds, each of width 1 or more")
        shapes = core_shapes(sizes, _active(rank, count))
        return tuple(torch.full(shape, math.prod(shape) ** -0.5, dtype=torch.float64) for shape in shapes)

    def describe(self, site: Site, rank: Rank) -> str:
        return graph(rank, list(modes(site)))

    def compose(self, site: Site, factors: tuple[Tensor, ...]) -> Tensor:
        return contract(factors, len(modes(site))).reshape(site.shape)

    def module(self, site: Site, factors: tuple[Tensor, ...], bias: Tensor | None) -> nn.Module:
        return stored_module(site, factors, len(modes(site)), bias)


def modes(site: Site) -> dict[str, int]:
    """Names and sizes of the modes: channels and kernel sides above 1, or balanced factors of a matrix."""
    if site.kernel != (1, 1):
        kernel = {name: k for name, k in zip(("height", "width"), site.kernel, strict=True) if k > 1}
        return {"out": site.c_out, "in": site.c_in, **kernel}
    out, into = _factors(site.c_out, 2), _factors(site.c_in, 2)
    assert out is not None and into is not None, "asked of a site that the type is undefined for"
    return {"out1": out[0], "out2": out[1], "in1": into[0], "in2": into[1]}


def edges(rank: Rank, names: tuple[str, ...] | list[str]) -> list[tuple[str, str, int]]:
    """The bonds wider than 1 as (node, node, width); ``names`` are those of the modes."""
    nodes = [*names, "hub"]
    return [(nodes[i], nodes[j], r) for (i, j), r in zip(pairs(len(nodes)), rank, strict=True) if r > 1]


def topology(rank: Rank, names: tuple[str, ...] | list[str]) -> str:
    """A readable graph, such as ``train: out -4- in, in -2- height``. Kinds: rank one, hub (Tucker), star, train, ring, tree, network;
    modes without a bond hang on by the product alone."""
    found = edges(rank, names)
    degree = {name: sum(name in edge[:2] for edge in found) for name in (*names, "hub")}
    linked = [d for d in degree.values() if d]
    if not found:
        return "rank one"
    if degree["hub"] == len(found):
        kind = "hub"
    elif len(found) == len(linked) and max(linked) == 2 and _connected(found):
        kind = "ring"
    elif len(found) == len(linked) - 1 and _connected(found):
        kind = "train" if max(linked) <= 2 else "star" if max(linked) == len(found) else "tree"
    else:
        kind = "network"
    return f"{kind}: " + ", ".join(f"{a} -{r}- {b}" for a, b, r in found)


def graph(rank: Rank, names: tuple[str, ...] | list[str]) -> str:
    """The bonds wider than 1 on one line, nodes by initial and number, the hub in full: ``o-2-i, i-3-h``."""
    short = {name: name[0] + name.lstrip("abcdefghijklmnopqrstuvwxyz") for name in names} | {"hub": "hub"}
    return ", ".join(f"{short[a]}-{r}-{short[b]}" for a, b, r in edges(rank, names)) or "rank one"


def _connected(found: list[tuple[str, str, int]]) -> bool:
    reached, size = set(found[0][:2]), 0
    while size != len(reached):
        size = len(reached)
        reached |= {end for a, b, _ in found if a in reached or b in reached for end in (a, b)}
    return reached == {end for edge in found for end in edge[:2]}


def _active(rank: Rank, count: int) -> Bonds:
    """The bonds of the nodes that are stored: without the hub where it has none."""
    hub = [j == count for _, j in pairs(count + 1)]
    if any(r > 1 for r, h in zip(rank, hub, strict=True) if h):
        return rank
    return tuple(r for r, h in zip(rank, hub, strict=True) if not h)


def _with_hub(bonds: Bonds, count: int) -> Rank:
    """The rank of a network without a hub."""
    width = dict(zip(pairs(count), bonds, strict=True))
    return tuple(width.get(pair, 1) for pair in pairs(count + 1))


def learn(reduced: Reduced, sizes: tuple[int, ...]) -> list[tuple[Rank, list[Tensor]]]:
    """The path of growth: (rank, cores of the reduced tensor), cheapest first. If a cheaper network than the path's
    end *is* the tensor, the path ends with it."""
    count = len(sizes)
    path = _grow(reduced.core, sizes)
    options = [(_with_hub(bonds, count), cores) for bonds, cores in path]
    capped = any(n > kept == CAP for n, kept in zip(sizes, reduced.core.shape, strict=True))
    exact = None if capped else _exact(reduced.core, sizes)
    if exact is not None:
        limit = stored(sizes, _active(exact[0], count))
        # what costs as much or more than the exact network without being exact is of no use
        options = [o for o in options if stored(sizes, _active(o[0], count)) < limit] + [exact]
    return options


def _grow(tensor: Tensor, sizes: tuple[int, ...]) -> list[tuple[Bonds, list[Tensor]]]:
    """Greedy growth by the bond with the most squared error removed per parameter added."""
    generator = torch.Generator().manual_seed(0)
    ends = pairs(len(sizes))
    bonds: Bonds = (1,) * len(ends)
    cores, error = fit(tensor, start(tensor), sweeps=5)
    path: list[tuple[Bonds, list[Tensor]]] = [(bonds, list(even(cores)))]
    total = float(tensor.square().sum())
    worth = dict.fromkeys(range(len(ends)), math.inf)  # what each bond bought per parameter when last tried
    while len(path) <= STEPS and error > EXACT**2 * total:
        params = stored(sizes, bonds)
        trials = []
        for k in sorted(worth, key=lambda k: -worth[k])[: len(ends) if len(path) == 1 else FRESH]:
            wider = _wider(bonds, k, tensor.shape)
            if wider is None or stored(sizes, wider) > SHARE * math.prod(sizes) or _work(tensor.shape, wider) > WORK:
                worth[k] = -math.inf
                continue
            i, j = ends[k]
            grown, found = fit(tensor, widen(cores, wider, generator), sweeps=1, nodes=(j, i, j))
            worth[k] = (error - found) / (stored(sizes, wider) - params)
            trials.append((worth[k], wider, grown))
        if not trials:
            if all(w == -math.inf for w in worth.values()):
                break
            continue
        _, bonds, cores = max(trials, key=lambda trial: trial[0])
        cores, error = fit(tensor, cores, sweeps=8, tolerance=1e-3)
        cores = list(even(cores))
        path.append((bonds, cores))
    return path


def _wider(bonds: Bonds, k: int, shape: tuple[int, ...]) -> Bonds | None:
    """Bond ``k`` wider by half, at most as wide as its ends can use; None where it already is."""
    ends = pairs(len(shape))
    i, j = ends[k]
    limit = math.inf
    for node in (i, j):
        rest = math.prod(r for r, pair in zip(bonds, ends, strict=True) if node in pair and pair != (i, j))
        limit = min(limit, shape[node] * rest)
    width = int(min(limit, bonds[k] + max(1, round(bonds[k] / 2))))
    return None if width <= bonds[k] else (*bonds[:k], width, *bonds[k + 1 :])


def _work(shape: tuple[int, ...], bonds: Bonds) -> float:
    """Multiply-adds of the largest normal equations."""
    total, ends = math.prod(shape), pairs(len(shape))
    widths = [math.prod(r for r, pair in zip(bonds, ends, strict=True) if node in pair) for node in range(len(shape))]
    return max(total / n * w * (w + n) + w**3 / 3 for n, w in zip(shape, widths, strict=True))


def cut_ranks(tensor: Tensor) -> dict[tuple[int, ...], int]:
    """Numerical rank of every unfolding: modes S against the others, each pair once. A network that is the tensor
    has bonds across the cut whose product is at least as large."""
    count = tensor.ndim
    ranks = {}
    for size in range(1, count // 2 + 1):
        for subset in itertools.combinations(range(count), size):
            if 2 * size == count and 0 not in subset:
                continue
            rest = [m for m in range(count) if m not in subset]
            matrix = tensor.permute(*subset, *rest).reshape(math.prod(tensor.shape[m] for m in subset), -1)
            values = torch.linalg.svdvals(matrix)
            ranks[subset] = int((values > 1e-9 * values[0]).sum())
    return ranks


def _exact(tensor: Tensor, sizes: tuple[int, ...]) -> tuple[Rank, list[Tensor]] | None:
    """The network of least storage that is the tensor, where one is cheaper than dense: structures are taken in order
    of storage among those whose bonds satisfy every cut rank (necessary), and fitted (sufficient)."""
    count = tensor.ndim
    if tensor.numel() > 20_000 or count < 3 or not bool(tensor.any()):
        return None
    cuts = cut_ranks(tensor)
    full = {s: min(n, tensor.numel() // n) for s in cuts if (n := math.prod(tensor.shape[m] for m in s))}
    if tuple(tensor.shape) == tuple(sizes) and cuts == full:
        return None  # no unfolding lacks rank, as with every trained weight: there is no structure to find
    limit = math.prod(sizes)
    best: tuple[Rank, list[Tensor]] | None = None
    single = tuple(cuts[k,] for k in range(count))
    hub_width = dict(zip([(k, count) for k in range(count)], single, strict=True))
    hub = tuple(hub_width.get(pair, 1) for pair in pairs(count + 1))
    if sum(r > 1 for r in single) > 2 and stored(sizes, hub) < limit:
        # reduced tensors are in the bases of their modes: the Tucker form is at hand
        cores = [torch.eye(n, dtype=tensor.dtype, device=tensor.device) for n in tensor.shape]
        cores = [c.reshape(*[1] * (count - 1), *c.shape) for c in cores]  # bonds to modes are 1, to the hub (last) the rank
        best, limit = (hub, [*cores, tensor.clone()]), stored(sizes, hub)
    spent = 0.0
    for bonds in _candidates(cuts, sizes, limit):
        spent += 100 * count * _work(tensor.shape, bonds)  # sweeps of a hopeless trial, over its starts
        if spent > TRIAL_WORK:
            break
        cores = _recover(tensor, bonds)
        if cores is not None:
            return _with_hub(bonds, count), cores
    return best


def _candidates(cuts: dict[tuple[int, ...], int], sizes: tuple[int, ...], limit: int) -> list[Bonds]:
    """Bonds that satisfy every cut rank, of less storage than ``limit``, none of which could be narrower; by storage."""
    count = len(sizes)
    ends = pairs(count)
    top = min(max(cuts.values()), 8 if len(ends) > 3 else 64)
    grid = np.stack([g.ravel() for g in np.meshgrid(*[np.arange(1, top + 1)] * len(ends), indexing="ij")], axis=1)
    for subset, rank in cuts.items():
        across = [k for k, (i, j) in enumerate(ends) if (i in subset) != (j in subset)]
        grid = grid[grid[:, across].prod(axis=1) >= rank]
    width = np.zeros((len(grid), count), dtype=np.int64)
    for node in range(count):
        width[:, node] = grid[:, [k for k, pair in enumerate(ends) if node in pair]].prod(axis=1) * sizes[node]
    cost = width.sum(axis=1)
    order = np.lexsort((*grid.T[::-1], cost))
    order = order[cost[order] < limit][:TRIALS]
    return [tuple(int(r) for r in row) for row in grid[order]]


def _recover(tensor: Tensor, bonds: Bonds, *, restarts: int = 4) -> list[Tensor] | None:
    """Cores that reproduce the tensor, or None if alternating least squares does not get there from a few starts."""
    total = float(tensor.square().sum())
    for seed in range(restarts):
        generator = torch.Generator().manual_seed(seed)
        cores = widen(start(tensor), bonds, generator)
        scales = [float(c.std()) if c.numel() > 1 else 0.0 for c in cores]
        noise = [torch.randn(c.shape, generator=generator, dtype=torch.float64).to(c) for c in cores]
        cores = [c + scale * n for c, scale, n in zip(cores, scales, noise, strict=True)]
        last = math.inf
        for _ in range(40):
            cores, error = fit(tensor, list(even(cores)), sweeps=15)
            if error <= EXACT**2 * total:
                return list(even(cores))
            if error > 0.9 * last and error > 1e-8 * total:  # stalled away from the tensor
                break
            last = error
    return None
