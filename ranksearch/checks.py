"""Checks of numbers, lists and paths that a user gives: one wording for what is wrong with them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ranksearch.errors import InvalidArgument
from ranksearch.home import user_path


def whole(name: str, value: Any, *, least: int = 1, hint: str = "") -> int:
    """``value`` as a Python integer.

    Args:
        least: the smallest allowed.
        hint: what the number is, or what to give instead; ends the message.

    Raises:
        InvalidArgument: no whole number (a bool and a float are none), or one below ``least``.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < least:
        raise InvalidArgument(f"{name}={value!r}: must be a whole number, {least} or more{_ending(hint)}")
    return int(value)


SEEDS = range(2**32)  # what NumPy, torch and the samplers all take


def seed(value: Any, *, name: str = "seed") -> int:
    """``value``, a seed of a search or an evaluation, as a Python integer.

    Raises:
        InvalidArgument: no whole number, or none of `SEEDS`.
    """
    if whole(name, value, least=SEEDS.start) not in SEEDS:
        raise InvalidArgument(f"{name}={value!r}: must be a whole number from 0 to {SEEDS[-1]:,}")
    return int(value)


def number(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    hint: str = "",
) -> float:
    """``value``, a finite number within bounds, as it is (an int stays one, and one of NumPy's becomes Python's).

    Raises:
        InvalidArgument: no number (a bool is none), not finite, or outside the bounds.
    """
    whole_number = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    sound = whole_number or (isinstance(value, (float, np.floating)) and math.isfinite(value))
    if not (sound and least <= value <= most and above < value < below):
        signs = (("at least", least), ("above", above), ("at most", most), ("below", below))
        bounds = " and ".join(f"{sign} {bound:g}" for sign, bound in signs if math.isfinite(bound))
        raise InvalidArgument(f"{name}={value!r}: must be a finite number {bounds}".rstrip() + _ending(hint))
    return value.item() if isinstance(value, np.generic) else value


def fraction(name: str, value: Any, *, hint: str = "") -> float:
    """``value``, a number from 0 to 1.

    Raises:
        InvalidArgument: it is none.
    """
    return number(name, value, least=0, most=1, hint=hint)


def several(name: str, value: Any, *, hint: str = "") -> tuple[Any, ...]:
    """``value``, things in a list or another iterable, as a tuple; a text is one thing.

    Raises:
        InvalidArgument: it is neither.
    """
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable):
        raise InvalidArgument(f"{name}={value!r:.80}: must be a list{_ending(hint)}")
    return tuple(value)


def path(name: str, value: Any) -> Path:
    """``value``, a text or a path, as `ranksearch.home.user_path` reads it.

    Raises:
        InvalidArgument: it is neither.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise InvalidArgument(f"{name}={value!r:.80}: must be a text or a pathlib.Path")
    return user_path(value)


def _ending(hint: str) -> str:
    return f"; {hint}" if hint else ""
