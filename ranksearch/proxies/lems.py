"""LEMS (ICML 2026). Every site's curve has the shape of its errors, and its scale comes from one measurement of the whole network. A depth
factor, fitted to a few more measurements, says how much more early sites cost than late ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self

import numpy as np
import torch

from ranksearch import checks
from ranksearch.allocators import Additive, Problem
from ranksearch.errors import InfeasibleBudget
from ranksearch.proxies.context import ProxyContext
from ranksearch.proxies.proxy import TableProxy
from ranksearch.space import Configuration, Ladder, SearchSpace
from ranksearch.space.table import Table

ANCHOR = 0.1  # of the dense layer's parameters: what two factors have at a tenth of the rank at which they have as many as it
ALPHA, GAMMA, TRIALS = 3.0, 7.0, 10  # ranges of the two numbers of the depth factor, and how many pairs of them are tried


class LEMS(TableProxy):
    """Sum over sites of m_b KL_s e^2 / e_s^2: e is the relative error of an option in the metric of the space, e_s that of the site's
    anchor, KL_s what the whole network measures with that site alone at its anchor, and m_b = 1 + gamma norm(sum over k from its block b
    to the last of (k + 1)^-alpha) the depth factor.

    The anchor is the option that has a tenth of the dense layer's parameters, as nearly as the site has one. The paper has `svd`
    alone, and there it is the rank that the paper takes; of several types it is that of the least error. The paper's metric is two-sided,
    as `fisher` is. The depth factor is that of ``trials`` pairs (alpha, gamma), the first without any, whose optimum within ``budgets``
    measures least. What the description leaves open: pairs are points of a Sobol sequence, and the sum is divided by its largest value.

    Args:
        measure: divergence of a configuration from the dense network, or another loss of it, on calibration data
            (`ranksearch.proxies.CalibrationLoss`); asked for the dense network, for each site once, and ``trials`` times.
        budgets: that the depth factor is fitted at; default: half of what the space counts first.
        trials: pairs (alpha, gamma); 1: no depth factor.
        seconds: for HiGHS, per trial.

    Raises:
        InvalidArgument: ``trials`` below 1.
    """

    name = "lems"
    needs = "networks"
    in_metric = True

    def __init__(
        self, measure: Callable[[Configuration], float], *, budgets: Mapping[str, float] | None = None, trials: int = TRIALS,
        seconds: float = 1.0,
    ) -> None:  # fmt: skip
        self.measure, self.budgets, self.trials = measure, budgets, checks.whole("trials", trials, least=1)
        self.seconds = seconds

    @classmethod
    def make(cls, context: ProxyContext) -> Self:
        return cls(context.loss)

    def table(self, space: SearchSpace) -> Table:
        base = self.curves(space)
        budgets = {space.leading_cost: 0.5} if self.budgets is None else self.budgets
        solver = Additive(seconds=self.seconds)
        values: dict[str, float] = {}
        best: tuple[float, Table] | None = None
        for table in deepened(base, blocks([ladder.site.name for ladder in space.ladders]), self.trials):
            if self.trials == 1:
                return table
            try:
                found = space.configuration(solver.allocate(Problem(space, table, budgets)).indices)
            except InfeasibleBudget:
                return table  # there is nothing to fit the depth factor at: the first has none
            if found.id not in values:
                values[found.id] = self.measure(found)
            if best is None or values[found.id] < best[0]:
                best = values[found.id], table
        assert best is not None
        return best[1]

    def curves(self, space: SearchSpace) -> tuple[np.ndarray, ...]:
        """What every option adds before the depth factor, float64, shape: (n_options,) per site."""
        dense = self.measure(Configuration())
        return tuple(self._curve(ladder, dense) for ladder in space.ladders)

    def _curve(self, ladder: Ladder, dense: float) -> np.ndarray:
        errors = _errors(ladder)
        if len(ladder) < 2:
            return np.zeros(len(ladder))
        at = anchor(ladder)
        rise = max(self.measure(Configuration({ladder.site.name: ladder.choice(at)})) - dense, 0.0)
        values = errors * (rise / max(float(errors[at]), 1e-300))
        values[-1] = 0.0  # dense
        return values

    def uncovered(self, space: SearchSpace) -> dict[str, str]:
        return {
            ladder.site.name: f"one of {len(ladder) - 1} options is measured, the others follow the errors"
            for ladder in space.ladders if len(ladder) > 2
        }  # fmt: skip


def anchor(ladder: Ladder) -> int:
    """The option, not dense, whose parameters are nearest to a tenth of the dense layer's; of those as near the one of least error."""
    params = np.maximum(ladder.column("params"), 1)
    away = np.abs(np.log(params[:-1] / (ANCHOR * params[-1])))
    return int(np.lexsort((_errors(ladder)[:-1], away))[0])


def blocks(names: Sequence[str]) -> list[int]:
    """The number of every site's block, in the order in which blocks come: sites of the same entry of a list of modules are of one
    block (`block_of`), and each of the others is one of its own."""
    keys = [block if (block := block_of(name))[0] is not None else (name, -1) for name in names]
    order = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [order[key] for key in keys]


def block_of(name: str) -> tuple[str | None, int]:
    """The path of the list of blocks that a layer is in, and the number of its block; None and 0 where it is in none."""
    found = re.match(r"(.*?)\.(\d+)(\.|$)", name)
    return (None, 0) if found is None else (found[1], int(found[2]))


def depth(numbers: Sequence[int], alpha: float, gamma: float) -> np.ndarray:
    """1 + gamma norm(sum over k from a block to the last of (k + 1)^-alpha), per entry of ``numbers``, those of blocks; float64."""
    count = max(numbers) + 1
    sums = np.cumsum((np.arange(count) + 1.0)[::-1] ** -alpha)[::-1]
    return 1 + gamma * (sums / sums[0])[list(numbers)]


def deepened(base: Sequence[np.ndarray], numbers: Sequence[int], trials: int = TRIALS) -> Iterator[Table]:
    """The curves at ``trials`` depth factors, of which the first changes nothing."""
    points = torch.quasirandom.SobolEngine(2).draw(trials).double().numpy()
    for alpha, gamma in points * (ALPHA, GAMMA):
        weights = depth(numbers, alpha, gamma)
        yield Table(tuple(w * values for w, values in zip(weights, base, strict=True)), "sum")


def _errors(ladder: Ladder) -> np.ndarray:
    """Squared relative errors; an option whose error is not known counts as a lost layer."""
    return np.square(np.nan_to_num(ladder.column("frobenius"), nan=1.0))
