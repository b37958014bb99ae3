"""The factorizable layers of a model: found by running it, packed attention unpacked."""

from __future__ import annotations

from ranksearch.sites.cost import Amount, Cost
from ranksearch.sites.find import Call, Pair, Rule, Site, Sites, canonical_weight, find_sites, module_kind, run
from ranksearch.sites.modes import evaluating, mode, unfused

__all__ = [
    "Amount", "Call", "Cost", "Pair", "Rule", "Site", "Sites", "canonical_weight", "evaluating", "find_sites",
    "mode", "module_kind", "run", "unfused",
]  # fmt: skip
