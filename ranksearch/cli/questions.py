"""The commands that answer questions about what a study measured: which network to take, what it changed, how studies compare; and
all frames as files. Heavy packages are imported when a command runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ranksearch.cli.arguments import StudyArguments, UserPath
from ranksearch.cli.opening import opened, output_format, session_of
from ranksearch.cli.parameters import fidelity_option, formats_option, space_option, store_option, study_argument
from ranksearch.errors import InvalidArgument
from ranksearch.printable import shortened

if TYPE_CHECKING:
    import pandas as pd

    from ranksearch.study import Study

FRAMES = ("evaluations", "front", "layers", "proxies", "history", "failures", "curves")
CELL = 60  # characters of a text in a table
FEW = 40  # rows of a frame that are printed as a table


def best(asked: StudyArguments, where: tuple[str, ...], objective: str | None, fidelity: str | None, **given: Any) -> None:
    """Show the network that is best in one objective among those that satisfy every condition."""
    _answered(asked, given, lambda study: _one(study, study.best(where or None, objective, fidelity=fidelity)))


def knee(asked: StudyArguments, where: tuple[str, ...], fidelity: str | None, **given: Any) -> None:
    """Show the knee of the front: the network that lies farthest towards the ideal; beyond it every gain costs more."""
    _answered(asked, given, lambda study: _one(study, study.knee(where or None, fidelity=fidelity)))


def cheapest(
    asked: StudyArguments, within: float, metric: str | None, by: str | None, where: tuple[str, ...], fidelity: str | None, **given: Any
) -> None:
    """Show the cheapest network that is as good as the dense one, but for a share."""
    _answered(
        asked, given,
        lambda study: _one(study, study.cheapest(within, metric=metric, cost=by, where=where or None, fidelity=fidelity)),
    )  # fmt: skip


def feasible(asked: StudyArguments, where: tuple[str, ...], objective: str | None, fidelity: str | None, **given: Any) -> None:
    """Show every measured network that satisfies all conditions, the best first, whether or not another one beats it."""
    _answered(asked, given, lambda study: study.feasible(where or None, objective, fidelity=fidelity))


def sweep(
    asked: StudyArguments, budget: tuple[str, ...], objective: str | None, where: tuple[str, ...], fidelity: str | None, **given: Any
) -> None:
    """Show the best measured network at each of several budgets."""
    budgets = parsed_budgets(budget)
    _answered(
        asked, given, lambda study: study.sweep(objective, where=where or None, fidelity=fidelity, **budgets), _sweep_table
    )


def spared(asked: StudyArguments, where: tuple[str, ...], fidelity: str | None, no_errors: bool, **given: Any) -> None:
    """Show which layers the networks of the front leave dense, always or mostly, and what they make of the others."""
    _answered(asked, given, lambda study: study.spared(where or None, fidelity=fidelity, errors=not no_errors), _plain)


def diff(asked: StudyArguments, before: str, after: str, all_: bool, no_errors: bool, **given: Any) -> None:
    """Show what changed between two configurations, layer by layer. BEFORE and AFTER are ids or their beginnings."""
    _answered(asked, given, lambda study: study.diff(before, after, all=all_, errors=not no_errors), _diff_table)


def compare(
    asked: StudyArguments, other: str, metric: str | None, by: str | None, budget: tuple[float, ...], fidelity: str | None,
    other_fidelity: str | None, other_store: str | None, **given: Any,
) -> None:  # fmt: skip
    """Show how the studies STUDY (a) and OTHER (b) compare: hypervolume, coverage of the fronts, and the best metric at every budget,
    with 95 % confidence intervals over seeds. Two runs of one study are the same file twice, each with its store."""
    from ranksearch.cli.spaces import SpaceArguments
    from ranksearch.studyfile import load

    second = StudyArguments(load(other), {}, SpaceArguments())
    options: dict[str, Any] = {"budgets": budget} if budget else {}

    def answer(study: Study) -> pd.DataFrame:
        against = opened(second, other_store, session=session_of(), stored=True)
        return study.compare(against, metric=metric, cost=by, fidelity=fidelity, other_fidelity=other_fidelity, **options)

    _answered(asked, given, answer, _compare_table)


def table(asked: StudyArguments, name: str, fidelity: str | None, no_errors: bool, **given: Any) -> None:
    """Show or write a frame of the study: evaluations, front, layers, proxies, history, failures or curves, with the columns that
    docs/analysis.md lists."""

    def answer(study: Study) -> pd.DataFrame:
        results = study.results
        if name == "layers":
            return results.layers(fidelity=fidelity, errors=not no_errors)
        if name in ("failures", "curves"):
            return getattr(results, name)()
        return getattr(results, name)(fidelity=fidelity)

    _answered(asked, given, answer, _plain)


def parsed_budgets(texts: Sequence[str]) -> dict[str, list[float]]:
    """``macs=0.7,0.5`` as budgets by cost.

    Raises:
        InvalidArgument: a text that is not so."""
    found: dict[str, list[float]] = {}
    for text in texts:
        cost, equals, values = text.partition("=")
        try:
            if not equals or not cost.strip().isidentifier():
                raise ValueError
            found.setdefault(cost.strip(), []).extend(float(value) for value in values.split(","))
        except ValueError as error:
            raise InvalidArgument(f"--budget {text!r}: write COST=VALUE,VALUE,... such as macs=0.7,0.5,0.3") from error
    return found


# -- what they share -----------------------------------------------------------------------------------------------


def _answered(
    asked: StudyArguments, given: dict[str, Any], ask: Callable[[Study], pd.DataFrame],
    as_table: Callable[[Study, pd.DataFrame], str] | None = None,
) -> None:  # fmt: skip
    """Open the study, ask it, and write the answer."""
    from ranksearch.cli.output import write_frame
    from ranksearch.cli.results import front_table

    out: Path | None = given["out"]
    format_ = output_format(given["format_"], out)
    study = opened(asked, given["store"], session=session_of(), stored=True)
    frame = ask(study)
    write_frame(frame, format_, out, lambda: (as_table or front_table)(study, frame))


def _one(study: Study, row: Any) -> pd.DataFrame:
    """A row of a front as a frame of one row, with the types of the front."""
    rows: Any = study.front(all=True, fidelity=row["fidelity"])
    found = rows[(rows["id"] == row["id"]).to_numpy()]
    return found.reset_index(drop=True).assign(on_front=bool(row["on_front"]))


def _sweep_table(study: Study, frame: pd.DataFrame) -> str:
    from ranksearch.cli.results import front_cells
    from ranksearch.cli.tables import table as aligned

    rows = frame.to_dict("records")
    found = [row for row in rows if isinstance(row["id"], str)]
    measured: Any = frame.loc[frame["id"].notna().to_numpy()]
    header, cells = front_cells(study, measured) if found else (["id"], [])
    left = iter(cells)
    lines = []
    for row in rows:
        budget = f"{row['cost']} <= {row['budget']:g}"
        lines.append([budget, *(next(left) if isinstance(row["id"], str) else ["none measured", *[""] * (len(header) - 1)])])
    return aligned(["budget", *header], lines, left=("budget", "id", ""))


def _diff_table(study: Study, frame: pd.DataFrame) -> str:
    from ranksearch.cli.tables import table as aligned

    if not len(frame):
        return "nothing changed: every layer has the same type and rank"
    costs = study.costs[::-1]
    header = ["site", "before", "after", *(f"{c.label} {end}" for c in costs for end in ("before", "after")), "error before", "error after"]
    cells = []
    for row in frame.to_dict("records"):
        options = [" ".join(filter(None, (row[f"decomposition_{end}"], row[f"rank_{end}"]))) for end in ("before", "after")]
        amounts = [_amount(row[f"{c.name}_{end}"]) for c in costs for end in ("before", "after")]
        errors = [_digits(row[f"relative_error_{end}"]) for end in ("before", "after")]
        cells.append([shortened(row["site"], CELL), *options, *amounts, *errors])
    sums = [f"{c.label} {_amount(sum(frame[f'{c.name}_change'].tolist()), '+')}" for c in costs]
    return aligned(header, cells, left=("site", "before", "after")) + f"\n\n{len(frame)} sites; in all: {', '.join(sums)}"


def _amount(amount: float, sign: str = "") -> str:
    """Of a cost: all digits of what is counted, six of what is measured."""
    return format(int(amount), f"{sign},") if math.isfinite(amount) and amount == int(amount) else format(amount, f"{sign},.6g")


def _compare_table(study: Study, frame: pd.DataFrame) -> str:
    from ranksearch.cli.tables import table as aligned

    cells = []
    for row in frame.to_dict("records"):
        at = f" at {100 * row['budget']:g} %" if row["budget"] == row["budget"] else ""
        known = row["low"] == row["low"]
        interval = f"{row['low']:+.4f} to {row['high']:+.4f}" if known else ""
        cells.append([
            f"{row['measure']}{at}", *(_digits(row[name]) for name in ("a", "b")), _signed(row["difference"]), interval,
            f"{row['seeds_a']}, {row['seeds_b']}",
        ])  # fmt: skip
    header = ("measure", "a", "b", "a - b", "95 % interval", "seeds")
    noted = "" if bool(frame["low"].notna().to_numpy().any()) else "\n\nno intervals: they need two seeds on each side (search --seed N)"
    return aligned(header, cells, left=("measure",)) + noted


def _plain(study: Study, frame: pd.DataFrame) -> str:
    """A frame as text, no more than a screen of it."""
    from ranksearch.cli.tables import plural
    from ranksearch.cli.tables import table as aligned

    shown = frame.head(FEW).to_dict("records")
    cells = [[_cell(row[name]) for name in frame.columns] for row in shown]
    left = [str(name) for name, kind in frame.dtypes.items() if str(kind) in ("string", "category")]
    more = f"\n{plural(len(frame), 'row')}; --out FILE or --format csv has all" if len(frame) > FEW else ""
    return aligned([str(name) for name in frame.columns], cells, left=left) + more


def _cell(value: Any) -> str:
    import pandas as pd

    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return shortened(" ".join(str(value).split()), CELL)


def _digits(value: float) -> str:
    return "" if value != value else f"{value:.4f}"


def _signed(value: float) -> str:
    return "" if value != value else f"{value:+.4f}"


# -- their options -------------------------------------------------------------------------------------------------


def _shared() -> list[click.Parameter]:
    return [
        fidelity_option(),
        formats_option(),
        click.Option(["--out"], type=UserPath(dir_okay=False), metavar="FILE", help="Write to a file: .csv, .json or .parquet."),
        space_option(),
        store_option(),
    ]


def _where() -> click.Option:
    text = 'Such as "macs <= 0.5 and accuracy >= baseline - 0.01"; repeatable.'
    return click.Option(["--where"], multiple=True, metavar="CONDITION", help=text)


def _objective() -> click.Option:
    return click.Option(["--objective"], metavar="NAME", help="What is best.  [default: the first of the study's]")


def _metric() -> click.Option:
    return click.Option(["--metric"], metavar="NAME", help="Of the task.  [default: the first that is an objective]")


def _by() -> click.Option:
    return click.Option(["--by"], metavar="COST", help="Which cost counts.  [default: macs]")


def _no_errors() -> click.Option:
    return click.Option(["--no-errors"], is_flag=True, help="Look up no errors of layers, for which sites may have to be factorized.")


def _of_cheapest() -> list[click.Parameter]:
    share = click.FloatRange(min=0)
    text = "Share of the dense network's metric that may be lost.  [default: 0.01]"
    return [
        study_argument(), click.Option(["--within"], type=share, default=0.01, metavar="X", help=text), _metric(), _by(), _where(),
        *_shared(),
    ]  # fmt: skip


def _of_sweep() -> list[click.Parameter]:
    text = "Such as macs=0.7,0.5,0.3, shares of the dense network's; repeatable."
    budget = click.Option(["--budget"], multiple=True, required=True, metavar="COST=X,...", help=text)
    return [study_argument(), budget, _objective(), _where(), *_shared()]


def _of_diff() -> list[click.Parameter]:
    return [
        study_argument(), click.Argument(["before"], metavar="BEFORE"), click.Argument(["after"], metavar="AFTER"),
        click.Option(["--all", "all_"], is_flag=True, help="Layers that did not change, too."), _no_errors(),
        *(option for option in _shared() if option.name != "fidelity"),
    ]  # fmt: skip


def _of_compare() -> list[click.Parameter]:
    at = click.Option(
        ["--budget"], type=click.FloatRange(min=0, min_open=True), multiple=True, metavar="X",
        help="A share of the dense network's cost at which the best metric is compared; repeatable.  [default: 0.7 to 0.1]",
    )  # fmt: skip
    return [
        study_argument(), click.Argument(["other"], metavar="OTHER"), _metric(), _by(), at,
        click.Option(["--other-store"], metavar="URL|PATH", help="Where the evaluations of OTHER are."),
        click.Option(["--other-fidelity"], metavar="KEY", help="Of the measurements of OTHER.  [default: its own]"), *_shared(),
    ]  # fmt: skip


def _of_table() -> list[click.Parameter]:
    return [
        study_argument(), click.Argument(["name"], type=click.Choice(FRAMES), metavar=f"[{'|'.join(FRAMES)}]"), _no_errors(), *_shared(),
    ]  # fmt: skip


COMMANDS: tuple[tuple[str, Callable[..., None], Callable[[], list[click.Parameter]], str], ...] = (
    ("best", best, lambda: [study_argument(), _where(), _objective(), *_shared()], "The best network within bounds."),
    ("knee", knee, lambda: [study_argument(), _where(), *_shared()], "The network beyond which every gain costs more."),
    ("cheapest", cheapest, _of_cheapest, "The cheapest network within 1 % of the dense one."),
    ("feasible", feasible, lambda: [study_argument(), _where(), _objective(), *_shared()], "All networks within bounds."),
    ("sweep", sweep, _of_sweep, "The best network at each of several budgets."),
    ("spared", spared, lambda: [study_argument(), _where(), _no_errors(), *_shared()], "Layers that stay dense."),
    ("diff", diff, _of_diff, "What changed between two networks, layer by layer."),
    ("compare", compare, _of_compare, "How two studies or runs compare."),
    ("table", table, _of_table, "A frame of the study, printed or as a file."),
)
"""Name, function, options and a line of help of every command."""
KEEPS = ("metric", "by", "within", "budget", "other_store", "other_fidelity", "no_errors")
"""Parameters of these commands that stay theirs where a study has an option of that name, which is then ``--study-NAME``."""
