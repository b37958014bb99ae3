"""Processor seconds of profiling the network of the digits study in its default space and the Fisher metric, with nothing kept and with
everything kept on disk, as one line of JSON.

    OMP_NUM_THREADS=1 python analysis/benchmarks/profiling.py [--repeats 3] [--reference-params 10000] [--seed 0]

Baseline, measured in the same run on the sites of at most ``--reference-params`` parameters: the plain way, where every rank is
fitted by itself from the singular vectors of the weight, by full alternating sweeps (`reference`). ``ratio`` is its time over that of
the same sites and types here, ``error_ratio`` the mean over all ranks of the errors here over its errors.

The network is untrained and its moments are those of random inputs with a decaying spectrum: the work is the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.decompositions import Moments, cp, cp_fit, weighted_truncation
from ranksearch.decompositions.metric import conditioned, residual_energy
from ranksearch.decompositions.refinement import refine
from ranksearch.sites import Site, Sites, canonical_weight, find_sites
from ranksearch.space import mixture
from ranksearch.space.spectra import Spectra
from ranksearch.tasks.networks import digits_net

SWEEPS = 30  # of the reference, per rank
KINDS = ("svd_in", "spatial", "spatial_t", "cp")  # those that the reference knows


def random_moments(sites: Sites, seed: int) -> dict[str, Moments]:
    """Second moments of inputs and gradients with eigenvalues that fall by three orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)

    def moment(size: int) -> Tensor:
        basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
        return ((basis * torch.logspace(0, -3, size, dtype=torch.float64)) @ basis.mT)[None]

    return {site.name: Moments(moment(site.shape[1] * site.kernel[0] * site.kernel[1]), moment(site.c_out)) for site in sites}


def reference(spectra: Spectra, site: Site, name: str) -> np.ndarray:
    """Relative errors of the ranks of a type, each fitted by itself from the same start, by `SWEEPS` sweeps."""
    decomposition, moments = spectra.decomposition(name), spectra.moments[site.name]
    weight = canonical_weight(spectra.model.get_submodule(site.name), site).double()
    metric = conditioned(moments, weight)
    if name == "cp":
        ranks = decomposition.ranks(site)[:, 0].tolist()
        built = [_plain_cp(weight, metric, rank) for rank in ranks]
    else:
        state = decomposition.prepare(site, weight, moments)
        ranks = [int(rank) for rank in state.grid[:, 0]]
        built = [decomposition.compose(site, weighted_truncation.factors(state, rank, sweeps=SWEEPS)) for rank in ranks]
    norm = residual_energy(weight[None], metric)
    return np.array([(residual_energy((weight - dense)[None], metric) / norm) ** 0.5 for dense in built])


def _plain_cp(weight: Tensor, metric: Moments, rank: int) -> Tensor:
    """Textbook alternating least squares, one factor after the other, every contraction with the whole tensor; then sweeps in the
    metric by conjugate gradients."""
    sides = [n for n in weight.shape if n > 1]
    tensor = weight.reshape(sides)
    factors = cp._leading(tensor, rank)
    for _ in range(SWEEPS):
        for k in range(len(factors)):
            others = [f for j, f in enumerate(factors) if j != k]
            gram = torch.stack([f.mT @ f for f in others]).prod(dim=0) + 1e-10 * torch.eye(rank, dtype=torch.float64)
            columns = cp_fit.rank_one(others)
            factors[k] = torch.linalg.solve(gram, (tensor.movedim(k, 0).flatten(1) @ columns).mT).mT

    def compose(parts: object) -> Tensor:
        return cp_fit.compose(parts).reshape(1, *weight.shape)  # type: ignore[arg-type]

    return compose(refine(compose, factors, weight[None], metric, sweeps=4))[0]


def seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reference-params", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    model: nn.Module = digits_net().eval()
    sites = find_sites(model, torch.zeros(1, 1, 8, 8))
    moments = random_moments(sites, given.seed)
    types = mixture().decompositions

    def spectra(cache: Path | None = None) -> Spectra:
        return Spectra(model, sites, types, moments=moments, cache=cache)

    with torch.no_grad():
        seconds(spectra().profile_all)  # whatever is loaded and set up once
        cold, warm = [], []
        for _ in range(given.repeats):
            with tempfile.TemporaryDirectory() as folder:
                cold.append(seconds(spectra(Path(folder)).profile_all))
                warm.append(seconds(spectra(Path(folder)).profile_all))
        small = [site for site in sites if site.kernel != (1, 1) and site.cost.params <= given.reference_params]
        pairs = [(site, name) for site in small for name in KINDS if spectra().decomposition(name).undefined(site) is None]
        plain, here, errors = 0.0, 0.0, []
        for site, name in pairs:
            fresh = spectra()
            begin = time.process_time()
            expected = reference(fresh, site, name)
            plain += time.process_time() - begin
            decomposition = fresh.decomposition(name)
            begin = time.process_time()
            found = decomposition.errors(fresh.state(site, name)).frobenius
            here += time.process_time() - begin
            sound = expected > 1e-6
            errors += (found[sound] / expected[sound]).tolist()
    print(json.dumps({
        "benchmark": "profiling", "sites": len(sites), "threads": torch.get_num_threads(), "repeats": given.repeats,
        "cold_s": round(float(np.median(cold)), 2), "warm_s": round(float(np.median(warm)), 3),
        "reference": {
            "sites": len(small), "types": list(KINDS), "plain_s": round(plain, 2), "here_s": round(here, 2),
            "ratio": round(plain / here, 1), "error_ratio": round(float(np.mean(errors)), 4), "worst_error_ratio": round(max(errors), 4),
        },
    }))  # fmt: skip


if __name__ == "__main__":
    main()
