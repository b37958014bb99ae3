"""``--cost``: costs that a command adds to those of the study file, and those that the store was searched with."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ranksearch.cli.spaces import stored_details
from ranksearch.errors import InvalidArgument

if TYPE_CHECKING:
    from ranksearch.costs import CostModel
    from ranksearch.study import Study

KINDS = {"bytes": ("costs", "Bytes"), "latency": ("latency", "Latency")}
SETTINGS: Mapping[str, Mapping[str, Callable[[str], Any]]] = {
    "bytes": {"dtype": str},
    "latency": {"runtime": str, "batch": int, "device": str, "table": str, "networks": int},
}


def parsed(text: str) -> CostModel:
    """The cost that ``NAME`` or ``NAME:SETTING=VALUE,...`` stands for.

    Raises:
        InvalidArgument: an unknown name or setting, or a value that cannot be read."""
    name, _, rest = text.partition(":")
    if name not in KINDS:
        known = f"{', '.join(KINDS)}{_hint(name, KINDS)}"
        raise InvalidArgument(f"--cost {text}: {name!r} is none of {known}; params and macs are always there")
    given: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        if key not in SETTINGS[name] or not equals or not value:
            raise InvalidArgument(
                f"--cost {text}: {part!r} is no setting{_hint(key, SETTINGS[name])}; give {name}:SETTING=VALUE,..., settings are "
                f"{', '.join(SETTINGS[name])}"
            )
        try:
            given[key] = SETTINGS[name][key](value)
        except ValueError as error:
            raise InvalidArgument(f"--cost {text}: {key}={value} is no whole number") from error
    return _made(name, given)


def used(study: Study, texts: Sequence[str], store: str) -> Study:
    """The study with the costs of ``--cost``, and those that its store was searched with. What is asked for takes the place of a
    cost of the same name that the study file declares."""
    chosen: dict[str, CostModel] = {}
    stored = (stored_details(store) or {}).get("costs")
    declared = {cost.name for cost in study.costs}
    for name, record in stored.items() if isinstance(stored, dict) else ():
        if name in KINDS and name not in declared:
            chosen[name] = _made(name, record["settings"])
    for text in texts:
        cost = parsed(text)
        chosen[cost.name] = cost
    if not chosen:
        return study
    return study.replace(costs=(*(cost for cost in study.costs if cost.name not in chosen), *chosen.values()))


def _made(name: str, settings: Mapping[str, Any]) -> CostModel:
    module, kind = KINDS[name]
    return getattr(import_module(f"ranksearch.{module}"), kind)(**settings)


def _hint(word: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""
