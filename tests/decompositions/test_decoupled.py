"""decoupled: filter by filter, against LAPACK."""

from __future__ import annotations

import pytest
import torch
from oracles import conv, moments, squared_error

from ranksearch.decompositions.decoupled import Decoupled

decoupled = Decoupled()


@pytest.mark.parametrize("groups", [1, 2])
def test_every_filter_is_truncated_on_its_own(groups: int) -> None:
    site, weight = conv(groups=groups)
    state = decoupled.prepare(site, weight)
    for q in (1, 2):
        u, s, vh = torch.linalg.svd(weight.flatten(2), full_matrices=False)
        dense = ((u[..., :q] * s[:, None, :q]) @ vh[:, :q]).reshape(weight.shape)
        torch.testing.assert_close(decoupled.reconstruct(site, state, (q,)), dense)


def test_layers_are_pointwise_then_one_kernel_per_filter() -> None:
    site, weight = conv()
    built = decoupled.module(site, decoupled.factors(decoupled.prepare(site, weight), (2,)), None)
    assert [(c.kernel_size, c.groups, c.out_channels) for c in built] == [((1, 1), 1, 16), ((3, 3), 8, 8)]


@pytest.mark.parametrize("output", [False, True])
def test_errors_in_the_metric_are_exact_and_the_metric_pays(output: bool) -> None:
    site, weight = conv()
    m = moments(site, output=output)
    state = decoupled.prepare(site, weight, m)
    errors = decoupled.errors(state)
    assert errors.frobenius_is == "exact"
    for q in (1, 2, 3):
        found = squared_error(site, weight - decoupled.reconstruct(site, state, (q,)), m)
        assert found == pytest.approx((errors.frobenius[q - 1] * errors.norm) ** 2, rel=1e-4)
        if not output:
            plain = decoupled.reconstruct(site, decoupled.prepare(site, weight), (q,))
            assert found < squared_error(site, weight - plain, m)
