"""A tabulated study: many configurations of a network with everything that can be known of them, and answers for all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ranksearch.errors import InvalidArgument
from ranksearch.home import user_path
from ranksearch.rankbench import settings
from ranksearch.rankbench.composed import ComposedEvaluator, Protocol
from ranksearch.rankbench.tables import COSTS, MEASURED, SCORE, Tables, read, space_of
from ranksearch.results.names import Direction
from ranksearch.results.pareto import non_dominated
from ranksearch.samplers.problem import Problem
from ranksearch.space import Configuration, SearchSpace
from ranksearch.space.table import Table
from ranksearch.study import Study

NAMES = tuple(settings.NETWORKS)
DIRECTIONS: Mapping[str, Direction] = {**dict.fromkeys((*COSTS, *MEASURED), "min"), "accuracy": "max"}
OBJECTIVES = ("accuracy", "macs", "params")


@dataclass(frozen=True, eq=False)
class RankBench:
    """A tabulated study (docs/rankbench.md). Nothing of it is to be changed.

    Attributes:
        name: ``digits`` or ``resnet20``.
        space: of the study, rebuilt from the table of options.
        timed: the same with the latency of options as a third cost.
        configurations: one row each: an option index per site (columns named like the sites), ``drawn`` (how it was chosen), costs,
            what was measured without training, and the scores of the proxies.
        options: one row per site and option: its type and rank, costs, errors and the values of table proxies.
        curves: one row per configuration, seed and number of short epochs of fine-tuning.
        details: how it was made, JSON data.
        data, weights: what evaluations of ``resnet20`` outside the table need, see `ranksearch.rankbench.study`.
        met: what was measured outside the table, by the option indices as bytes (uint8); it grows.
    """

    name: str
    space: SearchSpace
    timed: SearchSpace
    configurations: pd.DataFrame
    options: pd.DataFrame
    curves: pd.DataFrame
    details: Mapping[str, Any]
    data: str | Path | None = None
    weights: str | Path | None = None
    met: dict[bytes, dict[str, float]] = field(default_factory=dict, repr=False)

    @cached_property
    def sites(self) -> list[str]:
        """Paths of the sites, in the order of the space."""
        return [ladder.site.name for ladder in self.space.ladders]

    @cached_property
    def indices(self) -> np.ndarray:
        """Option indices of all configurations, int64, shape: (n, n_sites)."""
        return self.configurations[self.sites].to_numpy(dtype=np.int64)

    def configuration(self, row: int) -> Configuration:
        """The configuration in a row."""
        return self.space.configuration(self.indices[row])

    def front(self, objectives: Sequence[str] = OBJECTIVES) -> pd.DataFrame:
        """The rows that no other row beats: the true front, as far as the table knows.

        Raises:
            InvalidArgument: an objective that is no cost and was not measured.
        """
        values = self.configurations[self._checked(objectives)].to_numpy(dtype=np.float64)
        return self.configurations.loc[non_dominated(values, [DIRECTIONS[name] for name in self._checked(objectives)])]

    def evaluate(self, configuration: Configuration | np.ndarray | Sequence[int]) -> dict[str, float]:
        """Costs of a configuration and what is measured without training, from the table. Others of ``digits`` are measured, in a
        twentieth of a second each once their layers are factorized; of ``resnet20`` in about a second, with ``data`` and ``weights``.

        Args:
            configuration: or its option indices, shape: (n_sites,).

        Raises:
            InvalidArgument: it is not of the space; or it is not in the table, and ``data`` or ``weights`` are missing.
        """
        given = isinstance(configuration, Configuration)
        indices = self.space.indices(configuration) if given else self.space.candidate(configuration).indices  # pyright: ignore[reportArgumentType]
        assert indices is not None
        costs = {name: float(amount) for name, amount in self.timed.cost(indices).items()}
        key = indices.astype(np.uint8).tobytes()
        row = self._rows.get(key)
        if row is not None:
            return costs | {name: float(self.configurations[name].iat[row]) for name in MEASURED}
        if key not in self.met:
            self.met[key] = self.evaluator(indices)
        return costs | self.met[key]

    def values(self, indices: np.ndarray | Sequence[int], objectives: Sequence[str] = OBJECTIVES) -> list[float]:
        """What a sampler is told of a configuration: all to be minimised, costs as shares of the dense network's."""
        found = self.evaluate(np.asarray(indices))
        share = {name: found[name] / self.timed.baseline[name] if name in COSTS else found[name] for name in self._checked(objectives)}
        return [-value if DIRECTIONS[name] == "max" else value for name, value in share.items()]

    def problem(self, objectives: Sequence[str] = OBJECTIVES, **more: Any) -> Problem:
        """The search as samplers see it; ``more`` are further attributes of `ranksearch.samplers.problem.Problem`."""
        names = tuple(self._checked(objectives))
        return Problem(self.timed if "latency" in names else self.space, names, **more)

    def scores(self, indices: np.ndarray) -> pd.DataFrame:
        """What the table proxies say of any configurations of the space, a column each, lower is better.

        Args:
            indices: shape: (n, n_sites).
        """
        return pd.DataFrame({name: table.score(indices) for name, table in self.proxies.items()})

    @cached_property
    def proxies(self) -> dict[str, Table]:
        """The tables of all table proxies, by name."""
        largest = self.details["largest"]
        groups = [rows for _, rows in self.options.groupby("site", sort=False)]
        names = [column.removeprefix(SCORE) for column in self.options if column.startswith(SCORE)]
        return {
            name: Table(tuple(rows[SCORE + name].to_numpy(dtype=np.float64) for rows in groups), "max" if name in largest else "sum")
            for name in names
        }

    def study(self) -> Study:
        """The study itself, see `ranksearch.rankbench.study`."""
        return settings.study(self.name, data=self.data, weights=self.weights)

    @cached_property
    def evaluator(self) -> ComposedEvaluator:
        """What measures configurations that are not in the table."""
        if self.name != "digits" and (self.data is None or self.weights is None):
            raise InvalidArgument(
                f"configuration is not in the table of {self.name!r}: its network and its images do not come with ranksearch; "
                f"load({self.name!r}, data=..., weights=...) measures any other"
            )
        return live(self.study(), self.space)

    @cached_property
    def _rows(self) -> dict[bytes, int]:
        return {row.tobytes(): number for number, row in enumerate(self.indices.astype(np.uint8))}

    def _checked(self, objectives: Sequence[str]) -> list[str]:
        names = [objectives] if isinstance(objectives, str) else list(objectives)
        unknown = [name for name in names if name not in DIRECTIONS]
        if unknown or not names:
            raise InvalidArgument(f"objectives={names}: the table has {', '.join(DIRECTIONS)}; name some of these")
        return names


