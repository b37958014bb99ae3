"""A study: what it is given, and what a user does with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from ranksearch import checks
from ranksearch.allocators import Allocator
from ranksearch.compression import Compressed, Norms, Rule, compress
from ranksearch.costs import COSTS, CostModel, Narrower, check_costs
from ranksearch.decompositions import KNOWN
from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity
from ranksearch.proxies import ScoreProxy, TableProxy
from ranksearch.results.names import OF_LAYERS, RESERVED, Direction, check_metrics
from ranksearch.runners import Runner
from ranksearch.samplers import Sampler
from ranksearch.schedulers import Scheduler
from ranksearch.search.events import Announced, Profiled, SearchEvent
from ranksearch.sites import unwrapped
from ranksearch.space import Configuration, SearchSpace, SpaceSpec, declared
from ranksearch.space.spectra import checked_device
from ranksearch.store import Record, Store
from ranksearch.study import counts, queue, storage
from ranksearch.study.exports import Exports
from ranksearch.study.kept import Kept
from ranksearch.study.parts import Parts
from ranksearch.study.questions import Questions, Where
from ranksearch.study.report import Report
from ranksearch.study.results import Results
from ranksearch.study.run import Screening, asked, run
from ranksearch.study.stages import Stage, run_stages
from ranksearch.study.stages import checked as checked_stages
from ranksearch.study.supernets import Supernets
from ranksearch.supernet import TrainingStep
from ranksearch.supernet.methods import Method
from ranksearch.supernet.study import TrainedSupernet
from ranksearch.tasks import Task, declared_metrics

TRIALS = 40  # of a search that nobody gives a number

if TYPE_CHECKING:
    import optuna
    import pandas as pd


class Study(Parts):
    """Search the decompositions and ranks of a trained network.

    `run` searches. `results` and `questions` say what was found (`front`, `best`, `build`, ...), `report` how well proxies predicted it
    (`proxies`), and `supernets` trains one network for all sizes (`train_supernet`); the calls in brackets are methods of the study, too.
    A study never changes after it is made: `replace` gives another one.

    Args:
        name: names the default store.
        model: the trained network; never changed. Of a compiled or parallel one, the network inside.
        task: data, fine-tuning and metrics.
        space: which types, layers and ranks to choose from: a `SpaceSpec`, the `space` of another study, or the name of one of the
            package's, see `ranksearch.space`; default `mixture`.
        objectives: what the front is taken over: metrics of the task, ``params``, ``macs``, other costs.
        costs: what networks are counted by, see `ranksearch.costs`: ``(*COSTS, Bytes(), Latency(batch=8))``, or one of your own.
        fidelity: how each candidate is evaluated.
        seed: of the search and of every evaluation.
        store: where the evaluations are: a path, or any SQLAlchemy URL; default: the study's name in `ranksearch.home.home`.
        options: what the study file was called with, as JSON data; stored with the study.
        space_choice: where ``space`` comes from if it took the place of the study's own, see `with_space`; stored with the study.
        modules: those that workers cannot import, such as that of a study file; workers get their classes and functions by value.
        stages: cheap evaluations of many candidates first, thorough ones of the best last, see `ranksearch.study.stages.Stage`; `run`
            without a number of trials goes through them. The fidelity of the last is the study's.
        narrower: narrower dense networks of the same architecture, whose latency is measured with the study's and stands beside its
            networks in the report.
        device: where layers are factorized, such as ``"cuda"``, see `ranksearch.space.spectra.Spectra`; None: where the model is.

    Raises:
        InvalidArgument: an objective that is neither a metric of the task nor a cost, a name that cannot be a file name, costs
            without params or MACs, a cost or metric with a name that is taken, a task without metrics, a device that is not there.
        InvalidModel: weights that are NaN, an example that the model does not take.
    """

    def __init__(
        self,
        name: str,
        *,
        model: nn.Module,
        task: Task,
        space: SpaceSpec | SearchSpace | str | None = None,
        objectives: str | Sequence[str] = ("accuracy", "macs", "params"),
        fidelity: Fidelity | None = None,
        seed: int = 0,
        costs: Sequence[CostModel] = COSTS,
        store: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        space_choice: Mapping[str, Any] | None = None,
        modules: Sequence[ModuleType] = (),
        stages: Sequence[Stage] = (),
        narrower: Narrower | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        if not isinstance(name, str) or not name.isprintable() or not name or any(c in name for c in "/\\:") or name.startswith("."):
            raise InvalidArgument(f"name={name!r}: give letters, digits, '-' or '_'; it names the store's file")
        self.name = name
        self.model = unwrapped(model)
        self.task = task
        self.spec = declared(space)
        self.stages, self.fidelity = checked_stages(stages, fidelity)
        self.narrower = narrower
        self.seed = checks.seed(seed)
        self.device = None if device is None else checked_device(device)
        if not isinstance(options, (Mapping, type(None))):
            raise InvalidArgument(f"options={options!r:.80}: must be a mapping from names to values")
        self.options = dict(options or {})
        self.space_choice = None if space_choice is None else dict(space_choice)
        self.modules = tuple(modules)
        self._store = None if store is None else str(store)
        metrics: dict[str, Direction] = {**declared_metrics(task)}
        self.costs = check_costs(costs, taken={*RESERVED, *OF_LAYERS, *metrics})
        check_metrics([*metrics.items()], [cost.name for cost in self.costs])
        self.directions: dict[str, Direction] = {cost.name: "min" for cost in self.costs}
        self.directions |= metrics
        self.objectives = self.check_objectives(objectives)

    def replace(self, **changes: Any) -> Self:
        """The same study with some arguments changed, such as ``study.replace(store="other.db", seed=1)``; with another fidelity it has
        no stages any more. What is computed of the sites and the space is kept where model, task, space and costs stay."""
        arguments: dict[str, Any] = {
            "name": self.name, "model": self.model, "task": self.task, "space": self.spec, "objectives": self.objectives,
            "fidelity": self.fidelity, "seed": self.seed, "costs": self.costs, "store": self._store, "options": self.options,
            "space_choice": self.space_choice, "modules": self.modules, "stages": () if "fidelity" in changes else self.stages,
            "narrower": self.narrower, "device": self.device,
        }  # fmt: skip
        if "stages" in changes:
            arguments["fidelity"] = None if changes["stages"] else self.fidelity
        other = copy(self)  # whatever a subclass adds
        fixed = not {"model", "task", "space", "costs", "narrower", "device"} & set(changes)
        of_these = ("sites", "spectra", "fingerprint", "former_fingerprint", "network", "outputs")
        counted = () if fixed and not ("store" in changes and counts.measures(self.costs)) else ("_counted", "baseline")
        for name in ("report", "kept", *counted, *(() if fixed else of_these)):
            vars(other).pop(name, None)
        Study.__init__(other, **arguments | changes)
        return other

    def with_space(self, space: SpaceSpec, *, source: str, options: Mapping[str, Any] | None = None) -> Self:
        """The same study in another space than it was declared with: other layers, types and ranks for the same model and task.
        Evaluations that a store has stay facts; those that the new space does not hold count among ``trials``, are on the
        front and can be built, but teach the sampler nothing.

        The metric is part of what the study measures (its fingerprint), so a space in the default metric (``weight``) takes
        metric and calibration of the study's own; one that names another metric brings it.

        Args:
            space: instead of the study's own.
            source: where it comes from, such as ``search_spaces/vit.py:space``; stored with the study.
            options: what it was made with, JSON data; stored with the study.
        """
        if space.metric == "weight":
            space = space.replace(metric=self.spec.metric, calibration=self.spec.calibration)
        return self.replace(space=space, space_choice={"source": source, "options": dict(options or {})})

    def covering(self, *configurations: Configuration) -> Self:
        """This study; or the same one with every layer and type, where a configuration is of another space."""
        types = {d.name for d in self.spec.decompositions}
        choices = [choice for configuration in configurations for choice in configuration.choices]
        if all(name in types and any(site in s.paths for s in self.sites) for site, name, _ in choices):
            return self
        types = (*KNOWN, *self.spec.decompositions)
        return self.replace(space=self.spec.replace(decompositions=types, include="*", exclude=()))

    def check_objectives(self, objectives: str | Sequence[str]) -> tuple[str, ...]:
        """Distinct objectives, in order.

        Raises:
            InvalidArgument: none, or one that is neither a metric of the task nor a cost."""
        objectives = checks.several("objectives", objectives, hint="names of metrics and costs")
        unknown = [o for o in objectives if o not in self.directions]
        if unknown or not objectives:
            raise InvalidArgument(f"objectives={list(objectives)}: this task reports {', '.join(self.directions)}; name some of these")
        return tuple(dict.fromkeys(objectives))

    def open_store(self, *, write: bool) -> Store:
        """The store, made if it is to be written to and is not there. What the network computes is compared when it is to be written.

        Raises:
            StoreError: there is none to read, or it is another study's or network's."""
        return storage.open_store(self, write=write)

    # -- what a user does with it ------------------------------------------------------------------------------

    @cached_property
    def kept(self) -> Kept:
        """What was read of the store."""
        return Kept()

    @property
    def results(self) -> Results:
        """What the store has: fronts, tables, networks."""
        return Results(self)

    @property
    def questions(self) -> Questions:
        """Which network to take, what changed, how studies compare."""
        return Questions(self)

    @cached_property
    def report(self) -> Report:
        """How well proxies predicted what was measured."""
        return Report(self)

    @property
    def supernets(self) -> Supernets:
        """One training for every size."""
        return Supernets(self)

    def run(
        self,
        trials: int | None = None,
        *,
        sampler: str | Sampler = "surrogate",
        proxies: Sequence[str | TableProxy] | None = None,
        allocator: str | Allocator | None = None,
        scheduler: str | Scheduler = "none",
        runner: str | Runner = "ray_tune",
        constraints: str | Sequence[str] = (),
        screening: Screening | None = None,
        retry_failed: bool = False,
        take_over: bool = False,
        on_event: Callable[[SearchEvent], None] | None = None,
    ) -> None:
        """Search until the study holds ``trials`` evaluations at its fidelity; what the store has counts, so that
        running again goes on where it stopped, and a larger number adds to it.

        Args:
            trials: evaluations the study is to have at its fidelity, the dense network and failed ones among them. Default: what its
                stages say, one after the other; 40 where it has none.
            sampler: proposes what to evaluate: an instance, or a name in `ranksearch.samplers.SAMPLERS`.
            proxies: whose optima are evaluated before the sampler is asked: instances, or names in
                `ranksearch.proxies.PROXIES`. Default: the portfolio (`ranksearch.search.portfolio`), that is the proxies that need nothing
                but the space and every published rule, measured without training on two calibration batches, at most five such
                measurements per trial; what is on the front of these is evaluated.
            allocator: solves for these optima where it takes the proxy's table: an instance, or a name in
                `ranksearch.allocators.ALLOCATORS`; default, and for tables that it does not take: exactly.
            scheduler: stops evaluations early that promise little: an instance such as ``ParetoASHA(first=0.5)``, or a name in
                `ranksearch.schedulers.SCHEDULERS`. A stopped evaluation counts among ``trials``, is on no front, and is not made again
                unless it is enqueued or passed to `evaluate`.
            runner: where evaluations happen: an instance, or a name in `ranksearch.runners.RUNNERS`, which then evaluates on
                every core of this machine (``ray_tune``) or one by one in this process (``local``).
            constraints: upper bounds on costs such as ``"macs <= 0.5"``, one or several; candidates that break one are never evaluated.
            screening: first measure configurations with a trained supernet, and begin with the front of them.
            retry_failed: first try again everything that failed, except by a configuration's own fault (`ranksearch.evaluation.failure`).
                The dense network, and what failed by the machine's fault, are tried again in any case. Earlier attempts stay in the store.
            take_over: evaluate also what other searches of the study have claimed, where the store is on a server and these searches are
                known to be dead; otherwise their claims end a minute after their last sign of life.
            on_event: called with progress.

        Raises:
            InvalidArgument, InfeasibleBudget, EmptySpace, StoreError: before any evaluation starts.
            DenseFailed: the dense network could not be evaluated, and without it nothing can be compared.
            FailedInARow: several evaluations in a row failed by the fault of code or of the machine.
        """
        given = asked(
            self, sampler=sampler, proxies=proxies, allocator=allocator, scheduler=scheduler, runner=runner, constraints=constraints,
            retry_failed=retry_failed, take_over=take_over, on_event=on_event,
        )  # fmt: skip
        if (planned := self.planned(trials)) is not None:
            run(self, planned, given, screening=screening)
        elif screening is not None:
            raise InvalidArgument(f"screening={screening!r}: the study has stages; declare one of them as Stage('supernet', trials)")
        else:
            run_stages(self, given)

    def planned(self, trials: int | None = None) -> int | None:
        """How many evaluations `run` comes to that is asked for ``trials``; None: what the stages say, one after the other."""
        return TRIALS if trials is None and not self.stages else trials

    def enqueue(self, configuration: Configuration | queue.Choices) -> Configuration:
        """See `ranksearch.study.queue.enqueue`."""
        return queue.enqueue(self, configuration)

    def evaluate(self, configuration: Configuration | queue.Choices) -> Record:
        """See `ranksearch.study.queue.evaluate`."""
        return queue.evaluate(self, configuration)

    def evaluations(self) -> pd.DataFrame:
        """See `Results.evaluations`."""
        return self.results.evaluations()

    def front(
        self, where: str | Sequence[str] | None = None, objectives: str | Sequence[str] | None = None, *, all: bool = False,
        fidelity: str | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """See `Results.front`."""
        return self.results.front(where, objectives, all=all, fidelity=fidelity)

    def best(self, where: Where = None, objective: str | None = None, *, fidelity: str | None = None) -> pd.Series:
        """See `Questions.best`."""
        return self.questions.best(where, objective, fidelity=fidelity)

    def knee(self, where: Where = None, objectives: str | Sequence[str] | None = None, *, fidelity: str | None = None) -> pd.Series:
        """See `Questions.knee`."""
        return self.questions.knee(where, objectives, fidelity=fidelity)

    def cheapest(self, within: float = 0.01, **options: Any) -> pd.Series:
        """See `Questions.cheapest`."""
        return self.questions.cheapest(within, **options)

    def feasible(self, where: Where = None, objective: str | None = None, *, fidelity: str | None = None) -> pd.DataFrame:
        """See `Questions.feasible`."""
        return self.questions.feasible(where, objective, fidelity=fidelity)

    def sweep(
        self, objective: str | None = None, *, where: Where = None, fidelity: str | None = None, **budgets: float | Sequence[float]
    ) -> pd.DataFrame:
        """See `Questions.sweep`."""
        return self.questions.sweep(objective, where=where, fidelity=fidelity, **budgets)

    def diff(self, before: str, after: str, *, all: bool = False, errors: bool = True) -> pd.DataFrame:
        """See `Questions.diff`."""
        return self.questions.diff(before, after, all=all, errors=errors)

    def spared(self, where: Where = None, *, fidelity: str | None = None, errors: bool = True) -> pd.DataFrame:
        """See `Questions.spared`."""
        return self.questions.spared(where, fidelity=fidelity, errors=errors)

    def compare(self, other: Study, **options: Any) -> pd.DataFrame:
        """See `Questions.compare`."""
        return self.questions.compare(other, **options)

    def build(self, id: str, *, fidelity: str | None = None) -> nn.Module:
        """See `Results.build`."""
        return self.results.build(id, fidelity=fidelity)

    def export(
        self, id: str, directory: str | Path, *, onnx: bool = False, torch_export: bool = False, force: bool = False,
        fidelity: str | None = None, dense: bool = False,
    ) -> Path:  # fmt: skip
        """See `Results.export`."""
        return self.results.export(
            id, directory, onnx=onnx, torch_export=torch_export, force=force, fidelity=fidelity, dense=dense
        )  # fmt: skip

    def to_optuna(self, url: str | None = None, **options: Any) -> optuna.Study:
        """See `Exports.to_optuna`."""
        return Exports(self).to_optuna(url, **options)

    def log_to_mlflow(self, tracking_uri: str | None = None, **options: Any) -> str:
        """See `Exports.to_mlflow`."""
        return Exports(self).to_mlflow(tracking_uri, **options)

    def proxies(
        self, *, metric: str | None = None, fidelity: str | None = None, k: int = 5, tolerance: float = 0.05, calibrate: bool = True,
        batches: int = 2, extra: Sequence[TableProxy | ScoreProxy] = (),
    ) -> pd.DataFrame:  # fmt: skip
        """See `Report.agreements`."""
        return self.report.agreements(
            metric=metric, fidelity=fidelity, k=k, tolerance=tolerance, calibrate=calibrate, batches=batches, extra=extra
        )

    def compress(
        self, *, rules: Sequence[str | Rule] | None = None, reconstruction: int = 4, finish: int = 16, distill: int = 80,
        recalibration: int = 16, norms: Norms = "auto", refits: int | None = None, contenders: int = 4, polished: int = 0,
        epochs: float = 0.0, bits: str | Sequence[int] = (), on_event: Callable[[Announced], None] | None = None, **budgets: float,
    ) -> Compressed:  # fmt: skip
        """The best network within budgets that is known without a search, in the study's space, see `ranksearch.compression.compress`.
        It is no evaluation: the store neither has nor gets it."""
        if "space" in budgets:
            raise InvalidArgument("space: the study's own is chosen from; another one is study.replace(space=...).compress(...)")
        return compress(
            self.model, self.task, space=self.spec, rules=rules, reconstruction=reconstruction, finish=finish,
            distill=distill, recalibration=recalibration, norms=norms, refits=refits, contenders=contenders, polished=polished,
            epochs=epochs, costs=self.counts, bits=bits, device=self.device, on_event=on_event, **budgets,
        )  # fmt: skip

    def train_supernet(
        self, method: str | Method = "sandwich", *, epochs: float = 6.0, sampling: str | None = None, seed: int | None = None,
        recalibration: int = 16, on_event: Callable[[Announced | Profiled | TrainingStep], None] | None = None, **options: Any,
    ) -> TrainedSupernet:  # fmt: skip
        """See `Supernets.train`."""
        return self.supernets.train(
            method, epochs=epochs, sampling=sampling, seed=seed, recalibration=recalibration, on_event=on_event, **options
        )
