"""Eigendecompositions of symmetric matrices that hold what they promise, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

TRUSTED = ("cpu",)  # devices whose results are taken as they come
FAITHFUL = 0.6  # power of the rounding unit that vectors may be from orthonormal, and their matrix, in its own size, from the given one


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and orthonormal eigenvectors of matrices, shape (..., d, d).

    Solvers of accelerators have returned vectors that are not independent, without an error (seen on an NVIDIA H200 with CUDA 13), and
    what is built of them is singular. So their results are checked, at the price of two products, and LAPACK's take their place where
    they do not hold."""
    values, vectors = torch.linalg.eigh(matrix)
    if matrix.device.type in TRUSTED or faithful(matrix, values, vectors):
        return values, vectors
    values, vectors = torch.linalg.eigh(matrix.cpu())
    return values.to(matrix.device), vectors.to(matrix.device)


def faithful(matrix: Tensor, values: Tensor, vectors: Tensor) -> bool:
    """Whether V is orthonormal and V diag(values) V^T the matrix, up to rounding."""
    size = matrix.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
    allowed = torch.finfo(matrix.dtype).eps ** FAITHFUL * matrix.shape[-1]
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    orthonormal = (vectors.mT @ vectors - eye).abs().amax() <= allowed
    again = (vectors * (values / size[..., 0])[..., None, :]) @ vectors.mT
    return bool(orthonormal & ((again - matrix / size).abs().amax() <= allowed))
