"""A study: a model, a task, a space, objectives, and all evaluations made for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from ranksearch import export, frames, proxy_report, space_metric
from ranksearch.conditions import Condition
from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InfeasibleBudget, InvalidArgument
from ranksearch.evaluation import Evaluator, Fidelity, Outcome, Request
from ranksearch.home import home
from ranksearch.proxies import TableProxy
from ranksearch.runners import LocalRunner, RayTuneRunner, Runner
from ranksearch.samplers import SAMPLERS
from ranksearch.search import Search, exact_starts, indices_of
from ranksearch.search_spaces import SpaceSpec, mixture
from ranksearch.sites import Cost, Sites
from ranksearch.space import COSTS, DENSE, Configuration, CostName, SearchSpace
from ranksearch.spectra import Spectra
from ranksearch.store import Record, Store
from ranksearch.tasks import Task

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Stage:
    """Progress: a stage of the run has begun."""

    text: str


@dataclass(frozen=True)
class Planned:
    """Progress: how many evaluations the study is to have, and has."""

    total: int
    done: int


@dataclass(frozen=True)
class Finished:
    """Progress: one evaluation is finished and stored."""

    outcome: Outcome
    done: int
    total: int


Event = Stage | Planned | Finished


class Study:
    """Search the decompositions and ranks of a trained network.

    Args:
        name: names the default store.
        model: the trained network; never changed.
        task: data, fine-tuning and metrics.
        space: which types, layers and ranks to choose from, see `ranksearch.search_spaces`; default `mixture`.
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
        """The prepared decompositions of every site, in the metric of the space.

        Other metrics than the weights' take statistics from ``space.calibration`` batches first, cached under
        ``$RANKSEARCH_HOME/cache``, with what was measured best as defaults (`ranksearch.space_metric`): inputs about their
        mean where there is batch norm, labels sampled from the model at temperature 3."""
        name = self.spec.metric
        moments = None
        if name != "weight":
            batches, gradients = self.spec.calibration, name == "fisher"
            found = space_metric.statistics(self.model, self.sites, self.task, calibration=batches, gradients=gradients)
            moments = space_metric.moments(found, name, center=space_metric.centred(self.model))
        return Spectra(self.model, self.sites, self.spec.decompositions, moments=moments)

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
            by_value: modules that workers cannot import, pickled by value.
            on_event: called with progress.

        Raises:
            InvalidArgument, InfeasibleBudget, EmptySpace, StoreError: before any evaluation starts.
        """
        tell = on_event or (lambda event: None)
        wanted = self._check_objectives(objectives or self.objectives)
        if trials < 1:
            raise InvalidArgument(f"trials={trials}: must be at least 1")
        if workers is not None and workers < 1:
            raise InvalidArgument(f"workers={workers}: must be at least 1")
        samplers = {s.name: s for s in SAMPLERS}
        if sampler not in samplers:
            raise InvalidArgument(f"sampler={sampler!r} is none of {', '.join(samplers)}")
        seed = self.seed if seed is None else seed
        machine = _runner(runner, workers, address, by_value)
        conditions = [Condition.parse(text) for text in constraints]

        if self.spec.metric != "weight":
            tell(Stage(f"collecting statistics of {self.spec.calibration} batches for the {self.spec.metric} metric"))
            _ = self.spectra
        tell(Stage(f"profiling {len(self.sites)} sites"))
        space = self.space
        limits = self._limits(conditions)
        with self._open(write=True) as store:
            known = self._known(store, wanted, seed)
            tell(Planned(max(trials, len(known)), len(known)))
            if len(known) >= trials:
                return
            tell(Stage("solving the exact proxy fronts"))
            starts = exact_starts(space, limits)
            tables = {name: space.cost_tables[name] for name in limits}

            def admissible(indices: np.ndarray) -> bool:
                return all(float(tables[name].score(indices)) <= limit for name, limit in limits.items())

            search = Search(
                space=space,
                sampler=samplers[sampler](space.shape, len(wanted), seed=seed, admissible=admissible, first=[]),
                starts=starts, admissible=admissible, fidelity=self.fidelity, seed=seed, trials=trials,
                values=lambda outcome: self._values(outcome.metrics, space.cost(space.indices(outcome.request.configuration)), wanted),
                on_outcome=lambda outcome: self._keep(store, outcome), known={k: v for k, (_, v) in known.items()},
            )  # fmt: skip
            earlier = ((indices_of(space, configuration), values) for configuration, values in known.values())
            search.resume((indices, values) for indices, values in earlier if indices is not None)

            def report(outcome: Outcome) -> None:
                search.report(outcome)
                tell(Finished(outcome, len(search.known), trials))

            tell(Stage(f"evaluating with {type(machine).__name__}"))
            machine.run(Evaluator(self.spectra, self.task), search.propose, report)

    def _limits(self, conditions: Sequence[Condition]) -> dict[CostName, int]:
        """The tightest upper bound per cost, checked against the least that the space can reach."""
        dense = {"params": self.baseline.params, "macs": self.baseline.macs}
        limits: dict[CostName, int] = {}
        for condition in conditions:
            for name, limit in condition.upper_bounds(dense).items():
                cost: CostName = "macs" if name == "macs" else "params"
                limits[cost] = min(limit, limits.get(cost, limit))
        for cost, limit in limits.items():
            least = self.space.smallest(cost)
            if limit < least:
                raise InfeasibleBudget(
                    f"constraint {cost} <= {limit:,} ({limit / dense[cost]:.3f} of the dense network's): the smallest that this space "
                    f"reaches is {least:,} ({least / dense[cost]:.3f}); relax the constraint or allow more decompositions or sites"
                )
        return limits

    def _known(self, store: Store, wanted: Sequence[str], seed: int) -> dict[str, tuple[Configuration, Sequence[float] | None]]:
        known: dict[str, tuple[Configuration, Sequence[float] | None]] = {}
        for record in store.records(fidelity=self.fidelity.key):
            if record.seed == seed:
                values = self._values(record.metrics, Cost(record.params, record.macs), wanted) if record.status == "done" else None
                known[record.configuration_id] = (Configuration.from_json(record.configuration), values)
        return known

    def _values(self, metrics: Mapping[str, float], cost: Cost, wanted: Sequence[str]) -> list[float]:
        """Objective values, all to be minimised, costs relative to the dense network."""
        relative = {"params": cost.params / self.baseline.params, "macs": cost.macs / self.baseline.macs}
        return [(-1 if self.directions[name] == "max" else 1) * (relative[name] if name in relative else metrics[name]) for name in wanted]

    def _keep(self, store: Store, outcome: Outcome) -> None:
        request = outcome.request
        cost = self.space.cost(self.space.indices(request.configuration))
        record = Record(
            request.configuration.id, request.configuration.to_json(), request.fidelity.key, request.seed, outcome.status,
            outcome.metrics, cost.params, cost.macs, outcome.error, outcome.seconds, request.origin, datetime.now(UTC),
        )  # fmt: skip
        store.add(record)

    # -- results -----------------------------------------------------------------------------------------------

    def evaluations(self) -> pd.DataFrame:
        """Every evaluation in the store, one row each; columns: see `ranksearch.frames`."""
        with self._open(write=False) as store:
            return frames.evaluations(store.records(), self.baseline, [(m.name, m.direction) for m in self.task.metrics])

    def front(self, where: str | None = None, objectives: Sequence[str] | None = None, *, all: bool = False) -> pd.DataFrame:
        """The non-dominated evaluations at the study's fidelity, and the dense network, sorted by MACs.

        Args:
            where: a condition such as ``"macs < 0.4 and accuracy > 0.98 * baseline"``.
            objectives: other objectives than the study's.
            all: dominated rows too; column ``on_front`` tells them apart.
        """
        wanted = self._check_objectives(objectives or self.objectives)
        frame: Any = self.evaluations()  # Any here and below: the stubs of pandas lose the type of a selection
        frame = frame[frame["fidelity"] == self.fidelity.key]
        condition = Condition.parse(where) if where else None
        return frames.front(frame, {name: self.directions[name] for name in wanted}, condition, self._baseline_values(frame), dominated=all)

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
        self, *, metric: str | None = None, fidelity: str | None = None, k: int = 5, tolerance: float = 0.05, calibrate: bool = True
    ) -> pd.DataFrame:
        """How well each proxy predicted what was measured: one row per proxy and fidelity; columns and what is left out
        (``attrs["left_out"]``): see `ranksearch.proxy_report`. The dense network is not among the configurations.

        Args:
            metric: of the task; default: the first of the objectives that is one.
            fidelity: one key of the store; default: each that has enough evaluations.
            k, tolerance: see `ranksearch.honesty.agreement`.
            calibrate: take statistics from calibration batches (cached) for the proxies that need them.

        Raises:
            StoreError: there is no store.
            InvalidArgument: an unknown metric or fidelity, or fewer than three measured configurations.
        """
        data, proxies = self._judged(metric, fidelity, calibrate)
        frame = proxy_report.agreements(data, proxies, k=k, tolerance=tolerance)
        frame.attrs["left_out"] = proxy_report.left_out(calibrated=calibrate)
        return frame

    def proxy_scores(self, *, metric: str | None = None, fidelity: str | None = None, calibrate: bool = True) -> pd.DataFrame:
        """What every proxy scored beside what was measured, one row per proxy, fidelity and configuration; see `proxies`."""
        return proxy_report.scores(*self._judged(metric, fidelity, calibrate))

    def _judged(self, name: str | None, fidelity: str | None, calibrate: bool) -> tuple[proxy_report.Measured, list[TableProxy]]:
        names = [m.name for m in self.task.metrics]
        name = name or next((o for o in self.objectives if o in names), names[0])
        if name not in names:
            raise InvalidArgument(f"metric={name!r}: this task reports {', '.join(names)}; name one of these")
        with self._open(write=False) as store:
            records = list(store.records())
        larger = self.directions[name] == "max"
        data = proxy_report.measured(records, self.space, name, larger_is_better=larger, fidelity=fidelity)
        proxies = proxy_report.solved(proxy_report.free_proxies(), data.space, proxy_report.without_moments(self.spectra))
        if calibrate:
            batches, center = self.spec.calibration, space_metric.centred(self.model)
            found = space_metric.statistics(self.model, self.sites, self.task, calibration=batches, gradients=True, diagonal=True)
            proxies += proxy_report.solved(proxy_report.statistics_proxies(self.spectra, found, center=center), data.space)
        return data, proxies

    def configuration(self, id: str) -> Configuration:
        """The configuration of an id, or of an unambiguous beginning of one."""
        with self._open(write=False) as store:
            return Configuration.from_json(store.configuration(id))

    def build(self, id: str) -> nn.Module:
        """The network of an evaluation as plain torch: factorized, fine-tuned and re-estimated as it was measured."""
        return self._evaluator.network(Request(self.configuration(id), self.fidelity, self.seed))

    @property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self.spectra, self.task)

    def export(self, id: str, directory: str | Path, *, onnx: bool = False, torch_export: bool = False, force: bool = False) -> Path:
        """Build a network and write it: safetensors and a manifest, and on request torch.export and ONNX programs.

        The network is measured again and the manifest holds both figures, stored and measured."""
        configuration = self.configuration(id)
        target = export.check_target(directory, force=force, onnx=onnx)
        with self._open(write=False) as store:
            record = store.get(configuration.id, self.fidelity.key, self.seed)
        if record is None or record.status != "done":
            raise InvalidArgument(f"id={id!r}: {configuration.id} has no finished evaluation at {self.fidelity.key}, seed {self.seed}")
        model = self.build(configuration.id)
        measured = self.task.measure(model)
        manifest = {
            "study": self.name, "configuration": {site: [d, list(rank)] for site, d, rank in configuration.choices}, "id": configuration.id,
            "fidelity": self.fidelity.key, "seed": self.seed, "params": record.params, "macs": record.macs, "metrics": dict(record.metrics),
            "measured": measured, "baseline": {"params": self.baseline.params, "macs": self.baseline.macs}, "options": self.options,
        }  # fmt: skip
        return export.save(model, target, manifest=manifest, example=self.task.example(), onnx=onnx, torch_export=torch_export, force=force)


def _runner(runner: str | Runner, workers: int | None, address: str | None, by_value: Sequence[Any]) -> Runner:
    if isinstance(runner, Runner):
        return runner
    if runner == "local":
        if workers not in (None, 1) or address is not None:
            raise InvalidArgument(f"workers={workers}, address={address!r}: runner='local' evaluates one at a time here; use 'ray_tune'")
        return LocalRunner()
    if runner == "ray_tune":
        return RayTuneRunner(workers=workers, address=address, by_value=tuple(by_value))
    raise InvalidArgument(f"runner={runner!r} is none of ray_tune, local")


__all__ = ["Event", "Finished", "Planned", "Stage", "Study", "home"]
