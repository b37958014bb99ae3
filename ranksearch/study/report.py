"""How well proxies predicted what a study measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ranksearch import checks
from ranksearch.agreement.report import ProxyReport, judge, measured, measured_scores
from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity
from ranksearch.proxies import ProxyContext, ScoreProxy, TableProxy
from ranksearch.supernet.study import named_fidelity, proxy_names

if TYPE_CHECKING:
    import pandas as pd

    from ranksearch.study.study import Study

Extra = Sequence[TableProxy | ScoreProxy]


class Report:
    """Proxies of a study against its evaluations. What was computed last is kept, so that `scores` after `agreements` costs
    nothing more."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._last: tuple[tuple[Any, ...], ProxyReport] | None = None  # of what the store had when it was last asked

    def agreements(
        self, *, metric: str | None = None, fidelity: str | None = None, k: int = 5, tolerance: float = 0.05, calibrate: bool = True,
        batches: int = 2, extra: Extra = (),
    ) -> pd.DataFrame:  # fmt: skip
        """How well each proxy predicted what was measured: one row per proxy and fidelity; columns and what is left out
        (``attrs["left_out"]``): see `ranksearch.agreement.report`. The dense network is not among the configurations. What a
        supernet measured is one more proxy of the fidelities that share at least three configurations with it.

        Args:
            metric: of the task; default: the first of the objectives that is one.
            fidelity: as for `Results.front`; default: each that has enough evaluations.
            k, tolerance: see `ranksearch.agreement.measures.agreement`.
            calibrate: take statistics from calibration batches (cached) for the proxies that need them.
            batches: calibration batches for the proxies that run networks, minutes for a large study; 0 leaves them out.
            extra: proxies of your own, judged beside those of `ranksearch.proxies.PROXIES`.

        Raises:
            StoreError: there is no store.
            InvalidArgument: an unknown metric or fidelity, ``batches`` below 0, or fewer than three measured configurations.
        """
        return self._judged(metric, fidelity, calibrate, batches, extra).agreements(k=k, tolerance=tolerance)

    def scores(
        self, *, metric: str | None = None, fidelity: str | None = None, calibrate: bool = True, batches: int = 2, extra: Extra = ()
    ) -> pd.DataFrame:
        """What every proxy scored beside what was measured, one row per proxy, fidelity and configuration; arguments as for
        `agreements`."""
        return self._judged(metric, fidelity, calibrate, batches, extra).scores()

    def _judged(self, name: str | None, fidelity: str | None, calibrate: bool, batches: int, extra: Extra) -> ProxyReport:
        study = self._study
        names = [m.name for m in study.task.metrics]
        name = name or next((o for o in study.objectives if o in names), names[0])
        if name not in names:
            raise InvalidArgument(f"metric={name!r}: this task reports {', '.join(names)}; name one of these")
        checks.whole("batches", batches, least=0, hint="0 leaves out the proxies that run networks")
        with study.open_store(write=False) as store:
            records = list(store.records())
        known = [*map(Fidelity.parse, {record.fidelity for record in records}), study.fidelity]
        if fidelity is not None and records:
            fidelity = named_fidelity(fidelity, known).key
        key = (name, fidelity, calibrate, batches, *extra, tuple((r.configuration_id, r.fidelity, r.seed, r.status) for r in records))
        if self._last is None or self._last[0] != key:
            larger = study.directions[name] == "max"
            data = measured(records, study.space, name, larger_is_better=larger, fidelity=fidelity)
            calibration = study.spec.calibration if calibrate else 0
            report = judge(data, ProxyContext(study.space, study.spectra, study.task, calibration=calibration, batches=batches), extra)
            cheaper = measured_scores(data, records, proxy_names(known))
            self._last = key, replace(report, cheaper=cheaper)
        return self._last[1]
