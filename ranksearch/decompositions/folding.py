"""The one place where a canonical weight is folded into matrices and back: which axes become rows and which columns is what tells
most types apart. All of it is differentiable, both ways."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ranksearch.sites import Site


@dataclass(frozen=True)
class Folding:
    """Axes of (groups, o, i, kh, kw) that become (batch, rows, columns) of matrices."""

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def fold(self, site: Site, weight: Tensor) -> Tensor:
        """Canonical weight (c_out, c_in / groups, kh, kw) to matrices, shape (batch, rows, columns)."""
        blocks = split_groups(site, weight).permute(*self.batch, *self.rows, *self.columns)
        b, r = len(self.batch), len(self.batch) + len(self.rows)
        shape = blocks.shape
        return blocks.reshape(shape[:b].numel(), shape[b:r].numel(), shape[r:].numel())

    def unfold(self, site: Site, matrices: Tensor) -> Tensor:
        """Inverse of `fold`."""
        order = (*self.batch, *self.rows, *self.columns)
        sizes = _sizes(site)
        blocks = matrices.reshape([sizes[axis] for axis in order])
        back = sorted(range(5), key=lambda place: order[place])
        return blocks.permute(back).reshape(site.shape)

    def shape(self, site: Site) -> tuple[int, int, int]:
        """(batch, rows, columns) of the matrices of a site."""
        sizes = _sizes(site)
        counts = [1, 1, 1]
        for number, axes in enumerate((self.batch, self.rows, self.columns)):
            for axis in axes:
                counts[number] *= sizes[axis]
        return counts[0], counts[1], counts[2]

    def blocks(self, site: Site, weight: Tensor) -> Tensor:
        """The matrices of a folding by group whose rows begin with the output channels, these apart: shape (groups, c_out / groups, s,
        c), s the rest of the rows and c the columns; contiguous."""
        assert self.batch == (0,) and self.rows[0] == 1, "asked of a folding whose rows are not output channels first"
        return self.fold(site, weight).unflatten(1, (site.c_out // site.groups, -1)).contiguous()

    @property
    def patch_order(self) -> tuple[int, ...]:
        """The permutation of the patch axes (channel, kh, kw) that a folding by `blocks` makes."""
        return tuple(axis - 2 for axis in (*self.rows, *self.columns) if axis >= 2)


# by the name of the type that truncates these matrices
FOLDINGS: dict[str, Folding] = {
    "svd": Folding((0,), (1,), (2, 3, 4)),
    "svd_in": Folding((0,), (1, 3, 4), (2,)),  # the input side of `tucker2` too
    "spatial": Folding((0,), (1, 3), (2, 4)),
    "spatial_t": Folding((0,), (1, 4), (2, 3)),
    "decoupled": Folding((0, 1), (2,), (3, 4)),
}

# the unfoldings of the four modes, of which `tucker2` truncates two; a mode of size 1 has none
MODES: dict[str, Folding] = {
    "out": Folding((0,), (1,), (2, 3, 4)),
    "in": Folding((0,), (2,), (1, 3, 4)),
    "height": Folding((0,), (3,), (1, 2, 4)),
    "width": Folding((0,), (4,), (1, 2, 3)),
}


def unfoldings(site: Site) -> tuple[Folding, ...]:
    """One unfolding per mode. Unfoldings of modes of size 1 are vectors and left out. The two unfoldings of a matrix are each
    other's transpose, so that one is enough."""
    sizes = dict(zip(("out", "in", "height", "width"), _sizes(site)[1:], strict=True))
    names = [name for name, size in sizes.items() if size > 1]
    if len(names) == 2:
        names = names[:1]
    return tuple(MODES[name] for name in names or ("out",))


def split_groups(site: Site, weight: Tensor) -> Tensor:
    """Canonical weight (c_out, c_in / groups, kh, kw) to (groups, c_out / groups, c_in / groups, kh, kw)."""
    return weight.reshape(site.groups, site.c_out // site.groups, *weight.shape[1:])


def split_tiles(matrix: Tensor, p: int, t: int) -> Tensor:
    """A matrix (rows, columns) to p x t tiles, shape (p, t, rows / p, columns / t): of the lowered weight, what `grouped_svd` and
    `tiled_svd` truncate."""
    return matrix.unflatten(0, (p, -1)).unflatten(2, (t, -1)).transpose(1, 2)


def join_tiles(tiles: Tensor) -> Tensor:
    """Inverse of `split_tiles`."""
    return tiles.transpose(1, 2).flatten(2).flatten(0, 1)


def _sizes(site: Site) -> tuple[int, ...]:
    """Sizes of the axes (groups, o, i, kh, kw)."""
    return (site.groups, site.c_out // site.groups, *site.shape[1:])
