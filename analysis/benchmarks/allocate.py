"""Time of exact allocation, as one line of JSON: whole minimax front, whole Lagrangian hull, one exact additive optimum.

    python analysis/benchmarks/allocate.py [--sites 100] [--options 200] [--repeats 5] [--budget 0.5] [--seed 0]
    python analysis/benchmarks/allocate.py --resnet50 [--max-options N] [--no-baseline]
    python analysis/benchmarks/allocate.py --transformer BLOCKS [--no-baseline]

Baselines, measured in the same run on the same instances: the minimax front by a Python loop over thresholds, the hull
by a Python monotone chain per site, and the MILP over all options without fixing any. Instances resemble the ladders
of a convolutional network: layer shapes of ResNet-50, spectra that decay as a power, noise from mixed types.

``--resnet50`` takes the ladders that ranksearch builds for the 53 convolutions of ResNet-50 with every type (minutes of
preparation, not timed). The weights are synthetic, one per shape; each site has the errors of its shape to a power of its
own. `tensor_ring` is left out above ``RING`` parameters, where it takes minutes per layer.

``--transformer`` takes every rank of plain matrices in blocks as wide as MiniLM's: costs of few shapes, so that no two configurations
differ by less than hundreds of params, and spectra that hardly fall. A MILP that is not done after 60 s ends there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from spectra import resnet50, weight
from torch import nn

from ranksearch.allocators import lagrangian_hull, minimax_front
from ranksearch.allocators._choice import solve
from ranksearch.decompositions import Errors
from ranksearch.sites import Cost, Site, Sites
from ranksearch.space import build_space
from ranksearch.space.spectra import Profile, Spectra

Arrays = list[np.ndarray]
RING = 150_000  # parameters of a layer up to which tensor_ring takes part


def instance(sites: int, options: int, seed: int) -> tuple[Arrays, Arrays]:
    """Values, and params (int64), of ladders with ``options`` options each, dense last."""
    rng = np.random.default_rng(seed)
    values, costs = [], []
    for _ in range(sites):
        c_out, c_in = rng.choice([64, 128, 256, 512, 1024], 2)
        kernel = int(rng.choice([1, 9]))
        dense = int(c_out * c_in * kernel)
        full = min(c_out, c_in * kernel)
        # ranks may be fractional here: mixed types fill the gaps between the integer ranks of one
        rank = np.sort(rng.uniform(1, full, options - 1))
        cost = np.maximum((rank / full * dense * rng.uniform(0.7, 1.0)).astype(np.int64), 1)
        spectrum = np.cumsum(np.arange(1, full + 1) ** (-2 * rng.uniform(0.3, 1.2)))
        value = 1 - np.interp(rank, np.arange(1, full + 1), spectrum) / spectrum[-1]
        values.append(np.append(value * rng.uniform(0.9, 1.1, options - 1), 0.0))
        costs.append(np.append(cost, dense))
    return values, costs


class SharedShapes(Spectra):
    """Spectra in which sites of one shape share a decomposed weight; their errors differ by an exponent."""

    def __init__(self, sites: list[Site]) -> None:
        super().__init__(nn.Module(), Sites(tuple(sites), (), sum((s.cost for s in sites), Cost(params=0, macs=0))))
        self.exponents = {site.name: 1.0 for site in sites}
        self.errors: dict[tuple[tuple[int, ...], str], Errors] = {}

    def profile(self, site: Site, name: str) -> Profile | None:
        decomposition = self.decomposition(name)
        if decomposition.undefined(site) is not None or (name == "tensor_ring" and site.cost.params > RING):
            return None
        key = (site.shape, name)
        if key not in self.errors:
            self.errors[key] = decomposition.errors(decomposition.prepare(site, weight(site, seed=0)))
        errors = self.errors[key]
        params, macs = decomposition.costs(site, errors.ranks)
        values = errors.frobenius ** self.exponents[site.name]
        return Profile(
            site.name, name, errors.ranks, params, macs, values, errors.operator, errors.norm, errors.frobenius_is, errors.operator_is
        )


def ladders(repeats: int, seed: int, max_options: int | None) -> Iterator[tuple[Arrays, Arrays, Arrays]]:
    """Squared relative errors, params and MACs of the ladders of ResNet-50, every time with other exponents."""
    sites = resnet50()
    spectra = SharedShapes(sites)
    for repeat in range(repeats):
        exponents = np.random.default_rng(seed + repeat).uniform(0.5, 1.5, len(sites))
        spectra.exponents = {site.name: float(e) for site, e in zip(sites, exponents, strict=True)}
        found = build_space(spectra, max_options=max_options).ladders
        params, macs = ([ladder.column(name).astype(np.int64) for ladder in found] for name in ("params", "macs"))
        yield [np.square(ladder.column("frobenius")) for ladder in found], params, macs


def synthetic(repeats: int, sites: int, options: int, seed: int) -> Iterator[tuple[Arrays, Arrays, Arrays]]:
    """Values, params and MACs of ``instance``, with a number of output positions per site."""
    for repeat in range(repeats):
        values, params = instance(sites, options, seed + repeat)
        positions = np.random.default_rng(repeat).choice([1, 4, 16, 64], sites)
        yield values, params, [c * p for c, p in zip(params, positions, strict=True)]


def transformer(repeats: int, blocks: int, seed: int) -> Iterator[tuple[Arrays, Arrays, Arrays]]:
    """Squared relative errors, params and MACs (of a token; an embedding has none) of every rank that saves params, dense last."""
    shapes = [(30522, 384), *[(384, 384)] * (4 * blocks), *[(384, 1536)] * (2 * blocks)]
    for repeat in range(repeats):
        rng = np.random.default_rng(seed + repeat)
        values, params = [], []
        for rows, columns in shapes:
            ranks = np.arange(1, math.ceil(rows * columns / (rows + columns)))
            energy = np.arange(1, min(rows, columns) + 1) ** (-2 * rng.uniform(0.02, 0.15))
            values.append(np.append(1 - np.cumsum(energy)[ranks - 1] / energy.sum(), 0.0))
            params.append(np.append(ranks * (rows + columns), rows * columns))
        yield values, params, [np.zeros_like(params[0]), *params[1:]]


def loop_front(values: Arrays, costs: Arrays) -> list[tuple[float, int]]:
    """Baseline: for every threshold, every site's cheapest option within it."""
    levels = sorted({float(v) for value in values for v in value}, reverse=True)
    start = max(float(v.min()) for v in values)
    points: list[tuple[float, int]] = []
    for level in levels:
        if level < start:
            break
        total = sum(int(cost[value <= level].min()) for value, cost in zip(values, costs, strict=True))
        if points and points[-1][1] == total:
            points[-1] = (level, total)
        else:
            points.append((level, total))
    return points


