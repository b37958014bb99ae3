"""Errors of all ranks on the layer shapes of ResNet-50: the Gram path of ranksearch against `torch.linalg.svd` of the same
matrices, in the same run. Prints one line of JSON.

    OPENBLAS_NUM_THREADS=1 python analysis/benchmarks/spectra.py [--processes 2] [--sites 8] [--threads 1]

The SVD kinds are svd, svd_in, spatial, spatial_t, decoupled and grouped_svd. The reference decomposes every matrix that the
type truncates (for grouped_svd, one per group and group count) and takes tail sums. The operator norm of grouped_svd is
that of the whole residual at every (g, r): its reference, `torch.linalg.matrix_norm(residual, 2)`, is timed on a few
ranks of every site and multiplied up; it is reported apart and is no part of the speed-up.

The deviation is relative, over all errors above ``NOISE``: both paths lose what lies below sqrt(float64 epsilon) of the
norm."""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ranksearch.decompositions import DECOMPOSITIONS, tiles
from ranksearch.decompositions.grouped_svd import GroupedSVD
from ranksearch.sites import Call, Site

KINDS = ("svd", "svd_in", "spatial", "spatial_t", "decoupled", "grouped_svd")
NOISE = 1e-5
RESIDUALS = 2  # residuals per site that the operator norm's reference is timed on


def resnet50() -> list[Site]:
    """The 53 convolutions of ResNet-50 for images of 224 x 224."""
    sites = [_site("conv1", 64, 3, 7, 2, 224)]
    c_in, size = 64, 56
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            name = f"layer{stage}.{block}"
            sites.append(_site(f"{name}.conv1", width, c_in, 1, 1, size))
            sites.append(_site(f"{name}.conv2", width, width, 3, stride, size))
            if block == 0:
                sites.append(_site(f"{name}.downsample.0", 4 * width, c_in, 1, stride, size))
            size //= stride
            sites.append(_site(f"{name}.conv3", 4 * width, width, 1, 1, size))
            c_in = 4 * width
    return sites


def _site(name: str, c_out: int, c_in: int, kernel: int, stride: int, size: int) -> Site:
    out = size // stride
    call = Call(1, (size, size), (out, out))
    half = kernel // 2
    return Site(
        name, "conv2d", c_out, c_in, kernel=(kernel, kernel), stride=(stride, stride), padding=(half, half), bias=False, calls=(call,)
    )


def weight(site: Site, seed: int) -> Tensor:
    """A float32 weight with the decaying spectrum of a trained layer: a random matrix scaled along its singular axes."""
    random = torch.Generator().manual_seed(seed)
    rows, columns = site.c_out, math.prod(site.shape[1:])
    left = torch.randn(rows, rows, generator=random) * torch.arange(1, rows + 1) ** -0.5
    right = torch.randn(rows, columns, generator=random)
    return (left @ right).reshape(site.shape)


def matrices(kind: str, w: Tensor) -> list[Tensor]:
    """The batches of matrices that a type truncates; grouped_svd: one batch per group count."""
    if kind == "svd":
        return [w.flatten(1)[None]]
    if kind == "svd_in":
        return [w.permute(0, 2, 3, 1).flatten(0, 2)[None]]
    if kind == "spatial":
        return [w.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)[None]]
    if kind == "spatial_t":
        return [w.permute(0, 3, 1, 2).flatten(2).flatten(0, 1)[None]]
    if kind == "decoupled":
        return [w.flatten(2)]
    counts = [g for g in range(2, GroupedSVD().max_groups + 1) if w.shape[1] % g == 0]
    return [torch.stack([part.flatten(1) for part in w.chunk(g, dim=1)]) for g in counts]


def reference(kind: str, w: Tensor) -> list[np.ndarray]:
    """Relative Frobenius errors of ranks 1..k per batch, from LAPACK's SVD."""
    result = []
    for batch in matrices(kind, w):
        energies = torch.linalg.svd(batch, full_matrices=False)[1].square().sum(dim=0).numpy()
        tails = np.append(np.cumsum(energies[::-1])[::-1], 0.0)
        result.append(np.sqrt(tails[1:] / tails[0]))
    return result


