"""Spaces made of numbers, and losses of which the truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ranksearch.sites import Cost
from ranksearch.sites.site import Site
from ranksearch.space import Ladder, Option, SearchSpace
from ranksearch.space.table import Table
from ranksearch.surrogate import Curves, LossModel, Observations, curves, fit


def site(name: str) -> Site:
    """A square linear layer."""
    return Site(name, "linear", 8, 8)


def space(sites: int, options: int, *, seed: int = 0) -> SearchSpace:
    """Ladders whose errors fall as their costs rise; every second site has a second type among its options."""
    random = np.random.default_rng(seed)
    ladders = []
    for number in range(sites):
        costs = np.sort(random.choice(np.arange(1, 40 * options), options, replace=False)).tolist()
        errors = np.sort(random.uniform(0.02, 0.95, options))[::-1].tolist()
        norm = float(np.exp(random.normal(0, 1.5)))
        rows = [
            Option("tucker2" if number % 2 and k % 3 == 0 else "svd", (k + 1, k + 1) if number % 2 and k % 3 == 0 else (k + 1,),
                   Cost({"params": c, "macs": 3 * c}), e, e, e * e * norm)
            for k, (c, e) in enumerate(zip(costs, errors, strict=True))
        ]  # fmt: skip
        dense = Option("dense", (), Cost({"params": 41 * options, "macs": 123 * options}), 0.0, 0.0, 0.0)
        ladders.append(Ladder.of(site(f"s{number}"), [*rows, dense]))
    total = Cost({"params": 41 * options * sites, "macs": 123 * options * sites})
    return SearchSpace(tuple(ladders), total, metric="fisher")


def energies(space: SearchSpace) -> Table:
    """The absolute errors of every option."""
    return Table(tuple(ladder.column("energy") for ladder in space.ladders), "sum")


@dataclass(frozen=True)
class Truth:
    """Parameters of a model, drawn from its prior, by which losses are made."""

    curves: Curves
    model: LossModel  # with these parameters as its mean

    def rises(self, indices: np.ndarray, channel: int = 0) -> np.ndarray:
        """The true rises."""
        return self.model.rises(indices, channel=channel)


def truth(of: SearchSpace, *, seed: int, channels: int = 1, ceiling: float = 4.0) -> Truth:
    """Losses of a space that differ from what its errors say, as the model allows for."""
    random = np.random.default_rng(seed)
    known = curves(of, energies(of))
    sites = known.n_sites
    links = [np.array([random.normal(0, 1), random.normal(0, 0.2), np.log(ceiling)]) for _ in range(channels)]
    mean = np.concatenate(
        [random.normal(0, known.spread), random.normal(0, 0.5, sites), random.normal(0, 0.25, sites), *links]
    )
    empty = fit(known, Observations(of.sample(4 * channels, 0), np.ones(4 * channels), channels=np.arange(4 * channels) % channels))
    return Truth(known, LossModel(known, mean, empty.root, empty.noise, empty.floors))
