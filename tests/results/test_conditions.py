"""Conditions: what they mean, exactly, and what they refuse."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranksearch.errors import InvalidArgument
from ranksearch.results.conditions import Condition

COSTS = {"params": 100, "macs": 1000}
BASELINE = {"accuracy": 0.9, "loss": 0.5, **COSTS}
COLUMNS = {
    "accuracy": np.array([0.5, 0.81, 0.882, 0.9, math.nan]),
    "loss": np.array([1.0, 0.7, 0.55, 0.5, 0.4]),
    "params": np.array([7.0, 30.0, 50.0, 100.0, 20.0]),
    "macs": np.array([100.0, 399.0, 400.0, 1000.0, 401.0]),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("macs < 0.4", [1, 1, 0, 0, 0]),
        ("macs <= 0.4", [1, 1, 1, 0, 0]),
        ("macs < 400", [1, 1, 0, 0, 0]),
        ("0.4 >= macs", [1, 1, 1, 0, 0]),
        ("params < 0.07", [0, 0, 0, 0, 0]),  # 0.07 * 100 is 7.000000000000001 in doubles
        ("params <= 0.07", [1, 0, 0, 0, 0]),
        ("params == 1", [0, 0, 0, 1, 0]),  # 1 is relative: the dense network's
        ("params != 1", [1, 1, 1, 0, 1]),
        ("macs > 1.5", [1, 1, 1, 1, 1]),  # above 1: absolute
        ("macs < 0.4 * baseline", [1, 1, 0, 0, 0]),
        ("macs < baseline - 600", [1, 1, 0, 0, 0]),
        ("macs - baseline <= -600", [1, 1, 1, 0, 0]),
        ("macs / baseline < 0.4", [1, 1, 0, 0, 0]),  # with baseline: absolute, no second scaling
        ("macs / 100 < 3.995", [1, 1, 0, 0, 0]),
        ("0.1 < macs <= 0.4", [0, 1, 1, 0, 0]),
        ("accuracy >= 0.98 * baseline", [0, 0, 1, 1, 0]),  # 0.882 on the nose
        ("accuracy > 0.9 * baseline", [0, 0, 1, 1, 0]),  # 0.81 is not above 0.81
        ("not accuracy > 0.6", [1, 0, 0, 0, 0]),  # NaN satisfies nothing, its negation neither
        ("accuracy != 3", [1, 1, 1, 1, 0]),
        ("loss < baseline * 1.2 and macs < 0.9", [0, 0, 1, 0, 1]),
        ("loss < 0.45 or macs < 0.2 or params > 0.9", [1, 0, 0, 1, 1]),
        ("not (macs < 0.4 or params > 0.9)", [0, 0, 1, 0, 1]),
        ("  +macs < -(-400)\n", [1, 1, 0, 0, 0]),
        ("1 * macs < 1 + 2.5", [0, 0, 0, 0, 0]),
    ],
)
def test_mask(text, expected) -> None:
    before = {name: values.copy() for name, values in COLUMNS.items()}
    mask = Condition.parse(text).mask(COLUMNS, BASELINE, COSTS)
    assert mask.dtype == bool and mask.tolist() == [bool(x) for x in expected]
    assert all(np.array_equal(COLUMNS[n], before[n], equal_nan=True) for n in before)


def test_names() -> None:
    assert Condition.parse("macs < 0.4 and accuracy > 0.98 * baseline or 0 < macs").names == {"macs", "accuracy"}


@pytest.mark.parametrize(
    "text",
    [
        "", "   ", "macs <", "macs", "1 < 2", "baseline < 2", "macs < accuracy", "macs + params < 3", "macs < 1 & params < 3",
        "macs ** 2 < 3", "macs % 2 == 1", "abs(macs) < 3", "macs.real < 3", "macs[0] < 3", "macs in (1, 2)", "macs < True",
        "macs < 'a'", "macs < None", "macs < 1j", "(macs < 3) < 1", "macs < (3 if 1 else 2)", "lambda: 1", "__import__('os').getcwd() < 3",
        "macs := 3", "macs = 3", "macs < 1e400", "macs < 0.4, params < 3", "not macs", "macs < 3 and 1", "macs < [1]", "macs\0 < 3",
        "macs < -(2 ** 3)", "macs < 1 + +[1]",
        "(" * 500 + "macs" + ")" * 500 + " < 3", "macs < 1" + " + 1" * 1000, "macs < " + "9" * 400,
    ],
)  # fmt: skip
def test_refused_text_is_shown(text) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Condition.parse(text)
    assert repr(text)[1:20] in str(caught.value)


@pytest.mark.parametrize("text", [None, 0.4, ("macs < 0.4",)])
def test_what_is_no_text_is_refused(text) -> None:
    with pytest.raises(InvalidArgument, match="is no text; write for example"):
        Condition.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "macs < " + "-" * 1900 + "1", "macs < " + "+" * 1900 + "1", "-" * 1990 + "macs < 1", "not " * 490 + "macs < 1",
        "macs < 1" + "+1" * 990,
        "macs < 1" + "*1" * 990, "macs < " + "(-" * 150 + "1" + ")" * 150, "macs" + ".a" * 900 + " < 1", "macs" + "[0]" * 600 + " < 1",
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_deep_conditions_are_refused_and_shown_in_short(text) -> None:
    with pytest.raises(InvalidArgument, match=r"nests more than 100 levels deep|too many nested|cannot be read") as caught:
        Condition.parse(text)
    assert text[:10] in str(caught.value)


def test_long_conditions_that_are_not_deep_are_read() -> None:
    text = "(macs < 1)" + " and (macs < 1)" * 130
    assert Condition.parse(text).upper_bounds(COSTS) == {"macs": 999}
    assert Condition.parse("macs < 1" + " + 1" * 90).upper_bounds(COSTS) == {"macs": 90}


def test_a_bound_of_nothing_on_what_the_dense_network_has_none_of_is_an_amount() -> None:
    assert Condition.parse("bytes <= 0").upper_bounds({"bytes": 0}) == {"bytes": 0}
    assert Condition.parse("bytes <= 1").upper_bounds({"bytes": 0}) == {"bytes": 1}
    with pytest.raises(InvalidArgument, match="cannot be a share"):
        Condition.parse("bytes <= 0.5").upper_bounds({"bytes": 0})


def test_several_conditions_are_read_one_by_one_and_hold_together() -> None:
    assert [c.text for c in Condition.parse_all("macs <= 0.5")] == ["macs <= 0.5"]
    assert [c.text for c in Condition.parse_all(["macs < 1", "params < 1"])] == ["macs < 1", "params < 1"]
    assert Condition.joined(None) is None and Condition.joined([]) is None
    one = Condition.joined(["macs <= 0.5"])
    assert one is not None and one.text == "macs <= 0.5"
    both = Condition.joined(["macs < 0.9 or loss < 0.45", "params < 0.4"])
    assert both is not None and both.mask(COLUMNS, BASELINE, COSTS).tolist() == [True, True, False, False, True]
    assert Condition.parse(both.text).mask(COLUMNS, BASELINE, COSTS).tolist() == [True, True, False, False, True]
    for texts in ("", ["macs < 1", " "], ["macs < 1) or (macs < 2", "params < 1"]):
        with pytest.raises(InvalidArgument):
            Condition.joined(texts)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("acuracy > 0.5", "unknown acuracy; known are: accuracy, loss, params, macs"),
        ("macs / 10 < 0.5", "write macs alone"),
        ("macs < 3 / 0", "divides by zero"),
        ("macs / 0 < 3", "divides by zero"),
        ("macs < " + "1e99 * " * 5 + "1e99", "too large"),
    ],
)
def test_refused_when_applied(text, match) -> None:
    with pytest.raises(InvalidArgument, match=match):
        Condition.parse(text).mask(COLUMNS, BASELINE, COSTS)


@pytest.mark.parametrize("baseline", [{}, {"accuracy": math.nan}, {"accuracy": math.inf}])
def test_baseline_that_is_not_known(baseline) -> None:
    with pytest.raises(InvalidArgument, match="accuracy is not known yet"):
        Condition.parse("accuracy > baseline").mask(COLUMNS, baseline, COSTS)
    assert Condition.parse("accuracy > 0.85").mask(COLUMNS, baseline, COSTS).tolist() == [False, False, True, True, False]


def test_no_rows() -> None:
    empty = {name: np.zeros(0) for name in COLUMNS}
    assert Condition.parse("macs < 0.4 and accuracy > baseline").mask(empty, BASELINE, COSTS).shape == (0,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("macs < 0.4", {"macs": 399}),
        ("macs <= 0.4", {"macs": 400}),
        ("macs < 0.4005", {"macs": 400}),
        ("params < 0.07", {"params": 6}),
        ("params <= 0.07", {"params": 7}),
        ("0.07 > params", {"params": 6}),
        ("macs < 500 and params <= 33.5 and macs <= 0.6", {"macs": 499, "params": 33}),
        ("macs < baseline / 3", {"macs": 333}),
        ("macs <= 1", {"macs": 1000}),
        ("macs <= 2", {"macs": 2}),
    ],
)
def test_upper_bounds(text, expected) -> None:
    assert Condition.parse(text).upper_bounds(COSTS) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("macs < 0.5 and accuracy < 0.9", "accuracy < 0.9"),
        ("macs > 0.5", "macs > 0.5"),
        ("macs == 5", "macs == 5"),
        ("0.1 < macs < 0.5", "0.1 < macs < 0.5"),
        ("macs < 0.5 or params < 0.5", "macs < 0.5 or params < 0.5"),
        ("params < 3 and not macs > 0.5", "not macs > 0.5"),
        ("2 * macs < 500", "2 * macs < 500"),
    ],
)
def test_what_is_not_an_upper_bound_is_named(text, part) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Condition.parse(text).upper_bounds(COSTS)
    assert repr(part) in str(caught.value)
    with pytest.raises(InvalidArgument, match=re.escape(str(caught.value))):  # amounts need not be known for that
        Condition.parse(text).check_bounds(list(COSTS))


def test_what_may_be_an_upper_bound_is_not_refused() -> None:
    Condition.parse("macs < 0.5 and params <= baseline / 0").check_bounds(["macs", "params"])


@given(st.integers(1, 10**12), st.integers(1, 1000), st.booleans())
@settings(max_examples=200, deadline=None)
def test_upper_bound_is_the_largest_integer_that_satisfies(dense, thousandths, strict) -> None:
    sign = "<" if strict else "<="
    condition = Condition.parse(f"macs {sign} {thousandths / 1000!r}")
    bound = condition.upper_bounds({"macs": dense})["macs"]
    # integer arithmetic is the oracle: macs * 1000 < thousandths * dense
    expected = (thousandths * dense - 1) // 1000 if strict else thousandths * dense // 1000
    assert bound == expected
    assert condition.mask({"macs": np.array([bound, bound + 1])}, {"macs": dense}, ["macs"]).tolist() == [True, False]


@given(st.text(alphabet="macsparbeline019.<>=()+-*/ndort ", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_parses_or_is_refused(text) -> None:
    try:
        condition = Condition.parse(text)
    except InvalidArgument:
        return
    assert condition.names
