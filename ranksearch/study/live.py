"""What a dashboard shows of a study while it is searched: the data of its report, and the progress of the search."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ranksearch.report.data import Proxies, page_data
from ranksearch.report.pace import pace
from ranksearch.store import Store
from ranksearch.study.storage import PLANNED

if TYPE_CHECKING:
    from ranksearch.study.study import Study

GROWTH = 1.1  # proxies are judged again when there are so many times as many evaluations


class Live:
    """Reads the store of a study, and never writes to it; used by one thread."""

    def __init__(
        self, study: Study, *, fidelity: str | None, trials: int | None, proxies: bool, build: Sequence[str] | None
    ) -> None:
        self._study, self._fidelity, self._trials, self._build = study, fidelity, trials, build
        self._wants_proxies = proxies
        self._judged: Proxies | str = "the dashboard was not asked for them; start it with --proxies"
        self._judged_at = 0

    def version(self) -> Hashable:
        """Another value when there is something new: an evaluation, another writer, or a search that is to go further."""
        with self._study.open_store(write=False) as store:
            return store.changes(), self._planned(store), tuple(Store.writers(self._study.store_url))

    def _planned(self, store: Store) -> int | None:
        """How many evaluations the study is to have: what was asked for here, else what the search that began last was asked for."""
        return self._trials or store.details.get(PLANNED)

    def data(self) -> dict[str, Any]:
        """The data of the report, and ``live``: how the search goes."""
        facts = self._study.report.facts(fidelity=self._fidelity, proxies=False, build=self._build)
        found: Any = self._study.results.evaluations(fidelity=facts.fidelity)
        if self._wants_proxies and len(found) >= GROWTH * self._judged_at:
            judged = self._study.report.facts(fidelity=self._fidelity, calibrate=False, build=self._build)
            self._judged, self._judged_at = judged.proxies, len(found)
        with self._study.open_store(write=False) as store:
            planned = self._planned(store)
        created = found["created"].astype("int64").to_numpy() / 1e6  # seconds since the epoch
        going = pace(created.tolist(), found["seconds"].tolist(), planned=planned)
        return page_data(replace(facts, proxies=self._judged)) | {
            "live": {
                "writers": Store.writers(self._study.store_url), "evaluations": len(found),
                "failed": int((found["status"] == "failed").sum()), "planned": planned,
                "last": float(created.max()) if len(created) else None, "per_minute": going.per_minute,
                "at_a_time": going.at_a_time, "left": going.left,
            }
        }  # fmt: skip
