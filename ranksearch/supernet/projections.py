"""Low-rank weights as projections of one dense weight on cached bases: W_r = U_r U_r^T W (or W V_r V_r^T, whichever side is
shorter; both sides for Tucker-2), the bases held fixed, so that the gradient is U_r U_r^T g and no gradient passes through
an SVD (Decomposable-Net, arXiv 1910.13141, first version).

One eigendecomposition of the smaller Gram matrix serves every rank of a type at a site. With moments the basis is that of the
whitened weight, and the projector is oblique but still linear in W. Types whose factors have no closed form in the metric are taken
at their start, before it is refined. CP, which no Gram matrix gives, is in `cp_projection`."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ranksearch.decompositions import Moments, Rank
from ranksearch.decompositions.folded_metric import fold_metric
from ranksearch.decompositions.folding import FOLDINGS, Folding, split_tiles
from ranksearch.decompositions.kronecker import Kronecker, Matrix, diagonal_blocks, solve_half, times
from ranksearch.decompositions.metric import conditioned, half, is_weight_metric
from ranksearch.decompositions.spectrum import equal_norms
from ranksearch.decompositions.symmetric import eigh
from ranksearch.decompositions.tucker2 import unit_columns
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site
from ranksearch.supernet._bases import Bases, Projection, Side, working_dtype
from ranksearch.supernet.cp_projection import CPProjection


@dataclass(frozen=True)
class Halves:
    """Triangular halves C of the moments, C C^T = moment, in the folding of a type; None stands for the identity."""

    row: Tensor | None = None  # shape: (b, m, m)
    column: Matrix | None = None  # shape: (b, n, n)
    taps: Tensor | None = None  # Tucker-2 alone: shape (g, s, s)
    input: Matrix | None = None  # Tucker-2 alone: the whole input moment, shape (g, s c, s c)


NO_HALVES = Halves()
RANGE = 15  # halves whose largest entry is outside 2^-15 ... 2^15 are scaled: squares of their products leave float32


class GramProjection(Projection):
    """A type whose bases are eigenvectors of Gram matrices of the weight, so that one eigendecomposition serves every rank."""

    @abstractmethod
    def halves(self, site: Site, moments: Moments, labels: Rank) -> Halves:
        """Halves of `conditioned` moments, float64; once per site and type."""

    @abstractmethod
    def grams(self, site: Site, weight: Tensor, labels: Rank, halves: Halves) -> list[Tensor]:
        """The Gram matrices whose eigenvectors are the bases, shape (b, k, k) each."""

    @abstractmethod
    def assemble(self, site: Site, labels: Rank, halves: Halves, found: Sequence[tuple[Tensor, Tensor]]) -> Bases:
        """Bases from (eigenvalues, eigenvectors) of `grams`, ascending as `torch.linalg.eigh` gives them."""

    def bases(self, site: Site, weight: Tensor, rank: Rank, moments: Moments | None = None) -> Bases:
        """As `Projection.bases`; O(k^2 n + k^3) for matrices k x n, k the shorter side."""
        labels, _ = self.split_rank(site, rank)
        return solve([(self, site, weight, labels, self.metric(site, weight, labels, moments))])[0]

    def metric(self, site: Site, weight: Tensor, labels: Rank, moments: Moments | None) -> Halves:
        """The halves of ``moments`` in the working dtype; none in the weight metric. The scale of a moment changes no basis, so those
        far from 1 are brought there by a power of two."""
        if is_weight_metric(moments):
            return NO_HALVES
        found = self.halves(site, conditioned(moments, weight), labels)
        kind = working_dtype(weight)
        row, column = _unit(found.row), _unit(found.column)
        return Halves(
            None if found.row is None else (found.row * row).to(kind),
            None if found.column is None else (found.column * column).to(kind),
            None if found.taps is None else found.taps.to(kind),
            None if found.input is None else (found.input * column**2).to(kind),
        )


Wanted = tuple[GramProjection, Site, Tensor, Rank, Halves]


def solve(wanted: Sequence[Wanted]) -> list[Bases]:
    """Bases of many (projection, site, weight, labels, halves): Gram matrices of one size are decomposed in one call."""
    with torch.no_grad():
        grams = [p.grams(s, w.detach().to(working_dtype(w)), labels, h) for p, s, w, labels, h in wanted]
        by_size: dict[tuple[int, torch.dtype, torch.device], list[tuple[int, int]]] = {}
        for i, several in enumerate(grams):
            for j, gram in enumerate(several):
                by_size.setdefault((gram.shape[-1], gram.dtype, gram.device), []).append((i, j))
        found: list[list[tuple[Tensor, Tensor]]] = [[None] * len(several) for several in grams]  # type: ignore[list-item]
        for places in by_size.values():
            values, vectors = eigh(torch.cat([grams[i][j] for i, j in places]))
            start = 0
            for i, j in places:
                stop = start + len(grams[i][j])
                found[i][j] = (values[start:stop], vectors[start:stop])
                start = stop
        return [p.assemble(s, labels, h, pairs) for (p, s, _w, labels, h), pairs in zip(wanted, found, strict=True)]


def _side(pair: tuple[Tensor, Tensor], triangle: Matrix | None) -> Side:
    values, vectors = pair[0].flip(-1).clamp_min(0.0), pair[1].flip(-1).contiguous()
    if triangle is None:
        return Side(vectors, vectors.mT.contiguous(), values)
    return Side(solve_half(vectors.mT, triangle).mT, times(vectors.mT, triangle.mT).contiguous(), values)


def _unit(half: Matrix | None) -> float:
    """The power of two that brings a half of extreme scale to about 1; 1 for all others."""
    largest = 0.0 if half is None else half.largest() if isinstance(half, Kronecker) else float(half.abs().max())
    exponent = math.frexp(largest)[1]
    return 2.0**-exponent if abs(exponent) > RANGE else 1.0


Fold = Callable[[Site, Tensor, Rank], Tensor]  # canonical weight -> matrices (b, m, n)
Shape = Callable[[Site, Rank], tuple[int, int, int]]  # the shape of these


@dataclass(frozen=True)
class MatrixProjection(GramProjection):
    """A type that truncates a batch of matrices, which are the weight in some folding."""

    name: str
    fold: Fold
    shape: Shape
    folded_halves: Callable[[Site, Moments, Rank], Halves]
    labels: int = 0
    tiled: bool = False  # factors are laid out per tile, (p, t, ...)

    def full(self, site: Site, labels: Rank) -> Rank:
        if self.tiled:
            p, t = _cut(labels)
            if min(p, t) < 1 or site.c_out % p or site.c_in % t:
                raise InvalidArgument(f"{self.name}: labels {labels} do not divide {site.c_out} x {site.c_in} channels of {site.name!r}")
        return (min(self.shape(site, labels)[1:]),)

    def halves(self, site: Site, moments: Moments, labels: Rank) -> Halves:
        return self.folded_halves(site, moments, labels)

    def grams(self, site: Site, weight: Tensor, labels: Rank, halves: Halves) -> list[Tensor]:
        matrix = self.fold(site, weight, labels)
        matrix = matrix if halves.row is None else halves.row.mT @ matrix
        matrix = matrix if halves.column is None else times(matrix, halves.column)
        return [matrix @ matrix.mT if matrix.shape[1] <= matrix.shape[2] else matrix.mT @ matrix]

    def assemble(self, site: Site, labels: Rank, halves: Halves, found: Sequence[tuple[Tensor, Tensor]]) -> Bases:
        _, m, n = self.shape(site, labels)
        return Bases(m <= n, (_side(found[0], halves.row if m <= n else halves.column),))

    def factors(self, site: Site, weight: Tensor, bases: Bases, rank: Rank, *, balanced: bool = False) -> tuple[Tensor, ...]:
        labels, r = tuple(rank[: self.labels]), rank[-1]
        matrix = self.fold(site, weight, labels)
        side = bases.sides[0]
        out, into = side.out[..., :r].to(matrix.dtype), side.into[:, :r].to(matrix.dtype)
        left, right = (out, into @ matrix) if bases.left else (matrix @ into.mT, out.mT)
        if balanced:
            left, right = equal_norms(left, right)
        if self.tiled:
            cut = _cut(labels)
            return left.unflatten(0, cut), right.unflatten(0, cut)
        return left, right


def _cut(labels: Rank) -> tuple[int, int]:
    """(row tiles, input-channel tiles) of a tiled type's labels."""
    return (1, labels[0]) if len(labels) == 1 else (labels[0], labels[1])


