"""The commands. Heavy packages are imported when a command runs, not before: ``--help`` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ranksearch.cli import costs, spaces
from ranksearch.cli.arguments import Group, MaybeValued, NameIn, StudyArguments, StudyCommand, UserPath
from ranksearch.cli.session import Session, default_store
from ranksearch.errors import EmptySpace, InvalidArgument

if TYPE_CHECKING:
    from ranksearch.runners import Runner
    from ranksearch.study import Study
    from ranksearch.studyfile import StudyFile

STORE_HELP = "A path (SQLite) or any SQLAlchemy URL.  [default: the study's name in $RANKSEARCH_HOME or .ranksearch]"
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


def execute(arguments: Sequence[str], session: Session) -> int:
    """Run a command line; returns the exit code. Errors of ranksearch, OSError and KeyboardInterrupt pass through."""
    try:
        command = root()  # not its main(): that ends the process by itself when a pipe breaks
        with command.make_context("ranksearch", list(arguments), obj=session) as context:
            command.invoke(context)
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.UsageError as error:
        text = " ".join(error.format_message().split())
        print(f"error: {text[:1].lower()}{text[1:].rstrip('.')}", file=sys.stderr)
        return 2
    except click.Abort as error:
        raise KeyboardInterrupt from error
    except click.ClickException as error:
        print(f"error: {error.format_message()}", file=sys.stderr)
        return 2


def root() -> click.Group:
    """The command ``ranksearch``, new: commands take on the options of a study as they read it."""
    from ranksearch import __version__

    group = Group(
        "ranksearch",
        help="Search the ranks and decomposition types of every layer of a trained network.\n\nSTUDY is a Python file that declares "
        "a study. Begin with: ranksearch profile STUDY, then ranksearch search STUDY.",
        context_settings=SETTINGS,
    )
    group.params.append(_version(__version__))
    for name, function, parameters, short in (
        ("profile", profile, _profile_parameters, "What there is to choose, before anything is paid for."),
        ("train-supernet", train_supernet, _train_parameters, "Train one network for all sizes."),
        ("search", search, _search_parameters, "Evaluate networks, and go on where it stopped."),
        ("front", front, _front_parameters, "The networks that no other one beats."),
        ("proxies", proxies, _proxies_parameters, "How well cheap scores predicted what was measured."),
        ("compress", compress, _compress_parameters, "A smaller network at once, without training."),
        ("build", build, _build_parameters, "One of them as plain PyTorch, on disk."),
    ):
        texts = {"help": function.__doc__, "short_help": short}
        keeps = ("method", "epochs", "sampling") if name == "train-supernet" else ()
        command = StudyCommand(name, callback=function, params=parameters(), context_settings=SETTINGS, keeps=keeps, **texts)
        group.add_command(command)
    return group


def _version(version: str) -> click.Option:
    def show(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            click.echo(f"ranksearch {version}")
            ctx.exit()

    return click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=show, help="Show the version.")


def _study() -> click.Argument:
    return click.Argument(["study"], metavar="STUDY")


def _store() -> click.Option:
    return click.Option(["--store"], metavar="URL|PATH", help=STORE_HELP)


def _space() -> click.Option:
    text = "Search space: mixture, svd_only, all_types, or FILE.py[:FUNCTION]; 'study': its own.  [default: as last searched, else its own]"
    return click.Option(["--space"], metavar="NAME|FILE", help=text)


def _format() -> click.Option:
    return click.Option(["--format", "format_"], type=click.Choice(["table", "csv", "json"]), default="table", help="[default: table]")


def _formats() -> click.Option:
    choices = click.Choice(["table", "csv", "json", "parquet"])
    return click.Option(["--format", "format_"], type=choices, help="[default: as --out is named]")


def _format_of(format_: str | None, out: Path | None, plot: Path | None) -> str:
    """The format to write, checked together with the file names before any work."""
    from ranksearch.cli import output
    from ranksearch.results import plots

    format_ = format_ or output.format_of(out)
    if format_ == "parquet" and out is None:
        raise InvalidArgument("--format parquet needs --out FILE: it is no text")
    if plot is not None:
        plots.check_path(plot)
    return format_


def _fidelity() -> click.Option:
    text = "Of the measurements: a key of the store, its beginning, or a supernet's method or key.  [default: the study's]"
    return click.Option(["--fidelity"], metavar="KEY|supernet", help=text)


def _objective() -> click.Option:
    return click.Option(["--objective"], multiple=True, metavar="NAME", help="Instead of the study's objectives; repeatable.")


def _cost() -> click.Option:
    text = "Count this too: bytes, or latency; settings as in bytes:dtype=bfloat16 or latency:runtime=compile,batch=8; repeatable."
    return click.Option(["--cost"], multiple=True, metavar="NAME[:SETTING=VALUE,...]", help=text)


def _profile_parameters() -> list[click.Parameter]:
    return [
        _study(),
        _cost(),
        click.Option(["--latency"], is_flag=True, help="Measure latency, and show from which rank on each type is really faster."),
        click.Option(
            ["--write-table"], type=UserPath(dir_okay=False), metavar="FILE",
            help="Write the latency table as CSV; --cost latency:table=FILE reads it.",
        ),
        _space(), _store(), _format(),
    ]  # fmt: skip


def profile(
    asked: StudyArguments, cost: tuple[str, ...], latency: bool, write_table: Path | None, store: str | None, format_: str
) -> None:
    """Show what a search would work on: sites, their options and costs, and what was skipped and why."""
    from ranksearch.cli import latency as latencies
    from ranksearch.cli import results
    from ranksearch.cli.progress import SiteProgress

    study = _open(asked, store, session=_session(), stored=True, cost=cost)
    if (latency or write_table is not None) and not latencies.has_latency(study):
        study = costs.used(study, ["latency"], study.store_url)
    with SiteProgress() as progress, suppress(EmptySpace):  # what was skipped is shown nevertheless; then it is an error
        study.profile(progress.event)
    results.profile(study, format_, latency=latency)
    if write_table is not None:
        latencies.write(study, write_table)
        print(f"latency table written to {write_table}", file=sys.stderr)


def _train_parameters() -> list[click.Parameter]:
    return [
        _study(),
        click.Option(["--method"], default="sandwich", metavar="NAME", help="Training method.  [default: sandwich]"),
        click.Option(["--epochs"], type=float, default=6.0, metavar="X", help="Passes over the training data.  [default: 6]"),
        click.Option(["--sampling"], metavar="NAME", help="Where configurations are drawn from.  [default: the method's own]"),
        click.Option(["--set"], multiple=True, metavar="NAME=VALUE", help="A hyper-parameter of the method; repeatable."),
        click.Option(["--seed"], type=click.IntRange(0, 2**32 - 1), metavar="N", help="Instead of the study's seed."),
        _space(),
        _store(),
    ]


def train_supernet(
    asked: StudyArguments, method: str, epochs: float, sampling: str | None, set: tuple[str, ...], store: str | None,
    seed: int | None = None,
) -> None:  # fmt: skip
    """Train one network for all sizes: a supernet, which then measures hundreds of configurations in minutes. Running it
    again goes on where it stopped."""
    from ranksearch.cli import supernets
    from ranksearch.supernet.study import checked

    options = supernets.assigned(set)
    checked(method, sampling, options)  # before the study is loaded
    session = _session()
    print(f"loading {asked.file.path} ...", file=sys.stderr, flush=True)
    study = _open(asked, store, session=session, stored=True)
    with supernets.TrainingProgress(session) as progress:
        trained = study.train_supernet(method, epochs=epochs, sampling=sampling, seed=seed, on_event=progress.event, **options)
    session.check()
    supernets.shown(study, trained, _command(asked, store))


def _search_parameters() -> list[click.Parameter]:
    return [
        _study(),
        click.Option(
            ["--trials"], type=click.IntRange(min=1), default=40, metavar="N",
            help="Evaluations the study is to have, those in the store among them.  [default: 40]",
        ),
        click.Option(
            ["--constraint", "--where", "where"], multiple=True, metavar="CONDITION",
            help='Evaluate only what satisfies it, such as "macs <= 0.5"; repeatable.',
        ),
        _objective(),
        _cost(),
        click.Option(["--sampler"], type=NameIn("samplers", "SAMPLERS"), default="nsga2", help="[default: nsga2]"),
        click.Option(
            ["--proxy"], multiple=True, type=NameIn("proxies", "PROXIES"),
            help="Begin with the optima of this one; repeatable.  [default: those that need nothing but the space]",
        ),
        click.Option(["--allocator"], type=NameIn("allocators", "ALLOCATORS"), help="Solves for these optima.  [default: exactly]"),
        click.Option(["--seed"], type=click.IntRange(0, 2**32 - 1), metavar="N", help="Instead of the study's seed."),
        click.Option(["--workers"], type=click.IntRange(min=1), metavar="N", help="Evaluations at the same time.  [default: one per core]"),
        click.Option(["--runner"], type=click.Choice(["ray_tune", "local"]), default="ray_tune", help="[default: ray_tune]"),
        click.Option(["--address"], metavar="HOST:PORT", help="A running Ray cluster, or auto.  [default: this machine alone]"),
        MaybeValued(
            ["--supernet"], metavar="[METHOD|KEY]",
            help="Screen with a trained supernet first, and begin with its front; which one need be said only if there are several.",
        ),
        click.Option(["--screen"], type=click.IntRange(min=1), metavar="N", help="Configurations to screen.  [default: 100]"),
        click.Option(
            ["--retry-failed"], is_flag=True,
            help="First try again what failed for want of memory, disk or time, with a killed worker, or by an error in code.",
        ),
        _space(),
        _store(),
    ]


def search(
    asked: StudyArguments, trials: int, where: tuple[str, ...], objective: tuple[str, ...], sampler: str,
    proxy: tuple[str, ...], allocator: str | None, workers: int | None, runner: str, address: str | None, supernet: str | None,
    screen: int | None, retry_failed: bool, store: str | None, cost: tuple[str, ...], seed: int | None = None,
) -> None:  # fmt: skip
    """Search for the networks that lose least for their cost. Running it again goes on where it stopped; what is in the
    store is never evaluated again, but for what failed: the dense network always, others with --retry-failed.

    Progress shows the size of the front and its hypervolume: the share that it dominates of the box between no cost at no loss
    and the dense network's costs at worthless metrics; the dense network by itself has 0."""
    from ranksearch.cli import results
    from ranksearch.cli.progress import SearchProgress

    session = _session()
    if screen is not None and supernet is None:
        raise InvalidArgument(f"--screen {screen} needs --supernet: what is screened with")
    print(f"loading {asked.file.path} ...", file=sys.stderr, flush=True)
    from ranksearch.study import Screening

    machine = _runner(runner, workers, address, asked)
    screening = None if supernet is None else Screening(supernet or True, 100 if screen is None else screen)
    study = _open(asked, store, session=session, stored=False, cost=cost)
    study = study.replace(seed=study.seed if seed is None else seed, objectives=objective or study.objectives)
    with SearchProgress(study, session, note=spaces.change(study, session.store or "")) as progress:
        study.run(
            trials, sampler=sampler, proxies=proxy or None, allocator=allocator, runner=machine, constraints=where, screening=screening,
            retry_failed=retry_failed, on_event=progress.event,
        )  # fmt: skip
    session.check()
    results.searched(study, _command(asked, store), objective or None, trials)


