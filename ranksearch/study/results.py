"""What a study came to: the evaluations in its store as tables, fronts and networks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from torch import nn

from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity, Request, may_be_retried
from ranksearch.evaluation.fidelity import SUPERNET
from ranksearch.latency.exported import onnx_latency
from ranksearch.networks import export
from ranksearch.networks.merge import merged
from ranksearch.results import choices, frames
from ranksearch.results.conditions import Condition
from ranksearch.results.curves import FACTS as CURVES
from ranksearch.results.curves import curves
from ranksearch.results.history import history
from ranksearch.results.layers import layers
from ranksearch.results.names import Direction
from ranksearch.space import DENSE, Configuration
from ranksearch.store import Damaged, Store
from ranksearch.study import options
from ranksearch.study.questions import Questions
from ranksearch.study.replay import Replay, replay
from ranksearch.study.report import Extra
from ranksearch.supernet.study import named_fidelity
from ranksearch.tasks import measured

if TYPE_CHECKING:
    import pandas as pd

    from ranksearch.study.study import Study


_NAMED = 500  # rows of a front that are asked for by name; databases limit how many values a query has


@dataclass(frozen=True)
class Results:
    """The evaluations of a study. Every call asks the store, and reads it anew unless nobody has written to it since.

    Raises:
        StoreError: by every call, where there is no store or it is another study's.
    """

    study: Study

    def evaluations(self, *, fidelity: str | None = None) -> pd.DataFrame:
        """Every evaluation in the store, one row each, in the order they were added; columns of this and all other frames:
        ``docs/analysis.md``.

        Args:
            fidelity: of one only: as for `front`; default: of all.
        """
        study = self.study
        with study.open_store(write=False) as store:
            key = None if fidelity is None else self._fidelity(fidelity, store.fidelities()).key
            return self._frame(store, frames.FACTS, key, factorized=True).copy()

    def _frame(
        self, store: Store, names: Sequence[str], fidelity: str | None, *, factorized: bool = False, ids: Sequence[str] | None = None,
        whole: bool = False,
    ) -> pd.DataFrame:  # fmt: skip
        """A frame of evaluations of these columns of the store, which nobody may change: it may be kept. Where rows are damaged they are
        left out, which takes longer."""

        def read(*, whole: bool = whole) -> pd.DataFrame:
            return self._read(store, names, fidelity, factorized=factorized, ids=ids, whole=whole)

        try:
            if whole or ids is not None:
                return read()
            return self.study.kept.value(store, (tuple(names), fidelity, factorized), read)
        except Damaged:
            if whole:
                raise
            return read(whole=True)

    def _read(
        self, store: Store, names: Sequence[str], fidelity: str | None, *, factorized: bool, ids: Sequence[str] | None, whole: bool
    ) -> pd.DataFrame:
        study = self.study
        facts = options.completed(study, store, store.columns(names, fidelity=fidelity, ids=ids, whole=whole))
        if "fidelity" not in facts:
            facts["fidelity"] = pa.repeat(fidelity, len(facts["status"]))
        if factorized:
            facts["factorized"] = _factorized(store, facts["configuration_id"], every=ids is None)
        return frames.evaluations(facts, study.baseline, [(m.name, m.direction) for m in study.task.metrics])

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

        Raises:
            InvalidArgument: a condition that cannot be read or names what the study does not have, an unknown objective or fidelity.
        """
        condition = Condition.joined(where)
        wanted = self._directions(objectives)
        with self.study.open_store(write=False) as store:
            key = self.study.fidelity.key if fidelity is None else self._fidelity(fidelity, store.fidelities()).key
            named = set() if condition is None else condition.names
            whole = all or not named.isdisjoint(("seconds", "factorized"))
            frame = self._frame(store, frames.MEASURED if whole else frames.VALUES, key, factorized=whole)
            front = frames.front(frame, wanted, condition, self._baseline_values(frame), dominated=all)
            if whole:
                return front
            # what does not say who is on the front is read of those alone that are, if they are few
            ids = front["id"].tolist()
            frame = self._frame(store, frames.MEASURED, key, factorized=True, ids=_few(ids))
            return frames.front(frame, wanted, condition, self._baseline_values(frame))

    def layers(self, ids: Iterable[str] | None = None, *, fidelity: str | None = None, errors: bool = True) -> pd.DataFrame:
        """One row per evaluation and site, dense sites among them: type, rank, costs and error of the layer.

        Args:
            ids: of these configurations only.
            fidelity: of one only: as for `front`; default: of all.
            errors: look the errors of the options up. Sites are factorized for them in the types that occur, where neither this process
                nor the cache on disk has that; False leaves them missing.
        """
        study = self.study
        with study.open_store(write=False) as store:
            key = None if fidelity is None else self._fidelity(fidelity, store.fidelities()).key
            named = None if ids is None else list(ids)
            frame: Any = self._frame(store, frames.COSTED, key, ids=_few(named))
            try:
                chosen = self._choices(store) if named is None else options.choices(study, store, named)
            except Damaged:
                frame = self._frame(store, frames.COSTED, key, whole=True)
                chosen = options.choices(study, store, frame["id"].tolist())
        frame = frame[frames.among(frame["id"], chosen.ids if named is None else named)]
        return layers(frame, chosen, options.table(study, chosen, errors=errors))

    def _choices(self, store: Store) -> choices.Choices:
        return self.study.kept.value(store, "choices", lambda: options.choices(self.study, store))

    def history(self, objectives: str | Sequence[str] | None = None, *, fidelity: str | None = None) -> pd.DataFrame:
        """How the study came to its front: one row per evaluation, in the order they were added, with the hypervolume so far and who
        proposed it.

        Args:
            objectives: other objectives than the study's.
            fidelity: as for `front`; default: the study's.
        """
        wanted = self._directions(objectives)
        with self.study.open_store(write=False) as store:
            key = self._fidelity(fidelity, [] if fidelity is None else store.fidelities()).key
            return history(self._frame(store, frames.FACTS, key).copy(), wanted)

    def curves(self) -> pd.DataFrame:
        """What evaluations had measured on their way, where a scheduler looked at them: one row per evaluation and rung, of those that
        were stopped there and of those that went on."""
        metrics = [metric.name for metric in self.study.task.metrics]
        with self.study.open_store(write=False) as store:
            try:
                return curves(store.columns(CURVES), metrics)
            except (ValueError, TypeError, AttributeError):  # a row that ranksearch did not write
                return curves(store.columns(CURVES, whole=True), metrics)

    def failures(self) -> pd.DataFrame:
        """Everything that failed, an attempt a row, whether or not it came to something later."""
        with self.study.open_store(write=False) as store:
            try:
                return frames.failures(store.columns(frames.FACTS, every_attempt=True), may_be_retried)
            except (ValueError, TypeError, OverflowError):  # a row that ranksearch did not write
                return frames.failures(store.columns(frames.FACTS, every_attempt=True, whole=True), may_be_retried)

    def proxies(
        self, *, metric: str | None = None, fidelity: str | None = None, calibrate: bool = True, batches: int = 0,
        extra: Extra = (),
    ) -> pd.DataFrame:  # fmt: skip
        """What was measured and what every proxy scored, side by side: one row per configuration and fidelity, a column
        ``score:PROXY`` for each, missing where it has none. Lower is better in every score.

        Args:
            metric, fidelity, calibrate, batches, extra: as for `Report.agreements`; ``batches`` is 0 unless given, which leaves out
                the proxies that run networks.

        Raises:
            InvalidArgument: as `Report.agreements`.
        """
        scores: Any = self.study.report.scores(metric=metric, fidelity=fidelity, calibrate=calibrate, batches=batches, extra=extra)
        with self.study.open_store(write=False) as store:
            frame = self._frame(store, frames.MEASURED, None, factorized=True)
        return frames.scored(frame, scores)

    def _directions(self, objectives: str | Sequence[str] | None) -> dict[str, Direction]:
        names = self.study.check_objectives(objectives or self.study.objectives)
        return {name: self.study.directions[name] for name in names}

    def _fidelity(self, text: str | None, known: Iterable[str]) -> Fidelity:
        own = self.study.fidelity
        return own if text is None else named_fidelity(text, [*map(Fidelity.parse, known), own])

    def _baseline_values(self, frame: pd.DataFrame) -> dict[str, float]:
        values: dict[str, float] = dict(self.study.baseline)
        dense: Any = frame[((frame["id"] == DENSE.id) & (frame["status"] == "done")).to_numpy()]
        return values | ({m.name: float(dense[m.name].mean()) for m in self.study.task.metrics} if len(dense) else {})

    def best(self, where: str | Sequence[str] | None = None, objective: str | None = None) -> pd.Series:
        """See `ranksearch.study.questions.Questions.best`."""
        return Questions(self.study).best(where, objective)

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
            at = self._fidelity(fidelity, store.fidelities())
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
        fidelity: str | None = None, dense: bool = False,
    ) -> Path:  # fmt: skip
        """Build a network and write it: safetensors, a manifest and code that loads them without ranksearch, and on request torch.export
        and ONNX programs (`ranksearch.networks.export.save`).

        The network is measured again and the manifest holds both figures, stored and measured. With ``onnx``, and onnxruntime installed,
        it also has the time of a forward pass on the task's example, paired with the dense network's.

        Args:
            dense: merge the factors back into dense weights: what is written has the layers and the costs of the dense network, and
                computes what the factorized one does.
        """
        study, configuration = self.study, self.configuration(id)
        target = export.check_target(directory, force=force, onnx=onnx)
        with study.open_store(write=False) as store:
            at = self._fidelity(fidelity, store.fidelities())
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
        if dense:
            sites = study.covering(configuration).sites
            model = merged(model, study.model, sites, [site for site, _, _ in configuration.choices], example)
            merge = {"merged": manifest["configuration"], "configuration": {}, **study.baseline, "measured": measured(study.task, model)}
            manifest |= merge
        further = partial(onnx_latency, study.model, example) if onnx and not dense else None
        return export.save(
            model, target, manifest=manifest, example=example, onnx=onnx, torch_export=torch_export, force=force, further=further
        )


def _few(ids: list[str] | None) -> list[str] | None:
    """The ids, where they are few enough to be asked for by name."""
    return None if ids is None or len(ids) > _NAMED else ids


def _factorized(store: Store, ids: Any, *, every: bool) -> np.ndarray:
    """How many sites each configuration factorizes. ``every``: they are most of those in the store, which is then read through."""
    known, counts = choices.factorized(store.configurations(None if every else ids.to_pylist()))
    return counts[choices.places(ids, known)]
