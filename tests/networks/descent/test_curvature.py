"""Curvatures of factors against dense Jacobians, for every type that says what the axes of its factors are."""

from __future__ import annotations

import math
import string

import pytest
import torch
from layers import IDS, TYPES, blocks_of, drawn, moment, parts_of
from torch import Tensor

from ranksearch.decompositions import AnyDecomposition, Moments
from ranksearch.decompositions.kronecker import Kronecker
from ranksearch.errors import InvalidArgument
from ranksearch.networks.descent.axes import Axes
from ranksearch.networks.descent.curvature import Curvature
from ranksearch.networks.descent.weighing import Weighing
from ranksearch.sites import Site


def test_types_that_descent_is_for_by_default_tell_their_axes() -> None:
    known = {d.name for d, _ in TYPES}
    assert known >= {"svd_in", "spatial", "spatial_t", "tucker2", "cp", "grouped_svd", "tensor_train"}


@pytest.mark.parametrize(("decomposition", "site"), TYPES, ids=IDS)
def test_axes_tell_what_a_weight_is_made_of(decomposition: AnyDecomposition, site: Site) -> None:
    """The weight is the einsum over them, and each of its axes is that of one factor."""
    axes, factors = drawn(decomposition, site)
    sizes = dict(zip("goihw", blocks_of(site), strict=True)) | {"t": parts_of(axes, factors)}
    sizes["i"] //= sizes["t"]
    views = []
    for text, factor in zip(axes, factors, strict=True):
        words = zip(text.split(), factor.shape, strict=True)
        views.append(factor.reshape([size for word, n in words for size in ([sizes[c] for c in word] if len(word) > 1 else [n])]))
    terms = [text.replace(" ", "") for text in axes]
    missing = [letter for letter in "gotihw" if not any(letter in term for term in terms)]
    assert all(sizes[letter] == 1 for letter in missing)
    assert all(sum(letter in term for term in terms) == 1 for letter in "oihw" if letter not in missing)
    kept = "".join(letter for letter in "gotihw" if letter not in missing)
    found = torch.einsum(",".join(terms) + "->" + kept, *views).reshape(site.shape)
    torch.testing.assert_close(found, decomposition.compose(site, tuple(factors)), rtol=1e-12, atol=1e-12)
    assert set("".join(terms)) <= set(string.ascii_lowercase)


@pytest.mark.parametrize("product", [True, False], ids=["product", "whole"])
@pytest.mark.parametrize(("decomposition", "site"), TYPES, ids=IDS)
def test_blocks_are_the_curvature_of_the_marginals_product(
    decomposition: AnyDecomposition, site: Site, product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """J^T (G (x) A) J with the Jacobian in one factor written out; A is the product of its marginals, or they stand for it."""
    monkeypatch.setattr("ranksearch.networks.descent.curvature.LEAST", 1e-14)
    axes, factors = drawn(decomposition, site)
    groups, outputs, inputs, height, width = shape = blocks_of(site)
    whole = moment(groups, inputs * height * width)
    taps = zip(moment(groups, height), moment(groups, width), strict=True)
    a = Kronecker(moment(groups, inputs), torch.stack([torch.kron(*pair) for pair in taps]))
    weighing = Weighing(Moments(a if product else whole, moment(groups, outputs)), factor=3.0)
    parts, output, known = parts_of(axes, factors), weighing.moments.output, weighing.marginals(shape)
    assert output is not None
    within = torch.block_diag(*[torch.ones(inputs // parts, inputs // parts, dtype=torch.float64)] * parts)
    metric = []
    for group in range(groups):
        channel, *taps = (known[letter][group] for letter in "ihw")
        if product:  # A as it is
            channel, taps = a.channel[group], [a.tap[group]]
        one = torch.kron(3.0 * output[group], channel * within)
        for tap in taps:
            one = torch.kron(one, tap)
        metric.append(one)
    everywhere, made = torch.block_diag(*metric), Curvature(Axes(axes, factors, shape), weighing, torch.device("cpu"))
    for k, block in enumerate(made.at(factors, range(len(factors)), torch.float64)):

        def one(part: Tensor, k: int = k) -> Tensor:
            return decomposition.compose(site, (*factors[:k], part, *factors[k + 1 :])).flatten()

        jacobian = torch.autograd.functional.jacobian(one, factors[k]).reshape(everywhere.shape[0], -1)
        curvature, change = jacobian.mT @ everywhere @ jacobian, torch.randn_like(factors[k])
        back = block.solved((curvature @ change.flatten()).reshape(change.shape))
        values, vectors = torch.linalg.eigh(curvature)
        sound = vectors[:, values > 1e-4 * values[-1]]  # small ones are raised
        torch.testing.assert_close(sound.mT @ back.flatten(), sound.mT @ change.flatten(), rtol=1e-6, atol=1e-6)


def test_blocks_of_some_factors_alone_are_the_same_in_any_precision() -> None:
    decomposition, site = next((d, site) for d, site in TYPES if d.name == "tucker2")
    axes, factors = drawn(decomposition, site)
    shape = blocks_of(site)
    made = Curvature(Axes(axes, factors, shape), Weighing(Moments(moment(1, math.prod(shape[2:])), None)), torch.device("cpu"))
    every, (some,) = made.at(factors, range(3), torch.float64), made.at(factors, [1], torch.float32)
    part = torch.randn_like(factors[1])
    assert all(inverse.dtype == torch.float32 for inverse in some.inverses)
    torch.testing.assert_close(some.solved(part.float()).double(), every[1].solved(part), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("decomposition", "site"), TYPES, ids=IDS)
def test_what_says_nothing_has_a_curvature_all_the_same(decomposition: AnyDecomposition, site: Site) -> None:
    """A factor that is zero, and one with an entry of a shared axis that is zero in all of them, bend nothing."""
    axes, factors = drawn(decomposition, site)
    made = Curvature(Axes(axes, factors, blocks_of(site)), Weighing(Moments()), torch.device("cpu"))
    for zero in (slice(0, 1), slice(0, 2), slice(None)):
        for k in range(len(factors)):
            changed = [f.clone() for f in factors]
            changed[k][..., zero] = 0.0
            for block, factor in zip(made.at(changed, range(len(factors)), torch.float64), factors, strict=True):
                found = block.solved(torch.ones_like(factor))
                assert found.isfinite().all() and float(found.sum()) > 0


@pytest.mark.parametrize("axes", [("o a", "i b"), ("o a", "i a b"), ("o a b", "i a b"), ("o a", "i b a", "h a b")])
def test_axes_that_make_no_tree_are_refused(axes: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument, match="tree"):
        Axes(axes, [torch.zeros(2, 2)] * len(axes), (1, 4, 3, 2, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("whole", [True, False], ids=["metric", "none"])
def test_blocks_are_where_the_factors_are(whole: bool) -> None:
    decomposition, site = next((d, site) for d, site in TYPES if d.name == "tucker2")
    axes, factors = drawn(decomposition, site)
    shape = blocks_of(site)
    moments = Moments(moment(1, shape[2] * shape[3] * shape[4]), moment(1, shape[1])) if whole else Moments()
    found = []
    for device in ("cpu", "cuda"):
        there = [factor.to(device) for factor in factors]
        made = Curvature(Axes(axes, there, shape), Weighing(moments.to(where := torch.device(device))), where)
        blocks = made.at(there, range(3), torch.float64)
        found.append([block.solved(factor).cpu() for block, factor in zip(blocks, there, strict=True)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