def _runner(name: str, workers: int | None, address: str | None, asked: StudyArguments) -> Runner:
    """The runner that is asked for; workers of Ray get the modules beside the study and the space by value: they cannot import them."""
    from ranksearch.runners import LocalRunner, RayTuneRunner

    if name == "ray_tune":
        return RayTuneRunner(workers=workers, address=address, by_value=asked.modules)
    if workers not in (None, 1) or address is not None:
        raise InvalidArgument(f"--workers {workers}, --address {address}: --runner local evaluates one at a time here; use ray_tune")
    return LocalRunner()


def _front_parameters() -> list[click.Parameter]:
    return [
        _study(),
        click.Option(["--where"], multiple=True, metavar="CONDITION", help='Such as "macs < 0.4 and accuracy > 0.98 * baseline".'),
        _objective(),
        click.Option(["--all", "all_"], is_flag=True, help="Dominated networks too."),
        _fidelity(),
        _formats(),
        click.Option(["--out"], type=UserPath(dir_okay=False), metavar="FILE", help="Write to a file."),
        click.Option(["--plot"], type=UserPath(dir_okay=False), metavar="FILE", help="Draw it too: .png, .svg or .pdf."),
        _space(),
        _store(),
    ]


def front(
    asked: StudyArguments, where: tuple[str, ...], objective: tuple[str, ...], all_: bool, fidelity: str | None,
    format_: str | None, out: Path | None, plot: Path | None, store: str | None,
) -> None:  # fmt: skip
    """Show the networks that no other one beats, of all that are in the store."""
    from ranksearch.cli import results

    format_ = _format_of(format_, out, plot)
    study = _open(asked, store, session=_session(), stored=True)
    condition = where or None
    results.front(study, condition, objective or None, all=all_, fidelity=fidelity, format_=format_, out=out)
    if plot is not None:
        results.plotted(study, condition, objective or None, plot, fidelity=fidelity)