def live(study: Study, space: SearchSpace) -> ComposedEvaluator:
    """What measures the configurations of a study of the benchmark."""
    protocol = Protocol(study.task, study.fidelity.recalibration, chunk=CHUNKS[study.name.removeprefix("rankbench-")])  # pyright: ignore[reportArgumentType]
    return ComposedEvaluator(study.spectra, space, protocol, stages=settings.STAGES)


CHUNKS = {"digits": 400, "resnet20": 64}  # examples of a forward pass


def load(name: str, *, data: str | Path | None = None, weights: str | Path | None = None, tables: str | Path | None = None) -> RankBench:
    """A tabulated study: ``digits`` or ``resnet20``.

    Args:
        data, weights: of ``resnet20``, needed for evaluations outside the table alone: the folder of CIFAR-10 and the safetensors file of
            the network, see `ranksearch.rankbench.study`.
        tables: folder of other tables than those that come with ranksearch, such as larger ones of `analysis/rankbench.py`.

    Raises:
        InvalidArgument: another name, or files that are no tables.
    """
    if name not in NAMES:
        raise InvalidArgument(f"name={name!r} is none of {', '.join(NAMES)}")
    folder = Path(str(files("ranksearch.rankbench").joinpath("data"))) if tables is None else user_path(tables)
    return of(name, read(folder, name), data=data, weights=weights)


def of(name: str, tables: Tables, *, data: str | Path | None = None, weights: str | Path | None = None) -> RankBench:
    """The study of some tables."""
    baseline = tables.details["baseline"]
    space, timed = (space_of(name, tables.options, baseline, costs) for costs in (("params", "macs"), COSTS))
    return RankBench(name, space, timed, tables.configurations, tables.options, tables.curves, tables.details, data, weights)
