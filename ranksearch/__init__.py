"""ranksearch: search the ranks and decomposition types of every layer of a trained network.

Names below load on first use, so that ``import ranksearch`` is instant and brings no torch with it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ranksearch.compression import compress
    from ranksearch.costs import COSTS, CostModel
    from ranksearch.decompositions import DECOMPOSITIONS
    from ranksearch.errors import RanksearchError
    from ranksearch.evaluation import Fidelity
    from ranksearch.networks.export import load
    from ranksearch.sites import find_sites
    from ranksearch.space import Configuration, SearchSpace, SpaceSpec, all_types, mixture, svd_only
    from ranksearch.study import Study
    from ranksearch.study.stages import Stage
    from ranksearch.studyfile import load_study
    from ranksearch.tasks import Agreement, Classification, FromLoss, LanguageModel, Metric, Task

__version__ = "0.1.0"

_HOMES = {
    "COSTS": "costs",
    "Agreement": "tasks",
    "Classification": "tasks",
    "Configuration": "space",
    "CostModel": "costs",
    "DECOMPOSITIONS": "decompositions",
    "Fidelity": "evaluation",
    "FromLoss": "tasks",
    "LanguageModel": "tasks",
    "Metric": "tasks",
    "RanksearchError": "errors",
    "SearchSpace": "space",
    "SpaceSpec": "space",
    "Stage": "study.stages",
    "Study": "study",
    "Task": "tasks",
    "all_types": "space",
    "compress": "compression",
    "find_sites": "sites",
    "load": "networks.export",
    "load_study": "studyfile",
    "mixture": "space",
    "svd_only": "space",
}

__all__ = [
    "COSTS",
    "DECOMPOSITIONS",
    "Agreement",
    "Classification",
    "Configuration",
    "CostModel",
    "Fidelity",
    "FromLoss",
    "LanguageModel",
    "Metric",
    "RanksearchError",
    "SearchSpace",
    "SpaceSpec",
    "Stage",
    "Study",
    "Task",
    "__version__",
    "all_types",
    "compress",
    "find_sites",
    "load",
    "load_study",
    "mixture",
    "svd_only",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ranksearch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ranksearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
