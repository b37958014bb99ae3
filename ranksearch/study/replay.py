"""An evaluation made again from what its store has of it, and compared with what it came to then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity, Outcome, Request
from ranksearch.evaluation.fidelity import SUPERNET
from ranksearch.space import Configuration
from ranksearch.store import Record
from ranksearch.threads import threads

if TYPE_CHECKING:
    from ranksearch.study.study import Study

Verdict = Literal["identical", "close", "different"]


@dataclass(frozen=True)
class Replay:
    """An evaluation then and now."""

    then: Record
    now: Outcome

    @property
    def elsewhere(self) -> dict[str, tuple[Any, Any]]:
        """What is another machine or setting than it was then, by name, then and now; empty too where it is not known."""
        then, now = self.then.provenance or {}, self.now.provenance or {}
        return {name: (value, now.get(name)) for name, value in then.items() if name != "host" and value != now.get(name)}

    def verdict(self, tolerance: float) -> Verdict:
        """``identical``: the same status, and every metric bit for bit; a failure is identical to one of the same kind. ``close``: metrics
        differ by at most ``tolerance``, relative to the larger of the two. ``different``: anything else."""
        then, now = self.then, self.now
        if then.status != now.status or (then.status != "done" and then.error_kind != now.error_kind):
            return "different"
        if dict(then.metrics) == dict(now.metrics):
            return "identical"
        if then.metrics.keys() != now.metrics.keys():
            return "different"
        near = all(math.isclose(value, now.metrics[name], rel_tol=tolerance) for name, value in then.metrics.items())
        return "close" if near else "different"


def replay(study: Study, id: str, *, fidelity: Fidelity, seed: int | None = None) -> Replay:
    """Make an evaluation again, on as many threads as then. The store is read only.

    Args:
        id: of its configuration, or an unambiguous beginning of one.
        seed: needed where the configuration has several at that fidelity, none of them the study's.

    Raises:
        InvalidArgument: there is no such evaluation, or there are several."""
    study.check_unchanged()
    with study.open_store(write=False) as store:
        configuration = Configuration.from_json(store.configuration(id))
        rows = {r.seed: r for r in store.records(fidelity.key) if r.configuration_id == configuration.id}
    wanted = next(iter(rows)) if seed is None and study.seed not in rows and len(rows) == 1 else study.seed if seed is None else seed
    if wanted not in rows:
        have = f"seeds {', '.join(map(str, rows))} are there; give one with seed (--seed)" if rows else "give another fidelity (--fidelity)"
        raise InvalidArgument(f"id={id!r}: {configuration.id} has no evaluation at {fidelity.key}, seed {wanted}; {have}")
    if rows[wanted].status == "stopped":
        raise InvalidArgument(
            f"id={id!r}: {configuration.id} was {rows[wanted].error} at {fidelity.key}, so there is no result to compare with; enqueue it, "
            "and it is evaluated to its end"
        )
    request = Request(configuration, fidelity, wanted, "replay")
    by_supernet = fidelity.kind == SUPERNET
    evaluate = study.supernets.store.of_fidelity(fidelity).evaluator if by_supernet else study.covering(configuration).evaluator
    with threads(_count(rows[wanted].provenance or {})):
        return Replay(rows[wanted], evaluate(request))


def _count(provenance: Mapping[str, Any]) -> int | None:
    """The thread count of an evaluation, where it is known and sound."""
    count = provenance.get("threads")
    return count if isinstance(count, int) and 0 < count <= 1024 else None
