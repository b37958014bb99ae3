"""A search as JSON on stdout, an event a line, for scripts."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ranksearch.cli.progress.display import Standing
from ranksearch.cli.progress.sites import EVERY

if TYPE_CHECKING:
    from ranksearch.search.events import Announced, Profiled
    from ranksearch.study import Finished, Planned, Study


class EventLines:
    """One object a line; ``event`` says what it is: ``stage``, ``profiled``, ``note``, ``planned``, ``finished``. Each line is written
    at once."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._last = 0.0

    def preparing(self, event: Announced | Profiled) -> None:
        """``stage`` with ``text``; ``profiled`` with ``site``, ``done``, ``total``."""
        from ranksearch.search.events import Announced

        if isinstance(event, Announced):
            write("stage", text=event.text)
        else:
            write("profiled", site=event.site, done=event.done, total=event.total)

    def note(self, text: str) -> None:
        """``note`` with ``text``."""
        write("note", text=text)

    def planned(self, event: Planned) -> None:
        """``planned`` with ``total``, ``done``, ``screening``."""
        write("planned", total=event.total, done=event.done, screening=event.screening)

    def due(self, *, last: bool) -> bool:
        """Every ``EVERY`` seconds, and at the end."""
        due = last or time.monotonic() - self._last >= EVERY
        self._last = time.monotonic() if due else self._last
        return due

    def finished(self, event: Finished, standing: Standing) -> None:
        """``finished`` with the evaluation, its costs, how far the search is, and the front as it was last looked at."""
        outcome, request = event.outcome, event.outcome.request
        space = self.study.space
        write(
            "finished", id=request.configuration.id, status=outcome.status, metrics=outcome.metrics,
            curve=[{"epochs": point.epochs, **point.metrics} for point in outcome.curve],
            costs=dict(space.cost(space.indices(request.configuration))), error=outcome.error, error_kind=outcome.error_kind,
            seconds=outcome.seconds, origin=request.origin, fidelity=request.fidelity.key, seed=request.seed,
            configuration=json.loads(request.configuration.to_json()), done=event.done, total=event.total, failed=standing.failed,
            front=None if standing.front is None else standing.front.networks,
            hypervolume=None if standing.front is None else standing.front.hypervolume,
        )  # fmt: skip

    def close(self) -> None:
        """Nothing is open."""


def write(kind: str, **content: Any) -> None:
    """Print an event. Numbers of numpy become plain ones."""
    print(json.dumps({"event": kind, **content}, default=lambda number: number.item()), flush=True)


def ended(study: Study, objectives: Sequence[str] | None) -> None:
    """The last event, ``end``: how many evaluations are stored, failed and were stopped, and the rows of the front."""
    evaluations: Any = study.evaluations()  # the stubs of pandas lose the type of a selection
    counts = {status: int((evaluations["status"] == status).sum()) for status in ("failed", "stopped")}
    front = json.loads(str(study.front(None, objectives).to_json(orient="records", date_format="iso")))
    write("end", study=study.name, stored=len(evaluations), failed=counts["failed"], stopped=counts["stopped"], front=front)
