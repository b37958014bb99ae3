"""The portfolio: every rule of choosing types and ranks without training, one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from ranksearch.errors import InvalidArgument
from ranksearch.proxies import LEMS, Energy, Frobenius, OperatorNorm, TableProxy
from ranksearch.space import Configuration, SearchSpace
from ranksearch.space.spectra import Spectra
from ranksearch.statistics.metric import MetricName

Measure = Callable[[Configuration], float]  # loss of a network as its factors come, on calibration batches


@dataclass(frozen=True)
class Rule:
    """A way to choose types and ranks at a budget.

    Attributes:
        name: unique.
        metric: what the errors are taken in and the factors are made for.
        proxy: whose table is minimised, or that the allocator takes its problem with; or what makes it of a measurement of networks and
            the budgets, for a rule that measures.
        allocator: makes the allocator for the spectra of the metric.
        source: where the rule comes from.
    """

    name: str
    metric: MetricName
    proxy: TableProxy | Callable[[Measure, Mapping[str, float]], TableProxy]
    allocator: Callable[[Spectra], Allocator]
    source: str

    @property
    def measures(self) -> bool:
        """Whether networks are measured while it chooses."""
        return not isinstance(self.proxy, TableProxy)

    def choose(self, spectra: Spectra, space: SearchSpace, budgets: dict[str, float], measure: Measure | None = None) -> Allocation:
        """The rule's answer within the budgets.

        Args:
            measure: for rules that measure networks; they are of ``spectra``.

        Raises:
            InfeasibleBudget: it has none.
            InvalidArgument: the rule does not take such budgets, or ``measure`` is missing.
        """
        proxy = self.proxy
        if not isinstance(proxy, TableProxy):
            if measure is None:
                raise InvalidArgument(f"measure=None: the rule {self.name!r} measures networks, so give what measures a configuration")
            proxy = proxy(measure, budgets)
        return self.allocator(spectra).allocate(Problem(space, proxy.table(space), budgets))


def _always(allocator: Allocator) -> Callable[[Spectra], Allocator]:
    return lambda spectra: allocator


def _lems(measure: Measure, budgets: Mapping[str, float]) -> LEMS:
    return LEMS(measure, budgets=budgets)


RULES: tuple[Rule, ...] = (
    Rule("fisher", "fisher", Energy(), _always(Additive()), "sum of second-order losses, solved exactly"),
    Rule("fisher_relative", "fisher", Frobenius(), _always(Additive()), "sum of relative second-order errors, solved exactly"),
    Rule("activation", "activation", Frobenius(), _always(Additive()), "sum of relative response errors, solved exactly"),
    Rule("balf", "activation", Frobenius(), _always(BALF()), "BALF (arXiv 2509.25136): log of the kept energy"),
    Rule("lems", "fisher", _lems, _always(Additive()), "LEMS (ICML 2026): curves scaled by one measurement per site, and a depth factor"),
    Rule("frobenius", "weight", Frobenius(), _always(Additive()), "sum of relative weight errors, solved exactly"),
    Rule("energy_weight", "weight", Energy(), _always(Additive()), "sum of squared weight errors, solved exactly"),
    Rule("minimax", "weight", OperatorNorm(), _always(Minimax()), "ALDS's objective (arXiv 2107.11442), solved exactly"),
    Rule("alds", "weight", Frobenius(), ALDS, "ALDS (arXiv 2107.11442), solved exactly with its own errors of groups"),
    Rule("alds_heuristic", "weight", Frobenius(), ALDSHeuristic, "ALDS as torchprune runs it"),
    Rule("energy", "weight", Frobenius(), _always(EnergyThreshold()), "one threshold on the kept energy of every layer"),
    Rule("decomposable_net", "weight", Frobenius(), _always(DecomposableNet(decompositions=None)), "Decomposable-Net (arXiv 1910.13141)"),
    Rule("stn_storage", "weight", Frobenius(), _always(STNStorage()), "STN (arXiv 2205.15198)"),
    Rule("evbmf", "weight", Frobenius(), EVBMF, "MUSCO (arXiv 1903.09973): variational Bayesian ranks"),
    Rule("uniform", "weight", Frobenius(), _always(Uniform()), "the same share of every layer"),
)
