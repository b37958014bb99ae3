"""A site's weight as a batch of matrices and back, differentiable both ways, and the truncations made on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ranksearch.decompositions.spectrum import split_groups
from ranksearch.sites import Site


@dataclass(frozen=True)
class Folding:
    """Axes of (groups, o, i, kh, kw) that become (batch, rows, columns) of matrices."""

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def fold(self, site: Site, weight: Tensor) -> Tensor:
        """Canonical weight to matrices, shape (batch, rows, columns)."""
        blocks = split_groups(site, weight).permute(*self.batch, *self.rows, *self.columns)
        b, r = len(self.batch), len(self.batch) + len(self.rows)
        shape = blocks.shape
        return blocks.reshape(shape[:b].numel(), shape[b:r].numel(), shape[r:].numel())

    def unfold(self, site: Site, matrices: Tensor) -> Tensor:
        """Inverse of `fold`."""
        order = (*self.batch, *self.rows, *self.columns)
        sizes = (site.groups, site.c_out // site.groups, *site.shape[1:])
        blocks = matrices.reshape([sizes[axis] for axis in order])
        back = sorted(range(5), key=lambda place: order[place])
        return blocks.permute(back).reshape(site.shape)


# as the decompositions of these names fold: see `ranksearch.decompositions`
FOLDINGS: dict[str, Folding] = {
    "svd": Folding((0,), (1,), (2, 3, 4)),
    "svd_in": Folding((0,), (1, 3, 4), (2,)),
    "spatial": Folding((0,), (1, 3), (2, 4)),
    "spatial_t": Folding((0,), (1, 4), (2, 3)),
    "decoupled": Folding((0, 1), (2,), (3, 4)),
}

# the unfoldings of the four modes; a mode of size 1 has none
MODES: dict[str, Folding] = {
    "out": Folding((0,), (1,), (2, 3, 4)),
    "in": Folding((0,), (2,), (1, 3, 4)),
    "height": Folding((0,), (3,), (1, 2, 4)),
    "width": Folding((0,), (4,), (1, 2, 3)),
}


def unfoldings(site: Site) -> tuple[Folding, ...]:
    """One unfolding per mode; those of modes of size 1 are vectors and left out, and of a matrix, whose two unfoldings
    are each other's transpose, one is enough."""
    sizes = {"out": site.c_out // site.groups, "in": site.shape[1], "height": site.kernel[0], "width": site.kernel[1]}
    names = [name for name, size in sizes.items() if size > 1]
    if len(names) == 2:
        names = names[:1]
    return tuple(MODES[name] for name in names or ("out",))


def svd(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, sigma, V^H of matrices of shape (batch, m, n), at least in float32, autocast off."""
    with torch.autocast(matrices.device.type, enabled=False):
        wide = matrices.detach().to(torch.promote_types(matrices.dtype, torch.float32))
        return torch.linalg.svd(wide, full_matrices=False)


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
