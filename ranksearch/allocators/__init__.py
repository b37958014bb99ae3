"""Every allocator, one file each. The table below is the only list of them."""

from __future__ import annotations

from ranksearch.allocators._base import Allocation, Allocator, Problem
from ranksearch.allocators.additive import Additive, Hull, additive_front, lagrangian_hull
from ranksearch.allocators.minimax import Minimax, MinimaxFront, minimax_front
from ranksearch.allocators.uniform import Uniform

ALLOCATORS: tuple[Allocator, ...] = (Additive(), Minimax(), Uniform())

__all__ = [
    "ALLOCATORS", "Additive", "Allocation", "Allocator", "Hull", "Minimax", "MinimaxFront", "Problem", "Uniform",
    "additive_front", "lagrangian_hull", "minimax_front",
]  # fmt: skip
