"""Options that a function declares as its typed parameters: read from its signature, values converted and checked."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ranksearch.errors import InvalidArgument, StudyFileError
from ranksearch.home import user_path


@dataclass(frozen=True)
class DeclaredOption:
    """One option: a named parameter of the function."""

    name: str
    type: type[Path] | type[int] | type[float] | type[str] | type[bool]
    help: str = ""
    required: bool = False
    default: Any = None
    choices: tuple[Any, ...] = ()  # of a Literal
    optional: bool = False  # None is a value

    @property
    def flag(self) -> str:
        """How the command line spells it."""
        return "--" + self.name.replace("_", "-")

    def convert(self, value: Any) -> Any:
        """``value`` as the function takes it; text is read as the option's type, and ``~`` of a path is a home folder.

        Raises:
            InvalidArgument: it cannot be read so, or is none of the choices.
        """
        if value is None and (self.optional or (not self.required and self.default is None)):
            return None
        try:
            return _choice(self.choices, value) if self.choices else READERS[self.type](value)
        except (ValueError, OverflowError) as error:
            raise InvalidArgument(f"option {self.flag}: {value!r} is not {_spelled(self)}") from error


def _choice(choices: tuple[Any, ...], value: Any) -> Any:
    for choice in choices:
        if value == choice or (isinstance(value, str) and value == str(choice)):
            return choice
    raise ValueError("none of the choices")


def _truth(value: Any) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    found = value if isinstance(value, bool) else words.get(str(value).lower())
    if found is None:
        raise ValueError("neither true nor false")
    return found


def _path(value: Any) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError("no path")
    return user_path(value)


def _text(value: Any) -> str:
    return str(_scalar(value))


def _whole(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("a fraction")
    return int(_scalar(value))


def _number(value: Any) -> float:
    return float(_scalar(value))


def _scalar(value: Any) -> str | int | float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("neither text nor a number")
    return value


# how a value of each type is read (what cannot be is a ValueError), and how an error calls the type
READERS: dict[type, Callable[[Any], Any]] = {Path: _path, int: _whole, float: _number, str: _text, bool: _truth}
TYPES = tuple(READERS)
SPELLED = {Path: "a path", int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def declared_options(path: Path, name: str, function: Callable[..., Any]) -> tuple[DeclaredOption, ...]:
    """The options of a function of a file, in the order of its parameters.

    Raises:
        StudyFileError: a parameter that cannot be an option.
    """
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise StudyFileError(f"{path}: the annotations of {name}() cannot be read: {type(error).__name__}: {error}") from error
    found = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise StudyFileError(f"{path}: {name}() takes {parameter}; its options are named parameters, such as *, epochs: int = 1")
        if parameter.name not in hints:
            raise StudyFileError(f"{path}: parameter {parameter.name!r} of {name}() has no type; annotate it with one of {_names()}")
        found.append(_option(path, name, parameter, hints[parameter.name]))
    return tuple(found)


def values(label: str | Path, options: Sequence[DeclaredOption], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The value of every option: what is given, converted, and the defaults.

    Raises:
        InvalidArgument: an unknown option, a missing one, or a value that does not fit.
    """
    given = dict(given or {})
    known = {option.name: option for option in options}
    for name in given:
        if name not in known:
            raise InvalidArgument(f"option {name!r} is not one of {label}{_hint(name, known)}")
    missing = [o.flag for o in options if o.required and o.name not in given]
    if missing:
        raise InvalidArgument(f"{label} needs {', '.join(missing)}")
    return {o.name: o.convert(given[o.name]) if o.name in given else _default(o) for o in options}


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of options as JSON data: paths are absolute, so that they mean the same from another folder."""
    return {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in values.items()}


def _default(option: DeclaredOption) -> Any:
    return user_path(option.default) if isinstance(option.default, Path) else option.default


def _option(path: Path, name: str, parameter: inspect.Parameter, hint: Any) -> DeclaredOption:
    text = ""
    if get_origin(hint) is Annotated:
        hint, *extra = get_args(hint)
        text = next((e for e in extra if isinstance(e, str)), "")
    optional = False
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not types.NoneType]
        optional = len(parts) < len(get_args(hint))
        hint = parts[0] if len(parts) == 1 else hint
    choices: tuple[Any, ...] = get_args(hint) if get_origin(hint) is Literal else ()
    kind = type(choices[0]) if choices else hint
    if kind not in TYPES or any(type(choice) is not kind for choice in choices):
        spelled = getattr(hint, "__name__", None) or str(hint)
        raise StudyFileError(f"{path}: parameter {parameter.name!r} of {name}() has type {spelled}; an option is one of {_names()}")
    required = parameter.default is parameter.empty
    option = DeclaredOption(parameter.name, kind, text, required, None if required else parameter.default, choices, optional)
    if not required:
        try:
            option.convert(option.default)
        except InvalidArgument as error:
            raise StudyFileError(f"{path}: the default of {name}(): {error}") from error
    return option


def _names() -> str:
    return ", ".join(t.__name__ for t in TYPES) + ", Literal[...], or one of these | None"


def _spelled(option: DeclaredOption) -> str:
    if option.choices:
        return "one of " + ", ".join(str(choice) for choice in option.choices)
    return SPELLED[option.type]


def _hint(name: str, known: Mapping[str, DeclaredOption]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; it takes {', '.join(known)}" if known else "; it takes none"
