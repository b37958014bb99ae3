"""The portfolio: every rule of choosing types and ranks that needs no measured network, one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ranksearch.allocators import (
    ALDS,
    EVBMF,
    Additive,
    ALDSHeuristic,
    Allocation,
    Allocator,
    DecomposableNet,
    EnergyThreshold,
    Minimax,
    Problem,
    STNStorage,
    Uniform,
)
from ranksearch.allocators.balf import BALF
from ranksearch.proxies import Energy, Frobenius, OperatorNorm, TableProxy
from ranksearch.space import SearchSpace
from ranksearch.space.spectra import Spectra
from ranksearch.statistics.metric import MetricName


@dataclass(frozen=True)
class Rule:
    """A way to choose types and ranks at a budget.

    Attributes:
        name: unique.
        metric: what the errors are taken in and the factors are made for.
        proxy: whose table is minimised, or that the allocator takes its problem with.
        allocator: makes the allocator for the spectra of the metric.
        source: where the rule comes from.
    """

    name: str
    metric: MetricName
    proxy: TableProxy
    allocator: Callable[[Spectra], Allocator]
    source: str

    def choose(self, spectra: Spectra, space: SearchSpace, budgets: dict[str, float]) -> Allocation:
        """The rule's answer within the budgets.

        Raises:
            InfeasibleBudget: it has none.
            InvalidArgument: the rule does not take such budgets.
        """
        return self.allocator(spectra).allocate(Problem(space, self.proxy.table(space), budgets))


def _always(allocator: Allocator) -> Callable[[Spectra], Allocator]:
    return lambda spectra: allocator


RULES: tuple[Rule, ...] = (
    Rule("fisher", "fisher", Energy(), _always(Additive()), "sum of second-order losses, solved exactly"),
    Rule("fisher_relative", "fisher", Frobenius(), _always(Additive()), "sum of relative second-order errors, solved exactly"),
    Rule("activation", "activation", Frobenius(), _always(Additive()), "sum of relative response errors, solved exactly"),
    Rule("balf", "activation", Frobenius(), _always(BALF()), "BALF (arXiv 2509.25136): log of the kept energy"),
    Rule("frobenius", "weight", Frobenius(), _always(Additive()), "sum of relative weight errors, solved exactly"),
    Rule("minimax", "weight", OperatorNorm(), _always(Minimax()), "ALDS's objective (arXiv 2107.11442), solved exactly"),
    Rule("alds", "weight", Frobenius(), _always(ALDS()), "ALDS (arXiv 2107.11442)"),
    Rule("alds_heuristic", "weight", Frobenius(), _always(ALDSHeuristic()), "ALDS as torchprune runs it"),
    Rule("energy", "weight", Frobenius(), _always(EnergyThreshold()), "one threshold on the kept energy of every layer"),
    Rule("decomposable_net", "weight", Frobenius(), _always(DecomposableNet(decompositions=None)), "Decomposable-Net (arXiv 1910.13141)"),
    Rule("stn_storage", "weight", Frobenius(), _always(STNStorage()), "STN (arXiv 2205.15198)"),
    Rule("evbmf", "weight", Frobenius(), EVBMF, "MUSCO (arXiv 1903.09973): variational Bayesian ranks"),
    Rule("uniform", "weight", Frobenius(), _always(Uniform()), "the same share of every layer"),
)
