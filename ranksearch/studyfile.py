"""Study files: a Python file that declares a study, as a function ``study`` whose parameters are its options, or as
an object ``study``. It is loaded by its path and needs no package around it."""

from __future__ import annotations

import difflib
import errno
import hashlib
import inspect
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from ranksearch.errors import InvalidArgument, RanksearchError, StudyFileError

if TYPE_CHECKING:
    from ranksearch.study import Study

NAME = "study"
TYPES = (Path, int, float, str, bool)


@dataclass(frozen=True)
class StudyOption:
    """One option that a study takes: a keyword parameter of its function."""

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
        """``value`` as the function takes it; text is read as the option's type.

        Raises:
            InvalidArgument: it cannot be read so, or is none of the choices.
        """
        if value is None and (self.optional or (not self.required and self.default is None)):
            return None
        wrong = InvalidArgument(f"option {self.flag}: {value!r} is not {_spelled(self)}")
        if self.choices:
            for choice in self.choices:
                if value == choice or (isinstance(value, str) and value == str(choice)):
                    return choice
            raise wrong
        if self.type is bool:
            words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
            found = value if isinstance(value, bool) else words.get(str(value).lower())
            if found is None:
                raise wrong
            return found
        if self.type is Path:
            if not isinstance(value, (str, Path)) or not str(value):
                raise wrong
            return Path(value).expanduser()
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise wrong
        if self.type is str:
            return str(value)
        if self.type is int and isinstance(value, float) and not value.is_integer():
            raise wrong
        try:
            return int(value) if self.type is int else float(value)
        except (ValueError, OverflowError) as error:
            raise wrong from error


@dataclass(frozen=True)
class StudyFile:
    """A loaded study file: its module, and what it takes."""

    path: Path
    module: ModuleType
    options: tuple[StudyOption, ...]
    help: str  # first paragraph of its docstring

    @property
    def modules(self) -> tuple[ModuleType, ...]:
        """The file's module and those that it imported from its own directory: workers cannot import them by name, so
        they are pickled by value."""
        return (self.module, *_neighbours(self.path.parent, self.module))

    def create(self, options: Mapping[str, Any] | None = None) -> Study:
        """The study, with its ``options`` set to all values it was made with, as JSON data (paths absolute).

        Raises:
            InvalidArgument: an unknown option, a missing one, or a value that does not fit.
            StudyFileError: the function fails, or returns something else than a study.
        """
        from ranksearch.study import Study

        given = dict(options or {})
        known = {option.name: option for option in self.options}
        for name in given:
            if name not in known:
                raise InvalidArgument(f"option {name!r} is not one of {self.path}{_hint(name, known)}")
        missing = [o.flag for o in self.options if o.required and o.name not in given]
        if missing:
            raise InvalidArgument(f"{self.path} needs {', '.join(missing)}")
        values = {o.name: o.convert(given[o.name]) if o.name in given else o.default for o in self.options}
        made = getattr(self.module, NAME)
        if not isinstance(made, Study):
            made = _guarded(self.path, f"{NAME}() fails", made, values)
            if inspect.isawaitable(made) or not isinstance(made, Study):
                raise StudyFileError(f"{self.path}: {NAME}() returns {_article(made)}, not a ranksearch.study.Study")
        return made.replace(options={n: str(value.absolute()) if isinstance(value, Path) else value for n, value in values.items()})


def load(path: str | Path) -> StudyFile:
    """Load a study file. Its directory is put first on ``sys.path``, as Python does for a script.

    Raises:
        StudyFileError: no such file, a directory, not Python, a syntax error, an exception while it is imported, no
            study in it or two, a study of a wrong type, parameters that cannot be options.
    """
    file = Path(path).absolute()
    shown = Path(path)
    source = _read(shown)
    directory = str(file.parent.resolve())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    # a name that is the same in every process, and another one for every file
    name = f"ranksearch_study_{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    module = ModuleType(name)
    module.__file__ = str(file)
    try:
        code = compile(source, str(file), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise StudyFileError(f"{shown}, line {error.lineno}: not valid Python: {error.msg}") from error
    except ValueError as error:
        raise StudyFileError(f"{shown} is not Python: {error}") from error
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        _guarded(shown, "importing it fails", lambda: exec(code, module.__dict__), {}, file=file)
        _check_object(shown, module)
        options = _options(shown, module)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    documented = inspect.getdoc(module) or ""
    return StudyFile(shown, module, options, " ".join(documented.split("\n\n")[0].split()))


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise StudyFileError(f"{path} is a directory; name a study file, such as {path / 'digits.py'}")
    if not path.exists():
        near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, near, n=1)
        raise StudyFileError(f"{path}: no such file" + (f"; did you mean {path.parent / close[0]}?" if close else ""))
    if path.suffix != ".py":
        raise StudyFileError(f"{path} is not a Python file (its name does not end in .py)")
    try:
        return path.read_bytes()
    except OSError as error:
        raise StudyFileError(f"{path} cannot be read: {error.strerror}") from error