def _proxies_parameters() -> list[click.Parameter]:
    return [
        _study(),
        click.Option(["--objective"], metavar="NAME", help="The measured metric.  [default: the first that is an objective]"),
        click.Option(["--fidelity"], metavar="KEY", help="One fidelity of the store.  [default: each that has enough evaluations]"),
        click.Option(["--top"], type=click.IntRange(min=1), default=5, metavar="K", help="How many count as the best.  [default: 5]"),
        click.Option(["--no-calibration"], is_flag=True, help="Leave out the proxies that need training data."),
        click.Option(
            ["--batches"], type=click.IntRange(min=0), default=2, metavar="N",
            help="Calibration batches for the proxies that run networks; 0 leaves these out.  [default: 2]",
        ),
        _formats(),
        click.Option(["--out"], type=UserPath(dir_okay=False), metavar="FILE", help="Write to a file."),
        click.Option(["--plot"], type=UserPath(dir_okay=False), metavar="FILE", help="Draw it too: .png, .svg or .pdf."),
        _space(),
        _store(),
    ]


def proxies(
    asked: StudyArguments, objective: str | None, fidelity: str | None, top: int, no_calibration: bool,
    batches: int, format_: str | None, out: Path | None, plot: Path | None, store: str | None,
) -> None:  # fmt: skip
    """Show how well each proxy predicted what this study measured: rank correlations, recall of the best, and what trusting
    it costs at a budget."""
    from ranksearch.cli import proxies as shown

    format_ = _format_of(format_, out, plot)
    study = _open(asked, store, session=_session(), stored=True)
    shown.report(
        study, objective=objective, fidelity=fidelity, k=top, calibrate=not no_calibration, batches=batches, format_=format_, out=out,
        plot=plot,
    )  # fmt: skip


