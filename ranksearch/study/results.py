"""What a study came to: the evaluations in its store as tables, fronts and networks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity, Request
from ranksearch.evaluation.fidelity import SUPERNET
from ranksearch.networks import export
from ranksearch.results import frames
from ranksearch.results.conditions import Condition
from ranksearch.space import DENSE, Configuration
from ranksearch.study.replay import Replay, replay
from ranksearch.supernet.study import named_fidelity
from ranksearch.tasks import measured

if TYPE_CHECKING:
    import pandas as pd

    from ranksearch.study.study import Study


@dataclass(frozen=True)
class Results:
    """The evaluations of a study. Every call reads the store anew.

    Raises:
        StoreError: by every call, where there is no store or it is another study's.
    """

    study: Study

    def evaluations(self) -> pd.DataFrame:
        """Every evaluation in the store, one row each; columns: see `ranksearch.results.frames`."""
        study = self.study
        with study.open_store(write=False) as store:
            return frames.evaluations(store.records(), study.baseline, [(m.name, m.direction) for m in study.task.metrics])

    def front(
        self, where: str | Sequence[str] | None = None, objectives: str | Sequence[str] | None = None, *, all: bool = False,
        fidelity: str | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """The non-dominated evaluations of one fidelity, and the dense network, sorted by MACs.

        Args:
            where: a condition such as ``"macs < 0.4 and accuracy > 0.98 * baseline"``, or several, all of which must hold.
            objectives: other objectives than the study's.
            all: dominated rows too; column ``on_front`` tells them apart.
            fidelity: a key of the store, its name, ``supernet``, or a supernet's method; default: the study's.
        """
        study = self.study
        wanted = study.check_objectives(objectives or study.objectives)
        frame: Any = self.evaluations()  # Any here and below: the stubs of pandas lose the type of a selection
        frame = frame[frame["fidelity"] == self._fidelity(fidelity, frame["fidelity"].unique()).key]
        condition = Condition.joined(where)
        directions: dict[str, Literal["min", "max"]] = {name: study.directions[name] for name in wanted}
        return frames.front(frame, directions, condition, self._baseline_values(frame), dominated=all)

    def _fidelity(self, text: str | None, known: Iterable[str]) -> Fidelity:
        own = self.study.fidelity
        return own if text is None else named_fidelity(text, [*map(Fidelity.parse, known), own])

    def _baseline_values(self, frame: Any) -> dict[str, float]:
        values: dict[str, float] = dict(self.study.baseline)
        dense = frame[(frame["id"] == DENSE.id) & (frame["status"] == "done")]
        for metric in self.study.task.metrics:
            if len(dense):
                values[metric.name] = float(dense[metric.name].mean())
        return values

    def best(self, where: str | Sequence[str] | None = None, objective: str | None = None) -> pd.Series:
        """The row of the front that is best in one objective (default: the first) among those that satisfy ``where``.

        Raises:
            InvalidArgument: no row satisfies the condition.
        """
        study = self.study
        objective = study.check_objectives([objective] if objective else study.objectives)[0]
        front: Any = self.front(where)
        front = front[front["on_front"]]
        if not len(front):
            raise InvalidArgument(f"where={where!r}: no evaluated network satisfies it; loosen it or search on with more trials")
        column = front[objective]
        return front.loc[column.idxmax() if study.directions[objective] == "max" else column.idxmin()]

    def layers(self) -> pd.DataFrame:
        """One row per (evaluated configuration, factorized site)."""
        sites = {path: site for site in self.study.sites for path in site.paths}
        table = {decomposition.name: decomposition for decomposition in DECOMPOSITIONS}

        def describe(site: str, decomposition: str, rank: tuple[int, ...]) -> str:
            return table[decomposition].describe(sites[site], rank) if site in sites and decomposition in table else ""

        with self.study.open_store(write=False) as store:
            return frames.layers(store.records(), describe=describe)

    def configuration(self, id: str) -> Configuration:
        """The configuration of an id, or of an unambiguous beginning of one."""
        with self.study.open_store(write=False) as store:
            return Configuration.from_json(store.configuration(id))

    def build(self, id: str, *, fidelity: str | None = None) -> nn.Module:
        """The network of an evaluation as plain torch: factorized, fine-tuned and re-estimated as it was measured; at a
        supernet's fidelity, the network extracted from it.

        Args:
            id: or an unambiguous beginning of one.
            fidelity: as for `front`; default: the study's.
        """
        self.study.check_unchanged()
        with self.study.open_store(write=False) as store:
            configuration = Configuration.from_json(store.configuration(id))
            at = self._fidelity(fidelity, {record.fidelity for record in store.records()})
        if at.kind == SUPERNET:
            return self.study.supernets.store.of_fidelity(at).build(configuration)
        return self.study.covering(configuration).evaluator.network(Request(configuration, at, self.study.seed))

    def replay(self, id: str, *, fidelity: str | None = None, seed: int | None = None) -> Replay:
        """Make an evaluation again from what the store has of it, see `ranksearch.study.replay`.

        Args:
            id: or an unambiguous beginning of one.
            fidelity: as for `front`; default: the study's.
            seed: default: the study's, or the only one.

        Raises:
            InvalidArgument: there is no such evaluation."""
        with self.study.open_store(write=False) as store:
            known = {record.fidelity for record in store.records()}
        return replay(self.study, id, fidelity=self._fidelity(fidelity, known), seed=seed)

    def export(
        self, id: str, directory: str | Path, *, onnx: bool = False, torch_export: bool = False, force: bool = False,
        fidelity: str | None = None,
    ) -> Path:  # fmt: skip
        """Build a network and write it: safetensors and a manifest, and on request torch.export and ONNX programs.

        The network is measured again and the manifest holds both figures, stored and measured."""
        study, configuration = self.study, self.configuration(id)
        target = export.check_target(directory, force=force, onnx=onnx)
        with study.open_store(write=False) as store:
            at = self._fidelity(fidelity, {record.fidelity for record in store.records()})
            record = store.get(configuration.id, at.key, study.seed)
        if record is None or record.status != "done":
            raise InvalidArgument(f"id={id!r}: {configuration.id} has no finished evaluation at {at.key}, seed {study.seed}")
        model = self.build(configuration.id, fidelity=at.key)
        now = measured(study.task, model)
        manifest = {
            "study": study.name, "configuration": {site: [d, list(rank)] for site, d, rank in configuration.choices},
            "id": configuration.id, "fidelity": at.key, "seed": study.seed, **record.costs,
            "metrics": dict(record.metrics), "measured": now,
            "baseline": dict(study.baseline), "options": study.options, "space": study.space_choice,
        }  # fmt: skip
        example = study.task.example()
        return export.save(model, target, manifest=manifest, example=example, onnx=onnx, torch_export=torch_export, force=force)
