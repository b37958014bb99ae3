"""Cost of the statistics pass against plain forward-backward passes over the same batches, and its peak memory.
Prints one line of JSON. Weights are random: the cost does not depend on them."""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from ranksearch.sites import find_sites
from ranksearch.statistics import accumulator_bytes, collect
from ranksearch.tasks.networks import cifar_resnet


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Least wall time of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def peak_mib() -> float:
    """Peak resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = cifar_resnet(arguments.depth)
    batches = [torch.randn(arguments.batch_size, 3, 32, 32) for _ in range(arguments.batches)]
    sites = find_sites(model, batches[0][:1])

    def plain() -> None:
        for batch in batches:
            model.zero_grad(set_to_none=True)
            F.cross_entropy(model(batch), torch.zeros(len(batch), dtype=torch.long)).backward()

    plain()  # warm up
    base = seconds(plain, arguments.repeats)
    before = peak_mib()
    row = {"benchmark": "statistics", "model": f"resnet{arguments.depth}", "images": arguments.batches * arguments.batch_size}
    row |= {"threads": arguments.threads, "machine": platform.processor() or platform.machine(), "forward_backward_s": round(base, 3)}
    kinds = {"activation": {"labels": None}, "fisher": {}, "diagonal": {"diagonal": True}}
    for name, options in kinds.items():
        taken = seconds(lambda options=options: collect(model, sites, batches, **options), arguments.repeats)  # type: ignore[arg-type]
        row |= {f"{name}_s": round(taken, 3), f"{name}_passes": round(taken / base, 2), f"{name}_peak_mib": round(peak_mib(), 0)}
    row |= {"forward_backward_peak_mib": round(before, 0), "accumulators_mib": round(accumulator_bytes(sites) / 2**20, 1)}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
