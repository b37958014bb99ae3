"""Scoring by indexing against a loop over configurations and sites."""

from __future__ import annotations

import numpy as np
import pytest

from ranksearch.errors import InvalidArgument
from ranksearch.space.table import Table

RNG = np.random.default_rng(0)
VALUES = tuple(RNG.normal(size=n) for n in (3, 7, 1, 5))


@pytest.mark.parametrize("reduction", ["sum", "max"])
@pytest.mark.parametrize("dtype", [np.int64, np.int16, np.uint8])
@pytest.mark.parametrize("order", ["C", "F"])
def test_score_is_the_loop(reduction, dtype, order):
    table = Table(VALUES, reduction, offset=0.25)
    # more than two blocks, and no multiple of the block
    indices = np.array(np.stack([RNG.integers(0, len(v), 20_011) for v in VALUES], axis=1), dtype=dtype, order=order)
    before = indices.copy()
    rows = [[v[i] for v, i in zip(VALUES, row, strict=True)] for row in indices]
    expected = [(sum(row) if reduction == "sum" else max(row)) + 0.25 for row in rows]
    np.testing.assert_allclose(table.score(indices), expected, rtol=1e-12)
    assert (indices == before).all()


def test_any_leading_shape():
    table = Table(VALUES)
    indices = np.stack([RNG.integers(0, len(v), (4, 6)) for v in VALUES], axis=-1)
    assert table.score(indices).shape == (4, 6)
    assert table.score(indices[0, 0]).shape == ()
    assert float(table.score(indices[1, 2].tolist())) == table.score(indices)[1, 2]
    assert table.score(np.zeros((0, 4), dtype=np.int64)).shape == (0,)


def test_the_largest_of_negative_values_is_negative():
    table = Table((np.array([-1.0, -3.0]), np.array([-2.0])), "max")
    assert table.score([[0, 0], [1, 0]]).tolist() == [-1.0, -2.0]


@pytest.mark.parametrize(
    ("indices", "message"),
    [([0, 0, 0], "last axis"), ([0, 0, 1, 0], "site 2 reach 1: it has 1"), ([0, -1, 0, 0], "hold -1"), ([0.0, 0.0, 0.0, 0.0], "integers")],
)
def test_indices_that_do_not_fit_are_refused(indices, message):
    with pytest.raises(InvalidArgument, match=message):
        Table(VALUES).score(indices)
