"""Conditions on evaluations, such as ``macs < 0.4 and accuracy > 0.98 * baseline``: parsed to a small whitelist of
syntax, never evaluated as Python."""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from ranksearch import checks
from ranksearch.errors import InvalidArgument

BASELINE = "baseline"
LONGEST = 2000  # characters of a condition
LARGEST = 1e100  # number in a condition
DEEPEST = 100  # levels of a condition's tree; every further summand of a sum is one more
EXAMPLE = "'macs < 0.4 and accuracy > 0.98 * baseline'"
BOUNDS = "'macs <= 0.5 and params < 100000'"
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
_COMBINE: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


@dataclass(frozen=True)
class _Dense:
    values: Mapping[str, float]  # of the dense network, by metric
    costs: Collection[str]  # those of the metrics whose bounds of at most 1 are shares


@dataclass(frozen=True)
class Condition:
    """A parsed condition; `parse` makes it.

    Syntax: ``and``, ``or``, ``not``, parentheses, comparisons (also chained: ``0.2 < macs <= 0.5``), ``+ - * /``,
    numbers, names of metrics, and ``baseline``. Each comparison is about exactly one metric, and ``baseline`` is the
    dense network's value of that metric.

    In a comparison of a cost, such as ``params`` or ``macs``, a bound of at most 1 is a share of the dense network's cost; a larger
    bound, and every bound of a comparison that mentions ``baseline``, is absolute. There are no shares of a cost that the dense
    network has none of: a bound between 0 and 1 on it is refused, others are absolute. Bounds are computed exactly, as
    the decimal numbers that were typed, so that ``macs < 0.07`` leaves out 7 of 100.
    """

    text: str
    _tree: ast.expr = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str, *, example: str = EXAMPLE) -> Condition:
        """Parse a condition.

        Args:
            example: of what can be written where the text was, for errors: `EXAMPLE`, or `BOUNDS` where upper bounds on costs are wanted.

        Raises:
            InvalidArgument: the text is not one; the message shows the text and what is wrong.
        """
        if not isinstance(text, str):
            raise InvalidArgument(f"condition {text!r:.80} is no text; write for example {example}")
        if len(text) > LONGEST:
            raise InvalidArgument(f"condition {text[:40]!r}... has {len(text)} characters; {LONGEST} are allowed")
        if not text.strip():
            raise InvalidArgument(f"condition {text!r} is empty; write for example {example}, or leave it out")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python's advice on its syntax is of no use here
                tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            where = f"at character {error.offset}" if error.offset else "at its end"
            raise InvalidArgument(
                f"condition {text!r} cannot be read {where}: {error.msg}; write for example {example}"
            ) from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise InvalidArgument(f"condition {text!r} cannot be read: {error}; write for example {example}") from error
        _check_depth(tree, text)
        _check_logic(tree, text, example)
        return cls(text, tree)

    @classmethod
    def parse_all(cls, texts: str | Sequence[str], *, example: str = EXAMPLE) -> list[Condition]:
        """Parse several conditions, or a single one; arguments as for `parse`.

        Raises:
            InvalidArgument: as `parse`.
        """
        return [cls.parse(text, example=example) for text in checks.several("conditions", texts, hint=f"write for example {example}")]

    @classmethod
    def joined(cls, texts: str | Sequence[str] | None) -> Condition | None:
        """The condition that all of several hold; None where there is none.

        Raises:
            InvalidArgument: as `parse`, for each of them by itself.
        """
        parts = [] if texts is None else cls.parse_all(texts)
        if len(parts) < 2:
            return parts[0] if parts else None
        return cls(" and ".join(f"({part.text})" for part in parts), ast.BoolOp(ast.And(), [part._tree for part in parts]))

    @property
    def names(self) -> set[str]:
        """The metrics that it is about, without ``baseline``."""
        return _names(self._tree)

    def check(self, known: Iterable[str]) -> None:
        """Refuse metrics that do not exist.

        Raises:
            InvalidArgument: listing the known ones.
        """
        known = list(known)
        unknown = sorted(self.names - set(known))
        if unknown:
            raise InvalidArgument(f"condition {self.text!r}: unknown {', '.join(unknown)}; known are: {', '.join(known) or 'none'}")

    def mask(self, columns: Mapping[str, np.ndarray], baseline: Mapping[str, float], costs: Collection[str]) -> np.ndarray:
        """Which rows satisfy the condition. A row with NaN in a metric that the condition names does not.

        Args:
            columns: values of every metric, each of shape: (n,).
            baseline: values of the dense network; needed for the metrics that are compared with ``baseline``, and for
                costs with relative bounds.
            costs: which of the metrics are costs.

        Returns:
            bool, shape: (n,).

        Raises:
            InvalidArgument: an unknown metric, a baseline that is missing, or a division by zero.
        """
        self.check(columns)
        arrays = {name: np.asarray(columns[name], dtype=np.float64) for name in self.names}
        sound = ~np.any([np.isnan(values) for values in arrays.values()], axis=0)
        return self._mask(self._tree, arrays, _Dense(baseline, costs)) & sound

    def check_bounds(self, costs: Collection[str]) -> None:
        """Refuse what `upper_bounds` refuses whatever the amounts of the dense network are, which may be costly to find out.

        Args:
            costs: the names of all.

        Raises:
            InvalidArgument: naming the first part that is not an upper bound on a cost.
        """
        for part in _conjuncts(self._tree):
            for _ in self._limits(part, costs):
                continue

    def upper_bounds(self, costs: Mapping[str, int | float]) -> dict[str, int | float]:
        """The largest admissible amount per cost, an integer where the dense network's is one, for a condition that is nothing
        but upper bounds on costs joined by ``and``: ``macs < 0.5 and params <= 100000``.

        Args:
            costs: of the dense network.

        Raises:
            InvalidArgument: naming the first part that is not an upper bound on a cost.
        """
        bounds: dict[str, int | float] = {}
        for part in _conjuncts(self._tree):
            for name, side, strict in self._limits(part, costs):
                assert isinstance(part, ast.Compare)  # `_limits` refuses the rest
                bound = self._bound(side, part, _Dense(costs, costs))
                if isinstance(costs[name], int):
                    limit = math.ceil(bound) - 1 if strict else math.floor(bound)
                else:
                    limit = math.nextafter(float(bound), -math.inf) if strict else float(bound)
                bounds[name] = min(limit, bounds.get(name, limit))
        return bounds

    def _limits(self, part: ast.expr, costs: Collection[str]) -> Iterator[tuple[str, ast.expr, bool]]:
        """The cost, the side that bounds it, and whether it has to stay below that."""
        refusal = InvalidArgument(
            f"condition {self.text!r}: {ast.unparse(part)!r} is not an upper bound on a cost; "
            f"give bounds such as 'macs <= 0.5' or 'params < 100000', joined by 'and'"
        )
        if not isinstance(part, ast.Compare):
            raise refusal
        if _names(part) - {*costs}:
            raise InvalidArgument(
                f"condition {self.text!r}: {ast.unparse(part)!r} is not an upper bound on a cost that is counted, {' or '.join(costs)}; "
                "others are counted where they are asked for, such as costs=(*COSTS, Latency()), on the command line --cost latency"
            )
        for left, sign, right in _pairs(part):
            if isinstance(sign, (ast.Gt, ast.GtE)):
                left, right = right, left
            elif not isinstance(sign, (ast.Lt, ast.LtE)):
                raise refusal
            if not (isinstance(left, ast.Name) and left.id in costs) or _names(right):
                raise refusal
            yield left.id, right, isinstance(sign, (ast.Lt, ast.Gt))

    def _mask(self, node: ast.expr, arrays: Mapping[str, np.ndarray], dense: _Dense) -> np.ndarray:
        if isinstance(node, ast.BoolOp):
            combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return combine.reduce([self._mask(value, arrays, dense) for value in node.values])
        if isinstance(node, ast.UnaryOp):
            return ~self._mask(node.operand, arrays, dense)
        assert isinstance(node, ast.Compare)
        result = np.ones(np.broadcast_shapes(*(a.shape for a in arrays.values())), dtype=bool)
        for left, sign, right in _pairs(node):
            sides = [self._side(side, node, arrays, dense) for side in (left, right)]
            result &= _COMPARE[type(sign)](*sides)
        return result

    def _side(self, side: ast.expr, comparison: ast.Compare, arrays: Mapping[str, np.ndarray], dense: _Dense) -> Any:
        if not _names(side):
            try:
                return float(self._bound(side, comparison, dense))
            except OverflowError as error:
                raise InvalidArgument(f"condition {self.text!r}: {ast.unparse(side)!r} is too large a number") from error
        (metric,) = _names(comparison)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return self._arithmetic(side, lambda name: arrays[name] if name != BASELINE else float(self._dense(metric, dense)), float)

    def _bound(self, side: ast.expr, comparison: ast.Compare, dense: _Dense) -> Fraction:
        """The exact value of a side without a metric."""
        (metric,) = _names(comparison)
        value = self._arithmetic(side, lambda _: self._dense(metric, dense), Fraction)
        if metric not in dense.costs or _mentions_baseline(comparison) or value > 1:
            return value
        if any(_names(other) and not isinstance(other, ast.Name) for other in (comparison.left, *comparison.comparators)):
            raise InvalidArgument(
                f"condition {self.text!r}: {ast.unparse(comparison)!r} mixes arithmetic on {metric} with a bound of at most 1, "
                f"which is a share of the dense network's; write {metric} alone on one side"
            )
        whole = self._dense(metric, dense)
        if not whole and 0 < value < 1:
            raise InvalidArgument(
                f"condition {self.text!r}: the dense network has no {metric}, so that {ast.unparse(side)} cannot be a share of it; "
                f"give an amount, or bound another cost"
            )
        return value * whole if whole else value

    def _dense(self, metric: str, dense: _Dense) -> Fraction:
        if metric not in dense.values or not math.isfinite(dense.values[metric]):
            raise InvalidArgument(f"condition {self.text!r}: the dense network's {metric} is not known yet; evaluate it, or give a number")
        value = dense.values[metric]
        return Fraction(int(value)) if float(value).is_integer() else Fraction(float(value))

    def _arithmetic(self, node: ast.expr, value: Callable[[str], Any], number: Callable[[Any], Any]) -> Any:
        if isinstance(node, ast.Constant):
            return number(Fraction(repr(node.value)))  # the decimal number that was typed, not its nearest double
        if isinstance(node, ast.Name):
            return value(node.id)
        if isinstance(node, ast.UnaryOp):
            inner = self._arithmetic(node.operand, value, number)
            return -inner if isinstance(node.op, ast.USub) else inner
        assert isinstance(node, ast.BinOp)
        left, right = (self._arithmetic(side, value, number) for side in (node.left, node.right))
        if isinstance(node.op, ast.Div) and np.ndim(right) == 0 and right == 0:
            raise InvalidArgument(f"condition {self.text!r}: {ast.unparse(node)!r} divides by zero")
        return _COMBINE[type(node.op)](left, right)


