"""Configurations of the user's own: checked, then evaluated at once, or kept in the store until the next search."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ranksearch.decompositions import KNOWN, AnyDecomposition
from ranksearch.errors import InvalidArgument, RanksearchWarning
from ranksearch.evaluation import Request, may_be_retried
from ranksearch.search.loop import indices_of
from ranksearch.search.run import record_of
from ranksearch.search.starts import Start
from ranksearch.sites import Amount, Site
from ranksearch.space import Candidate, Configuration
from ranksearch.store import Record, Store
from ranksearch.study import storage

if TYPE_CHECKING:
    from ranksearch.study.study import Study

Choices = Mapping[str, tuple[str, Sequence[int]]]  # by site: type and rank, as `Configuration` takes it
ENQUEUED, EVALUATED = "enqueue", "evaluate"  # the origins of such evaluations


def enqueue(study: Study, configuration: Configuration | Choices) -> Configuration:
    """Keep a configuration in the store for the next search, of whatever process. That search evaluates it right after the dense network
    and before its starts, at the fidelity and seed that this study has, and counts it among ``trials``. The evaluation is never stopped
    early; one that was stopped before is made to its end, and one that is finished is not made again. A configuration that breaks a
    search's constraints waits for a search that has others.

    Args:
        configuration: a `Configuration`, or ``{site: (type, rank)}``; sites that it does not name stay dense. It need not be on the
            ladders of the study's space: any layer, type and rank that exists will do.

    Returns:
        What was kept, with sites by their first path.

    Raises:
        InvalidArgument: a layer that is no site, a type that is not known or not defined there, or a rank that it does not have.
        StoreError: as for `Study.run`.
    """
    kept = checked(study, configuration)
    study.check_unchanged()
    storage.open_store(study, write=True, wanted=[_entry(study, kept)]).close()
    return kept


def evaluate(study: Study, configuration: Configuration | Choices) -> Record:
    """Evaluate a configuration now, in this process, at the study's fidelity and seed, and store the outcome as a search would. A finished
    evaluation is only read. One that failed by the fault of the machine or of code is tried again, and one that was stopped early is made
    to its end.

    Args:
        configuration: as for `enqueue`; ``{}`` is the dense network.

    Returns:
        The evaluation: ``status``, ``metrics``, ``costs``; of one that failed ``error`` says why.

    Raises:
        InvalidArgument, StoreError: as for `enqueue`, before any work.
    """
    wanted = checked(study, configuration)
    study.check_unchanged()
    with study.open_store(write=True) as store:
        known = store.get(wanted.id, study.fidelity.key, study.seed)
        if known is not None and (known.status == "done" or not may_be_retried(known.error_kind)):
            return known
        candidate = Candidate(None, wanted, storage.cost_of(study, wanted, study.counts))
        outcome = study.covering(wanted).evaluator(Request(wanted, study.fidelity, study.seed, EVALUATED))
        record = record_of(outcome, candidate)
        (store.add if known is None else store.add_attempt)(record)
        return record


def ids(study: Study) -> list[str]:
    """The configurations that the store has for the study's fidelity and seed."""
    with study.open_store(write=False) as store:
        found = [(entry, Configuration.from_json(entry["configuration"])) for entry in store.details.get("queue") or []]
    return [wanted.id for entry, wanted in found if entry == _entry(study, wanted)]


def starts(study: Study, limits: Mapping[str, Amount]) -> list[Start]:
    """What the store has for the study's fidelity and seed, within ``limits``."""
    if not Store.exists(study.store_url):
        return []
    with study.open_store(write=False) as store:
        entries = store.details.get("queue") or []
    found = []
    for entry in entries:
        wanted = Configuration.from_json(entry["configuration"])
        if entry != _entry(study, wanted):  # for another fidelity or seed
            continue
        indices = indices_of(study.space, wanted)
        candidate = Candidate(indices, wanted, storage.cost_of(study, wanted, study.counts))
        over = [f"{name} {candidate.cost[name]:,} over {limit:,}" for name, limit in limits.items() if candidate.cost[name] > limit]
        if over:
            text = f"enqueued configuration {wanted.id} breaks the constraints ({', '.join(over)}): it waits for a search that has others"
            warnings.warn(text, RanksearchWarning, stacklevel=4)
        else:
            found.append(Start(candidate, ENQUEUED))
    return found


def _entry(study: Study, wanted: Configuration) -> dict[str, str | int]:
    return {"configuration": wanted.to_json(), "fidelity": study.fidelity.key, "seed": study.seed}


def checked(study: Study, configuration: Configuration | Choices) -> Configuration:
    """A configuration of layers, types and ranks that exist, with sites by their first path. See `enqueue` for what is raised."""
    try:
        given = configuration if isinstance(configuration, Configuration) else Configuration(configuration)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"configuration={configuration!r:.100}: {error}; give {{site: (type, rank)}}, such as "
                              "{'layer1.conv': ('svd', [8])}") from error  # fmt: skip
    types = {d.name: d for d in (*KNOWN, *study.spec.decompositions)}
    sites = {path: site for site in study.covering(given).sites for path in site.paths}
    choices = []
    for path, name, rank in given.choices:
        if path not in sites:
            raise InvalidArgument(f"configuration: {path!r} is no layer that can be factorized; {_near(path, list(sites))}")
        if name not in types:
            raise InvalidArgument(f"configuration: {path!r} is to be {name!r}, which is no type; {_near(name, list(types))}")
        _check_rank(sites[path], types[name], rank)
        choices.append((sites[path].name, name, rank))
    return Configuration(choices)


def _check_rank(site: Site, decomposition: AnyDecomposition, rank: Sequence[int]) -> None:
    reason = decomposition.undefined(site)
    if reason is not None:
        raise InvalidArgument(f"configuration: {decomposition.name} is not defined for {site.name!r}: {reason}; choose another type")
    ranks = decomposition.ranks(site)
    if len(rank) != ranks.shape[1] or not (ranks == np.asarray(rank)).all(axis=1).any():
        lowest, highest = ([int(n) for n in edge] for edge in (ranks.min(axis=0), ranks.max(axis=0)))
        raise InvalidArgument(
            f"configuration: {decomposition.name} of {site.name!r} has no rank {list(rank)}; its ranks lie between {lowest} and {highest}"
        )


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known[:8])}{', ...' * (len(known) > 8)}"
