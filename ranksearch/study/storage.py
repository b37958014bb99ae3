"""The store of a study: how it is described, which network it belongs to, and the costs that it has not had from the beginning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ranksearch.costs import CostModel, network_cost
from ranksearch.decompositions import KNOWN
from ranksearch.errors import RanksearchWarning, StoreError
from ranksearch.sites import Cost
from ranksearch.space import Configuration
from ranksearch.store import Record, Store
from ranksearch.study import counts, identity

if TYPE_CHECKING:
    from ranksearch.study.study import Study


PLANNED = "planned"  # of a store's details: how many evaluations the search that began last is to end with


def open_store(study: Study, *, write: bool, wanted: Sequence[Mapping[str, Any]] = (), planned: int | None = None) -> Store:
    """See `Study.open_store`.

    Args:
        wanted: JSON data, entries that are added to the queue (`ranksearch.study.queue`).
        planned: how many evaluations the study is to have, which others that read the store then know; None leaves what it has."""
    details: dict[str, Any] = {"options": study.options, "space": study.space_choice, "objectives": list(study.objectives)}
    details["baseline"] = dict(study.baseline)
    details["costs"] = counts.records(study.counts)
    mine = {"weights": study.network.weights, "modules": dict(study.network.modules), "outputs": study.outputs if write else None}
    adopted: list[bool] = []

    def described(known: Mapping[str, Any]) -> Mapping[str, Any]:
        stored = known.get("network") or {}
        _check_network(study, stored, mine["outputs"])
        counts.check(study.store_url, known.get("costs") or {}, details["costs"])
        if known and not stored:
            adopted.append(True)
        queued: dict[str, Any] = {"queue": _queued(known, wanted)}
        aim = planned if planned is not None else known.get(PLANNED)
        queued |= {} if aim is None else {PLANNED: aim}
        return {**details, **queued, "network": mine | {name: value for name, value in stored.items() if value is not None}}

    named = {"study": study.name, "fingerprint": study.fingerprint, "formerly": study.former_fingerprint}
    store = Store.open(
        study.store_url, **named, details=described, create=write, write=write, complete=lambda record: _counted(study, record)
    )
    if write and adopted:
        text = "is of an earlier version, which did not note what its network computes: from now on it is taken to be this one's"
        warnings.warn(f"store {store.url!r} {text}", RanksearchWarning, stacklevel=3)
    return store


def _queued(known: Mapping[str, Any], wanted: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What a store has in its queue, and what is wanted besides: nothing twice."""
    found = list(known.get("queue") or [])
    return [*found, *(entry for entry in wanted if entry not in found)]


def _check_network(study: Study, stored: Mapping[str, Any], outputs: list[dict[str, Any]] | None) -> None:
    changed = study.network.changes({name: value for name, value in stored.items() if name == "modules"})
    same_weights = stored.get("weights") == study.network.weights  # else the fingerprint says it
    before = stored.get("outputs")
    if changed is None and same_weights and None not in (before, outputs) and not identity.alike(before, outputs):  # pyright: ignore[reportArgumentType]
        changed = "what the network computes on the first calibration batch"
    if changed is not None:
        raise StoreError(
            f"store {study.store_url!r} belongs to study {study.name!r} of another network, whose fingerprint was another: {changed} "
            "differs; use another --store (store=...) or name, or the network that it was made with"
        )


def _counted(study: Study, record: Record) -> Record:
    """The record with the costs that the study has gained since it was written."""
    missing = [cost for cost in study.counts if cost.name not in record.costs]
    if not missing:
        return record
    return replace(record, costs={**record.costs, **cost_of(study, Configuration.from_json(record.configuration), missing)})


def cost_of(study: Study, configuration: Configuration, models: Sequence[CostModel]) -> Cost:
    """What a configuration costs, in the study's space or not."""
    types = {d.name: d for d in (*KNOWN, *study.spec.decompositions)}
    return network_cost(models, study.covering(configuration).dense_network, configuration.choices, tuple(types.values()))
