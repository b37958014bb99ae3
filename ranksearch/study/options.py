"""What the options cost and lose that a study's evaluations chose, each looked up once, whatever the number of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ranksearch.costs import CostModel, LayerOptions, layer_cost
from ranksearch.decompositions import KNOWN, AnyDecomposition
from ranksearch.results import frames
from ranksearch.results.choices import Choices, read
from ranksearch.results.layers import OptionTable
from ranksearch.space import Configuration
from ranksearch.store import Columns, Store

if TYPE_CHECKING:
    from ranksearch.study.study import Study


def choices(study: Study, store: Store, ids: Sequence[str] | None = None) -> Choices:
    """What configurations of a store choose at every site of the study: of all, or of those that are named."""
    return read(store.configurations(ids), {path: site.name for site in study.sites for path in site.paths})


def table(study: Study, found: Choices, *, errors: bool) -> OptionTable:
    """What is known of the options of some choices. With ``errors``, the sites and types among them are factorized where that has not
    been done."""
    study = _covering(study, found)
    costs = _costs(study, found, study.counts)
    at = {site: place for place, site in enumerate(found.sites)}
    dense = {name: amounts[[at[site] for site, _, _ in found.options]] for name, amounts in costs.items()}
    types = _types(study)
    words = ["" if name == "dense" else types[name].describe(study.sites[site], rank) for site, name, rank in found.options]
    return OptionTable(costs, dense, _errors(study, found, known=errors), words)


def completed(study: Study, store: Store, facts: Columns) -> dict[str, Any]:
    """Columns of a store with those costs that have no column of their own there; what the study has gained since an evaluation was
    written is computed of its configuration."""
    further = [model for model in study.counts if model.name not in facts]
    if not further or not len(facts["configuration_id"]):
        return dict(facts)
    stored = frames.numbers(facts["costs"], {model.name: isinstance(study.baseline[model.name], int) for model in further})
    lacking = {name: np.isnan(frames.floats(values)) for name, values in stored.items()}
    rows = np.flatnonzero(np.any(list(lacking.values()), axis=0))
    found: dict[str, list[Any]] = {name: list(values) for name, values in stored.items()}
    if len(rows):
        ids = facts["configuration_id"].take(rows).to_pylist()
        chosen = choices(study, store, ids)
        costs = _network_costs(_covering(study, chosen), chosen, further)
        for row, place in zip(rows.tolist(), chosen.rows(ids).tolist(), strict=True):
            for name, missing in lacking.items():
                if missing[row]:
                    found[name][row] = costs[name][place].item()
    return {**facts, **found}


def _network_costs(study: Study, found: Choices, models: Sequence[CostModel]) -> dict[str, np.ndarray]:
    """What the networks of configurations cost, each of shape: (n_configurations,): the parts are added in the order of the sites, as
    `ranksearch.costs.network_cost` adds them."""
    columns = _costs(study, found, models)
    order = [found.sites.index(site.name) for site in study.sites]
    totals = {}
    for model in models:
        rest = model.rest(study.dense_network)
        total = np.full(len(found.ids), rest, dtype=np.int64 if isinstance(rest, int) else np.float64)
        for place in order:
            total = total + columns[model.name][found.codes[:, place]]
        totals[model.name] = total
    return totals


def _covering(study: Study, found: Choices) -> Study:
    """The study, or the same with every layer and type where an earlier, other space had more."""
    one_of_each = {(site, name): rank for site, name, rank in found.options}
    for (site, name), rank in one_of_each.items():
        study = study.covering(Configuration([(site, name, rank)]))
    return study


def _types(study: Study) -> dict[str, AnyDecomposition]:
    return {d.name: d for d in (*KNOWN, *study.spec.decompositions)}


def _groups(found: Choices) -> dict[tuple[str, str], list[int]]:
    """Positions of the options of every site and type."""
    groups: dict[tuple[str, str], list[int]] = {}
    for position, (site, name, _) in enumerate(found.options):
        groups.setdefault((site, name), []).append(position)
    return groups


def _costs(study: Study, found: Choices, models: Sequence[CostModel]) -> dict[str, np.ndarray]:
    """Every cost of the options, each of shape: (n_options,); int64 where counted."""
    network, types = study.dense_network, _types(study)
    columns: dict[str, np.ndarray] = {}
    for (path, name), positions in _groups(found).items():
        site, decomposition = network.sites[path], types[name]
        ranks = np.array([found.options[position][2] for position in positions], dtype=np.int64).reshape(len(positions), -1)
        if name == "dense":
            params, macs = np.array([site.cost.params]), np.array([site.cost.macs])
        else:
            params, macs = decomposition.costs(site, ranks)
        for cost, amounts in layer_cost(models, LayerOptions(network, site, decomposition, ranks, params, macs)).items():
            column = columns.setdefault(cost, np.zeros(len(found.options), dtype=amounts.dtype))
            column[positions] = amounts
    return columns


def _errors(study: Study, found: Choices, *, known: bool) -> np.ndarray:
    """Relative Frobenius errors of the options, in the metric of the space, shape: (n_options,); NaN where they are not wanted, or no
    profile has them."""
    errors = np.full(len(found.options), np.nan)
    for (path, name), positions in _groups(found).items():
        if name == "dense":
            errors[positions] = 0.0
        elif known and name in study.spectra.decompositions:
            profile = study.spectra.profile(study.sites[path], name)
            if profile is not None:
                place = {tuple(rank): row for row, rank in enumerate(profile.ranks.tolist())}
                for position in positions:
                    row = place.get(found.options[position][2])
                    errors[position] = np.nan if row is None else profile.frobenius[row]
    return errors
