"""Answers by way of the factors, against those of the composed weight, for every type that says what the axes of its factors are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import prod

import pytest
import torch
from layers import IDS, TYPES, blocks_of, drawn

from ranksearch.decompositions import AnyDecomposition
from ranksearch.networks.descent.axes import Axes
from ranksearch.networks.descent.contraction import Contraction
from ranksearch.sites import Site


@pytest.mark.parametrize("columns", [1, 7])
@pytest.mark.parametrize(("decomposition", "site"), TYPES, ids=IDS)
def test_answers_are_those_of_the_weight(decomposition: AnyDecomposition, site: Site, columns: int) -> None:
    words, factors = drawn(decomposition, site)
    groups, outputs, *patch = shape = blocks_of(site)
    x = torch.randn(groups, prod(patch), columns, dtype=torch.float64)
    contraction = Contraction.of(Axes(words, factors, shape), factors, columns)
    expected = decomposition.compose(site, tuple(factors)).reshape(groups, outputs, -1) @ x
    torch.testing.assert_close(contraction(factors, contraction.laid(x)), expected, rtol=1e-10, atol=1e-10)


def fewest(terms: Sequence[str], sizes: dict[str, int], wanted: str) -> int:
    """MACs of the cheapest order of products of two, by trying all."""
    if len(terms) == 1:
        return 0
    found = []
    for first, second in combinations(range(len(terms)), 2):
        left = [term for k, term in enumerate(terms) if k not in (first, second)]
        every = set(terms[first]) | set(terms[second])
        made = "".join(sorted(letter for letter in every if letter in wanted or any(letter in term for term in left)))
        found.append(prod(sizes[letter] for letter in every) + fewest([*left, made], sizes, wanted))
    return min(found)


@pytest.mark.parametrize("columns", [1, 30, 1000])
@pytest.mark.parametrize(("decomposition", "site"), TYPES, ids=IDS)
def test_no_order_of_products_takes_half_of_the_macs(decomposition: AnyDecomposition, site: Site, columns: int) -> None:
    """numpy's best order counts products without a sum for half."""
    words, factors = drawn(decomposition, site)
    axes = Axes(words, factors, blocks_of(site))
    sizes = {"n": columns, **axes.sizes}
    for letters, view in zip(axes.letters, axes.views(factors), strict=True):
        sizes |= dict(zip("g" + letters, view.shape, strict=True))
    terms = ["g" + letters for letters in axes.letters] + ["gihwn"]
    least = fewest(terms, sizes, "gon")
    assert least <= Contraction.of(axes, factors, columns).macs <= 2 * least


def test_products_sum_over_the_axes_of_inputs_that_lie_side_by_side() -> None:
    """Of what is kept of the inputs' first product, no axis lies before one that is summed over: it is a product of two matrices."""
    for decomposition, site in TYPES:
        words, factors = drawn(decomposition, site)
        contraction = Contraction.of(Axes(words, factors, blocks_of(site)), factors, 1000)
        order, size = contraction.plan.order, prod(blocks_of(site)[2:])
        laid = contraction.laid(torch.arange(site.groups * size * 1000.0).reshape(site.groups, size, 1000))
        assert laid.is_contiguous() and laid.ndim == len(order) and order[0] == "g"
        [(other, made)] = [
            (next(term for term in given.split(",") if term != "abcdef"[: len(order)]), made)
            for given, made in (product.subscripts.split("->") for product in contraction.plan.products)
            if "abcdef"[: len(order)] in given.split(",")
        ]
        summed = [letter in other and letter not in made for letter in "abcdef"[1 : len(order)]]
        assert summed == sorted(summed, reverse=True)


@pytest.mark.parametrize(("decomposition", "site"), TYPES, ids=IDS)
def test_a_matrix_beside_the_weight_is_one_beside_a_factor(decomposition: AnyDecomposition, site: Site) -> None:
    words, factors = drawn(decomposition, site)
    groups, outputs, *_ = shape = blocks_of(site)
    matrix = torch.randn(groups, outputs, outputs, dtype=torch.float64)
    changed = Axes(words, factors, shape).beside(factors, matrix)
    assert [factor.shape for factor in changed] == [factor.shape for factor in factors]
    expected = matrix @ decomposition.compose(site, tuple(factors)).reshape(groups, outputs, -1)
    found = decomposition.compose(site, tuple(changed)).reshape(groups, outputs, -1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_weight_of_one_output_has_answers_and_a_matrix_beside_it_too() -> None:
    factors = [torch.randn(4, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)]
    axes = Axes(("i r", "h r"), factors, (1, 1, 4, 2, 1))
    changed = axes.beside(factors, torch.full((1, 1, 1), 3.0, dtype=torch.float64))
    weight = torch.einsum("ir,hr->ih", *factors)
    torch.testing.assert_close(torch.einsum("ir,hr->ih", *changed), 3.0 * weight)
    contraction, x = Contraction.of(axes, factors, 5), torch.randn(1, 8, 5, dtype=torch.float64)
    torch.testing.assert_close(contraction(factors, contraction.laid(x)), weight.reshape(1, 1, 8) @ x)


def test_groups_may_have_parts() -> None:
    factors = [torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randn(2, 3, 4, 6, dtype=torch.float64)]  # g t o r and g t r ihw
    axes = Axes(("g t o r", "g t r ihw"), factors, (2, 5, 9, 2, 1))  # of nine input channels a part has three

    def composed(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return (left @ right).movedim(1, 2).reshape(2, 5, 18)

    matrix, x = torch.randn(2, 5, 5, dtype=torch.float64), torch.randn(2, 18, 7, dtype=torch.float64)
    torch.testing.assert_close(composed(*axes.beside(factors, matrix)), matrix @ composed(*factors))
    contraction = Contraction.of(axes, factors, 7)
    torch.testing.assert_close(contraction(factors, contraction.laid(x)), composed(*factors) @ x)