def _guarded(shown: Path, what: str, function: Callable[..., Any], values: Mapping[str, Any], file: Path | None = None) -> Any:
    """Call the user's code: what it raises becomes one line with type, message and line. Deliberate errors and a full
    disk pass through."""
    try:
        return function(**values)
    except RanksearchError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        own = str(file or shown.absolute())
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
        where = f"{shown}, line {lines[-1]}" if lines else f"{shown}"
        message = " ".join(str(error).split())
        raise StudyFileError(f"{where}: {what}: {type(error).__name__}{': ' if message else ''}{message}") from error


def _check_object(path: Path, module: ModuleType) -> None:
    from ranksearch.study import Study

    objects = [name for name, value in vars(module).items() if isinstance(value, Study)]
    found = getattr(module, NAME, None)
    if found is None:
        near = f"; it has {', '.join(objects)}: rename it to {NAME}" if objects else ""
        functions = [name for name, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__]
        close = difflib.get_close_matches(NAME, functions, n=1, cutoff=0.7)
        near = near or (f"; did you mean {close[0]}()?" if close else "")
        raise StudyFileError(f"{path} declares no study: give it a function {NAME}() that returns a Study, or {NAME} = Study(...){near}")
    if isinstance(found, Study):
        return
    if inspect.iscoroutinefunction(found) or isinstance(found, type) or not callable(found):
        raise StudyFileError(f"{path}: {NAME} is {_article(found)}, neither a ranksearch.study.Study nor a function that returns one")
    if objects:
        raise StudyFileError(f"{path} declares a study twice: a function {NAME}() and an object {', '.join(objects)}; keep one")


def _options(path: Path, module: ModuleType) -> tuple[StudyOption, ...]:
    from ranksearch.study import Study

    function = getattr(module, NAME)
    if isinstance(function, Study):
        return ()
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise StudyFileError(f"{path}: the annotations of {NAME}() cannot be read: {type(error).__name__}: {error}") from error
    found = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise StudyFileError(f"{path}: {NAME}() takes {parameter}; its options are named parameters, such as *, epochs: int = 1")
        if parameter.name not in hints:
            raise StudyFileError(f"{path}: parameter {parameter.name!r} of {NAME}() has no type; annotate it with one of {_names()}")
        found.append(_option(path, parameter, hints[parameter.name]))
    return tuple(found)


def _option(path: Path, parameter: inspect.Parameter, hint: Any) -> StudyOption:
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
        raise StudyFileError(f"{path}: parameter {parameter.name!r} of {NAME}() has type {spelled}; an option is one of {_names()}")
    required = parameter.default is parameter.empty
    return StudyOption(parameter.name, kind, text, required, None if required else parameter.default, choices, optional)


def _names() -> str:
    return ", ".join(t.__name__ for t in TYPES) + ", Literal[...], or one of these | None"


def _spelled(option: StudyOption) -> str:
    if option.choices:
        return "one of " + ", ".join(str(choice) for choice in option.choices)
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}[option.type]


def _article(value: Any) -> str:
    name = type(value).__name__
    return "a class" if isinstance(value, type) else "None" if value is None else f"of type {name}"


def _hint(name: str, known: Mapping[str, StudyOption]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; it takes {', '.join(known)}" if known else "; it takes none"


def _neighbours(directory: Path, own: ModuleType) -> list[ModuleType]:
    root = directory.resolve()
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or module is own or name == "__main__" or name.split(".")[0] == "ranksearch":
            continue
        path = Path(file).resolve()
        if root in path.parents and not {"site-packages", "dist-packages"} & set(path.parts):
            found.append(module)
    return found
