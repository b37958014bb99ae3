"""Our ALDS against torchprune's own code, on the same network, images and batch-norm batches: without training or reconstruction.

    python analysis/alds.py --torchprune FOLDER --shared SHARED --shares 0.5 0.3

``FOLDER`` is a checkout of https://github.com/lucaslie/torchprune, of which the allocator, the sparsifier and the handle of networks are
imported and run as they are; nothing of it is part of this project. One JSON line per network: the share of the parameters, ALDS's largest
relative error, the divergence from the dense network on held-out training images and, with ``--test``, what the test set measures."""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from ranksearch.allocators import ALDS, ALDSHeuristic, Allocator, Problem
from ranksearch.allocators.alds import relative_errors
from ranksearch.compression import judge
from ranksearch.compression.portfolio import HELD_OUT
from ranksearch.decompositions import SVD, GroupedSVD
from ranksearch.errors import InfeasibleBudget
from ranksearch.home import home, user_path
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.surgery import build
from ranksearch.proxies import Frobenius
from ranksearch.sites import find_sites
from ranksearch.space import build_space
from ranksearch.space.spectra import Spectra
from ranksearch.tasks.images import cifar10
from ranksearch.tasks.networks import cifar_resnet, load_weights

SEEN, NORMALIZATION, IMAGES = 16, 16, 1000
GROUPS = 64  # theirs are all divisors of the input channels


def theirs(checkout: Path) -> tuple[Any, Any, Any]:
    """torchprune's allocator, sparsifier and handle, without the rest of the package, which needs data sets and solvers."""
    np.int = int  # type: ignore[attr-defined]  # it was written for a numpy that had this name
    root = checkout / "src" / "torchprune" / "torchprune"
    for name in ("", ".util", ".method", ".method.base", ".method.base_decompose", ".method.alds"):
        package = ModuleType(f"torchprune{name}")
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[package.__name__] = package

    def offer(package: str, *modules: str) -> None:
        for module in modules:
            found = importlib.import_module(f"{package}.{module}")
            vars(sys.modules[package]).update({module: found, **{k: v for k, v in vars(found).items() if isinstance(v, type)}})

    offer("torchprune.util", "tensor", "net")
    offer("torchprune.method.base", "base_allocator", "base_sparsifier")
    offer("torchprune.method.base_decompose", "base_decompose_util", "base_decompose_allocator", "base_decompose_sparsifier")
    offer("torchprune.method.alds", "alds_allocator")
    package = sys.modules["torchprune.method.base_decompose"]
    return (
        sys.modules["torchprune.method.alds"].ALDSErrorIterativeAllocator,
        package.GroupedDecomposeSparsifier, sys.modules["torchprune.util"].NetHandle,
    )  # fmt: skip


def compressed(checkout: Path, model: nn.Module, example: torch.Tensor, share: float, seed: int) -> tuple[nn.Module, float, float]:
    """What torchprune makes of a network at a share of all parameters, its factors multiplied again; its share; and its error."""
    allocator, sparsifier, handle = theirs(checkout)
    net = handle(copy.deepcopy(model))
    net(example)
    total = sum(p.numel() for p in model.parameters())
    params = total - sum(layer.weight.numel() for layer in net.compressible_layers)
    np.random.seed(seed)  # theirs draws from the global one
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        found = allocator(net, 3)
        found.allocate_budget(share * total - params)
        for number, layer in enumerate(net.compressible_layers):
            rank, groups, _ = found.get_num_samples(number)
            # of its sparsifier the part that needs no pruner; the default scheme folds a kernel as our `svd` does
            make = object.__new__(sparsifier)._sparsify
            pairs = make(layer.weight.detach(), max(int(rank), 1), int(groups), found._scheme(number))
            size = sum(u.numel() + v.numel() for u, v in pairs)
            if size < layer.weight.numel():
                chunks = torch.chunk(layer.weight, int(groups), dim=1)
                layer.weight.copy_(torch.cat([(u @ v).reshape(c.shape) for (u, v), c in zip(pairs, chunks, strict=True)], dim=1))
            params += min(size, layer.weight.numel())
    return net.torchnet, params / total, float(found._arg_opt)


def rivals(model: nn.Module, example: torch.Tensor, share: float) -> Iterator[tuple[str, nn.Module, float, float]]:
    """Ours: with plain matrices alone, and with groups by the norm of the whole residual and by ALDS's own error."""
    sites = find_sites(model, example)
    for types, label in (((SVD(),), "svd"), ((SVD(), GroupedSVD(max_groups=GROUPS)), "groups")):
        spectra = Spectra(model, sites, types, cache=home() / "cache" / "spectra")
        space = build_space(spectra)
        rules: list[tuple[str, Allocator]] = [("alds", ALDS(spectra)), ("alds_heuristic", ALDSHeuristic(spectra))]
        if label == "groups":
            rules.append(("alds, norm of the whole residual", ALDS()))
        for name, rule in rules:
            try:
                indices = rule.allocate(Problem(space, Frobenius().table(space), {"params": share})).indices
            except InfeasibleBudget as error:
                print(json.dumps({"rule": f"{name}, {label}", "share": share, "error": str(error)}))
                continue
            candidate = space.candidate(indices)
            error = float(relative_errors(space, spectra).score(indices))
            yield f"{name}, {label}", build(spectra, candidate.configuration), candidate.cost.share("params", space.baseline), error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torchprune", type=user_path, required=True, help="checkout of torchprune")
    parser.add_argument("--shared", type=user_path, required=True, help="folder with data/cifar10 and models")
    parser.add_argument("--network", default="resnet20", choices=("resnet20", "resnet56"))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.3], help="of all parameters")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of torchprune's random starts")
    parser.add_argument("--test", action="store_true", help="measure on the test set")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load_weights(
        cifar_resnet(int(given.network.removeprefix("resnet"))), given.shared / "models" / f"{given.network}_cifar10.safetensors"
    )
    model, task = model.eval(), cifar10(given.shared / "data" / "cifar10")
    held_out = judge(model, task, list(task.labelled(SEEN + HELD_OUT))[-HELD_OUT:])
    wide = copy.copy(task)
    wide.batch_size = IMAGES
    for share in given.shares:
        networks = [(f"torchprune, seed {seed}", *compressed(given.torchprune, model, task.example(), share, seed)) for seed in given.seeds]
        for name, network, params, error in (*networks, *rivals(model, task.example(), share)):
            network.eval()
            row: dict[str, Any] = {"rule": name, "share": share, "params": params, "error": error, "held_out": held_out(network)}
            if given.test:
                recalibrate(network, task.normalization(NORMALIZATION))
                row |= wide.measure(network, "test")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
