"""Numbers that a user gives."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from ranksearch import checks
from ranksearch.errors import InvalidArgument


def test_whole_numbers() -> None:
    assert checks.whole("n", 3) == 3 and type(checks.whole("n", np.int32(2))) is int and checks.whole("n", 0, least=0) == 0
    for wrong in (0, -1, 1.0, True, np.True_, "1", None, math.nan, np.float64(2)):
        with pytest.raises(InvalidArgument, match=r"must be a whole number, 1 or more; batches$"):
            checks.whole("n", wrong, hint="batches")


def test_numbers() -> None:
    for value in (2, 2.5, np.float32(2), np.int64(2), 10**400):
        found = checks.number("x", value, least=2)
        assert found == value and isinstance(found, (int, float)) and not isinstance(found, np.generic)
    for wrong in (True, "1", None, math.nan, math.inf, -math.inf, np.float64("nan"), 1j):
        with pytest.raises(InvalidArgument, match=r"^x=.*: must be a finite number$"):
            checks.number("x", wrong)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "text"),
    [
        ({"least": 0}, (0, 1e9), (-1e-9, -3), "at least 0"),
        ({"above": 0}, (1e-9, 3), (0, -1), "above 0"),
        ({"most": 1}, (1, -5), (1.0001,), "at most 1"),
        ({"below": 1}, (0.999, -5), (1, 2), "below 1"),
        ({"above": 0, "most": 0.5}, (0.5,), (0, 0.51), "above 0 and at most 0.5"),
    ],
)
def test_bounds(bounds: dict, inside: tuple, outside: tuple, text: str) -> None:
    assert [checks.number("x", value, **bounds) for value in inside] == [*inside]
    for value in outside:
        with pytest.raises(InvalidArgument, match=f"must be a finite number {text}$"):
            checks.number("x", value, **bounds)


def test_fractions() -> None:
    assert checks.fraction("p", 0) == 0 and checks.fraction("p", 1.0) == 1
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(InvalidArgument, match=r"p=.*at least 0 and at most 1; a probability"):
            checks.fraction("p", wrong, hint="a probability")


def test_seeds_are_what_every_generator_takes() -> None:
    for sound in (0, 7, np.int64(3), 2**32 - 1):
        assert checks.seed(sound) == sound and type(checks.seed(sound)) is int
        np.random.RandomState(checks.seed(sound))  # what the samplers seed
    for wrong in (-1, 2**32, 10**40, 1.0, True, "1", None):
        with pytest.raises(InvalidArgument, match=r"^seed=.*: must be a whole number"):
            checks.seed(wrong)


def test_lists_and_paths() -> None:
    assert checks.several("x", ["a", 2]) == ("a", 2) and checks.several("x", "abc") == ("abc",)
    assert checks.several("x", (k for k in range(2))) == (0, 1)
    with pytest.raises(InvalidArgument, match=r"^x=3: must be a list; of names$"):
        checks.several("x", 3, hint="of names")
    assert checks.path("x", "a/b") == checks.path("x", Path("a/b")) == Path("a/b")
    with pytest.raises(InvalidArgument, match=r"^x=None: must be a text or a pathlib.Path$"):
        checks.path("x", None)
