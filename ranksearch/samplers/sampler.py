"""What every sampler has in common: candidates are vectors of option indices, candidates that are refused cost nothing, and a sampler
learns from what was measured elsewhere as from what it asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from typing import ClassVar, Self

import numpy as np

from ranksearch import checks
from ranksearch.errors import InfeasibleBudget, InvalidArgument
from ranksearch.samplers.problem import Problem

MUTATIONS = 64  # tries to change a known point before it is handed out as it is


class Sampler(ABC):
    """Proposes vectors of option indices and learns from what they were worth. All objectives are minimised.

    An instance holds hyper-parameters alone, so that one can be given to any study; `start` gives the one that works on a space.
    `propose` may be called any number of times before the results come back, and results may come back in any order,
    for vectors that were never proposed, or not at all. The same seed and the same calls give the same proposals.

    A variant implements `_candidate` and `_learn`, and `_begin` where it has a state of its own.
    """

    name: ClassVar[str]
    refusals: ClassVar[int] = 64  # candidates refused in a row before one is made admissible
    start_share: float = 0.5  # of the trials that starts may take, before the sampler is asked
    shape: tuple[int, ...] = ()  # options per site, once started
    n_objectives: int = 0
    problem: Problem | None = None
    _admissible: Callable[[np.ndarray], bool]
    _rng: np.random.Generator
    _good: list[np.ndarray]  # admissible vectors met so far, distinct
    _seen: set[bytes]

    def start(
        self, shape: tuple[int, ...], n_objectives: int, *, seed: int, admissible: Callable[[np.ndarray], bool],
        problem: Problem | None = None,
    ) -> Self:  # fmt: skip
        """A sampler with these hyper-parameters at the beginning of a search; this one stays as it is.

        Args:
            shape: options per site; indices lie in [0, options). Lower indices are cheaper.
            n_objectives: how many values `observe` will bring.
            seed: of all random choices.
            admissible: whether a vector of indices keeps the constraints; called for every candidate.
            problem: what else may be known of the search; most samplers do without.

        Raises:
            InvalidArgument: an empty shape, a site without options, or no objective.
        """
        if not shape or min(shape) < 1:
            raise InvalidArgument(f"shape={shape}: every site needs at least one option, and there must be a site")
        checks.whole("n_objectives", n_objectives, least=1)
        started = copy(self)
        started.shape = tuple(int(count) for count in shape)
        started.n_objectives = n_objectives
        started.problem = problem
        started._admissible = admissible
        started._rng = np.random.default_rng(seed)
        started._good, started._seen = [], set()
        started._begin(seed)
        return started

    def _begin(self, seed: int) -> None:  # noqa: B027 - nothing to set up in most
        """Set up what the search of a space needs; ``shape`` and ``n_objectives`` are known."""

    def starts(self, trials: int) -> int:
        """How many of so many trials may be starts, before the sampler is asked."""
        return int(trials * self.start_share)

    def propose(self) -> np.ndarray:
        """The next vector to measure, always admissible; int64, shape: (n_sites,). Duplicates are possible.

        Raises:
            InfeasibleBudget: no admissible vector was found, the cheapest one being refused too.
            InvalidArgument: the sampler was not started.
        """
        if not self.shape:
            raise InvalidArgument(f"sampler={self.name!r} was not started: propose with what start(shape, n_objectives, ...) returns")
        candidate = np.zeros(len(self.shape), dtype=np.int64)
        for _ in range(self.refusals):
            candidate = self._candidate()
            if self._accept(candidate):
                return candidate.copy()
        if (lowered := self._lower(candidate)) is not None:
            return lowered
        if self._good:
            return self._mutate()
        raise InfeasibleBudget(
            f"no admissible configuration found: {self.refusals} candidates were refused, the cheapest option at every site too; "
            "loosen the constraints"
        )

    def observe(self, indices: np.ndarray | Sequence[int], values: Sequence[float] | None) -> None:
        """Take in what a vector was worth, proposed by this sampler or not.

        Args:
            indices: shape: (n_sites,).
            values: one per objective, smaller is better; None where the evaluation failed. NaN counts as failed.

        Raises:
            InvalidArgument: a vector outside the space, or the wrong number of values.
        """
        vector = self._vector(indices)
        if values is not None and len(values) != self.n_objectives:
            raise InvalidArgument(f"values={list(values)}: expected {self.n_objectives}, one per objective")
        self._accept(vector)
        known = None if values is None or np.isnan(np.asarray(values, dtype=np.float64)).any() else [float(value) for value in values]
        self._learn(vector, known)

    @abstractmethod
    def _candidate(self) -> np.ndarray:
        """A vector worth trying, admissible or not; int64, shape: (n_sites,)."""

    @abstractmethod
    def _learn(self, indices: np.ndarray, values: list[float] | None) -> None:
        """Take in a checked observation."""

    def _vector(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        vector = np.array(indices, dtype=np.int64)
        if not self.shape or vector.shape != (len(self.shape),) or (vector < 0).any() or (vector >= np.array(self.shape)).any():
            raise InvalidArgument(f"indices={vector.tolist()} do not fit the space: one index per site, below {self.shape}")
        return vector

    def _accept(self, indices: np.ndarray) -> bool:
        if not self._admissible(indices):
            return False
        if (key := indices.tobytes()) not in self._seen:
            self._seen.add(key)
            self._good.append(indices.copy())
        return True

    def _lower(self, candidate: np.ndarray) -> np.ndarray | None:
        """The candidate with random coordinates lowered until it is admissible; None if even the lowest is not."""
        indices = candidate.copy()
        while (above := np.flatnonzero(indices)).size:
            site = self._rng.choice(above)
            indices[site] = self._rng.integers(0, indices[site])
            if self._accept(indices):
                return indices
        return indices if self._accept(indices) else None

    def _mutate(self) -> np.ndarray:
        """A neighbour of an admissible vector; the vector itself where no neighbour is admissible. For constraints that
        are not monotone, where lowering leads nowhere."""
        shape = np.array(self.shape)
        for _ in range(MUTATIONS):
            indices = self._good[self._rng.integers(len(self._good))].copy()
            sites = self._rng.random(len(shape)) < 1 / len(shape)
            sites[self._rng.integers(len(shape))] = True
            indices[sites] = self._rng.integers(0, shape[sites])
            if self._accept(indices):
                return indices
        return self._good[self._rng.integers(len(self._good))].copy()
