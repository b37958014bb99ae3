"""The costs that a study counts by. Cost models that measure are bound to the measurement that the store has, or to one made now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ranksearch.costs import CostModel, DenseNetwork
from ranksearch.errors import StoreError
from ranksearch.store import Store

Records = Mapping[str, Mapping[str, Any]]  # `CostModel.record` by the name of the cost


def measures(costs: Sequence[CostModel]) -> bool:
    """Whether a cost is measured, and so not the same whoever asks."""
    return any(type(cost).of is not CostModel.of for cost in costs)


def bound(costs: Sequence[CostModel], network: DenseNetwork, known: Records, tell: Callable[[str], None]) -> tuple[CostModel, ...]:
    """The cost models of a network; ``known`` is what the store has of them."""
    return tuple(cost.of(network, known.get(cost.name), tell) for cost in costs)


def stored(url: str, *, study: str, fingerprint: str, formerly: str) -> Records:
    """What a store has of costs; nothing where there is none.

    Raises:
        StoreError: it is another study's."""
    if not Store.exists(url):
        return {}
    with Store.open(url, study=study, fingerprint=fingerprint, formerly=formerly, create=False) as store:
        return store.details.get("costs") or {}


def records(counts: Sequence[CostModel]) -> dict[str, dict[str, Any]]:
    """What a store is to have of cost models."""
    return {cost.name: record for cost in counts if (record := cost.record()) is not None}


def check(url: str, known: Records, mine: Records) -> None:
    """Refuse amounts beside those of other settings, or of another measurement that another process has stored meanwhile.

    Raises:
        StoreError: that is so."""
    for name in known.keys() & mine.keys():
        before, now = known[name], mine[name]
        if before["settings"] != now["settings"]:
            raise StoreError(
                f"store {url!r} counts {name} with {before['settings']}, this study with {now['settings']}; ask for the former, or use "
                "another --store"
            )
        if before["id"] != now["id"]:
            raise StoreError(f"store {url!r} got another measurement of {name} meanwhile; run the command again")
