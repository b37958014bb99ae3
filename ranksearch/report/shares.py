"""The share of its full rank that a layer keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ranksearch.decompositions import AnyDecomposition
from ranksearch.sites import Site

Option = tuple[str, str, str]  # site, type and rank, as frames have them: a rank is "8" or "4x6"


def rank_shares(
    options: Iterable[Option], sites: Mapping[str, Site], decompositions: Mapping[str, AnyDecomposition]
) -> dict[Option, float]:
    """The rank of every option whose site and type are known, as a share of full rank. That of several numbers is their geometric
    mean, each relative to the largest that the type has at that site in the same structure (groups, tiles).

    Args:
        sites: by path.
        decompositions: by name.
    """
    ranks: dict[tuple[str, str], np.ndarray] = {}
    found = {}
    for site, name, rank in options:
        if site not in sites or name not in decompositions or not rank:
            continue
        if (site, name) not in ranks:
            ranks[site, name] = decompositions[name].ranks(sites[site])
        values = tuple(int(number) for number in rank.split("x"))
        found[site, name, rank] = _share(ranks[site, name], values, decompositions[name].labels)
    return found


def _share(ranks: np.ndarray, rank: tuple[int, ...], labels: int) -> float:
    """``ranks``: all of the type at the site, int64, shape: (n_ranks, rank_length); the first ``labels`` numbers name a structure."""
    if ranks.shape[1] != len(rank):
        return float("nan")
    same = ranks[(ranks[:, :labels] == np.array(rank[:labels], dtype=np.int64)).all(axis=1), labels:]
    if not len(same) or not same.shape[1]:
        return float("nan")
    return float(np.exp(np.mean(np.log(np.array(rank[labels:]) / same.max(axis=0)))))
