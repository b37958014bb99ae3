"""The commands. Heavy packages are imported when a command runs, not before: ``--help`` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ranksearch.cli import costs, halting, machines, parameters, questions, screening, spaces
from ranksearch.cli.arguments import Group, StudyArguments, StudyCommand
from ranksearch.cli.opening import command_line, opened, output_format, session_of
from ranksearch.cli.session import Session
from ranksearch.errors import EmptySpace

if TYPE_CHECKING:
    from ranksearch.compression import Norms

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
    for name, function, takes, short in (
        ("profile", profile, parameters.profile, "What there is to choose, before anything is paid for."),
        ("train-supernet", train_supernet, parameters.train, "Train one network for all sizes."),
        ("search", search, parameters.search, "Evaluate networks, and go on where it stopped."),
        ("front", front, parameters.front, "The networks that no other one beats."),
        *questions.COMMANDS,
        ("proxies", proxies, parameters.proxies, "How well cheap scores predicted what was measured."),
        ("report", report, parameters.report, "All that a study came to, as one page to read."),
        ("dashboard", dashboard, parameters.dashboard, "The same page, live while a search goes on."),
        ("compress", compress, parameters.compress, "A smaller network at once, without a search."),
        ("build", build, parameters.build, "One of them as plain PyTorch, on disk."),
        ("replay", replay, parameters.replay, "Make an evaluation again, and compare."),
    ):
        texts = {"help": function.__doc__, "short_help": short}
        keeps = ("method", "epochs", "sampling") if name == "train-supernet" else questions.KEEPS
        command = StudyCommand(name, callback=function, params=takes(), context_settings=SETTINGS, keeps=keeps, **texts)
        group.add_command(command)
    return group


def _version(version: str) -> click.Option:
    def show(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            click.echo(f"ranksearch {version}")
            ctx.exit()

    return click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=show, help="Show the version.")


def profile(asked: StudyArguments, cost: tuple[str, ...], latency: bool, write_table: Path | None, store: str | None, format_: str) -> None:
    """Show what a search would work on: sites, their options and costs, and what was skipped and why."""
    from ranksearch.cli import latency as latencies
    from ranksearch.cli import results
    from ranksearch.cli.progress import SiteProgress

    study = opened(asked, store, session=session_of(), stored=True, cost=cost)
    if (latency or write_table is not None) and not latencies.has_latency(study):
        study = costs.used(study, ["latency"], study.store_url)
    with SiteProgress() as progress, suppress(EmptySpace):  # what was skipped is shown nevertheless; then it is an error
        study.profile(progress.event)
    if write_table is not None:  # measured, whatever the space comes to
        latencies.write(study, write_table)
        print(f"latency table written to {write_table}", file=sys.stderr)
    results.profile(study, format_, latency=latency)


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
    session = session_of()
    print(f"loading {asked.file.path} ...", file=sys.stderr, flush=True)
    study = opened(asked, store, session=session, stored=True)
    with supernets.TrainingProgress(session) as progress:
        trained = study.train_supernet(method, epochs=epochs, sampling=sampling, seed=seed, on_event=progress.event, **options)
    session.check()
    supernets.shown(study, trained, command_line(asked, store))


def search(
    asked: StudyArguments, trials: int | None, where: tuple[str, ...], objective: tuple[str, ...], sampler: str,
    proxy: tuple[str, ...], allocator: str | None, supernet: str | None, screen: int | None, retry_failed: bool, take_over: bool,
    quiet: bool, json: bool, store: str | None, cost: tuple[str, ...], scheduler: str, first_rung: float | None, eta: float | None,
    seed: int | None = None, **machine: Any,
) -> None:  # fmt: skip
    """Search for the networks that lose least for their cost. Running it again goes on where it stopped; what is in the
    store is never evaluated again, but for what failed: the dense network and the machine's failures always, others with --retry-failed.

    A terminal shows a live table, a pipe gets lines. Both have the size of the front and its hypervolume: the share that it dominates
    of the box between no cost at no loss and the dense network's costs at worthless metrics; the dense network by itself has 0."""
    from ranksearch.cli import results
    from ranksearch.cli.progress import SearchProgress, events, view

    shown, session = view(quiet=quiet, json=json), session_of()
    screening.check(supernet, screen)
    if shown is None:
        print(f"loading {asked.file.path} ...", file=sys.stderr, flush=True)
    runner, halts = machines.runner(asked, machine), halting.scheduler(scheduler, first_rung, eta)
    screened = screening.screening(supernet, screen)
    study = opened(asked, store, session=session, stored=False, cost=cost)
    study = study.replace(seed=study.seed if seed is None else seed, objectives=objective or study.objectives)
    with SearchProgress(study, session, note=spaces.change(study, session.store or ""), view=shown) as progress:
        study.run(
            trials, sampler=sampler, proxies=proxy or None, allocator=allocator, scheduler=halts, runner=runner, constraints=where,
            screening=screened, retry_failed=retry_failed, take_over=take_over, on_event=progress.event,
        )  # fmt: skip
    session.check()
    if json:
        events.ended(study, objective or None)
    else:
        results.searched(study, command_line(asked, store), objective or None, study.planned(trials))


