"""One row per evaluation and site: what is chosen there, what it costs, what it loses. Made of the codes of `Choices` and of one table of
the options that occur, so that 100,000 evaluations of 60 sites take seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ranksearch.results.choices import Choices
from ranksearch.results.frames import category, columns, floats, framed
from ranksearch.results.names import LAYER_COLUMNS


@dataclass(frozen=True, eq=False)
class OptionTable:
    """What is known of the options of `Choices`, each array of shape: (n_options,)."""

    costs: Mapping[str, np.ndarray]  # of the layer as it is built; int64 where counted
    dense: Mapping[str, np.ndarray]  # of the dense layer at the same site
    errors: np.ndarray  # relative Frobenius error, in the metric of the space; NaN where it is not known
    descriptions: Sequence[str]  # ranks in words


def layers(evaluations: pd.DataFrame, choices: Choices, table: OptionTable) -> pd.DataFrame:
    """One row per evaluation and site, evaluation by evaluation; columns: ``docs/analysis.md``.

    Args:
        evaluations: with columns ``id``, ``fidelity``, ``seed`` and every cost of the network; each row has its configuration among
            the choices.

    O(evaluations x sites), 13 bytes and 24 for every cost per row.
    """
    rows, sites = choices.rows(evaluations["id"]), len(choices.sites)
    codes = choices.codes[rows].ravel()
    found: dict[str, Any] = {
        "id": _taken(choices.ids.to_pylist(), np.repeat(rows.astype(np.int32), sites)),
        "fidelity": _repeated(evaluations["fidelity"].array, sites),
        "seed": np.repeat(evaluations["seed"].to_numpy(), sites),
        "site": _taken(choices.sites, np.tile(np.arange(sites, dtype=np.int32), len(rows))),
        "decomposition": _words([name for _, name, _ in choices.options], codes),
        "rank": _words(["x".join(map(str, rank)) for *_, rank in choices.options], codes),
        "description": _words(table.descriptions, codes),
        "relative_error": table.errors[codes],
    }
    for name, amounts in table.costs.items():
        whole = floats(evaluations[name])
        found[name] = amounts[codes]
        found[f"{name}_rel"] = (amounts / np.where(table.dense[name] == 0, np.nan, table.dense[name]))[codes]
        found[f"{name}_share"] = found[name] / np.repeat(np.where(whole == 0, np.nan, whole), sites)
    return framed({column: found[column] for column in columns(LAYER_COLUMNS, (), table.costs)})


def _words(words: Sequence[str], codes: np.ndarray) -> pd.Categorical:
    """The word of every code, as categories in alphabetical order."""
    each = category(words)
    return pd.Categorical.from_codes(each.codes[codes], categories=each.categories)


def _taken(names: Sequence[str], codes: np.ndarray) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, categories=pd.Index(list(names), dtype="str"))


def _repeated(values: Any, count: int) -> pd.Categorical:
    return pd.Categorical.from_codes(np.repeat(values.codes, count), dtype=values.dtype)
