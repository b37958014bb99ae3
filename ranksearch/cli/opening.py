"""How every command begins: the study that it is asked about, attached to its store, and the format that it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ranksearch.cli import costs, spaces
from ranksearch.cli.arguments import StudyArguments, given_words
from ranksearch.cli.session import Session, default_store
from ranksearch.errors import InvalidArgument
from ranksearch.printable import without_password

if TYPE_CHECKING:
    from ranksearch.study import Study
    from ranksearch.studyfile import StudyFile


def output_format(format_: str | None, out: Path | None, plot: Path | None = None) -> str:
    """The format to write, checked together with the file names before any work."""
    from ranksearch.cli import output
    from ranksearch.results import plots

    format_ = format_ or output.format_of(out)
    if format_ == "parquet" and out is None:
        raise InvalidArgument("--format parquet needs --out FILE: it is no text")
    if plot is not None:
        plots.check_path(plot)
    return format_


def session_of() -> Session:
    """What the command that runs has come to."""
    return click.get_current_context().find_object(Session) or Session()


def opened(asked: StudyArguments, store: str | None, *, session: Session, stored: bool, cost: Sequence[str] = ()) -> Study:
    """The study with its store attached, in the space that is asked for, with the costs of ``--cost`` and of the store. With
    ``stored``, options that are not given are those that the store was searched with."""
    for text in cost:
        costs.parsed(text)  # before the study is loaded
    session.check()
    file, options = asked.file, dict(asked.given)
    session.store = store or default_store(file.path.stem)
    known = _stored_options(file, session.store) if stored else {}
    missing = [o.flag for o in file.options if o.required and o.name not in {**known, **options}]
    if missing:
        where = f"; the store {session.store!r} does not have them either" if stored else ""
        raise InvalidArgument(f"{file.path} needs {', '.join(missing)}{where}")
    study = file.create({**known, **options})
    if store is None and study.name != file.path.stem:
        session.store = default_store(study.name)
        again = _stored_options(file, session.store) if stored else {}
        if any(study.options.get(name) != value for name, value in {**again, **options}.items() if name not in options):
            study = file.create({**again, **options})
    study = spaces.used(study.replace(store=session.store), asked.space, session.store)
    study = costs.used(study, cost, session.store)
    session.check()
    return study


def _stored_options(file: StudyFile, store: str) -> dict[str, Any]:
    options = (spaces.stored_details(store) or {}).get("options", {})
    known = {option.name for option in file.options}
    return {name: value for name, value in options.items() if name in known} if isinstance(options, dict) else {}


def command_line(asked: StudyArguments, store: str | None) -> Callable[[str], str]:
    """The command line of another command for the same study; of the same command, with the options that it was given, but for how many
    trials and which of them again."""
    import shlex

    ctx = click.get_current_context()

    def line(name: str) -> str:
        words = ["ranksearch", name, str(asked.file.path)]
        if name in ("search", "train-supernet"):
            for option in asked.file.options:
                if option.name in asked.given:
                    value = asked.given[option.name]
                    words += [option.flag if value else f"--no-{option.flag[2:]}"] if isinstance(value, bool) else [option.flag, str(value)]
            words += asked.space.words
        if name == ctx.command.name:
            words += given_words(ctx, without=("trials", "retry_failed", "store"))
        elif name == "front":
            words += given_words(ctx, only=("objective",))
        return shlex.join([*words, *(["--store", without_password(store)] if store else [])])

    return line
