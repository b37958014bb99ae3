"""Balanced factors against a search over all factorizations."""

from __future__ import annotations

import itertools
import math

from ranksearch.decompositions.balanced_factors import balanced_factors


def test_balanced_factors() -> None:
    assert balanced_factors(64, 2) == (8, 8) and balanced_factors(64, 3) == (4, 4, 4)
    assert balanced_factors(768, 3) == (12, 8, 8) and balanced_factors(10, 2) == (5, 2)
    assert balanced_factors(13, 2) is None and balanced_factors(1, 2) is None and balanced_factors(6, 3) is None


def test_no_other_factors_are_nearer_to_each_other() -> None:
    for size in range(1, 61):
        divisors = [d for d in range(2, size + 1) if size % d == 0]
        for count in (1, 2, 3):
            every = [c for c in itertools.combinations_with_replacement(divisors, count) if math.prod(c) == size]
            found = balanced_factors(size, count)
            assert (found is None) == (not every)
            if found is not None:
                assert math.prod(found) == size and len(found) == count and list(found) == sorted(found, reverse=True)
                assert found[0] / found[-1] == min(max(c) / min(c) for c in every)