def loop_hull(values: Arrays, costs: Arrays) -> list[tuple[float, float]]:
    """Baseline: a monotone chain per site, all steps sorted."""
    steps = []
    for value, cost in zip(values, costs, strict=True):
        chain: list[tuple[int, float]] = []
        for point in sorted(zip(cost.tolist(), value.tolist(), strict=True)):
            if chain and point[1] >= chain[-1][1]:
                continue
            while len(chain) > 1:
                (c0, v0), (c1, v1) = chain[-2:]
                if (v0 - v1) * (point[0] - c1) > (v1 - point[1]) * (c1 - c0):
                    break
                chain.pop()
            chain.append(point)
        steps += [((a[1] - b[1]) / (b[0] - a[0]), b[0] - a[0], a[1] - b[1]) for a, b in itertools.pairwise(chain)]
    return [(rise, gain) for _, rise, gain in sorted(steps, reverse=True)]


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--options", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-baseline", action="store_true", help="leave the baselines out: they take minutes on large instances")
    parser.add_argument("--resnet50", action="store_true", help="the ladders of ResNet-50, all types, instead of --sites and --options")
    parser.add_argument("--transformer", type=int, metavar="BLOCKS", help="every rank of plain matrices")
    parser.add_argument("--max-options", type=int, default=None, help="options per ladder of ResNet-50")
    given = parser.parse_args()
    torch.set_num_threads(1)

    names = ("minimax_front", "minimax_front_loop", "hull", "hull_loop", "optimum", "optimum_two_budgets", "plain_milp")
    times: dict[str, list[float]] = {name: [] for name in names}
    gaps, remaining, points, sizes = [], [], [], []
    if given.transformer:
        name, source = "transformer", transformer(given.repeats, given.transformer, given.seed)
    elif given.resnet50:
        name, source = "resnet50", ladders(given.repeats, given.seed, given.max_options)
    else:
        name, source = "synthetic", synthetic(given.repeats, given.sites, given.options, given.seed)
    for repeat, (values, costs, macs) in enumerate(source):
        sizes.append([len(v) for v in values])
        limit = np.array([int(given.budget * sum(int(c[-1]) for c in costs))])
        columns = [c[:, None] for c in costs]
        both = [np.stack(pair, axis=1) for pair in zip(costs, macs, strict=True)]
        limits = (given.budget * np.sum([c[-1] for c in both], axis=0)).astype(np.int64)

        seconds, front = timed(lambda v=values, c=costs: minimax_front(v, c))
        times["minimax_front"].append(seconds)
        seconds, hull = timed(lambda v=values, c=costs: lagrangian_hull(v, c))
        times["hull"].append(seconds)
        seconds, solution = timed(lambda v=values, c=columns, b=limit: solve(v, c, b))
        times["optimum"].append(seconds)
        seconds, two = timed(lambda v=values, c=both, b=limits: solve(v, c, b))
        times["optimum_two_budgets"].append(seconds)
        assert solution is not None and two is not None
        gaps += [solution.gap, two.gap]
        remaining.append(solution.remaining)
        points.append(len(front.costs))
        if given.no_baseline:
            continue
        seconds, expected = timed(lambda v=values, c=costs: loop_front(v, c))
        times["minimax_front_loop"].append(seconds)
        assert expected == list(zip(front.thresholds, front.costs, strict=True)), "the loop finds another front"
        seconds, steps = timed(lambda v=values, c=costs: loop_hull(v, c))
        times["hull_loop"].append(seconds)
        assert len(steps) == len(hull.prices), "the loop finds another hull"
        if repeat < 2:  # slow
            seconds, plain = timed(lambda v=values, c=columns, b=limit: solve(v, c, b, fixing=False))
            times["plain_milp"].append(seconds)
            assert plain is not None
            assert plain.value >= solution.value * (1 - 1e-9), "the plain MILP finds a better optimum"

    medians = {name: float(np.median(t)) for name, t in times.items() if t}
    ratios = {
        name: medians[baseline] / medians[name]
        for name, baseline in (("minimax_front", "minimax_front_loop"), ("hull", "hull_loop"), ("optimum", "plain_milp"))
        if baseline in medians
    }
    print(json.dumps({
        "benchmark": "allocate", "instance": name, "sites": len(sizes[0]),
        "options": int(np.median([sum(s) for s in sizes])), "longest_ladder": max(map(max, sizes)),
        "budget": given.budget, "repeats": given.repeats,
        "seconds": {name: round(t, 5) for name, t in medians.items()},
        "slowest_seconds": {name: round(max(t), 5) for name, t in times.items() if t},
        "times_faster_than_baseline": {name: round(r, 1) for name, r in ratios.items()},
        "largest_gap": max(gaps), "front_points": int(np.median(points)), "options_left_to_milp": int(np.median(remaining)),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
