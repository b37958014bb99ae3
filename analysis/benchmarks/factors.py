"""Factors of all layers of a network, as every network that is built asks `Spectra` for them: held in memory, against read from the disk
and made again for each, which ``cache_bytes=1`` does, in the same run. Prints one line of JSON; seconds of processor time, per network.

    OMP_NUM_THREADS=1 python analysis/benchmarks/factors.py [--width 512] [--layers 6] [--networks 5]"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ranksearch.sites import find_sites
from ranksearch.space import named
from ranksearch.space.spectra import Spectra


def seconds(spectra: Spectra, networks: int) -> float:
    """Of a network after the first, in the median; each has another rank."""
    found = []
    for network in range(networks + 1):
        begin = time.process_time()
        for site in spectra.sites:
            spectra.factors(site, "svd", (32 * (network + 1),))
        found.append(time.process_time() - begin)
    return float(np.median(found[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="channels of every 3 x 3 convolution")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--networks", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Conv2d(given.width, given.width, 3, padding=1) for _ in range(given.layers))).eval()
    sites = find_sites(net, torch.zeros(1, given.width, 2, 2))
    with tempfile.TemporaryDirectory() as folder:
        ways = {"held": (Path(folder), None), "read": (Path(folder), 1), "made": (None, 1)}
        found = {
            name: seconds(Spectra(net, sites, named("svd"), cache=cache, cache_bytes=held), given.networks)
            for name, (cache, held) in ways.items()
        }
    row = {"benchmark": "factors", "width": given.width, "layers": given.layers, **{f"{name}_s": round(s, 4) for name, s in found.items()}}
    row |= {f"{name}_over_held": round(found[name] / found["held"], 1) for name in ("read", "made")}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
