"""Truncations of batches of matrices, differentiated by hand or not at all."""

from __future__ import annotations

import torch
from torch import Tensor

from ranksearch.decompositions import singular


def svd(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, sigma, V^H of matrices of shape (batch, m, n), at least in float32, autocast off."""
    with torch.autocast(matrices.device.type, enabled=False):
        wide = matrices.detach().to(torch.promote_types(matrices.dtype, torch.float32))
        return singular.svd(wide)


def polar(matrices: Tensor, rank: int | None = None) -> Tensor:
    """U_r V_r^T, a sub-gradient of the nuclear norm where the rank is at most r, without gradient."""
    u, _, vh = svd(matrices)
    with torch.autocast(matrices.device.type, enabled=False):
        return (u[..., :rank] @ vh[:, :rank]).to(matrices.dtype)


def energy_rank(sigma: Tensor, share: float) -> int:
    """The smallest common rank that keeps a share of the energy of a batch of spectra, shape (batch, k)."""
    energies = sigma.double().square().sum(dim=0)
    kept = energies.cumsum(0)
    return min(int((kept < share * kept[-1] * (1 - 1e-12)).sum()) + 1, len(energies))


def threshold_rank(sigma: Tensor, share: float) -> int:
    """How many singular values are at least a share of the largest, at most over a batch of spectra, shape (batch, k)."""
    return max(1, int((sigma >= share * sigma.amax()).sum(dim=1).max()))