def _compress_parameters() -> list[click.Parameter]:
    return [
        _study(),
        click.Option(
            ["--to"], multiple=True, required=True, metavar="CONDITION",
            help='What the network may cost, such as "macs <= 0.5"; repeatable.',
        ),
        click.Option(
            ["--out"], required=True, type=UserPath(), metavar="DIR", help="Where to write: model.safetensors and manifest.json.",
        ),
        click.Option(
            ["--rule"], multiple=True, type=NameIn("compression", "RULES"),
            help="Only this rule's answer, or the better of several; repeatable.  [default: all rules]",
        ),
        click.Option(
            ["--polish"], type=click.IntRange(min=0), default=0, metavar="N",
            help="Measured exchanges from the best answer on.  [default: 0]",
        ),
        click.Option(["--onnx"], is_flag=True, help="Write model.onnx too."),
        click.Option(["--torch-export"], is_flag=True, help="Write program.pt2 too (torch.export)."),
        click.Option(["--force"], is_flag=True, help="Replace an earlier export in DIR."),
        _cost(),
        _space(),
        _store(),
    ]  # fmt: skip


def compress(
    asked: StudyArguments, to: tuple[str, ...], out: Path, rule: tuple[str, ...], polish: int, onnx: bool,
    torch_export: bool, force: bool, cost: tuple[str, ...], store: str | None,
) -> None:  # fmt: skip
    """Make the network smaller at once, without training: every rule chooses types and ranks, their networks are reconstructed and measured
    on training data that none of them has seen, and the best one is written as plain PyTorch. The study's store is not touched."""
    from ranksearch.cli import compression
    from ranksearch.cli.progress import SiteProgress
    from ranksearch.networks import export

    export.check_target(out, force=force, onnx=onnx)  # before minutes go into it
    print(f"loading {asked.file.path} ...", file=sys.stderr, flush=True)
    study = _open(asked, store, session=_session(), stored=True, cost=cost)
    budgets = compression.budgets(study, to)
    with SiteProgress() as progress:
        found = study.compress(rules=rule or None, polished=polish, on_event=progress.event, **budgets)
    compression.written(study, found, out, onnx=onnx, torch_export=torch_export, force=force)


