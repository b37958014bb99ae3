"""One of the processes of `test_ddp`: trains a supernet under DistributedDataParallel on its share of every batch, and saves
what it has in the end. Arguments: rank, world size, method, file to meet at, file to write."""

from __future__ import annotations

import sys
from datetime import timedelta

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ranksearch.space.specs import SpaceSpec, named
from ranksearch.space.spectra import Spectra
from ranksearch.supernet import RankSupernet
from ranksearch.supernet.methods import METHODS

STEPS, BATCH = 5, 12


def supernet(norm: bool) -> RankSupernet:
    """In float64. With batch norm, statistics are those of each process's own half; without it, halves add up."""
    torch.manual_seed(3)
    middle: list[nn.Module] = [nn.BatchNorm2d(6)] if norm else []
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), *middle, nn.Tanh(), nn.Conv2d(6, 8, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 4)
    ).double()
    spec = SpaceSpec(named("svd", "spatial", "tucker2"), max_options=5)
    spectra = Spectra(network, spec.sites(network, torch.zeros(1, 2, 6, 6, dtype=torch.float64)), spec.decompositions)
    return RankSupernet(network, spec.build(spectra), spectra=spectra)


def run(method_name: str, *, norm: bool, rank: int = 0, world: int = 1) -> RankSupernet:
    """Five steps of SGD with momentum; the same batches whatever the world."""
    net = supernet(norm)
    method = METHODS[method_name](net, nn.functional.cross_entropy, seed=11)
    module: nn.Module = method.module()  # type: ignore[attr-defined]
    if world > 1:
        module = DistributedDataParallel(module)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    random = torch.Generator().manual_seed(5)
    for step in range(1, STEPS + 1):
        x = torch.randn(BATCH, 2, 6, 6, generator=random, dtype=torch.float64)
        y = torch.randint(4, (BATCH,), generator=random)
        optimizer.zero_grad()
        module(x.chunk(world)[rank], y.chunk(world)[rank]).backward()
        optimizer.step()
        method.after_step(step)
    return net


def main() -> None:
    rank, world, meeting, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    found: dict[str, object] = {"plain": run("plain", norm=False, rank=rank, world=world).state_dict()}
    for name in ("joint", "sandwich"):
        net = run(name, norm=True, rank=rank, world=world)
        found[name] = dict(net.named_parameters())
        configuration = net.space.configuration(net.space.sample(1, 0)[0])
        found[f"{name}_bases"] = [net.bases(choice).sides[0].out for choice in net.choices(configuration)]
    torch.save(found, out)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    np.random.seed(int(sys.argv[1]))  # processes differ in every generator that they do not share
    torch.manual_seed(int(sys.argv[1]))
    main()
