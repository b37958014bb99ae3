"""Python files loaded by their path, with no package around them; whatever is wrong with them becomes one line."""

from __future__ import annotations

import difflib
import errno
import functools
import hashlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ranksearch.errors import RanksearchError, StudyFileError
from ranksearch.home import user_path

SPACES = "search_spaces"  # the folder of declared spaces; what is above a file and has one can be imported from


@contextmanager
def loaded(path: str | Path, kind: str, *, first: bool) -> Iterator[tuple[Path, ModuleType]]:
    """Load a Python file: the path to show, and its module. The module stays in ``sys.modules`` if the block succeeds.

    The file's directory is put on ``sys.path``, and so is the nearest folder above the file that holds ``search_spaces``,
    so that ``from search_spaces.vit import space`` works in a study file of a fresh clone, wherever it is run from.

    Args:
        path: of the file; ``~`` is a home folder.
        kind: ``study`` or ``space``, part of the module's name.
        first: the directory goes first, as Python does for a script; else last, so that it hides nothing.

    Raises:
        StudyFileError: no such file, a directory, not Python, a syntax error, an exception while it is imported.
    """
    shown = user_path(path)
    file = shown.absolute()
    source = _read(shown)
    _on_path(file, first=first)
    # a name that is the same in every process, and another one for every file
    name = f"ranksearch_{kind}_{file.stem}_{hashlib.sha256(str(file.resolve()).encode(errors='surrogateescape')).hexdigest()[:8]}"
    module = ModuleType(name)
    module.__file__ = str(file)
    try:
        code = compile(source, str(file), "exec", dont_inherit=True)
    except SyntaxError as error:
        line = "" if error.lineno is None else f", line {error.lineno}"
        raise StudyFileError(f"{shown}{line}: not valid Python: {error.msg}") from error
    except ValueError as error:
        raise StudyFileError(f"{shown} is not Python: {error}") from error
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        guarded(shown, "importing it fails", lambda: exec(code, module.__dict__), {}, file=file)
        yield shown, module
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise


def neighbours(path: Path, own: ModuleType) -> tuple[ModuleType, ...]:
    """The modules that a file imported from its own directory, or from the ``search_spaces`` above it."""
    directory = path.parent.resolve()
    root = _root(directory)
    folders = {directory} | ({root / SPACES} if root else set())
    place = functools.cache(lambda folder: Path(folder).resolve())  # most modules share theirs with others
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or module is own or name == "__main__" or name.split(".")[0] == "ranksearch":
            continue
        folder = place(os.path.dirname(file))
        if folders & {folder, *folder.parents} and not {"site-packages", "dist-packages"} & set(folder.parts):
            found.append(module)
    return tuple(found)


def guarded(shown: Path, what: str, function: Callable[..., Any], values: Mapping[str, Any], file: Path | None = None) -> Any:
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


def article(value: Any) -> str:
    """What a value is, in words."""
    name = type(value).__name__
    return "a class" if isinstance(value, type) else "None" if value is None else f"of type {name}"


def _on_path(file: Path, *, first: bool) -> None:
    directory = file.parent.resolve()
    at = 0 if first else len(sys.path)
    for folder in (_root(directory), directory):
        if folder is not None and str(folder) not in sys.path:
            sys.path.insert(at, str(folder))


def _root(directory: Path) -> Path | None:
    """The nearest folder, this one or above, that has a folder ``search_spaces``."""
    return next((folder for folder in (directory, *directory.parents) if (folder / SPACES).is_dir()), None)


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise StudyFileError(f"{path} is a directory; name a Python file in it")
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