def _build_parameters() -> list[click.Parameter]:
    return [
        _study(),
        click.Argument(["id"], metavar="ID"),
        click.Option(
            ["--out"], required=True, type=UserPath(), metavar="DIR",
            help="Where to write: model.safetensors and manifest.json.",
        ),
        click.Option(["--onnx"], is_flag=True, help="Write model.onnx too."),
        _fidelity(),
        click.Option(["--torch-export"], is_flag=True, help="Write program.pt2 too (torch.export)."),
        click.Option(["--force"], is_flag=True, help="Replace an earlier export in DIR."),
        _space(),
        _store(),
    ]


def build(
    asked: StudyArguments, id: str, out: Path, onnx: bool, torch_export: bool, force: bool, store: str | None,
    fidelity: str | None,
) -> None:  # fmt: skip
    """Build a network of the front, by its ID or the beginning of it, and write it as plain PyTorch."""
    from ranksearch.cli import results
    from ranksearch.networks import export

    export.check_target(out, force=force, onnx=onnx)  # before minutes go into it
    study = _open(asked, store, session=_session(), stored=True)
    print(f"building {id} ...", file=sys.stderr, flush=True)
    results.built(study, study.export(id, out, onnx=onnx, torch_export=torch_export, force=force, fidelity=fidelity))


def _session() -> Session:
    return click.get_current_context().find_object(Session) or Session()


def _open(asked: StudyArguments, store: str | None, *, session: Session, stored: bool, cost: Sequence[str] = ()) -> Study:
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


def _command(asked: StudyArguments, store: str | None) -> Callable[[str], str]:
    """The command line of another command for the same study."""
    import shlex

    def line(name: str) -> str:
        words = ["ranksearch", name, str(asked.file.path)]
        if name in ("search", "train-supernet"):
            for option in asked.file.options:
                if option.name in asked.given:
                    value = asked.given[option.name]
                    words += [option.flag if value else f"--no-{option.flag[2:]}"] if isinstance(value, bool) else [option.flag, str(value)]
            words += asked.space.words
        return shlex.join([*words, *(["--store", store] if store else [])])

    return line
