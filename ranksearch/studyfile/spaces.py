"""Declared search spaces: a function of a Python file that returns a `SpaceSpec` and whose parameters are its options, such
as those in ``search_spaces/``, or one of the package's by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ranksearch.errors import InvalidArgument, StudyFileError
from ranksearch.home import user_path
from ranksearch.studyfile.modules import article, guarded, loaded, neighbours
from ranksearch.studyfile.options import DeclaredOption, as_json, declared_options, values

if TYPE_CHECKING:
    from ranksearch.space import SpaceSpec

NAME = "space"


@dataclass(frozen=True)
class DeclaredSpace:
    """A search space that was found by name or in a file, and what it takes."""

    source: str  # how it is named, wherever one stands: a name of the package's, or FILE:FUNCTION with an absolute path
    shown: Path  # as the user named it
    function: str
    module: ModuleType | None  # None: the package's own
    options: tuple[DeclaredOption, ...]
    _made: Callable[..., SpaceSpec] | SpaceSpec

    @property
    def modules(self) -> tuple[ModuleType, ...]:
        """The file's module and those that it imported from its own directory: they are pickled by value for workers."""
        return () if self.module is None else (self.module, *neighbours(self.shown, self.module))

    def create(self, options: Mapping[str, Any] | None = None) -> tuple[SpaceSpec, dict[str, Any]]:
        """The space, and the values of all its options as JSON data (paths absolute).

        Raises:
            InvalidArgument: an unknown option, a missing one, or a value that does not fit.
            StudyFileError: the function fails, or returns something else than a space.
        """
        from ranksearch.space import SpaceSpec

        taken = values(self.shown, self.options, options)
        made = self._made
        if not isinstance(made, SpaceSpec):
            made = guarded(self.shown, f"{self.function}() fails", made, taken)
            if not isinstance(made, SpaceSpec):
                raise StudyFileError(f"{self.shown}: {self.function}() returns {article(made)}, not a ranksearch.space.SpaceSpec")
        return made, as_json(taken)


def load_space(text: str) -> DeclaredSpace:
    """Find a declared space.

    Args:
        text: ``mixture``, ``svd_only`` or ``all_types`` of the package; or ``FILE`` or ``FILE:FUNCTION``, a Python file and
            the name of a function in it (default ``space``), or of a `SpaceSpec` there.

    Raises:
        InvalidArgument: it is neither a name nor a Python file.
        StudyFileError: the file cannot be loaded, or has no such function.
    """
    from ranksearch.space import SpaceSpec
    from ranksearch.space.specs import PACKAGED

    if text in PACKAGED:
        return DeclaredSpace(text, Path(text), text, None, declared_options(Path(text), text, PACKAGED[text]), PACKAGED[text])
    file, colon, function = text.rpartition(":")
    if not colon or not file.endswith(".py"):
        file, function = text, NAME
    if not file or (not file.endswith(".py") and not user_path(file).exists()):
        close = difflib.get_close_matches(text, PACKAGED, n=1)
        hint = f"did you mean {close[0]}?" if close else f"name one of {', '.join(PACKAGED)}, or a file as FILE.py or FILE.py:FUNCTION"
        raise InvalidArgument(f"space {text!r} is neither a space of ranksearch nor a Python file; {hint}")
    with loaded(file, NAME, first=False) as (shown, module):
        found = getattr(module, function, None)
        if isinstance(found, SpaceSpec):
            options = ()
        elif inspect.isfunction(found) and not inspect.iscoroutinefunction(found):
            options = declared_options(shown, function, found)
        else:
            raise StudyFileError(f"{shown} declares no space {function!r}: {_remedy(module, function)}")
    return DeclaredSpace(f"{shown.absolute()}:{function}", shown, function, module, options, found)


def _remedy(module: ModuleType, function: str) -> str:
    own = [name for name, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__]
    if close := difflib.get_close_matches(function, own, n=1):
        return f"did you mean {close[0]}?"
    listed = f"; it has the functions {', '.join(own)}: name one as FILE:FUNCTION" if own else ""
    return f"give it a function {function}() that returns a SpaceSpec{listed}"
