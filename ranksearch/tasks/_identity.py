"""A description of a user's function that is the same in any process: a part of fingerprints."""

from __future__ import annotations

import functools
import inspect
from dataclasses import fields, is_dataclass
from typing import Any

from ranksearch.errors import InvalidArgument


def identity(argument: str, given: Any) -> str:
    """A text that tells one callable from another: functions by their source, partial ones by their arguments too, dataclasses by
    their fields, other objects by their repr.

    Args:
        argument: what the user calls it, for the error.

    Raises:
        InvalidArgument: nothing stable tells it.
    """
    if isinstance(given, functools.partial):
        keywords = sorted(given.keywords.items())
        return f"{identity(argument, given.func)}\n{_lasting(argument, given, repr((given.args, keywords)))}"
    if inspect.isfunction(given):
        function = inspect.unwrap(given)  # what decorators of libraries close over is the function itself
        if function.__closure__ is not None:
            raise InvalidArgument(
                f"{argument}={given!r} closes over variables, which no fingerprint sees: use a frozen dataclass, or functools.partial"
            )
        try:
            return f"{function.__qualname__}\n{inspect.getsource(function)}"
        except OSError:  # typed at a prompt
            return f"{function.__qualname__}\n{function.__code__.co_code.hex()}"
    if is_dataclass(given) and not isinstance(given, type):
        told = [(f.name, value if not callable(value := getattr(given, f.name)) else identity(argument, value)) for f in fields(given)]
        return _lasting(argument, given, f"{type(given).__qualname__} {told!r}")
    return _lasting(argument, given, repr(given))


def _lasting(argument: str, given: Any, text: str) -> str:
    if " at 0x" in text:
        raise InvalidArgument(f"{argument}={given!r} has no lasting description: use a function, or a frozen dataclass of plain values")
    return text
