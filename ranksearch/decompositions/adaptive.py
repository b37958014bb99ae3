"""Adaptive tensor networks: each layer learns its topology from its trained weight, and ranks are chosen under a storage constraint, as
STN does (arXiv 2205.15198, whose formulas could not be obtained). The structures come from greedy growth (`network_growth`), the
published slice rule (`slice_rule`) and the search for networks that are the weight (`exact_structure`)."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from ranksearch.decompositions.decomposition import Rank, blank
from ranksearch.decompositions.exact_structure import exact_network, with_hub
from ranksearch.decompositions.fitted import FittedDecomposition, FittedNetworks, measured_networks
from ranksearch.decompositions.metric import Moments, conditioned
from ranksearch.decompositions.network import (
    CAP,
    Bonds,
    Reduced,
    contract,
    core_shapes,
    matrix_modes,
    pairs,
    reduce,
    stored,
    stored_costs,
    stored_module,
)
from ranksearch.decompositions.network_growth import TIE, Grown, grow
from ranksearch.decompositions.slice_rule import slice_networks
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site


class Adaptive(FittedDecomposition):
    """Rank: the widths of all bonds, upper triangle row by row, of the modes and, last, a hub without a mode (the
    core of a Tucker form; all its bonds are 1 where there is none). Width 1 is no edge, so that the topology is part of the
    rank; see `topology`. Which ranks exist is learned from the weight: `ranks` knows only where growth starts."""

    name = "adaptive"
    found_on = "the path learned"

    def ranks(self, site: Site) -> np.ndarray:
        nodes = len(modes(site)) + 1
        return np.ones((1, nodes * (nodes - 1) // 2), dtype=np.int64)

    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes = tuple(modes(site).values())
        return stored_costs(site, sizes, [stored_bonds(tuple(row), len(sizes)) for row in ranks.tolist()])

    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> FittedNetworks:
        dense = weight.double()
        metric = conditioned(moments, dense)
        sizes = tuple(modes(site).values())
        reduced = reduce(dense.reshape(sizes))
        return measured_networks(dense, metric, reduced, dict(learned_path(reduced, sizes)), len(sizes))

    def empty_factors(self, site: Site, rank: Rank) -> tuple[Tensor, ...]:
        """The path, and with it the ranks that exist, is that of one weight: a stored network may have another.

        Raises:
            InvalidArgument: no rank of this site's modes."""
        sizes = tuple(modes(site).values())
        count = len(sizes)
        if len(rank) != len(pairs(count + 1)) or min(rank) < 1:
            raise InvalidArgument(f"rank={rank} of adaptive: {site.name!r} has {len(pairs(count + 1))} bonds, each of width 1 or more")
        return blank(*core_shapes(sizes, stored_bonds(rank, count)))

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
    return dict(zip(("out1", "out2", "in1", "in2"), matrix_modes(site), strict=True))


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


def stored_bonds(rank: Rank, modes: int) -> Bonds:
    """The bonds of the nodes that are stored: without the hub, the last node, where it has none."""
    hub = [j == modes for _, j in pairs(modes + 1)]
    if any(r > 1 for r, h in zip(rank, hub, strict=True) if h):
        return rank
    return tuple(r for r, h in zip(rank, hub, strict=True) if not h)


def undominated(networks: list[Grown], sizes: tuple[int, ...]) -> list[Grown]:
    """The networks that err less than every one of as little storage, cheapest first. Errors within `TIE` of each other are equal."""
    kept: list[Grown] = []
    for network in sorted(networks, key=lambda n: stored(sizes, n.bonds)):
        if kept and network.error >= kept[-1].error * (1 - TIE):
            continue
        if kept and stored(sizes, kept[-1].bonds) == stored(sizes, network.bonds):
            kept.pop()
        kept.append(network)
    return kept


def learned_path(reduced: Reduced, sizes: tuple[int, ...]) -> list[tuple[Rank, list[Tensor]]]:
    """The networks learned from a tensor, (rank, cores of the reduced tensor), cheapest first: what growth and the slice rule
    give and, where a network cheaper than their last *is* the tensor, that network at the end."""
    modes = len(sizes)
    if not bool(reduced.core.any()):
        return [(with_hub((1,) * len(pairs(modes)), modes), [c.new_zeros(1, *[1] * (modes - 2), c.shape[1]) for c in reduced.bases])]
    networks = undominated([*grow(reduced.core, sizes), *slice_networks(reduced.core, sizes)], sizes)
    path = [(with_hub(network.bonds, modes), network.cores) for network in networks]
    if any(n > kept == CAP for n, kept in zip(sizes, reduced.core.shape, strict=True)):
        return path  # what was cut off is in no network
    exact = exact_network(reduced.core, sizes)
    if exact is None:
        return path
    limit = stored(sizes, exact[0])
    # what costs as much or more than the exact network without being exact is of no use
    cheaper = [step for step in path if stored(sizes, stored_bonds(step[0], modes)) < limit]
    return [*cheaper, (with_hub(exact[0], modes), exact[1])]
