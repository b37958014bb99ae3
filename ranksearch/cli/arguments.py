"""A command that takes a study file and, after reading it, the options that the file declares."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from ranksearch.cli.session import Session, default_store
from ranksearch.cli.spaces import SpaceArguments, declared_space
from ranksearch.errors import StudyFileError
from ranksearch.home import user_path

if TYPE_CHECKING:
    from ranksearch.studyfile import DeclaredOption, DeclaredSpace, StudyFile

PREFIX, SPACE_PREFIX = "study_option_", "space_option_"  # keep parameters of a study and of a space apart from ours
YIELDING = {"seed"}  # our options that a study may declare as its own


@dataclass(frozen=True)
class StudyArguments:
    """What a command line says of the study."""

    file: StudyFile
    given: Mapping[str, Any]  # the study's options on the command line
    space: SpaceArguments

    @property
    def modules(self) -> tuple[ModuleType, ...]:
        """What workers cannot import by name."""
        return (*self.file.modules, *(self.space.declared.modules if self.space.declared else ()))


class UserPath(click.Path):
    """A path in which ``~`` is a home folder, also where no shell has replaced it (``--out=~/x``)."""

    def __init__(self, *, dir_okay: bool = True, file_okay: bool = True) -> None:
        super().__init__(dir_okay=dir_okay, file_okay=file_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(user_path(value), param, ctx)


class MaybeValued(click.Option):
    """An option that may stand without its value: the value is then empty text."""


class NameIn(click.ParamType):
    """The name of an entry of a table such as ``ranksearch.samplers.SAMPLERS``, which is imported when a name is checked or the help
    shows what there is."""

    name = "name"

    def __init__(self, module: str, table: str) -> None:
        self.module, self.table = module, table

    def names(self) -> list[str]:
        """What the table has."""
        return [entry.name for entry in getattr(import_module(f"ranksearch.{self.module}"), self.table)]

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(self.names())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        names = self.names()
        if value not in names:
            self.fail(f"{value!r} is not one of {', '.join(names)}", param, ctx)
        return value


class Group(click.Group):
    """Proposes the command that was meant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of use

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            close = difflib.get_close_matches(name, self.commands, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"commands are {', '.join(self.commands)}"
            if name.endswith(".py"):
                hint = f"put a command before it: ranksearch search {name}"
            ctx.fail(f"no such command {name!r}; {hint}")
        return super().resolve_command(ctx, args)


class StudyCommand(click.Command):
    """``STUDY`` is read before the rest is parsed; its options are added to this command's, in a group of their own.
    So are those of the space that ``--space`` names, or that the store was searched in. The callback gets ``asked``.

    Args:
        keeps: names of parameters that stay this command's where the study has an option of that name; the study's is
            then written ``--study-NAME``. An option of a space that has the name of any other is written ``--space-NAME``.
    """

    def __init__(self, *args: Any, keeps: Collection[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keeps = frozenset(keeps)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        path = self._find(args)
        file: StudyFile | None = None
        space: DeclaredSpace | None = None
        own = list(self.params)
        if path is not None:
            session = ctx.find_object(Session)
            store = _given(args, "--store") or default_store(Path(path).stem)
            if session is not None:  # an interrupt may come before the arguments are parsed
                session.searching, session.training = self.name == "search", self.name == "train-supernet"
                session.store = store
            from ranksearch.studyfile import load

            file = load(path)
            kept = {name for p in own if p.name in self.keeps for name in _names(p)}
            renamed = [f"--study-{option.flag[2:]}" if option.flag in kept else option.flag for option in file.options]
            options = [_click_option(option, PREFIX, flag) for option, flag in zip(file.options, renamed, strict=True)]
            self.params = [*self._without(own, file), *options]
            space = declared_space(_given(args, "--space"), store)
            self.params += _space_options(space, self.params)
        args = self._with_values(args, path)
        ctx.meta["file"], ctx.meta["space"] = file, space
        ctx.meta["label"] = path
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            names = [name for parameter in self.get_params(ctx) for name in _names(parameter) if name.startswith("--")]
            close = difflib.get_close_matches(error.option_name, names, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"see ranksearch {self.name} {path or 'STUDY'} --help"
            raise click.UsageError(f"no such option {error.option_name}; {hint}", ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        given: dict[str, dict[str, Any]] = {PREFIX: {}, SPACE_PREFIX: {}}
        for name in list(ctx.params):
            prefix = next((prefix for prefix in given if name.startswith(prefix)), None)
            if prefix is not None:
                value = ctx.params.pop(name)
                if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
                    given[prefix][name.removeprefix(prefix)] = value
        ctx.params.pop("study", None)
        space = SpaceArguments(ctx.params.pop("space", None), ctx.meta["space"], given[SPACE_PREFIX])
        asked = StudyArguments(ctx.meta["file"], given[PREFIX], space)
        return ctx.invoke(self.callback, asked=asked, **ctx.params) if self.callback else None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        file: StudyFile | None = ctx.meta.get("file")
        space: DeclaredSpace | None = ctx.meta.get("space")
        records: dict[str, list[tuple[str, str]]] = {PREFIX: [], SPACE_PREFIX: [], "": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                records[next(prefix for prefix in records if (parameter.name or "").startswith(prefix))].append(record)
        titles = {PREFIX: f"Options of {file.path if file else ''}", "": "Options"}
        titles[SPACE_PREFIX] = f"Options of the space {space.source if space else ''}"
        for prefix, found in records.items():
            if found:
                with formatter.section(titles[prefix]):
                    formatter.write_dl(found)
        if file is None:
            formatter.write_paragraph()
            formatter.write_text(f"A study may take options of its own: ranksearch {self.name} STUDY --help shows them.")

    def _find(self, args: list[str]) -> str | None:
        """STUDY, wherever it stands: the first argument that is no option and no option's value; one that ends in .py
        goes before one that might be the value of an option of the study."""
        options = [p for p in self.params if isinstance(p, click.Option) and not p.is_flag and not isinstance(p, MaybeValued)]
        valued = {name for p in options for name in p.opts}
        found, skip = [], False
        for index, argument in enumerate(args):
            if skip:
                skip = False
            elif argument == "--":
                found += args[index + 1 :]
                break
            elif argument.startswith("-") and argument != "-":
                skip = argument in valued
            else:
                found.append(argument)
        return next((a for a in found if a.endswith(".py")), found[0] if found else None)

    def _with_values(self, args: list[str], path: str | None) -> list[str]:
        """The arguments, an empty value with every `MaybeValued` option that has none."""
        maybe = {name for p in self.params if isinstance(p, MaybeValued) for name in p.opts}
        following = [*args[1:], None][: len(args)]
        return [
            f"{argument}=" if argument in maybe and (then is None or then.startswith("-") or then == path) else argument
            for argument, then in zip(args, following, strict=True)
        ]

    def _without(self, own: list[click.Parameter], file: StudyFile) -> list[click.Parameter]:
        """Our parameters but those that the study declares itself."""
        declared = {option.flag for option in file.options}
        kept = []
        for parameter in own:
            clash = declared & set(_names(parameter))
            if not clash or parameter.name in self.keeps:
                kept.append(parameter)
            elif parameter.name not in YIELDING:
                raise StudyFileError(f"{file.path}: its option {clash.pop()} is the command's own; name the parameter of study() otherwise")
        return kept


def given_words(ctx: click.Context, *, only: Collection[str] | None = None, without: Collection[str] = ()) -> list[str]:
    """The options that this command line gave of the command's own, for another command line: all, or ``only`` those of these names, but
    none ``without``."""
    words: list[str] = []
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if not isinstance(parameter, click.Option) or name not in ctx.params or name in without or (only is not None and name not in only):
            continue
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        value = ctx.params[name]
        for each in value if parameter.multiple else [value]:
            words += [parameter.opts[0], *([] if parameter.is_flag or each == "" else [str(each)])]
    return words


def _names(parameter: click.Parameter) -> list[str]:
    return [*parameter.opts, *parameter.secondary_opts]


def _given(args: list[str], name: str) -> str | None:
    """The value of an option in arguments that are not parsed yet."""
    for argument, following in zip(args, [*args[1:], None], strict=True):
        if argument == name:
            return following
        if argument.startswith(name + "="):
            return argument[len(name) + 1 :]
    return None


def _space_options(space: DeclaredSpace | None, others: Sequence[click.Parameter]) -> list[click.Option]:
    """The options of a space; one that has the name of another option has ``space-`` before it."""
    taken = {name for parameter in others for name in _names(parameter)}
    found: list[click.Option] = []
    if space is None:
        return found
    for option in space.options:
        flag = f"--space-{option.flag[2:]}" if {option.flag, f"--no-{option.flag[2:]}"} & taken else option.flag
        if flag in taken:
            raise StudyFileError(f"{space.shown}: its option {flag} is another one's; rename the parameter {option.name!r}")
        found.append(_click_option(option, SPACE_PREFIX, flag))
    return found


def _click_option(option: DeclaredOption, prefix: str, flag: str) -> click.Option:
    kinds: dict[Any, Any] = {Path: UserPath(), int: int, float: float, str: str}
    text = option.help
    if option.required:
        text = f"{text}  [required]".strip()
    elif option.default is not None:
        text = f"{text}  [default: {option.default}]".strip()
    names = [prefix + option.name, flag]
    if option.type is bool and not option.choices:
        names[1] = f"{flag}/--no-{flag[2:]}"
        return click.Option(names, default=None, help=text)
    kind = click.Choice([str(choice) for choice in option.choices]) if option.choices else kinds[option.type]
    metavar = None if option.choices else {Path: "PATH", int: "N", float: "X", str: "TEXT"}[option.type]
    return click.Option(names, type=kind, default=None, help=text, metavar=metavar)
