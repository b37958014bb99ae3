"""A study: a model, a task, a space, objectives, and all evaluations made for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from ranksearch.agreement import report as proxy_report
from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Evaluator, Fidelity, Request
from ranksearch.home import home
from ranksearch.networks import export
from ranksearch.results import frames
from ranksearch.results.conditions import Condition
from ranksearch.runners import Runner
from ranksearch.samplers import SAMPLERS, Sampler
from ranksearch.search import campaign as study_run
from ranksearch.search.campaign import Campaign, Goal
from ranksearch.search.events import Event, Finished, Planned, Profiled, Stage
from ranksearch.sites import Cost, Sites
from ranksearch.space import COSTS, DENSE, Configuration, SearchSpace, SpaceSpec, mixture
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import metric as space_metric
from ranksearch.store import Store
from ranksearch.store.database import Place
from ranksearch.supernet import Event as Step
from ranksearch.supernet.study import Shelf, SupernetEvaluator, TrainedSupernet, checked, fidelity_key, is_supernet, proxy_names
from ranksearch.tasks import Task

if TYPE_CHECKING:
    import pandas as pd


class Study:
    """Search the decompositions and ranks of a trained network.

    Args:
        name: names the default store.
        model: the trained network; never changed.
        task: data, fine-tuning and metrics.
        space: which types, layers and ranks to choose from, see `ranksearch.space`; default `mixture`.
        objectives: what the front is made of: metrics of the task, ``params``, ``macs``.
        fidelity: how each candidate is evaluated.
        seed: of the search and of every evaluation.

    Raises:
        InvalidArgument: an objective that the task does not report, a name that cannot be a file name.
        InvalidModel: weights that are NaN, an example that the model does not take.
    """

    def __init__(
        self,
        name: str,
        *,
        model: nn.Module,
        task: Task,
        space: SpaceSpec | None = None,
        objectives: Sequence[str] = ("accuracy", "macs", "params"),
        fidelity: Fidelity | None = None,
        seed: int = 0,
    ) -> None:
        if not name or any(c in name for c in "/\\:\0") or name.startswith("."):
            raise InvalidArgument(f"name={name!r}: give letters, digits, '-' or '_'; it names the store's file")
        self.name = name
        self.model = model
        self.task = task
        self.spec = space or mixture()
        self.fidelity = fidelity or Fidelity()
        self.seed = seed
        self.options: dict[str, Any] = {}  # what the study file was called with; stored with the study
        self._url: str | None = None
        self._judgement: tuple[tuple[Any, ...], proxy_report.Judged] | None = None  # of what the store had when it was last asked
        self.directions: dict[str, Literal["min", "max"]] = {c: "min" for c in COSTS}
        self.directions |= {m.name: m.direction for m in task.metrics}
        self.objectives = self._check_objectives(objectives)

    def _check_objectives(self, objectives: Sequence[str]) -> tuple[str, ...]:
        unknown = [o for o in objectives if o not in self.directions]
        if unknown or not objectives:
            raise InvalidArgument(f"objectives={list(objectives)}: this task reports {', '.join(self.directions)}; name some of these")
        return tuple(dict.fromkeys(objectives))

    @cached_property
    def sites(self) -> Sites:
        """The factorizable layers, and what was skipped and why."""
        return self.spec.sites(self.model, self.task.example())

    @cached_property
    def spectra(self) -> Spectra:
        """The prepared decompositions of every site, in the metric of the space; what took long is kept under
        ``$RANKSEARCH_HOME/cache/spectra``.

        Other metrics than the weights' take statistics from ``space.calibration`` batches first, cached under
        ``$RANKSEARCH_HOME/cache``, with what was measured best as defaults (`ranksearch.statistics.metric`): labels
        sampled from the model at temperature 3."""
        name = self.spec.metric
        moments = None
        if name != "weight":
            batches, gradients = self.spec.calibration, name == "fisher"
            found = space_metric.statistics(self.model, self.sites, self.task, calibration=batches, gradients=gradients)
            moments = space_metric.moments(found, name)
        return Spectra(self.model, self.sites, self.spec.decompositions, moments=moments, cache=home() / "cache" / "spectra")

    @cached_property
    def space(self) -> SearchSpace:
        """The search space: a ladder of options for every site."""
        return self.spec.build(self.spectra)

    @property
    def baseline(self) -> Cost:
        """Params and MACs of the dense network."""
        return self.sites.total

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of the model's weights and the task: evaluations are facts about this. In other metrics than the
        weights' a configuration has other factors, so the metric and its settings are part of it there."""
        digest = hashlib.sha256(self.task.fingerprint().encode())
        digest.update(space_metric.settings(self.spec.metric, self.spec.calibration).encode())
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    # -- the store ---------------------------------------------------------------------------------------------

    def attach(self, store: str | Path) -> None:
        """Use this store: a path, or any SQLAlchemy URL."""
        self._url = str(store)

    @property
    def store_url(self) -> str:
        """Where the evaluations are."""
        return self._url or str(home() / f"{self.name}.db")

    def _open(self, *, write: bool) -> Store:
        baseline = {"params": self.baseline.params, "macs": self.baseline.macs}
        details = {"options": self.options, "objectives": list(self.objectives), "baseline": baseline}
        return Store.open(self.store_url, study=self.name, fingerprint=self.fingerprint, details=details, create=write, write=write)

    # -- search ------------------------------------------------------------------------------------------------

    def run(
        self,
        *,
        trials: int = 40,
        workers: int | None = None,
        runner: Literal["ray_tune", "local"] | Runner = "ray_tune",
        address: str | None = None,
        sampler: str = "nsga2",
        constraints: Sequence[str] = (),
        objectives: Sequence[str] | None = None,
        seed: int | None = None,
        supernet: str | bool = False,
        screen: int | None = None,
        by_value: Sequence[Any] = (),
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        """Search until the study holds ``trials`` evaluations at its fidelity; what the store has counts, so that
        running again goes on where it stopped, and a larger number adds to it.

        Args:
            trials: evaluations the study is to have, the dense network and failed ones among them.
            workers: parallel evaluations; default: one per core.
            runner: ``ray_tune``, ``local``, or an instance.
            address: of a running Ray cluster.
            sampler: name of a sampler, see ``SAMPLERS``.
            constraints: upper bounds on costs such as ``"macs <= 0.5"``; candidates that break one are never evaluated.
            objectives: other objectives than the study's, for this run.
            seed: other than the study's.
            supernet: first measure ``screen`` configurations with a trained supernet: True for the only one, or its method or
                key. They are stored at its fidelity; the evaluations then begin with the front of them, well spread.
            screen: how many; those in the store count; default 100.
            by_value: modules that workers cannot import, pickled by value.
            on_event: called with progress.

        Raises:
            InvalidArgument, InfeasibleBudget, EmptySpace, StoreError: before any evaluation starts.
        """
        tell = on_event or (lambda event: None)
        wanted = self._check_objectives(objectives or self.objectives)
        if trials < 1:
            raise InvalidArgument(f"trials={trials}: must be at least 1")
        if screen is not None and (screen < 1 or supernet is False):
            raise InvalidArgument(f"screen={screen}: must be at least 1, and needs supernet=: what is screened with")
        samplers = {s.name: s for s in SAMPLERS}
        if sampler not in samplers:
            raise InvalidArgument(f"sampler={sampler!r} is none of {', '.join(samplers)}")
        seed = self.seed if seed is None else seed
        machine = study_run.machine(runner, workers, address, by_value)
        conditions = [Condition.parse(text) for text in constraints]

        goal, kind = Goal(self.baseline, self.directions, wanted), samplers[sampler]
        if supernet is False and not conditions and (done := self._known(goal, seed)) >= trials:  # nothing to profile for
            tell(Planned(done, done))
            return
        self._profile(tell)
        limits = study_run.limits(self.space, conditions)
        campaign = Campaign(self.space, goal, self.fidelity, seed, trials, kind, limits, lambda: self._evaluator)
        screening = None if supernet is False else self._screening(supernet, screen or 100, conditions, goal, kind, seed)
        with self._open(write=True) as store:
            if screening is not None:
                screening.run(store, machine, tell)
            first = [] if screening is None else screening.best(store, self.space, trials // 2)
            campaign.run(store, machine, tell, first=first)

    def _known(self, goal: Goal, seed: int) -> int:
        with self._open(write=True) as store:
            return len(goal.known(store, self.fidelity, seed))

    @property
    def profiled(self) -> bool:
        """Whether the space is computed already."""
        return "space" in vars(self)

    def _profile(self, tell: Callable[[Stage | Profiled], None]) -> None:
        if self.spec.metric != "weight":
            tell(Stage(f"collecting statistics of {self.spec.calibration} batches for the {self.spec.metric} metric"))
            _ = self.spectra
        tell(Stage(f"profiling {len(self.sites)} sites"))
        if not self.profiled:
            self.spectra.profile_all(tell)
        _ = self.space

    def _screening(
        self, supernet: str | bool, screen: int, conditions: Sequence[Condition], goal: Goal, sampler: type[Sampler], seed: int
    ) -> Campaign:
        entry, space = self.shelf.find(supernet), self.shelf.space()
        limits = study_run.limits(space, conditions)

        def evaluator() -> SupernetEvaluator:
            return self.shelf.load(entry).evaluator

        return Campaign(space, goal, entry.fidelity, seed, screen, sampler, limits, evaluator, screening=True)

    # -- supernets ---------------------------------------------------------------------------------------------

    @property
    def shelf(self) -> Shelf:
        """The supernets of this study: in ``supernets`` beside the store where that is a file, else under `home`."""
        path = Place(self.store_url).path
        folder = (home() if path is None else path.parent) / "supernets"
        return Shelf(folder, self.model, self.task, self.spectra, self.space, self.fingerprint)

    def train_supernet(
        self,
        method: str = "sandwich",
        *,
        epochs: float = 6.0,
        sampling: str | None = None,
        seed: int | None = None,
        recalibration: int = 16,
        on_event: Callable[[Stage | Profiled | Step], None] | None = None,
        **options: Any,
    ) -> TrainedSupernet:
        """One training for every size of the network, see `ranksearch.supernet`. Types of the space that are no projection
        of the dense weight are left out. The same call again goes on from the last checkpoint, or loads what is trained.

        Args:
            method: one of `ranksearch.supernet.methods.METHODS`.
            epochs: passes over the training data, with the task's optimiser and schedule.
            sampling: where configurations are drawn from, one of `ranksearch.supernet.sampling.SAMPLINGS`, over all types
                that project; default: the method's own.
            seed: other than the study's.
            recalibration: batches that batch norm is re-estimated on before a configuration is measured; no part of the
                training.
            on_event: called with stages and after every step.
            options: hyper-parameters of the method.

        Raises:
            InvalidArgument: an unknown method, sampling or option; no type of the space projects.
            Diverged: the loss is no longer finite.
            KeyboardInterrupt: interrupted; the last step is in the checkpoint.
        """
        seed = self.seed if seed is None else seed
        given = {"epochs": epochs, "sampling": sampling, "seed": seed, "recalibration": recalibration}
        checked(method, sampling, options)  # before statistics are collected
        self._profile(on_event or (lambda event: None))
        return self.shelf.train(method, on_event=on_event, options=options, **given)

    def supernet(self, which: str | bool = True) -> TrainedSupernet:
        """A trained supernet by method or key; True: the only one.

        Raises:
            InvalidArgument: there is none, or several."""
        shelf = self.shelf
        return shelf.load(shelf.find(which))

    # -- results -----------------------------------------------------------------------------------------------

    def evaluations(self) -> pd.DataFrame:
        """Every evaluation in the store, one row each; columns: see `ranksearch.results.frames`."""
        with self._open(write=False) as store:
            return frames.evaluations(store.records(), self.baseline, [(m.name, m.direction) for m in self.task.metrics])

    def front(
        self, where: str | None = None, objectives: Sequence[str] | None = None, *, all: bool = False, fidelity: str | None = None
    ) -> pd.DataFrame:
        """The non-dominated evaluations of one fidelity, and the dense network, sorted by MACs.

        Args:
            where: a condition such as ``"macs < 0.4 and accuracy > 0.98 * baseline"``.
            objectives: other objectives than the study's.
            all: dominated rows too; column ``on_front`` tells them apart.
            fidelity: a key of the store, its name, ``supernet``, or a supernet's method; default: the study's.
        """
        wanted = self._check_objectives(objectives or self.objectives)
        frame: Any = self.evaluations()  # Any here and below: the stubs of pandas lose the type of a selection
        frame = frame[frame["fidelity"] == self._fidelity(fidelity, frame["fidelity"].unique()).key]
        condition = Condition.parse(where) if where else None
        return frames.front(frame, {name: self.directions[name] for name in wanted}, condition, self._baseline_values(frame), dominated=all)

    def _fidelity(self, text: str | None, known: Iterable[str]) -> Fidelity:
        return self.fidelity if text is None else Fidelity.parse(fidelity_key(text, known, self.fidelity.key))

    def _baseline_values(self, frame: Any) -> dict[str, float]:
        values: dict[str, float] = {"params": self.baseline.params, "macs": self.baseline.macs}
        dense = frame[(frame["id"] == DENSE.id) & (frame["status"] == "done")]
        for metric in self.task.metrics:
            if len(dense):
                values[metric.name] = float(dense[metric.name].mean())
        return values

    def best(self, where: str | None = None, objective: str | None = None) -> pd.Series:
        """The row of the front that is best in one objective (default: the first) among those that satisfy ``where``.

        Raises:
            InvalidArgument: no row satisfies the condition.
        """
        objective = self._check_objectives([objective] if objective else self.objectives)[0]
        front: Any = self.front(where)
        front = front[front["on_front"]]
        if not len(front):
            raise InvalidArgument(f"where={where!r}: no evaluated network satisfies it; loosen it or search on with more trials")
        column = front[objective]
        return front.loc[column.idxmax() if self.directions[objective] == "max" else column.idxmin()]

    def layers(self) -> pd.DataFrame:
        """One row per (evaluated configuration, factorized site)."""
        sites = {path: site for site in self.sites for path in site.paths}
        table = {decomposition.name: decomposition for decomposition in DECOMPOSITIONS}

        def describe(site: str, decomposition: str, rank: tuple[int, ...]) -> str:
            return table[decomposition].describe(sites[site], rank) if site in sites and decomposition in table else ""

        with self._open(write=False) as store:
            return frames.layers(store.records(), describe=describe)

    def proxies(
        self, *, metric: str | None = None, fidelity: str | None = None, k: int = 5, tolerance: float = 0.05, calibrate: bool = True,
        batches: int = 2,
    ) -> pd.DataFrame:  # fmt: skip
        """How well each proxy predicted what was measured: one row per proxy and fidelity; columns and what is left out
        (``attrs["left_out"]``): see `ranksearch.agreement.report`. The dense network is not among the configurations. What a
        supernet measured is one more proxy of the fidelities that share at least three configurations with it.

        Args:
            metric: of the task; default: the first of the objectives that is one.
            fidelity: as for `front`; default: each that has enough evaluations.
            k, tolerance: see `ranksearch.agreement.measures.agreement`.
            calibrate: take statistics from calibration batches (cached) for the proxies that need them.
            batches: calibration batches for the proxies that run networks, minutes for a large study; 0 leaves them out.

        Raises:
            StoreError: there is no store.
            InvalidArgument: an unknown metric or fidelity, ``batches`` below 0, or fewer than three measured configurations.
        """
        return self._judged(metric, fidelity, calibrate, batches).agreements(k=k, tolerance=tolerance)

    def proxy_scores(
        self, *, metric: str | None = None, fidelity: str | None = None, calibrate: bool = True, batches: int = 2
    ) -> pd.DataFrame:
        """What every proxy scored beside what was measured, one row per proxy, fidelity and configuration; see `proxies`, after
        which it costs nothing more."""
        return self._judged(metric, fidelity, calibrate, batches).scores()

    def _judged(self, name: str | None, fidelity: str | None, calibrate: bool, batches: int) -> proxy_report.Judged:
        names = [m.name for m in self.task.metrics]
        name = name or next((o for o in self.objectives if o in names), names[0])
        if name not in names:
            raise InvalidArgument(f"metric={name!r}: this task reports {', '.join(names)}; name one of these")
        if isinstance(batches, bool) or not isinstance(batches, int) or batches < 0:
            raise InvalidArgument(f"batches={batches!r}: must be a whole number, 0 to leave out the proxies that run networks")
        with self._open(write=False) as store:
            records = list(store.records())
        if fidelity is not None and records:
            fidelity = fidelity_key(fidelity, {record.fidelity for record in records}, self.fidelity.key)
        key = (name, fidelity, calibrate, batches, tuple((r.configuration_id, r.fidelity, r.seed, r.status) for r in records))
        if self._judgement is None or self._judgement[0] != key:
            larger = self.directions[name] == "max"
            data = proxy_report.measured(records, self.space, name, larger_is_better=larger, fidelity=fidelity)
            calibration = self.spec.calibration if calibrate else 0
            cheap = proxy_names(record.fidelity for record in records)
            judged = proxy_report.judge(data, self.spectra, self.task, self.space, calibration=calibration, batches=batches)
            self._judgement = key, replace(judged, given=proxy_report.given(data, records, cheap))
        return self._judgement[1]

    def configuration(self, id: str) -> Configuration:
        """The configuration of an id, or of an unambiguous beginning of one."""
        with self._open(write=False) as store:
            return Configuration.from_json(store.configuration(id))

    def build(self, id: str, *, fidelity: str | None = None) -> nn.Module:
        """The network of an evaluation as plain torch: factorized, fine-tuned and re-estimated as it was measured; at a
        supernet's fidelity, the network extracted from it.

        Args:
            id: or an unambiguous beginning of one.
            fidelity: as for `front`; default: the study's.
        """
        with self._open(write=False) as store:
            configuration = Configuration.from_json(store.configuration(id))
            at = self._fidelity(fidelity, {record.fidelity for record in store.records()})
        if is_supernet(at):
            return self.shelf.of_fidelity(at).build(configuration)
        return self._evaluator.network(Request(configuration, at, self.seed))

    @property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self.spectra, self.task)

    def export(
        self, id: str, directory: str | Path, *, onnx: bool = False, torch_export: bool = False, force: bool = False,
        fidelity: str | None = None,
    ) -> Path:  # fmt: skip
        """Build a network and write it: safetensors and a manifest, and on request torch.export and ONNX programs.

        The network is measured again and the manifest holds both figures, stored and measured."""
        configuration = self.configuration(id)
        target = export.check_target(directory, force=force, onnx=onnx)
        with self._open(write=False) as store:
            at = self._fidelity(fidelity, {record.fidelity for record in store.records()})
            record = store.get(configuration.id, at.key, self.seed)
        if record is None or record.status != "done":
            raise InvalidArgument(f"id={id!r}: {configuration.id} has no finished evaluation at {at.key}, seed {self.seed}")
        model = self.build(configuration.id, fidelity=at.key)
        measured = self.task.measure(model)
        manifest = {
            "study": self.name, "configuration": {site: [d, list(rank)] for site, d, rank in configuration.choices}, "id": configuration.id,
            "fidelity": at.key, "seed": self.seed, "params": record.params, "macs": record.macs, "metrics": dict(record.metrics),
            "measured": measured, "baseline": {"params": self.baseline.params, "macs": self.baseline.macs}, "options": self.options,
        }  # fmt: skip
        return export.save(model, target, manifest=manifest, example=self.task.example(), onnx=onnx, torch_export=torch_export, force=force)


__all__ = ["Event", "Finished", "Planned", "Stage", "Study", "home"]