def front(
    asked: StudyArguments, where: tuple[str, ...], objective: tuple[str, ...], all_: bool, fidelity: str | None,
    format_: str | None, out: Path | None, plot: Path | None, store: str | None,
) -> None:  # fmt: skip
    """Show the networks that no other one beats, of all that are in the store."""
    from ranksearch.cli import results

    format_ = output_format(format_, out, plot)
    study = opened(asked, store, session=session_of(), stored=True)
    condition = where or None
    results.front(study, condition, objective or None, all=all_, fidelity=fidelity, format_=format_, out=out)
    if plot is not None:
        results.plotted(study, condition, objective or None, plot, fidelity=fidelity)


def proxies(
    asked: StudyArguments, objective: str | None, fidelity: str | None, top: int, no_calibration: bool,
    batches: int, format_: str | None, out: Path | None, plot: Path | None, store: str | None,
) -> None:  # fmt: skip
    """Show how well each proxy predicted what this study measured: rank correlations, recall of the best, and what trusting
    it costs at a budget."""
    from ranksearch.cli import proxies as shown

    format_ = output_format(format_, out, plot)
    study = opened(asked, store, session=session_of(), stored=True)
    shown.report(
        study, objective=objective, fidelity=fidelity, k=top, calibrate=not no_calibration, batches=batches, format_=format_, out=out,
        plot=plot,
    )  # fmt: skip


def report(
    asked: StudyArguments, out: Path | None, figures: Path | None, latex: Path | None, fidelity: str | None, no_calibration: bool,
    batches: int, store: str | None,
) -> None:  # fmt: skip
    """Write a study as one HTML file to read, print and send: the front, the layers of its networks, who found what, how well proxies
    predicted, what failed, and the command that rebuilds each network. It loads nothing from a network."""
    from ranksearch.cli import report as written

    written.check(out or Path("study.html"), figures)
    study = opened(asked, store, session=session_of(), stored=True)
    written.write(
        study, out or Path(f"{study.name}.html"), fidelity=fidelity, calibrate=not no_calibration, batches=batches,
        build=written.build_command(study, command_line(asked, store), fidelity), figures=figures, latex=latex,
    )  # fmt: skip


def dashboard(
    asked: StudyArguments, host: str, port: int, token: str | None, trials: int | None, proxies: bool, fidelity: str | None,
    store: str | None,
) -> None:  # fmt: skip
    """Serve the report of a study while another process searches it: figures and tables grow as results land, with the pace, the time
    left, and who searches. The store is only read, whatever is asked of the page. Ctrl-C ends it; the search goes on."""
    from ranksearch.cli import dashboard as served
    from ranksearch.cli.report import build_command

    served.check(host, token)
    study = opened(asked, store, session=session_of(), stored=True)
    build = build_command(study, command_line(asked, store), fidelity)
    served.serve(study, host=host, port=port, token=token, trials=trials, proxies=proxies, fidelity=fidelity, build=build)


def compress(
    asked: StudyArguments, to: tuple[str, ...], out: Path, rule: tuple[str, ...], refits: int | None, contenders: int, polish: int,
    finish: int, distill: int, norms: Norms, recover: float, onnx: bool, torch_export: bool, force: bool, cost: tuple[str, ...],
    store: str | None,
) -> None:  # fmt: skip
    """Make the network smaller at once, without a search: every rule chooses types and ranks, the best of their networks are
    reconstructed and measured on training data that none of them has seen, and the best one is written as plain PyTorch, with
    --recover after training. The study's store is not touched."""
    from ranksearch.cli import compression
    from ranksearch.cli.progress import SiteProgress
    from ranksearch.networks import export

    export.check_target(out, force=force, onnx=onnx)  # before minutes go into it
    print(f"loading {asked.file.path} ...", file=sys.stderr, flush=True)
    study = opened(asked, store, session=session_of(), stored=True, cost=cost)
    budgets = compression.budgets(study, to)
    with SiteProgress() as progress:
        how = {"refits": refits, "contenders": contenders, "polished": polish, "finish": finish, "distill": distill, "norms": norms}
        found = study.compress(rules=rule or None, epochs=recover, on_event=progress.event, **how, **budgets)
    compression.written(study, found, out, onnx=onnx, torch_export=torch_export, force=force)


def build(
    asked: StudyArguments, id: str, out: Path, onnx: bool, torch_export: bool, force: bool, store: str | None,
    fidelity: str | None, dense: bool,
) -> None:  # fmt: skip
    """Build a network of the front, by its ID or the beginning of it, and write it as plain PyTorch: a folder that transformers loads
    (AutoModel) where the network is one of theirs, and modeling.py that loads it without ranksearch where it is another one."""
    from ranksearch.cli import results
    from ranksearch.networks import export

    export.check_target(out, force=force, onnx=onnx)  # before minutes go into it
    study = opened(asked, store, session=session_of(), stored=True)
    print(f"building {id} ...", file=sys.stderr, flush=True)
    results.built(study, study.export(id, out, onnx=onnx, torch_export=torch_export, force=force, fidelity=fidelity, dense=dense))


def replay(asked: StudyArguments, id: str, fidelity: str | None, tolerance: float, store: str | None, seed: int | None = None) -> None:
    """Make an evaluation again from what the store has of it, and say whether it agrees: exit code 0 where it does, 1 where not. What is
    stored is never changed."""
    from ranksearch.cli import results

    study = opened(asked, store, session=session_of(), stored=True)
    print(f"evaluating {id} again ...", file=sys.stderr, flush=True)
    if not results.replayed(study.results.replay(id, fidelity=fidelity, seed=seed), tolerance):
        click.get_current_context().exit(1)
