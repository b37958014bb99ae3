"""The factorizable layers of a model: found by running copies of it, packed attention unpacked; what the model costs."""

from __future__ import annotations

from ranksearch.sites.copies import copied, stored, take_over, unwrapped, without_fused_paths
from ranksearch.sites.cost import Amount, Cost
from ranksearch.sites.experts import UnpackedExperts, unpack_experts
from ranksearch.sites.find import find_sites
from ranksearch.sites.forward import BatchDim, arguments, batch_size, device_of, fitted, map_tensors, run, tensors_of
from ranksearch.sites.layers import WINDOWED, Rule, module_kind
from ranksearch.sites.modes import evaluating, mode, outside_autocast, preserved_modes, unfused
from ranksearch.sites.recurrent import UnpackedCell, UnpackedRecurrent, linear_of, next_state, unpack_recurrent
from ranksearch.sites.site import Call, Pair, Site, Sites, Skipped, Window, canonical_weight, to_canonical, to_stored
from ranksearch.sites.subclasses import Scale

__all__ = [
    "WINDOWED", "Amount", "BatchDim", "Call", "Cost", "Pair", "Rule", "Scale", "Site", "Sites", "Skipped", "UnpackedCell",
    "UnpackedExperts", "UnpackedRecurrent", "Window", "arguments", "batch_size", "canonical_weight", "copied", "device_of", "evaluating",
    "find_sites", "fitted", "linear_of", "map_tensors", "mode", "module_kind", "next_state", "outside_autocast", "preserved_modes", "run",
    "stored", "take_over", "tensors_of", "to_canonical", "to_stored", "unfused", "unpack_experts", "unpack_recurrent", "unwrapped",
    "without_fused_paths",
]  # fmt: skip
