"""Every allocator, one file each. The table below is the only list of them; `EVBMF` is not in it, since it is made for
one model's spectra."""

from __future__ import annotations

from ranksearch.allocators._base import Allocation, Allocator, Problem
from ranksearch.allocators.additive import Additive, Hull, additive_front, lagrangian_hull
from ranksearch.allocators.alds import ALDS, ALDSHeuristic
from ranksearch.allocators.balf import BALF
from ranksearch.allocators.decomposable_net import DecomposableNet, DecomposableNetRaw
from ranksearch.allocators.energy import EnergyThreshold
from ranksearch.allocators.evbmf import EVBMF
from ranksearch.allocators.minimax import Minimax, MinimaxFront, minimax_front
from ranksearch.allocators.stn_storage import STNStorage
from ranksearch.allocators.uniform import Uniform
from ranksearch.space.table import Reduction

ALLOCATORS: tuple[Allocator, ...] = (
    Additive(), Minimax(), Uniform(), EnergyThreshold(), ALDS(), ALDSHeuristic(),
    DecomposableNet(decompositions=None), DecomposableNetRaw(decompositions=None, least=1), STNStorage(), BALF(),
)  # fmt: skip


def exact_for(reduction: Reduction) -> Allocator:
    """The allocator that solves tables of a reduction exactly: the first in the table that takes these and no others."""
    return next(allocator for allocator in ALLOCATORS if allocator.reduction == reduction)


__all__ = [
    "ALDS", "ALLOCATORS", "BALF", "EVBMF", "ALDSHeuristic", "Additive", "Allocation", "Allocator", "DecomposableNet",
    "DecomposableNetRaw", "EnergyThreshold", "Hull", "Minimax", "MinimaxFront", "Problem", "STNStorage", "Uniform",
    "additive_front", "exact_for", "lagrangian_hull", "minimax_front",
]  # fmt: skip
