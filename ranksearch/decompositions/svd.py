"""SVD of the lowered weight, C_out x (C_in kh kw): a kh x kw layer to r channels, then 1 x 1 (all five papers)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.decompositions.chain import Link, chain_costs, chain_module
from ranksearch.decompositions.decomposition import Decomposition, Errors, Rank, blank
from ranksearch.decompositions.folding import FOLDINGS
from ranksearch.decompositions.kronecker import Matrix, solve_half, times
from ranksearch.decompositions.metric import Moments, conditioned, half
from ranksearch.decompositions.spectrum import Spectrum, equal_norms, spectrum, spectrum_errors, truncate
from ranksearch.decompositions.symmetric import eigh
from ranksearch.sites import Site

FOLDING = FOLDINGS["svd"]


@dataclass(frozen=True)
class SVDState:
    """Spectrum of the whitened matrix C_G^T W C_A, and the triangular halves of the moments that lead back."""

    spectrum: Spectrum
    output_half: Tensor | None  # C_G, shape: (groups, m, m); None: identity
    input_half: Matrix | None  # C_A, shape: (groups, n, n)


class SVD(Decomposition[SVDState]):
    """In any metric the truncated SVD of the whitened matrix is optimal, so its tail sums are exact."""

    name = "svd"
    optimal = True
    components = True

    def undefined(self, site: Site) -> str | None:
        if min(site.c_out // site.groups, math.prod(site.shape[1:])) == 1:
            return "a single row or column has no smaller rank"
        return None

    def ranks(self, site: Site) -> np.ndarray:
        rows, columns = site.c_out // site.groups, math.prod(site.shape[1:])
        return np.arange(1, min(rows, columns) + 1, dtype=np.int64)[:, None]

    def _links(self, site: Site, rank: Any) -> list[Link]:
        inner = rank * site.groups
        return [Link(site.c_in, inner, (True, True), site.groups), Link(inner, site.c_out, groups=site.groups)]

    def links(self, site: Site, ranks: np.ndarray) -> list[Link]:
        return self._links(site, ranks[:, 0])

    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return chain_costs(site, self.links(site, ranks), len(ranks))

    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> SVDState:
        matrix = FOLDING.fold(site, weight).double()
        moments = conditioned(moments, matrix)
        output_half = None if moments.output is None else half(moments.output)
        input_half = moments.input_half
        matrix = matrix if output_half is None else output_half.mT @ matrix
        matrix = matrix if input_half is None else times(matrix, input_half)
        return SVDState(spectrum(matrix), output_half, input_half)

    def errors(self, state: SVDState) -> Errors:
        return spectrum_errors(state.spectrum)

    def factors(self, state: SVDState, rank: Rank) -> tuple[Tensor, ...]:
        left, right = truncate(state.spectrum, rank[0])
        if state.output_half is not None:
            left = torch.linalg.solve_triangular(state.output_half.mT, left, upper=True)
        if state.input_half is not None:
            right = solve_half(right, state.input_half)
        return equal_norms(left, right)  # shapes: (groups, c_out / groups, r), (groups, r, c_in / groups * kh * kw)

    def of_gram(self, site: Site, weight: Tensor, gram: Tensor, output: Tensor | None, rank: Rank) -> tuple[Tensor, ...] | None:
        """The left vectors of C_G^T W C_A are eigenvectors of C_G^T W A W^T C_G, and what is left of the weight is its projection on the
        first of them, so that no half of A is needed (reduced-rank regression, Izenman 1975)."""
        matrix = FOLDING.fold(site, weight).double()
        if matrix.shape[1] > matrix.shape[2]:
            return None
        output_half = None if output is None else half(output)
        if output_half is not None:
            matrix, gram = output_half.mT @ matrix, output_half.mT @ gram @ output_half
        basis = eigh(gram)[1].flip(-1)[..., : rank[0]]
        left, right = basis, basis.mT @ matrix
        left = left if output_half is None else torch.linalg.solve_triangular(output_half.mT, left, upper=True)
        return equal_norms(left, right)

    def empty_factors(self, site: Site, rank: Rank) -> tuple[Tensor, ...]:
        g, (c_out, *into) = site.groups, site.shape
        return blank((g, c_out // g, rank[0]), (g, rank[0], math.prod(into)))

    def compose(self, site: Site, factors: tuple[Tensor, ...]) -> Tensor:
        left, right = factors
        return FOLDING.unfold(site, left @ right)

    def module(self, site: Site, factors: tuple[Tensor, ...], bias: Tensor | None) -> nn.Module:
        left, right = factors
        rank = left.shape[2]
        weights = (right.reshape(site.groups * rank, *site.shape[1:]), left.reshape(site.c_out, rank, 1, 1))
        return chain_module(site, self._links(site, rank), weights, bias)
