"""What successive halving is made of: rungs, and which place a newcomer must have to go on."""

from __future__ import annotations

from ranksearch import checks


def checked(first: float, eta: float) -> tuple[float, float]:
    """Hyper-parameters of successive halving.

    Raises:
        InvalidArgument: a first rung that is not above 0, or an eta below 2."""
    return checks.number("first", first, above=0, hint="epochs"), checks.number("eta", eta, least=2)


def rungs(first: float, eta: float, length: float) -> tuple[float, ...]:
    """first, first * eta, first * eta^2, ... below the length."""
    found = []
    while first < length:
        found.append(first)
        first *= eta
    return tuple(found)


def among_best(before: int, count: int, eta: float) -> bool:
    """Whether a newcomer with so many before it, among ``count`` with itself, is of the best 1 / eta: before * eta < count.

    Of newcomers whose place is uniformly distributed ceil(count / eta) / count go on: 1 / eta exactly where eta divides the count, more
    before that, and all of the first to arrive. It is the rule of ASHA (Li et al. 2020, arXiv 1810.05934) in the form that stops. Ray's
    ``ASHAScheduler`` compares with the percentile 100 (1 - 1 / eta) of those before; both decide alike but where that percentile lies
    between two of them and the newcomer too: Ray's answer depends on the scale of the metric there, this one on places alone.
    """
    return before * eta < count
