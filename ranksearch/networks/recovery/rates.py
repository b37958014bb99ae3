"""How fast each factor of a layer may learn: as fast as the dense layer that it stands for, by their curvatures.

A layer W = A B learns from gradients G by W - rate (G Bᵀ B + A Aᵀ G): its steps are as many times larger than the dense layer's as its
factors are. A rate that suits the dense network therefore breaks a factorized one, most of all products of many factors, such as `cp`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidArgument
from ranksearch.sites import evaluating, run
from ranksearch.tasks import Task

FLATTEST = 1e-3  # relative curvature that counts as least, as a share of the layer's steepest factor: a dead one gets no boundless rate


def factor_rates(
    network: nn.Module, dense: nn.Module, task: Task, batches: Iterable[tuple[Any, Any]], *, seed: int = 0
) -> dict[str, float]:  # fmt: skip
    """The rate of every factor, as a share of the rate that suits the dense network.

    The curvature of a parameter is the trace of its block of the Fisher information, the mean squared gradient of the loss at targets drawn
    from the network's own answers (`Task.sample_targets`; of tasks that draw none, at the given targets). A factor f among n factors of a
    layer gets

        rate(f) = tr F_W / (n tr F_f),

    W being the weights of the dense layer. The steps of all factors together are then as steep, by the second-order model of the loss,
    as the step of the dense layer. A factor multiplied by s has a trace divided by s² and so a rate multiplied by s²: how a layer's scale
    is divided among its factors makes no difference.

    Args:
        network: whose layers stand in for those of ``dense`` of the same paths, from `ranksearch.networks.surgery.build`.
        dense: the dense network; unchanged.
        task: its loss and targets.
        batches: pairs (inputs, targets), as `Task.labelled` gives them; 8 are enough. All are kept in memory.
        seed: of the drawn targets.

    Returns:
        a rate for every factor (a parameter that the dense network has not, with two dimensions or more), by its name in ``network``.
        Parameters that are as in the dense network have the rate 1, and are left out, as are those that take no gradient.

    Raises:
        InvalidArgument: no batches.
    """
    batches = list(batches)
    if not batches:
        raise InvalidArgument("batches is empty: curvatures need at least one batch, such as task.labelled(8)")
    layers = _factors(network, dense)
    if not layers:
        return {}
    mine, theirs = (_curvatures(one, task, batches, seed) for one in (network, dense))
    weights = {name: parameter for name, parameter in dense.named_parameters() if parameter.ndim >= 2}
    parameters = dict(network.named_parameters())
    rates: dict[str, float] = {}
    for path, factors in layers.items():
        reference = sum(theirs[name] for name in weights if name.startswith(f"{path}."))
        relative = {name: mine[name] * float(parameters[name].detach().double().square().sum()) for name in factors}
        steepest = max(relative.values())
        for name, value in relative.items():
            if value > 0 and reference > 0:
                raised = max(1.0, FLATTEST * steepest / value)
                rates[name] = reference / (len(factors) * mine[name] * raised)
    return rates


def _factors(network: nn.Module, dense: nn.Module) -> dict[str, list[str]]:
    """The names of factors by the path of the dense layer that they stand for."""
    known = {name: tuple(parameter.shape) for name, parameter in dense.named_parameters()}
    paths = {path for path, _ in dense.named_modules()}
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2 or not parameter.requires_grad or known.get(name) == tuple(parameter.shape):
            continue
        path = name
        while path and path not in paths:
            path = path.rpartition(".")[0]
        if path:
            found[path].append(name)
    return dict(found)


def _curvatures(network: nn.Module, task: Task, batches: Iterable[tuple[Any, Any]], seed: int) -> Mapping[str, float]:
    """Sums over batches of the squared gradient of every parameter. The size of a batch, by which the mean of independent
    gradients is smaller, is the same in both networks, and cancels in ratios."""
    named = dict(network.named_parameters())
    required = {name: parameter.requires_grad for name, parameter in named.items()}
    sums = dict.fromkeys(named, 0.0)
    generator = torch.Generator().manual_seed(seed)
    try:
        for parameter in named.values():
            parameter.requires_grad_(True)
        for inputs, targets in batches:
            with evaluating(network), torch.enable_grad():
                outputs = run(network, inputs)
                drawn = targets if task.predictive is None else task.sample_targets(outputs, generator)
                gradients = torch.autograd.grad(task.loss(outputs, drawn), list(named.values()), allow_unused=True)
            for name, gradient in zip(named, gradients, strict=True):
                sums[name] += 0.0 if gradient is None else _square(gradient)
    finally:
        for name, parameter in named.items():
            parameter.requires_grad_(required[name])
    return sums


def _square(gradient: Tensor) -> float:
    return float(gradient.detach().double().square().sum())
