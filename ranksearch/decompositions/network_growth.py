"""Greedy growth of a tensor network from rank one: again and again the bond that lowers the squared error most per number added
is widened. Networks without loops start from their closed form, loops from the network that they grow out of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ranksearch.decompositions.exact_structure import EXACT, solve_work
from ranksearch.decompositions.network import Bonds, balanced, core_shapes, fit, pairs, start, stored, widen
from ranksearch.decompositions.tree_network import is_forest, truncate_to_tree

STEPS = 24  # of growth per site
FRESH = 3  # bonds tried per step: those that bought most when last tried
SHARE = 0.9  # of the dense parameters: the storage constraint that ends the growth
WORK = 4e8  # multiply-adds of one least-squares solve; growth ends before larger ones
TIE = 1e-6  # relative differences below this are none: the first of equals is taken, whatever the last bits say


@dataclass(frozen=True)
class Grown:
    """A network on the path of growth."""

    bonds: Bonds
    cores: list[Tensor]
    error: float  # squared


def grow(tensor: Tensor, sizes: tuple[int, ...]) -> list[Grown]:
    """The path of growth, rank one first; every network costs more and errs less than the one before.

    Args:
        tensor: float64; in the bases of its modes, see `network.reduce`.
        sizes: of the modes before they were reduced: what the cores will be stored at."""
    generator = torch.Generator().manual_seed(0)
    ends = pairs(len(sizes))
    total = float(tensor.square().sum())
    cores, error = fit(tensor, start(tensor), sweeps=5)
    path = [Grown((1,) * len(ends), balanced(cores), error)]
    worth = dict.fromkeys(range(len(ends)), math.inf)  # what each bond bought per parameter when last tried; -inf: no more
    while len(path) <= STEPS and path[-1].error > EXACT**2 * total:
        trials: dict[int, Grown] = {}
        for k in _worthiest(worth, len(ends) if len(path) == 1 else FRESH):
            wider = wider_bonds(path[-1].bonds, k, tuple(tensor.shape))
            if wider is None or stored(sizes, wider) > SHARE * math.prod(sizes) or solve_work(tuple(tensor.shape), wider) > WORK:
                worth[k] = -math.inf
                continue
            trials[k] = _widened(tensor, path[-1], wider, ends[k], generator)
            worth[k] = (path[-1].error - trials[k].error) / (stored(sizes, wider) - stored(sizes, path[-1].bonds))
        if trials:
            (best,) = _worthiest({k: worth[k] for k in trials}, 1)
            path.append(_settled(tensor, trials[best]))
        elif all(w == -math.inf for w in worth.values()):
            break
    return path


def _worthiest(worth: dict[int, float], count: int) -> list[int]:
    """The ``count`` bonds of most worth; worths within `TIE` of each other are equal, and the first bond goes first."""
    left, order = dict(worth), []
    while left and len(order) < count:
        top = max(left.values())
        first = next(k for k, w in left.items() if w == top or w >= top - TIE * abs(top))
        order.append(first)
        del left[first]
    return order


def _settled(tensor: Tensor, trial: Grown) -> Grown:
    """The same bonds after more sweeps, unless their damping, which tells where the new slices are of no use, makes the error larger."""
    cores, error = fit(tensor, trial.cores, sweeps=8, tolerance=1e-3)
    return Grown(trial.bonds, balanced(cores if error <= trial.error else trial.cores), min(error, trial.error))


def _widened(tensor: Tensor, before: Grown, wider: Bonds, ends: tuple[int, int], generator: torch.Generator) -> Grown:
    """``before`` with the bond between ``ends`` wider, its two ends solved for, unless that is worse than ``before`` itself; trees also
    from their closed form, if that comes out better."""
    i, j = ends
    same = widen(before.cores, wider, generator)
    cores, error = fit(tensor, same, sweeps=1, nodes=(j, i, j))
    if error > before.error:
        cores, error = same, before.error
    if is_forest(wider):
        closed, closed_error = fit(tensor, truncate_to_tree(tensor, wider), sweeps=1)
        if closed_error < error * (1 + TIE):
            cores, error = closed, closed_error
    return Grown(wider, cores, error)


def wider_bonds(bonds: Bonds, k: int, shape: tuple[int, ...]) -> Bonds | None:
    """Bond ``k`` wider by half, at most as wide as its ends can use; None where it already is."""
    limit = min(math.prod(core_shapes(shape, bonds)[node]) // bonds[k] for node in pairs(len(shape))[k])
    width = min(limit, bonds[k] + max(1, round(bonds[k] / 2)))
    return None if width <= bonds[k] else (*bonds[:k], width, *bonds[k + 1 :])
