"""Costs that are measured at a few options and interpolated between them, such as latency. The options that the best configurations land
on are measured, and the problem is solved again, until it lands on measured options alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np

from ranksearch.costs import CostModel
from ranksearch.proxies import Energy, Frobenius
from ranksearch.search.starts import optima
from ranksearch.space import SearchSpace
from ranksearch.space.spectra import Spectra

ROUNDS = 4  # of measuring and solving again
FRONT = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # of a cost of the dense network: where exact fronts are solved


def refining(counts: Sequence[CostModel], kept: Collection[str] = ()) -> list[str]:
    """The names of costs that may be measured more closely, but for those that are to stay as they are."""
    return [cost.name for cost in counts if cost.refines and cost.name not in kept]


def landed(
    counts: Sequence[CostModel],
    spectra: Spectra,
    build: Callable[[Sequence[CostModel]], SearchSpace],
    choose: Callable[[SearchSpace], Iterable[np.ndarray]],
    *,
    kept: Collection[str] = (),
    rounds: int = ROUNDS,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[tuple[CostModel, ...], SearchSpace]:
    """Cost models that have measured what configurations land on, and the space that they count.

    An optimum favours options whose cost was interpolated too low; measured, they lose that, and the optimum may be another one. Every
    round measures at least one option or is the last, and there are at most ``rounds``.

    Args:
        counts: as `CostModel.of` gives them.
        build: the space of cost models.
        choose: the configurations of a space that count, each as option indices, shape: (n_sites,).
        kept: names of costs that stay as they are.
        tell: called with what is done, in words.

    Returns:
        Cost models and their space: those given where there is nothing to measure. Options that the last round lands on are measured
        unless ``rounds`` came to their end.
    """
    counts = tuple(counts)
    space = build(counts)
    for number in range(1, rounds + 1 if refining(counts, kept) else 1):
        chosen = [[(s, spectra.decomposition(name), rank) for s, name, rank in _choices(space, each)] for each in choose(space)]
        after = tuple(cost if cost.name in kept else cost.refined(chosen) for cost in counts)
        if all(new is old for new, old in zip(after, counts, strict=True)):
            break
        tell(f"measured what the best networks land on (round {number} of at most {rounds})")
        counts, space = after, build(after)
    return counts, space


def _choices(space: SearchSpace, indices: np.ndarray) -> list[tuple[str, str, tuple[int, ...]]]:
    """The factorized sites of a configuration, with types and ranks."""
    picked = zip(space.ladders, indices.tolist(), strict=True)
    return [(ladder.site.name, *ladder.choice(i)) for ladder, i in picked if i < len(ladder) - 1]  # the last one is dense


def fronts(names: Sequence[str]) -> Callable[[SearchSpace], Iterable[np.ndarray]]:
    """What `landed` is to choose for a search: the exact optima of the second-order loss and of relative errors, within shares (`FRONT`)
    of each of some costs."""

    def choose(space: SearchSpace) -> Iterable[np.ndarray]:
        for start in optima(space, [Energy(), Frobenius()], {}, shares=FRONT, costs=names):
            assert start.candidate.indices is not None  # an optimum lies in the space
            yield start.candidate.indices

    return choose
