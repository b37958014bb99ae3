"""``--space``: which declared search space a command works in, given on the command line or stored with the study."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ranksearch.errors import InvalidArgument, RanksearchError, StoreError

if TYPE_CHECKING:
    from ranksearch.study import Study
    from ranksearch.studyfile import DeclaredSpace

OWN = "study"  # --space study: the one that the study file declares
Choice = Mapping[str, Any]  # source and options, as a study stores it


@dataclass(frozen=True)
class SpaceArguments:
    """What a command line says of the space."""

    text: str | None = None  # of --space; None: as the store has it
    declared: DeclaredSpace | None = None  # None: the study's own
    given: Mapping[str, Any] = field(default_factory=dict)  # its options on the command line

    @property
    def words(self) -> list[str]:
        """The same on another command line."""
        if self.text is None:
            return []
        words = ["--space", self.text]
        for option in () if self.declared is None else self.declared.options:
            if option.name in self.given:
                value, flag = self.given[option.name], option.flag
                words += [flag if value else f"--no-{flag[2:]}"] if isinstance(value, bool) else [flag, str(value)]
        return words


def declared_space(text: str | None, store: str) -> DeclaredSpace | None:
    """The space that ``--space`` names, or, without one, that a store was searched in; None: the study's own.

    Raises:
        InvalidArgument, StudyFileError: it cannot be found or loaded.
    """
    from ranksearch.studyfile import load_space

    if text is not None:
        return None if text == OWN else load_space(text)
    choice = stored_choice(store)
    if choice is None:
        return None
    try:
        return load_space(choice["source"])
    except RanksearchError as error:
        raise InvalidArgument(
            f"store {store!r} was searched in the space {choice['source']}, which cannot be loaded ({error}); "
            f"give --space FILE, or --space {OWN} for the study's own"
        ) from error


def used(study: Study, asked: SpaceArguments, store: str) -> Study:
    """The study in the space that is asked for, or that the store was searched in. Options that are not given are those of
    the store if it was searched in the same space."""
    declared = asked.declared if asked.declared is not None or asked.text == OWN else declared_space(None, store)
    if declared is None:
        return study
    choice = stored_choice(store)
    known: dict[str, Any] = {}
    if choice is not None and choice["source"] == declared.source:
        names = {option.name for option in declared.options}
        known = {name: value for name, value in choice["options"].items() if name in names}
    spec, options = declared.create({**known, **asked.given})
    return study.with_space(spec, source=declared.source, options=options)


def change(study: Study, store: str) -> str | None:
    """One line where a search goes on in another space than the store was last searched in; None where it does not."""
    details = stored_details(store)
    before, after = stored_choice(store), study.space_choice
    if details is None or before == after:
        return None
    return f"space: {described(after)} instead of {described(before)}; what is stored stays, and counts among --trials"


def described(choice: Choice | None) -> str:
    """A space in words."""
    if choice is None:
        return "the study's own"
    options = [f"{name}={value}" for name, value in choice["options"].items()]
    return shlex.join([choice["source"]]) + (f" ({', '.join(options)})" if options else "")


def stored_choice(store: str) -> Choice | None:
    """Which declared space a store was last searched in; None: the study's own, or there is no store."""
    choice = (stored_details(store) or {}).get("space")
    if not isinstance(choice, dict) or not isinstance(choice.get("source"), str) or not isinstance(choice.get("options"), dict):
        return None
    return choice


def stored_details(store: str) -> dict[str, Any] | None:
    """What a store knows of its study; None where there is none that can be read: the study's own access to it tells
    what is wrong."""
    from ranksearch.home import user_path
    from ranksearch.store import Store

    if "://" not in store and not user_path(store).exists():
        return None
    try:
        with Store.open(store, create=False) as opened:
            return opened.details
    except StoreError:
        return None
