"""Scale and shift of batch norms, fitted channel by channel. A factorized layer gives the dense answers plus noise, and a norm would scale
both to the dense variance again, where least squares would leave them smaller."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ranksearch.networks.reconstruction.sweep import Seen
from ranksearch.tensors import pieces


def affine_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """Batch norms with a scale and a shift, by path."""
    return {path: m for path, m in network.named_modules() if isinstance(m, _BatchNorm) and m.affine}


@torch.no_grad()
def fit_norm(norm: _BatchNorm, seen: Seen) -> None:
    """Make a norm's scale and shift those of the least squared error against what the dense network's gives, in place. A channel
    without variance keeps its scale."""
    count = 0
    sums = torch.zeros(4, norm.num_features, dtype=torch.float64, device=norm.weight.device)  # x, y, x x, x y
    for _, given, wanted in seen:
        if wanted is None:
            continue
        for part in pieces(given, wanted):
            x, y = (value.transpose(0, 1).flatten(1).double() for value in part)
            sums += torch.stack([x.sum(1), y.sum(1), x.square().sum(1), (x * y).sum(1)])
            count += x.shape[1]
    if not count or not bool(torch.isfinite(sums).all()):
        return
    x, y, xx, xy = sums / count
    variance = (xx - x.square()).clamp_min(0)
    scale = (xy - x * y) / (variance + norm.eps).sqrt()
    norm.weight.copy_(torch.where(variance > norm.eps, scale, norm.weight.double()))
    norm.bias.copy_(y)
