"""What one evaluation of a factorized ResNet costs, by type and memory format, and what its reconstruction costs. Prints
one line of JSON. Weights and images are random: the cost does not depend on them. Baseline of all ratios: the same
network in the default memory format; of the reconstruction, the dense network's pass over the same batches."""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.allocators import Problem, Uniform
from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import build_space
from ranksearch.space.spectra import Spectra
from ranksearch.tasks.networks import cifar_resnet

FORMATS = {"default": torch.contiguous_format, "channels_last": torch.channels_last}


def predict(network: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        network.eval()(x)


def step(network: nn.Module, x: Tensor) -> None:
    network.train()
    network.zero_grad(set_to_none=True)
    F.cross_entropy(network(x), torch.zeros(len(x), dtype=torch.long)).backward()


def medians(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, taken in turn so that noise falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if repeat:  # the first warms up
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(t)) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--types", nargs="+", default=["svd", "spatial", "tucker2", "cp"])
    parser.add_argument("--budget", type=float, default=0.5, help="share of the parameters")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    dense = cifar_resnet(given.depth).eval()
    x = torch.randn(given.batch_size, 3, 32, 32)
    row: dict[str, Any] = {
        "benchmark": "evaluation", "model": f"resnet{given.depth}", "budget": given.budget, "batch": given.batch_size,
        "threads": given.threads,
    }  # fmt: skip
    for name in given.types:
        spectra = Spectra(dense, find_sites(dense, x[:1]), [d for d in DECOMPOSITIONS if d.name == name])
        space = build_space(spectra)
        problem = Problem(space, space.table("frobenius"), {"params": given.budget})
        configuration = space.configuration(Uniform().allocate(problem).indices)
        small = build(spectra, configuration).eval()
        networks = {name: copy.deepcopy(small).to(memory_format=format) for name, format in FORMATS.items()}
        for kind, work in (("predict", predict), ("step", step)):
            found = medians({format: partial(work, network, x) for format, network in networks.items()}, given.repeats)
            plain, ratio = 1e3 * found["default"] / len(x), found["default"] / found["channels_last"]
            row[f"{name}_{kind}"] = {"ms_per_image": round(plain, 3), "times_faster_channels_last": round(ratio, 2)}
        found = medians({"pass": partial(predict, dense, x), "reconstruct": partial(reconstruct, small, spectra, configuration, [x])}, 1)
        passes = found["reconstruct"] / found["pass"]
        row[f"{name}_reconstruct"] = {"seconds": round(found["reconstruct"], 2), "dense_passes": round(passes, 1)}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
