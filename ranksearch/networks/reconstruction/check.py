"""How near a network's outputs are to the dense network's, example by example, on batches that no fit has seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.sites import BatchDim, map_tensors, run, tensors_of

SMALLEST = 8  # examples of a single batch that is cut: each part has several, which batch norm needs


def divided(batches: list[Any], held_out: float, batch_dim: BatchDim = 0) -> tuple[list[Any], int]:
    """The batches, those to fit to first, and how many these are. A share of the batches is held out, at least one of several; of a single
    batch a share of its examples, unless these are too few, its tensors have different lengths, or it is one example as a whole."""
    if not held_out or not batches:
        return batches, len(batches)
    if len(batches) > 1:
        return batches, len(batches) - min(max(round(held_out * len(batches)), 1), len(batches) - 1)
    if not isinstance(batch_dim, int):
        return batches, 1
    dimension = batch_dim
    shapes = [tensor.shape for _, tensor in tensors_of(batches[0]) if tensor.ndim]
    sizes = {shape[batch_dim] if -len(shape) <= batch_dim < len(shape) else 0 for shape in shapes}
    size = sizes.pop() if len(sizes) == 1 else 0
    if size < SMALLEST:
        return batches, 1
    kept = size - min(max(round(held_out * size), 1), size - 1)
    parts = ((0, kept), (kept, size - kept))
    return [map_tensors(lambda t, part=part: t.narrow(dimension, *part) if t.ndim else t, batches[0]) for part in parts], 1


@torch.no_grad()
def distances(network: nn.Module, batches: Iterable[tuple[Any, Any]]) -> Tensor:
    """Squared differences of a network's outputs from those that are wanted, one per example, float64. Outputs whose first dimensions
    differ tell no examples apart: a batch then counts as one.

    Args:
        batches: pairs of inputs and wanted outputs.
    """
    found: list[Tensor] = []
    for inputs, answers in batches:
        outputs = (tensors_of(run(network, inputs)), tensors_of(answers))
        apart = [_apart(mine, wanted).square() for (_, mine), (_, wanted) in zip(*outputs, strict=True) if wanted.is_floating_point()]
        lengths = {d.shape[0] if d.ndim else 1 for d in apart}
        if len(lengths) == 1:
            found.append(torch.stack([d.reshape(len(d) if d.ndim else 1, -1).sum(dim=1) for d in apart]).sum(dim=0))
        elif apart:
            found.append(torch.stack([d.sum() for d in apart]).sum()[None])
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def _apart(mine: Tensor, wanted: Tensor) -> Tensor:
    """Differences, 0 also where both are infinite: logits of classes that a network rules out."""
    return torch.where(mine == wanted, 0.0, mine - wanted).double()


def gain(before: Tensor, after: Tensor) -> tuple[float, float]:
    """By how much the squared distances of the same examples fell, on average, and the standard error of that."""
    fell = before - after
    return float(fell.mean()), float(fell.std(correction=1) / len(fell) ** 0.5) if len(fell) > 1 else 0.0
