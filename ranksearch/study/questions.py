"""What people ask of a study: which network to take, what it changed, how it compares. Answers are rows of frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from ranksearch import checks
from ranksearch.errors import InvalidArgument
from ranksearch.latency import TableLatency
from ranksearch.results import compare, frames, questions
from ranksearch.results.conditions import Condition
from ranksearch.results.names import Direction

if TYPE_CHECKING:
    import pandas as pd

    from ranksearch.study.study import Study

Where = str | Sequence[str] | None
BUDGETS = (0.7, 0.5, 0.4, 0.3, 0.2, 0.1)  # shares at which studies are compared


@dataclass(frozen=True)
class Questions:
    """Questions about the evaluations of a study, each of one fidelity: as for `Results.front`, by default the study's.

    Raises:
        StoreError: by every question, where there is no store or it is another study's.
        InvalidArgument: by every question, where a condition cannot be read, or names what the study does not have.
    """

    study: Study

    def narrower(self) -> pd.DataFrame:
        """The narrower dense networks that were measured with the study's latency (`ranksearch.costs.Narrower`), the widest first: their
        ``width``; ``params``, ``macs`` and ``latency`` (measured) with shares ``*_rel`` of the dense network's, the latter with the
        ends ``low`` and ``high`` of its interval; and the task's metrics, NaN where a network was not trained. Empty where none was
        measured."""
        import pandas as pd

        study = self.study
        rivals = next((cost.table.narrower for cost in study.counts if isinstance(cost, TableLatency)), ())
        dense = study.baseline
        rows = [
            {
                "width": one.width, "params": one.params, "macs": one.macs, "latency": round(one.ratio.value * dense["latency"]),
                "params_rel": one.params / dense.params, "macs_rel": one.macs / dense.macs, "latency_rel": one.ratio.value,
                "low": one.ratio.low, "high": one.ratio.high,
                **{metric.name: one.metrics.get(metric.name, math.nan) for metric in study.task.metrics},
            }
            for one in rivals
        ]  # fmt: skip
        names = ["width", "params", "macs", "latency", "params_rel", "macs_rel", "latency_rel", "low", "high"]
        return pd.DataFrame(rows, columns=[*names, *(metric.name for metric in study.task.metrics)])

    def best(self, where: Where = None, objective: str | None = None, *, fidelity: str | None = None) -> pd.Series:
        """The row of the front that is best in one objective (default: the first) among those that satisfy ``where``.

        Raises:
            InvalidArgument: no row satisfies the condition.
        """
        name = self.study.check_objectives([objective] if objective else self.study.objectives)[0]
        rows = self._satisfying(where, fidelity, front=True)
        row = questions.best_row(rows, name, self.study.directions[name], self._cost())
        return rows.iloc[self._found(row, where)]

    def knee(self, where: Where = None, objectives: str | Sequence[str] | None = None, *, fidelity: str | None = None) -> pd.Series:
        """The row of the front that lies farthest towards the ideal, see `ranksearch.results.pareto.knee`: beyond it every gain costs more.

        Raises:
            InvalidArgument: no row satisfies the condition.
        """
        wanted = self._directions(objectives)
        rows = self._satisfying(where, fidelity, front=True, objectives=list(wanted))
        return rows.iloc[questions.knee_row(rows, wanted) if len(rows) else self._found(None, where)]

    def cheapest(
        self, within: float = 0.01, *, metric: str | None = None, cost: str | None = None, where: Where = None, fidelity: str | None = None
    ) -> pd.Series:
        """The network of least cost whose metric is at most a share worse than the dense network's.

        Args:
            within: the share of the dense network's value that may be lost, such as 0.01.
            metric: of the task; default: the first of the objectives that is one.
            cost: default: MACs, or params where the dense network has no MACs.
            where: further conditions.

        Raises:
            InvalidArgument: no network is so good, or the dense network is not measured.
        """
        study = self.study
        within = checks.number("within", within, least=0, hint="a share of the dense network's value, such as 0.01")
        name = self._metric(metric)
        cost = self._cost(cost)
        rows = self._networks(fidelity)
        dense = frames.dense_values(rows, [name])
        if not math.isfinite(dense.get(name, math.nan)):
            raise InvalidArgument(f"the dense network's {name} is not known, so that nothing is within {within:g} of it; search first")
        sign = 1 if study.directions[name] == "max" else -1
        enough = frames.floats(rows[name]) * sign >= dense[name] * sign - within * abs(dense[name])
        rows = rows.loc[enough & frames.satisfying(rows, Condition.joined(where), self._dense(rows))]
        return rows.iloc[self._found(questions.best_row(rows, cost, "min", cost), where)]

    def feasible(self, where: Where = None, objective: str | None = None, *, fidelity: str | None = None) -> pd.DataFrame:
        """Every measured network that satisfies all conditions, dominated ones too, the best in one objective (default: the first)
        first; columns: as `Results.front`."""
        name = self.study.check_objectives([objective] if objective else self.study.objectives)[0]
        rows = self._satisfying(where, fidelity, front=False)
        order = [name, self._cost(), "id"]
        return rows.sort_values(order, ascending=[self.study.directions[name] == "min", True, True], ignore_index=True)

    def sweep(
        self, objective: str | None = None, *, where: Where = None, fidelity: str | None = None, **budgets: float | Sequence[float]
    ) -> pd.DataFrame:
        """The best measured network at each of several budgets: ``study.sweep(macs=[0.7, 0.5, 0.3])``.

        Args:
            objective: default: the first of the objectives that is a metric.
            where: conditions besides the budgets.
            budgets: by cost; up to 1 a share of the dense network's, else an amount.

        Returns:
            one row per budget, in the order given: ``cost``, ``budget``, and the columns of `Results.front`, missing where no network
            is within it.

        Raises:
            InvalidArgument: no budget, one of no cost, or one that is no positive number.
        """
        study = self.study
        name = self._metric(None) if objective is None else study.check_objectives(objective)[0]
        wanted = [
            (cost, checks.number(cost, value, above=0, hint="a budget; up to 1 it is a share of the dense network's"))
            for cost, values in budgets.items()
            for value in ([values] if isinstance(values, (int, float, Real)) else values)
        ]
        unknown = [cost for cost in budgets if cost not in study.baseline]
        if unknown or not wanted:
            costs = ", ".join(study.baseline)
            raise InvalidArgument(f"budgets={dict(budgets)}: give them by cost, such as macs=[0.7, 0.5]; costs are: {costs}")
        rows = self._satisfying(where, fidelity, front=False)
        positions = []
        for cost, value in wanted:
            fits = frames.satisfying(rows, Condition.parse(f"{cost} <= {value}"), self._dense(rows)).nonzero()[0]
            best = questions.best_row(rows.iloc[fits], name, study.directions[name], cost)
            positions.append(None if best is None else int(fits[best]))
        return questions.swept(rows, wanted, positions)

    def diff(self, before: str, after: str, *, all: bool = False, errors: bool = True) -> pd.DataFrame:
        """What changed between two configurations, one row per site: the option and its costs before and after.

        Args:
            before, after: ids, or unambiguous beginnings of ids.
            all: sites that did not change, too.
            errors: as for `Results.layers`.

        Raises:
            InvalidArgument: an id that no evaluated configuration has, or several have.
        """
        results = self.study.results
        ids = [results.configuration(id).id for id in (before, after)]
        layers: Any = results.layers(ids, errors=errors)
        layers = layers.drop_duplicates(["id", "site"])  # of other seeds and fidelities
        sides = [layers[(layers["id"] == id).to_numpy()].reset_index(drop=True) for id in ids]
        found = questions.diff(*sides)
        return found if all else found.loc[found["changed"].to_numpy()].reset_index(drop=True)

    def spared(self, where: Where = None, *, fidelity: str | None = None, errors: bool = True) -> pd.DataFrame:
        """Which layers the networks of the front leave dense, always or mostly, and what they make of the others: one row per site, see
        `ranksearch.results.questions.spared`. The dense network does not count.

        Args:
            where: of the networks on the front that satisfy it.
            errors: as for `Results.layers`.

        Raises:
            InvalidArgument: no factorized network of the front satisfies the condition.
        """
        rows = self._satisfying(where, fidelity, front=True)
        ids = rows.loc[~rows["is_dense"].to_numpy(), "id"].tolist()
        self._found(0 if ids else None, where)
        layers: Any = self.study.results.layers(ids, errors=errors)
        return questions.spared(layers.drop_duplicates(["id", "site"]))

    def compare(
        self, other: Study, *, metric: str | None = None, cost: str | None = None, budgets: Sequence[float] = BUDGETS,
        fidelity: str | None = None, other_fidelity: str | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """How this study and another one compare, or another store of the same one: hypervolume, coverage of the fronts, and the best
        metric at every budget, with confidence intervals over seeds; see `ranksearch.results.compare.comparison`.

        Args:
            other: on the other side (b); it reports the metrics that are among this study's objectives, and has their costs.
            metric: of both tasks; default: the first of this study's objectives that is one.
            cost: of the budgets; default: MACs, or params where the dense network has no MACs.
            budgets: shares of the dense network's cost.
            fidelity, other_fidelity: of either side; default: each study's own.

        Raises:
            InvalidArgument: the other study lacks an objective of this one, or has it in the other direction; a dense network that is
                not measured.
        """
        study = self.study
        wanted, name, cost = self._directions(None), self._metric(metric), self._cost(cost)
        shares = [checks.number("budgets", budget, above=0, hint="shares of the dense network's cost") for budget in budgets]
        lacking = [n for n in {**wanted, name: None, cost: None} if other.directions.get(n) != study.directions[n]]
        if lacking:
            raise InvalidArgument(
                f"other={other.name!r} does not report {', '.join(lacking)} as {study.name!r} does; compare studies of the same objectives"
            )
        mine, theirs = (
            compare.runs(one.results.evaluations(fidelity=at or one.fidelity.key), list(wanted), name, cost)
            for one, at in ((study, fidelity), (other, other_fidelity))
        )
        direction = study.directions[name]
        return compare.comparison(mine, theirs, wanted, list(study.baseline), metric=name, direction=direction, budgets=shares)

    # -- what the questions share ----------------------------------------------------------------------------------

    def _networks(self, fidelity: str | None, objectives: Sequence[str] | None = None) -> pd.DataFrame:
        return self.study.results.front(objectives=objectives, all=True, fidelity=fidelity)

    def _satisfying(
        self, where: Where, fidelity: str | None, *, front: bool, objectives: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Measured networks that satisfy the conditions; with ``front``, those that none of these beats."""
        if front:
            rows: Any = self.study.results.front(where, objectives, fidelity=fidelity)
            return rows.loc[rows["on_front"].to_numpy()].reset_index(drop=True)
        rows = self._networks(fidelity, objectives)
        condition = Condition.joined(where)
        if condition is not None:
            condition.check(rows.columns)
        return rows.loc[frames.satisfying(rows, condition, self._dense(rows))].reset_index(drop=True)

    def _dense(self, rows: pd.DataFrame) -> dict[str, float]:
        names = [metric.name for metric in self.study.task.metrics]
        return {**self.study.baseline, **frames.dense_values(rows, names)}

    def _directions(self, objectives: str | Sequence[str] | None) -> dict[str, Direction]:
        return {name: self.study.directions[name] for name in self.study.check_objectives(objectives or self.study.objectives)}

    def _metric(self, name: str | None) -> str:
        """A metric of the task."""
        names = [metric.name for metric in self.study.task.metrics]
        name = name or next((o for o in self.study.objectives if o in names), names[0])
        if name not in names:
            raise InvalidArgument(f"metric={name!r}: this task reports {', '.join(names)}; name one of these")
        return name

    def _cost(self, name: str | None = None) -> str:
        dense = self.study.baseline
        name = name or ("macs" if dense.macs else "params")
        if name not in dense:
            raise InvalidArgument(f"cost={name!r}: this study counts {', '.join(dense)}; name one of these")
        return name

    def _found(self, row: int | None, where: Where) -> int:
        if row is None and not where:
            raise InvalidArgument("no network is evaluated at this fidelity; search on, or ask for another one")
        if row is None:
            raise InvalidArgument(f"where={where!r}: no evaluated network satisfies it; loosen it or search on with more trials")
        return row
