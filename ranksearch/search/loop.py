"""The search loop evaluates starts first and then what a sampler proposes. It answers duplicates from what is known and hands every
finished evaluation on at once. Runners pull requests from it and push outcomes into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice

import numpy as np

from ranksearch.errors import DenseFailed, FailedInARow
from ranksearch.evaluation import FailureKind, Fidelity, Outcome, Request
from ranksearch.runners import WAIT, Wait
from ranksearch.samplers import Sampler
from ranksearch.search.known import Known, Values
from ranksearch.search.starts import Start
from ranksearch.search.team import Nobody, Others
from ranksearch.sites import Cost
from ranksearch.space import DENSE, Candidate, Configuration, SearchSpace

PATIENCE = 200  # duplicates in a row before the space is searched for something new
IN_A_ROW = 5  # failures by code or the machine, one after the other, that end the search


class SearchLoop:
    """What is evaluated next, until ``trials`` evaluations are known.

    The dense network comes first, then ``again`` and ``wanted``, then starts, as many of ``trials`` as the sampler lets them have
    (`Sampler.starts`), so that it learns from them and has the others. Nothing that is known or in flight is requested again.

    Without the dense network there is nothing to compare with: when it fails, the search ends. Until it is known, failures of others
    are held back, since they may have the same cause, which is none of theirs. `IN_A_ROW` failures of code or of the machine, with
    nothing that succeeded between them, end the search too: the next ones would fail as well.

    Args:
        starts: may be lazy, each taken when it is its turn.
        sampler: started for ``space``; told every outcome, of earlier runs and of its own duplicates too.
        admissible: whether option indices keep the constraints.
        again: evaluations of earlier runs that failed and are tried again, before the starts; they are not among ``known``.
        wanted: what the user wants evaluated, before the starts; it may lie outside ``space``, and teaches the sampler nothing then.
        trials: evaluations to be known in the end, those of ``known`` among them.
        known: evaluated by earlier runs, in this or an earlier, other space of the study.
        values: objective values of a finished evaluation.
        keep: called with every outcome before the sampler hears of it, so that what is learned from is stored.
        others: searches of the same study that run at the same time. What they are about is not requested, and counts among ``trials``.
    """

    def __init__(
        self,
        space: SearchSpace,
        sampler: Sampler,
        *,
        starts: Iterable[Start],
        again: Sequence[Start] = (),
        wanted: Sequence[Start] = (),
        admissible: Callable[[np.ndarray], bool],
        fidelity: Fidelity,
        seed: int,
        trials: int,
        known: Mapping[str, Known],
        values: Callable[[Outcome, Candidate], Sequence[float]],
        keep: Callable[[Outcome, Candidate], None],
        others: Others | None = None,
    ) -> None:
        self.space, self.sampler, self.admissible = space, sampler, admissible
        self.fidelity, self.seed, self.trials = fidelity, seed, trials
        self.values, self.keep, self.others = values, keep, others or Nobody()
        self._known: dict[str, Values] = {}
        self._in_flight: dict[str, Candidate] = {}
        self._held: list[Outcome] = []  # failures that came before the dense network's outcome
        self._in_a_row = 0  # failures since the last success, but for configurations' own
        self._queue = chain([Start(space.candidate(space.dense), "dense")], again, wanted, islice(starts, sampler.starts(trials)))
        self._rng = np.random.default_rng(seed)
        self._hear(known)

    def _hear(self, known: Mapping[str, Known]) -> None:
        """Learn what was found elsewhere or earlier."""
        for id, entry in known.items():
            if id in self._in_flight:  # made here too: what comes of it is learned from
                continue
            self._known[id] = entry.values
            if (indices := indices_of(self.space, entry.configuration)) is not None:
                self.sampler.observe(indices, entry.values)

    @property
    def done(self) -> int:
        """How many evaluations are known, those of earlier runs among them."""
        return len(self._known)

    def cost(self, request: Request) -> Cost:
        """What a request costs that is under way."""
        return self._in_flight[request.configuration.id].cost

    def propose(self) -> Request | Wait | None:
        """The next request; WAIT while all that is left is in flight; None when the study has what it was asked for."""
        self._hear(self.others.news())
        if len(self._known) + len(self._in_flight) + self.others.busy() >= self.trials:
            return WAIT if self._in_flight else None
        for start in self._queue:
            if (request := self._request(start.candidate, start.origin)) is not None:
                return request
        for _ in range(PATIENCE):
            indices = self.sampler.propose()
            candidate = self.space.candidate(indices)
            if (request := self._request(candidate, self.sampler.name)) is not None:
                return request
            # a duplicate is answered from what is known; one in flight is answered when it lands
            if (id := candidate.configuration.id) in self._known:
                self.sampler.observe(indices, self._known[id])
        for _ in range(PATIENCE * 10):
            indices = self._rng.integers(0, np.array(self.space.shape))
            if self.admissible(indices) and (request := self._request(self.space.candidate(indices), "random")) is not None:
                return request
        return WAIT if self._in_flight else None  # everything there is has been evaluated

    def _request(self, candidate: Candidate, origin: str) -> Request | None:
        id = candidate.configuration.id
        if id in self._known or id in self._in_flight or not self.others.claim(id):
            return None
        self._in_flight[id] = candidate
        return Request(candidate.configuration, self.fidelity, self.seed, origin)

    def report(self, outcome: Outcome) -> list[Outcome]:
        """Take in one outcome: stored first, then known to the sampler. Returns those that are settled by it: none while a failure is
        held back, several where the dense network's comes after such.

        Raises:
            DenseFailed: the dense network could not be evaluated. That is stored; failures that were held back are not.
            FailedInARow: the last `IN_A_ROW` failed by the fault of code or the machine; they are stored."""
        if outcome.status == "failed" and outcome.request.configuration != DENSE and DENSE.id in self._in_flight:
            self._held.append(outcome)
            return []
        self._take(outcome)
        settled = [outcome]
        if outcome.request.configuration == DENSE:
            if outcome.status != "done":
                raise DenseFailed(_refusal(outcome))
            settled, self._held = [outcome, *self._held], []
            for held in settled[1:]:
                self._take(held)
        self._count(settled)
        return settled

    def _count(self, settled: Sequence[Outcome]) -> None:
        """End the search where so many have failed in a row that the next ones would, too."""
        for outcome in settled:
            if outcome.status == "done":
                self._in_a_row = 0
            elif outcome.error_kind in ("code", "machine"):
                self._in_a_row += 1
                if self._in_a_row >= IN_A_ROW:
                    raise FailedInARow(_given_up(outcome))

    def _take(self, outcome: Outcome) -> None:
        id = outcome.request.configuration.id
        candidate = self._in_flight[id]
        self.keep(outcome, candidate)
        del self._in_flight[id]
        self._known[id] = self.values(outcome, candidate) if outcome.status == "done" else None
        if candidate.indices is not None:
            self.sampler.observe(candidate.indices, self._known[id])


_REMEDIES: dict[FailureKind | None, str] = {
    "machine": "free some memory or disk, or evaluate fewer at a time (--workers)",
    "limit": "give evaluations more time or memory (--time-limit, --memory-limit)",
    "configuration": "measure the model itself with the task (task.measure(model)), and mend what does not fit",
    "code": "measure the model itself with the task (task.measure(model)), and mend what fails",
}


def _given_up(outcome: Outcome) -> str:
    again = "run again: they are tried again" if outcome.error_kind == "machine" else "run again with --retry-failed"
    return (
        f"{IN_A_ROW} evaluations in a row failed, the last one with {_reason(outcome)}; the next ones would fail too, so the search has "
        f"stopped: {_REMEDIES.get(outcome.error_kind, _REMEDIES['code'])}, and {again}"
    )


def _reason(outcome: Outcome) -> str:
    return " ".join((outcome.error or "no word").split())


def _refusal(outcome: Outcome) -> str:
    reason = _reason(outcome)
    remedy = _REMEDIES.get(outcome.error_kind, _REMEDIES["code"])
    return (
        f"the dense network cannot be evaluated: {reason}; no other network can be compared then, so the search has stopped: {remedy}, and "
        "run again: the dense network is always tried again"
    )


def indices_of(space: SearchSpace, configuration: Configuration) -> np.ndarray | None:
    """Option indices, or None for a configuration that an earlier, other space of the study held."""
    try:
        return space.indices(configuration)
    except ValueError:
        return None