def _folded(name: str, halves: Callable[[Site, Moments, Rank], Halves]) -> MatrixProjection:
    """The projection of a type that truncates one folding, whatever the rank."""
    folding = FOLDINGS[name]
    return MatrixProjection(name, lambda site, weight, _: folding.fold(site, weight), lambda site, _: folding.shape(site), halves)


def _tiled(name: str, labels: int) -> MatrixProjection:
    """The projection of a type that truncates tiles of the lowered weight."""
    return MatrixProjection(name, _fold_tiles, _tile_shape, _halves_tiles, labels=labels, tiled=True)


def _fold_tiles(site: Site, weight: Tensor, labels: Rank) -> Tensor:
    return split_tiles(FOLDINGS["svd"].fold(site, weight)[0], *_cut(labels)).flatten(0, 1)


def _tile_shape(site: Site, labels: Rank) -> tuple[int, int, int]:
    (p, t), (_, rows, columns) = _cut(labels), FOLDINGS["svd"].shape(site)
    return p * t, rows // p, columns // t


def _halves_svd(site: Site, moments: Moments, labels: Rank) -> Halves:
    output = None if moments.output is None else half(moments.output)
    return Halves(output, None if moments.input is None else half(moments.input))


def _halves_folding(folding: Folding) -> Callable[[Site, Moments, Rank], Halves]:
    """Halves for (o s) x c foldings, whitened by the marginals of the input moment (see `decompositions.weighted_truncation`)."""

    def halves(site: Site, moments: Moments, labels: Rank) -> Halves:
        metric = fold_metric(moments, folding, site)
        given = moments.output if moments.input is None else moments.input
        assert given is not None, "asked of the weight metric"
        kind = {"dtype": torch.float64, "device": given.device}
        groups, rows, _ = folding.shape(site)
        o = site.c_out // site.groups
        output = torch.eye(o, **kind).repeat(groups, 1, 1) if moments.output is None else half(moments.output)
        taps = torch.eye(rows // o, **kind).repeat(groups, 1, 1) if metric is None else half(metric.taps)
        column = None if metric is None else half(metric.channels)
        return Halves(torch.stack([torch.kron(g.contiguous(), t.contiguous()) for g, t in zip(output, taps, strict=True)]), column)

    return halves


def _halves_tiles(site: Site, moments: Moments, labels: Rank) -> Halves:
    p, t = _cut(labels)
    row = None if moments.output is None else half(diagonal_blocks(moments.output[0], p)).repeat_interleave(t, 0)
    column = None if moments.input is None else half(diagonal_blocks(moments.input[0], t)).repeat(p, 1, 1)
    return Halves(row, column)


def _halves_filters(site: Site, moments: Moments, labels: Rank) -> Halves:
    """Each filter by the marginals of the input moment; an output moment does not change its basis (see `Decoupled`)."""
    metric = fold_metric(moments, FOLDINGS["svd_in"], site)
    if metric is None:
        return NO_HALVES
    assert isinstance(metric.channels, Tensor), "columns are channels alone"
    row, column = half(metric.channels), half(metric.taps)
    count = site.c_out // site.groups
    return Halves(row.repeat_interleave(count, 0), column.repeat_interleave(count, 0))


@dataclass(frozen=True)
class Tucker2Projection(GramProjection):
    """Projections of the input and of the output channels: the higher-order SVD's bases, W x U_o U_o^T x U_i U_i^T."""

    name: str = "tucker2"

    def full(self, site: Site, labels: Rank) -> Rank:
        return site.c_in // site.groups, site.c_out // site.groups

    def halves(self, site: Site, moments: Moments, labels: Rank) -> Halves:
        metric = fold_metric(moments, FOLDINGS["svd_in"], site)
        row = None if moments.output is None else half(moments.output)
        if metric is None:
            return Halves(row)
        if isinstance(metric.input, Kronecker):  # of rows in the order (taps, channels)
            whole: Matrix = Kronecker(metric.input.tap, metric.input.channel)
        else:
            whole = metric.input.reshape(site.groups, math.prod(site.shape[1:]), -1)
        return Halves(row, half(metric.channels), half(metric.taps), whole)

    def grams(self, site: Site, weight: Tensor, labels: Rank, halves: Halves) -> list[Tensor]:
        blocks = self._blocks(site, weight)  # (g, o, s, i)
        if halves.row is not None:
            blocks = (halves.row.mT @ blocks.flatten(2)).reshape(blocks.shape)
        flat = blocks.flatten(2)
        output = flat @ flat.mT if halves.input is None else times(flat, halves.input) @ flat.mT
        if halves.column is not None and halves.taps is not None:
            blocks = times(halves.taps.mT[:, None] @ blocks, halves.column[:, None])
        rows = blocks.flatten(1, 2)
        return [rows.mT @ rows, (output + output.mT) / 2]

    def assemble(self, site: Site, labels: Rank, halves: Halves, found: Sequence[tuple[Tensor, Tensor]]) -> Bases:
        return Bases(True, (_side(found[0], halves.column), _side(found[1], halves.row)))

    def factors(self, site: Site, weight: Tensor, bases: Bases, rank: Rank, *, balanced: bool = False) -> tuple[Tensor, ...]:
        r_in, r_out = rank
        blocks = self._blocks(site, weight)
        inner, outer = bases.sides
        core = (outer.into[:, :r_out].to(weight.dtype) @ blocks.flatten(2)).unflatten(2, blocks.shape[2:])
        core = core @ inner.into[:, None, :r_in].mT.to(weight.dtype)  # (g, r_out, s, r_in)
        core = core.transpose(2, 3).unflatten(3, site.kernel)
        first, last = inner.out[..., :r_in].to(weight.dtype), outer.out[..., :r_out].to(weight.dtype)
        return unit_columns(first, core, last) if balanced else (first, core, last)

    @staticmethod
    def _blocks(site: Site, weight: Tensor) -> Tensor:
        return FOLDINGS["svd_in"].blocks(site, weight)


PROJECTIONS: dict[str, Projection] = {
    projection.name: projection
    for projection in (
        _folded("svd", _halves_svd),
        *(_folded(name, _halves_folding(FOLDINGS[name])) for name in ("svd_in", "spatial", "spatial_t")),
        Tucker2Projection(),
        _tiled("grouped_svd", labels=1),
        _folded("decoupled", _halves_filters),
        _tiled("tiled_svd", labels=2),
        CPProjection(),
    )
}
