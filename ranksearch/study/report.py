"""A study to read: how well proxies predicted what it measured, and everything that it came to as one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranksearch import checks
from ranksearch.agreement.report import ProxyReport, judge, measured, measured_scores
from ranksearch.decompositions import KNOWN
from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity
from ranksearch.home import replacing, user_path
from ranksearch.proxies import ProxyContext, ScoreProxy, TableProxy
from ranksearch.report.data import CostName, Facts, Proxies, page_data
from ranksearch.report.figures import check_folder, write_figures
from ranksearch.report.latex import front_table
from ranksearch.report.page import check_path, plotly_script, report_page
from ranksearch.report.server import Dashboard, Feed, check_address
from ranksearch.report.shares import rank_shares
from ranksearch.study.live import Live
from ranksearch.supernet.study import named_fidelity, proxy_names

if TYPE_CHECKING:
    import pandas as pd

    from ranksearch.study.study import Study

Extra = Sequence[TableProxy | ScoreProxy]


class Report:
    """Proxies of a study against its evaluations, and the study as a page. What was computed last of proxies is kept, so that `scores`
    after `agreements` costs nothing more."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._last: tuple[tuple[Any, ...], ProxyReport] | None = None  # of what the store had when it was last asked

    def write(
        self, path: str | Path, *, figures: str | Path | None = None, latex: str | Path | None = None, fidelity: str | None = None,
        calibrate: bool = True, batches: int = 0, build: Sequence[str] | None = None,
    ) -> list[Path]:  # fmt: skip
        """Write the study as one HTML file that loads nothing: see ``docs/report.md``.

        Args:
            path: ends in .html.
            figures: a folder that gets every figure as SVG and PNG, too.
            latex: a file that gets the front as a LaTeX table, too.
            fidelity: as for `Results.front`; default: the study's.
            calibrate, batches: which proxies are judged, as for `agreements`.
            build: the command that rebuilds a network, in parts between which its id stands; default: a call of `Study.build`.

        Returns:
            what was written.

        Raises:
            StoreError: there is no store.
            InvalidArgument: another file ending, a folder that is a file, an unknown fidelity.
            MissingDependency: plotly is not installed, or, for figures, matplotlib.
        """
        target = check_path(path)
        plotly_script()  # before any work
        folder = None if figures is None else check_folder(figures)
        facts = self.facts(fidelity=fidelity, calibrate=calibrate, batches=batches, build=build)
        texts = {target: report_page(page_data(facts))}
        texts |= {} if latex is None else {user_path(latex): front_table(facts)}
        for place, text in texts.items():
            with replacing(place) as part:
                part.write_text(text, encoding="utf-8")
        return [*texts, *([] if folder is None else write_figures(facts, folder))]

    def serve(
        self, *, host: str = "127.0.0.1", port: int = 0, token: str | None = None, trials: int | None = None, proxies: bool = False,
        every: float = 2.0, fidelity: str | None = None, build: Sequence[str] | None = None,
    ) -> Dashboard:  # fmt: skip
        """Serve the page while the study is searched, by this process or another one: see ``docs/report.md``. The store is only read,
        by one thread, and only when it has changed.

        Args:
            host, port, token: see `ranksearch.report.server.Dashboard`.
            trials: how many evaluations the study is to have, which gives the time left; default: what the search was asked for that began
                last.
            proxies: judge proxies too, those that need the space alone, each time the evaluations have grown by a tenth; where the space is
                not profiled yet, this does it, in this process.
            every: seconds between two looks at the store.
            fidelity, build: as for `write`.

        Raises:
            StoreError: there is no store.
            InvalidArgument: an address that others can reach without a token, an unknown fidelity.
            OSError: the address is not this machine's, or the port is taken.
            MissingDependency: plotly is not installed.
        """
        check_address(host, token)
        plotly_script()
        checks.number("every", every, above=0)
        live = Live(self._study, fidelity=fidelity, trials=trials, proxies=proxies, build=build)
        feed = Feed(live.version, live.data, every=every)
        try:
            return Dashboard(self._study.name, feed, host=host, port=port, token=token)
        except BaseException:
            feed.close()
            raise

    def data(
        self, *, fidelity: str | None = None, proxies: bool = True, calibrate: bool = True, batches: int = 0,
        build: Sequence[str] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """What the page shows, as JSON data; arguments as for `write`. Without ``proxies`` none is judged."""
        return page_data(self.facts(fidelity=fidelity, proxies=proxies, calibrate=calibrate, batches=batches, build=build))

    def facts(
        self, *, fidelity: str | None = None, proxies: bool = True, calibrate: bool = True, batches: int = 0,
        build: Sequence[str] | None = None,
    ) -> Facts:  # fmt: skip
        """The frames that the page is made of; arguments as for `data`."""
        study = self._study
        results = study.results
        with study.open_store(write=False) as store:
            known, shown, stored = store.fidelities(), store.url, store.count()
        key = study.fidelity.key if fidelity is None else named_fidelity(fidelity, [*map(Fidelity.parse, known), study.fidelity]).key
        networks = results.front(fidelity=key, all=True)  # first: what is asked for later has these, too, while a search goes on
        layers = results.layers(fidelity=key, errors=proxies)
        columns = ["site", "decomposition", "rank"]
        options = layers[columns].drop_duplicates().astype("object").itertuples(index=False, name=None)
        sites = {path: site for site in study.sites for path in site.paths}
        types = {d.name: d for d in (*KNOWN, *study.spec.decompositions)}
        return Facts(
            study=study.name, store=shown, stored=stored, fidelity=key, directions={m.name: m.direction for m in study.task.metrics},
            objectives=study.objectives, costs=[CostName(c.name, c.label, c.unit, study.baseline[c.name]) for c in study.costs],
            networks=networks, layers=layers, history=results.history(fidelity=key),
            failures=results.failures(), sites=[site.name for site in study.sites], build=build or ("study.build('", "')"),
            made=f"Made on {datetime.now(UTC):%Y-%m-%d at %H:%M} UTC", rank_shares=rank_shares(options, sites, types),
            proxies=self._proxies(key, calibrate, batches) if proxies else "they were left out", narrower=study.questions.narrower(),
        )  # fmt: skip

    def _proxies(self, fidelity: str, calibrate: bool, batches: int) -> Proxies | str:
        try:
            agreements = self.agreements(fidelity=fidelity, calibrate=calibrate, batches=batches)
        except InvalidArgument as error:  # too few evaluations
            return str(error)
        return Proxies(agreements, self.scores(fidelity=fidelity, calibrate=calibrate, batches=batches))

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
