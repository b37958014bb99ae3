"""What a supernet costs on the ResNet-20 of CIFAR-10, batch 128, random data and weights: a training step of `joint`, a
switch of configuration, and evaluation at a configuration, against the dense network in the same process. Prints one line
of JSON.

    OMP_NUM_THREADS=1 python analysis/benchmarks/supernet.py [--rounds 9] [--threads 1] [--device cpu]

Dense and supernet are measured in turn, round by round, and ratios are medians of the rounds' ratios, so that a load on the
machine weighs on both; each time is given as (wall-clock, processor), the latter being disturbed less by other programs. A
round of training is ``refresh`` steps, so that one eigendecomposition falls into each of them. Steps are timed with two
samplings: the method's own (svd alone) and configurations of uniform cost from the whole ladders of the mixture of types.

* ``switch_ms``: `RankSupernet.activate`; ``project_ms``: that and all projected weights made anew, bases cached;
* ``bases_ms``: all bases of a configuration made anew;
* ``evaluate``: a pass of a batch in evaluation mode, activated against dense."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from ranksearch.space import Configuration
from ranksearch.space.specs import mixture
from ranksearch.space.spectra import Spectra
from ranksearch.supernet import RankSupernet
from ranksearch.supernet.methods import METHODS, Method
from ranksearch.supernet.sampling import SAMPLINGS
from ranksearch.tasks.networks import cifar_resnet

Times = tuple[float, float]  # wall-clock and processor seconds


def timed(work: Callable[[], object], device: str) -> Times:
    if device == "cuda":
        torch.cuda.synchronize()
    begin, used = time.perf_counter(), time.process_time()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--refresh", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    model = cifar_resnet(20)
    x, y = torch.randn(a.batch, 3, 32, 32).to(a.device), torch.randint(10, (a.batch,)).to(a.device)
    spec = mixture()
    spectra = Spectra(model, spec.sites(model, x[:1].cpu()), spec.decompositions)
    space = spec.build(spectra)

    def net() -> RankSupernet:
        return RankSupernet(model, space, spectra=spectra, refresh=a.refresh).to(a.device).train()

    def stepping(method: Method) -> Callable[[], None]:
        optimizer = torch.optim.SGD(method.supernet.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
        count = 0

        def steps() -> None:
            nonlocal count
            for _ in range(a.refresh):
                optimizer.zero_grad(set_to_none=True)
                method.loss((x, y)).backward()
                optimizer.step()
                count += 1
                method.after_step(count)

        return steps

    dense_model = cifar_resnet(20).to(a.device).train()
    dense_optimizer = torch.optim.SGD(dense_model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def dense_steps() -> None:
        for _ in range(a.refresh):
            dense_optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(dense_model(x), y).backward()
            dense_optimizer.step()

    loss = nn.functional.cross_entropy
    joint = stepping(METHODS["joint"](net(), loss, seed=a.seed))
    mixed = stepping(METHODS["joint"](net(), loss, seed=a.seed, sampling=SAMPLINGS["uniform_cost"](space)))
    for work in (dense_steps, joint, mixed):
        work()
    rounds: dict[str, list[Times]] = {"dense": [], "joint": [], "joint_mixture": []}
    for _ in range(a.rounds):
        for name, work in (("dense", dense_steps), ("joint", joint), ("joint_mixture", mixed)):
            rounds[name].append(timed(work, a.device))

    # configurations: random ones of all types, bases cached
    supernet = net().eval()
    configurations = [space.configuration(row) for row in space.sample(40, seed=a.seed)]
    switches, projecting, fresh = [], [], []

    def project(configuration: Configuration) -> None:
        supernet.activate(configuration)
        for choice in supernet.choices(configuration):
            supernet.low_weight(choice)

    with torch.no_grad():
        for configuration in configurations:
            project(configuration)
        for configuration in configurations * 2:
            projecting.append(timed(lambda c=configuration: project(c), a.device))
            switches.append(timed(lambda c=configuration: supernet.activate(c), a.device))
        for configuration in configurations[:20]:
            supernet.refresh()
            fresh.append(timed(lambda c=configuration: [supernet.bases(choice) for choice in supernet.choices(c)], a.device))

        def dense_pass() -> None:
            dense_model(x)

        def low_pass() -> None:
            supernet(x)

        dense_model.eval()
        evaluation: dict[str, list[Times]] = {"dense": [], "activated": []}
        for number in range(2 * a.rounds + 1):
            if number % 2 == 0:
                supernet.activate(configurations[number % len(configurations)])
                low_pass()
            order = (("dense", dense_pass), ("activated", low_pass))
            for name, work in order if number % 4 < 2 else order[::-1]:
                evaluation[name].append(timed(work, a.device))

    def ratio(top: list[Times], bottom: list[Times]) -> list[float]:
        return np.median(np.array(top) / np.array(bottom), axis=0).round(3).tolist()

    def ms(times: list[Times], per: int = 1) -> list[float]:
        return (1000 * np.median(np.array(times), axis=0) / per).round(3).tolist()

    types = sorted({d for c in configurations for _, d, _ in c.choices})
    print(json.dumps({
        "benchmark": "supernet", "network": "resnet20", "batch": a.batch, "threads": a.threads, "device": a.device, "rounds": a.rounds,
        "refresh_every": a.refresh, "types": types,
        "dense_step_ms": ms(rounds["dense"], a.refresh), "joint_step_ms": ms(rounds["joint"], a.refresh),
        "joint_ratio": ratio(rounds["joint"], rounds["dense"]), "joint_mixture_ratio": ratio(rounds["joint_mixture"], rounds["dense"]),
        "switch_ms": ms(switches), "project_ms": ms(projecting), "bases_ms": ms(fresh),
        "evaluate_dense_ms": ms(evaluation["dense"]), "evaluate_activated_ms": ms(evaluation["activated"]),
        "evaluate_ratio": ratio(evaluation["activated"], evaluation["dense"]),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
