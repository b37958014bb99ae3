"""Decompositions of symmetric matrices that hold what they promise, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

TRUSTED = ("cpu",)  # devices whose results are taken as they come, these and those of `ranksearch.decompositions.singular`
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


def eigvalsh(matrix: Tensor) -> Tensor:
    """Eigenvalues, ascending, of symmetric matrices, shape (..., d, d) -> (..., d); checked as those of `eigh`, where there are no vectors
    by what costs O(d^2): their sum is the trace, the sum of their squares the square of the norm."""
    values = torch.linalg.eigvalsh(matrix)
    if matrix.device.type in TRUSTED or _sums_hold(matrix, values):
        return values
    return torch.linalg.eigvalsh(matrix.cpu()).to(matrix.device)


def cholesky_ex(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Lower triangular C with C C^T = the matrices, shape (..., d, d), and what is not 0 where one of them, shape (...), is not positive
    definite and its C means nothing.

    A factorization of an accelerator has failed, for no known reason, where another one had found all eigenvalues far above rounding (seen
    on an NVIDIA H200 with CUDA 13). So one that fails there is made again by LAPACK, and one that does not is checked, at the price of a
    product."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if matrix.device.type in TRUSTED or (not bool(failed.any()) and factored(matrix, factor)):
        return factor, failed
    factor, failed = torch.linalg.cholesky_ex(matrix.cpu())
    return factor.to(matrix.device), failed.to(matrix.device)


@torch.no_grad()
def factored(matrix: Tensor, factor: Tensor) -> bool:
    """Whether C C^T is the matrix, up to rounding."""
    size = matrix.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
    scaled = factor / size.sqrt()
    allowed = torch.finfo(matrix.dtype).eps ** FAITHFUL * matrix.shape[-1]
    return bool((scaled @ scaled.mT - matrix / size).abs().amax() <= allowed)


@torch.no_grad()
def _sums_hold(matrix: Tensor, values: Tensor) -> bool:
    size = matrix.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
    scaled, found = (matrix / size).double(), (values / size[..., 0]).double()
    trace = agree(found.sum(-1), scaled.diagonal(dim1=-2, dim2=-1).sum(-1), found.abs().sum(-1), matrix)
    square = scaled.square().sum(dim=(-2, -1))
    return bool(trace & agree(found.square().sum(-1), square, square, matrix) & (values.diff(dim=-1) >= 0).all())


def agree(got: Tensor, wanted: Tensor, size: Tensor, matrix: Tensor) -> Tensor:
    """Whether sums over the values of matrices are what they are to be, up to the rounding of the matrices' type; NaN is not."""
    allowed = torch.finfo(matrix.dtype).eps ** FAITHFUL * min(matrix.shape[-2:]) ** 0.5
    return ((got - wanted).abs() <= allowed * size).all()


@torch.no_grad()
def faithful(matrix: Tensor, values: Tensor, vectors: Tensor) -> bool:
    """Whether V is orthonormal and V diag(values) V^T the matrix, up to rounding."""
    size = matrix.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
    allowed = torch.finfo(matrix.dtype).eps ** FAITHFUL * matrix.shape[-1]
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    orthonormal = (vectors.mT @ vectors - eye).abs().amax() <= allowed
    again = (vectors * (values / size[..., 0])[..., None, :]) @ vectors.mT
    return bool(orthonormal & ((again - matrix / size).abs().amax() <= allowed))
