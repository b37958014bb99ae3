"""Singular values and vectors that hold what they promise, on any device; see `ranksearch.decompositions.symmetric`."""

from __future__ import annotations

import torch
from torch import Tensor

from ranksearch.decompositions import symmetric
from ranksearch.decompositions.symmetric import FAITHFUL, agree


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, the singular values, descending, and V^T of matrices, shapes (..., m, k), (..., k), (..., k, n) with k = min(m, n). Of devices
    that are not trusted they are checked at the price of three products, and LAPACK's take their place where they do not hold."""
    found = torch.linalg.svd(matrix, full_matrices=False)
    if matrix.device.type in symmetric.TRUSTED or faithful(matrix, *found):
        return found
    u, values, vh = torch.linalg.svd(matrix.cpu(), full_matrices=False)
    return u.to(matrix.device), values.to(matrix.device), vh.to(matrix.device)


def svdvals(matrix: Tensor) -> Tensor:
    """Singular values, descending, of matrices, shape (..., m, n) -> (..., min(m, n)); checked at the price of one product: the sums of
    their squares and of their fourth powers are the squares of the norms of the matrix and of its Gram matrix."""
    values = torch.linalg.svdvals(matrix)
    if matrix.device.type in symmetric.TRUSTED or _powers_hold(matrix, values):
        return values
    return torch.linalg.svdvals(matrix.cpu()).to(matrix.device)


@torch.no_grad()
def faithful(matrix: Tensor, u: Tensor, values: Tensor, vh: Tensor) -> bool:
    """Whether U and V have orthonormal columns, U diag(values) V^T is the matrix, and the values fall, up to rounding."""
    size = matrix.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
    allowed = torch.finfo(matrix.dtype).eps ** FAITHFUL * max(matrix.shape[-2:])
    eye = torch.eye(values.shape[-1], dtype=matrix.dtype, device=matrix.device)
    apart = [u.mT @ u - eye, vh @ vh.mT - eye, (u * (values / size[..., 0])[..., None, :]) @ vh - matrix / size]
    near = torch.stack([difference.abs().amax() <= allowed for difference in apart]).all()
    return bool(near & (values.diff(dim=-1) <= 0).all() & (values >= 0).all())


@torch.no_grad()
def _powers_hold(matrix: Tensor, values: Tensor) -> bool:
    size = matrix.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
    scaled, squares = (matrix / size).double(), (values / size[..., 0]).double().square()
    gram = scaled @ scaled.mT if scaled.shape[-2] <= scaled.shape[-1] else scaled.mT @ scaled
    first, second = scaled.square().sum(dim=(-2, -1)), gram.square().sum(dim=(-2, -1))
    hold = agree(squares.sum(-1), first, first, matrix) & agree(squares.square().sum(-1), second, second, matrix)
    return bool(hold & (values.diff(dim=-1) <= 0).all() & (values >= 0).all())