def measure(job: tuple[Site, int, int, bool]) -> dict[str, Any]:
    """One site: seconds and largest deviation per type, and the errors themselves."""
    site, seed, threads, oracle = job
    torch.set_num_threads(threads)
    w = weight(site, seed)
    types = {d.name: d for d in DECOMPOSITIONS}
    rows: dict[str, Any] = {}
    for kind in KINDS:
        decomposition = types[kind]
        if decomposition.undefined(site) is not None:
            continue
        begin = time.perf_counter()
        state = decomposition.prepare(site, w)
        # the operator norms of grouped_svd have a reference of their own
        found = grouped(state) if kind == "grouped_svd" else [decomposition.errors(state).frobenius]
        row: dict[str, Any] = {"gram_s": time.perf_counter() - begin, "errors": found}
        if oracle:
            begin = time.perf_counter()
            wanted = reference(kind, w.double())
            row["svd_s"] = time.perf_counter() - begin
            row["deviation"] = max(deviation(a, b) for a, b in zip(found, wanted, strict=True))
        if kind == "grouped_svd":
            begin = time.perf_counter()
            errors = decomposition.errors(state)
            row["operator_gram_s"] = time.perf_counter() - begin
            row["errors"] = [*found, errors.operator]
            if oracle:
                row |= operator_reference(site, decomposition, state, errors, w.double())
        rows[kind] = row
    return rows


def grouped(state: tiles.TileState) -> list[np.ndarray]:
    """Frobenius errors of all ranks per group count, as `tiles.errors` computes them."""
    total = float(state.weight.square().sum())
    result = []
    for t in sorted(set(state.ranks[:, 1].tolist())):
        parts = tiles.split(state.weight, 1, t)
        energies = tiles.spectrum(parts.flatten(0, 1)).energies.sum(dim=0).numpy()
        tails = np.append(np.cumsum(energies[::-1])[::-1], 0.0)
        result.append(tiles.ratio(tails[1:], total))
    return result


def operator_reference(site: Site, decomposition: Any, state: Any, errors: Any, w: Tensor) -> dict[str, float]:
    """Time and deviation of the operator norm against LAPACK's of the residual, on a few ranks."""
    places = np.linspace(0, len(errors.ranks) // 2, RESIDUALS).astype(int)
    norm = float(torch.linalg.matrix_norm(w.flatten(1), 2))
    residuals = [(w - decomposition.reconstruct(site, state, tuple(errors.ranks[k].tolist()))).flatten(1) for k in places]
    begin = time.perf_counter()
    wanted = np.array([float(torch.linalg.matrix_norm(r, 2)) / norm for r in residuals])
    seconds = (time.perf_counter() - begin) / len(places) * len(errors.ranks)
    return {"operator_svd_s_extrapolated": seconds, "operator_deviation": deviation(errors.operator[places], wanted)}


def deviation(found: np.ndarray, wanted: np.ndarray) -> float:
    sound = wanted > NOISE
    return float(np.max(np.abs(found[sound] / wanted[sound] - 1), initial=0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=0, help="also do all sites in so many processes, and compare")
    parser.add_argument("--sites", type=int, default=None, help="only so many sites, spread over the network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sites = resnet50()
    if arguments.sites:
        sites = [sites[i] for i in sorted(set(np.linspace(0, len(sites) - 1, arguments.sites).round().astype(int).tolist()))]
    jobs = [(site, arguments.seed + i, arguments.threads, True) for i, site in enumerate(sites)]
    rows = [measure(job) for job in jobs]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    types: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        mine = [row[kind] for row in rows if kind in row]
        keys = [k for k in mine[0] if k != "errors"] if mine else []
        reduce = {k: (max if "deviation" in k else sum) for k in keys}
        types[kind] = {k: float(f"{reduce[k](r[k] for r in mine):.4g}") for k in keys}
        if mine:
            types[kind]["speedup"] = round(types[kind]["svd_s"] / types[kind]["gram_s"], 2)
    gram, svd = (sum(t.get(k, 0.0) for t in types.values()) for k in ("gram_s", "svd_s"))
    result: dict[str, Any] = {
        "benchmark": "spectra", "sites": len(sites), "threads": arguments.threads,
        "openblas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "default"), "gram_s": round(gram, 2), "svd_s": round(svd, 2),
        "speedup": round(svd / gram, 2), "deviation": max(t.get("deviation", 0.0) for t in types.values()),
        "peak_mib": round(peak), "types": types,
    }  # fmt: skip
    if arguments.processes > 1:
        begin = time.perf_counter()
        again = [measure((*job[:3], False)) for job in jobs]
        serial = time.perf_counter() - begin
        begin = time.perf_counter()
        with ProcessPoolExecutor(arguments.processes) as pool:
            parallel = list(pool.map(measure, [(*job[:3], False) for job in jobs]))
        seconds = time.perf_counter() - begin
        same = all(
            np.array_equal(x, y)
            for a, b in zip(again, parallel, strict=True) for kind in a for x, y in zip(a[kind]["errors"], b[kind]["errors"], strict=True)
        )  # fmt: skip
        result["parallel"] = {"processes": arguments.processes, "serial_s": round(serial, 2), "parallel_s": round(seconds, 2), "same": same}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
