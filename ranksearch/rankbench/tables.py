"""The files of a tabulated study: their columns, how they are written, and the space that they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ranksearch.errors import InvalidArgument
from ranksearch.home import replacing
from ranksearch.rankbench.settings import example, untrained
from ranksearch.sites import Cost, find_sites
from ranksearch.space import Ladder, SearchSpace
from ranksearch.space.ladder import ERRORS

COSTS = ("params", "macs", "latency")
MEASURED = ("accuracy", "loss", "calibration_loss", "last_feature")
SCORE = "score_"  # before the name of a proxy, in columns of options and of configurations
DETAILS = b"rankbench"
KINDS = ("configurations", "options", "curves")


@dataclass(frozen=True)
class Tables:
    """What is in the files of a study; see docs/rankbench.md for the columns."""

    configurations: pd.DataFrame
    options: pd.DataFrame
    curves: pd.DataFrame
    details: Mapping[str, Any]  # how it was made, JSON data


def write(tables: Tables, folder: Path, name: str) -> None:
    """Write the files of a study into a folder."""
    details = {DETAILS: json.dumps(tables.details)}
    for kind in KINDS:
        table = pa.Table.from_pandas(getattr(tables, kind), preserve_index=False).replace_schema_metadata(details)
        with replacing(folder / f"{name}_{kind}.parquet") as temporary:
            pq.write_table(table, temporary, compression="zstd", compression_level=19)


def read(folder: Path, name: str) -> Tables:
    """The files of a study.

    Raises:
        InvalidArgument: a file is missing or is none of a tabulated study.
    """
    frames: dict[str, pd.DataFrame] = {}
    details: Mapping[str, Any] = {}
    for kind in KINDS:
        path = folder / f"{name}_{kind}.parquet"
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise InvalidArgument(f"rankbench: {path} cannot be read ({error}); install ranksearch again") from error
        if DETAILS not in (table.schema.metadata or {}):
            raise InvalidArgument(f"rankbench: {path} is no file of a tabulated study")
        frames[kind], details = table.to_pandas(), json.loads(table.schema.metadata[DETAILS])
    return Tables(**frames, details=details)


def options_of(space: SearchSpace, scores: Mapping[str, tuple[np.ndarray, ...]]) -> pd.DataFrame:
    """One row per site and option: type, rank, costs, errors, and what table proxies say.

    Args:
        scores: values per site, by the name of the proxy; those of a proxy that is the largest of its sites' are told apart by
            ``details["largest"]``.
    """
    parts = []
    for place, ladder in enumerate(space.ladders):
        choices = [ladder.choice(option) for option in range(len(ladder))]
        columns: dict[str, Any] = {
            "site": ladder.site.name, "option": np.arange(len(ladder), dtype=np.uint8),
            "type": [name for name, _ in choices], "rank": ["x".join(map(str, rank)) for _, rank in choices],
        }  # fmt: skip
        columns |= {name: ladder.costs[name] for name in space.costs} | {name: ladder.errors[name] for name in ERRORS}
        columns |= {f"{SCORE}{name}": values[place] for name, values in scores.items()}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def space_of(name: str, options: pd.DataFrame, baseline: Mapping[str, int], costs: Sequence[str]) -> SearchSpace:
    """The space of a study with some of its costs, from its table of options. Nothing is factorized: sites come of the network without its
    weights."""
    sites = find_sites(untrained(name), example(name))
    ladders = []
    for path, rows in options.groupby("site", sort=False):
        types = rows["type"].to_numpy(dtype=str)
        names = tuple(dict.fromkeys(types.tolist()))
        ranks = [[int(part) for part in text.split("x")] if text else [] for text in rows["rank"]]
        table = np.full((len(ranks), max(1, *map(len, ranks))), -1, dtype=np.int64)
        for row, rank in zip(table, ranks, strict=True):
            row[: len(rank)] = rank
        which = np.array([names.index(kind) for kind in types], dtype=np.int64)
        amounts = {cost: rows[cost].to_numpy(dtype=np.int64, copy=True) for cost in costs}
        errors = {error: rows[error].to_numpy(dtype=np.float64, copy=True) for error in ERRORS}
        ladders.append(Ladder(sites[str(path)], names, which, table, amounts, errors))
    return SearchSpace(tuple(ladders), Cost({cost: int(baseline[cost]) for cost in costs}), metric="fisher")