def _check_depth(tree: ast.expr, text: str) -> None:
    """Refuse a tree that is too deep for the recursive functions below. This one goes level by level, so that it needs no recursion."""
    level: list[ast.AST] = [tree]
    for _ in range(DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return
    shown = f"{text[:80]}..."  # a tree of so many levels has more characters
    raise InvalidArgument(
        f"condition {shown!r} nests more than {DEEPEST} levels deep (signs, parentheses, terms of one sum); write it shorter"
    )


def _check_logic(node: ast.expr, text: str, example: str) -> None:
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _check_logic(value, text, example)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check_logic(node.operand, text, example)
    elif isinstance(node, ast.Compare):
        for sign in node.ops:
            if type(sign) not in _COMPARE:
                raise _refusal(node, text, "compare with < <= > >= == !=")
        for side in (node.left, *node.comparators):
            _check_arithmetic(side, text)
        names = _names(node)
        if len(names) != 1:
            found = f"names {', '.join(sorted(names))}" if names else "names none"
            raise _refusal(node, text, f"a comparison is about exactly one metric, this one {found}")
    else:
        raise _refusal(node, text, f"a condition compares metrics with numbers, for example {example}")


def _check_arithmetic(node: ast.expr, text: str) -> None:
    if isinstance(node, ast.BinOp) and type(node.op) in _COMBINE:
        _check_arithmetic(node.left, text)
        _check_arithmetic(node.right, text)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        _check_arithmetic(node.operand, text)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        if abs(node.value) > LARGEST:
            raise _refusal(node, text, f"a number must be at most {LARGEST:g}")
    elif not isinstance(node, ast.Name):
        known = "numbers, names, 'baseline', + - * / and parentheses"
        raise _refusal(node, text, f"a side of a comparison is made of {known}; join comparisons by 'and' or 'or'")


def _refusal(node: ast.expr, text: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"condition {text!r}: {ast.unparse(node)!r} is not understood: {why}")


def _names(node: ast.expr) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - {BASELINE}


def _mentions_baseline(node: ast.expr) -> bool:
    return any(isinstance(n, ast.Name) and n.id == BASELINE for n in ast.walk(node))


def _pairs(node: ast.Compare) -> Iterator[tuple[ast.expr, ast.cmpop, ast.expr]]:
    sides = (node.left, *node.comparators)
    yield from zip(sides[:-1], node.ops, sides[1:], strict=True)


def _conjuncts(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        for value in node.values:
            yield from _conjuncts(value)
    else:
        yield node
