"""Study files: a Python file that declares a study, as a function ``study`` whose parameters are its options, or as
an object ``study``. It is loaded by its path and needs no package around it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ranksearch.errors import StudyFileError
from ranksearch.studyfile.modules import article, guarded, loaded, neighbours
from ranksearch.studyfile.options import DeclaredOption, as_json, declared_options, values

if TYPE_CHECKING:
    from ranksearch.study import Study

NAME = "study"


@dataclass(frozen=True)
class StudyFile:
    """A loaded study file: its module, and what it takes."""

    path: Path
    module: ModuleType
    options: tuple[DeclaredOption, ...]
    help: str  # first paragraph of its docstring

    @property
    def modules(self) -> tuple[ModuleType, ...]:
        """The file's module and those that it imported from its own directory or from ``search_spaces``: workers cannot
        import them by name, so they are pickled by value."""
        return (self.module, *neighbours(self.path, self.module))

    def create(self, options: Mapping[str, Any] | None = None) -> Study:
        """The study, with its ``options`` set to all values it was made with, as JSON data (paths absolute).

        Raises:
            InvalidArgument: an unknown option, a missing one, or a value that does not fit.
            StudyFileError: the function fails, or returns something else than a study.
        """
        from ranksearch.study import Study

        taken = values(self.path, self.options, options)
        made = getattr(self.module, NAME)
        if not isinstance(made, Study):
            made = guarded(self.path, f"{NAME}() fails", made, taken)
            if inspect.isawaitable(made) or not isinstance(made, Study):
                raise StudyFileError(f"{self.path}: {NAME}() returns {article(made)}, not a ranksearch.study.Study")
        return made.replace(options=as_json(taken), modules=self.modules)


def load(path: str | Path) -> StudyFile:
    """Load a study file. Its directory is put first on ``sys.path``, as Python does for a script; so is the nearest folder
    above it that has a folder ``search_spaces``.

    Raises:
        StudyFileError: no such file, a directory, not Python, a syntax error, an exception while it is imported, no
            study in it or two, a study of a wrong type, parameters that cannot be options.
    """
    from ranksearch.study import Study

    with loaded(path, NAME, first=True) as (shown, module):
        _check_object(shown, module)
        declared = getattr(module, NAME)
        options = () if isinstance(declared, Study) else declared_options(shown, NAME, declared)
    documented = inspect.getdoc(module) or ""
    return StudyFile(shown, module, options, " ".join(documented.split("\n\n")[0].split()))


def load_study(path: str | Path, **options: Any) -> Study:
    """The study that a file declares, as the command line makes it: the same name and store, so that either goes on with what the other
    has evaluated.

    Args:
        path: of the file; ``~`` is a home folder.
        options: of its function ``study``, by the names of its parameters.

    Raises:
        StudyFileError: see `load` and `StudyFile.create`.
        InvalidArgument: an unknown option, a missing one, or a value that does not fit.
    """
    return load(path).create(options)


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
        raise StudyFileError(f"{path}: {NAME} is {article(found)}, neither a ranksearch.study.Study nor a function that returns one")
    if objects:
        raise StudyFileError(f"{path} declares a study twice: a function {NAME}() and an object {', '.join(objects)}; keep one")
