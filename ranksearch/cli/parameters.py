"""The arguments and options of every command, one function each; what several commands take stands first."""

from __future__ import annotations

import click

from ranksearch.cli import halting, machines, screening
from ranksearch.cli.arguments import NameIn, UserPath

STORE_HELP = "A path (SQLite) or any SQLAlchemy URL.  [default: the study's name in $RANKSEARCH_HOME or .ranksearch]"


def study_argument() -> click.Argument:
    """The study file."""
    return click.Argument(["study"], metavar="STUDY")


def store_option() -> click.Option:
    """Where the evaluations are."""
    return click.Option(["--store"], metavar="URL|PATH", help=STORE_HELP)


def space_option() -> click.Option:
    """What to search instead of the study's own space."""
    text = "Search space: mixture, svd_only, all_types, or FILE.py[:FUNCTION]; 'study': its own.  [default: as last searched, else its own]"
    return click.Option(["--space"], metavar="NAME|FILE", help=text)


def format_option() -> click.Option:
    """How a table is printed."""
    return click.Option(["--format", "format_"], type=click.Choice(["table", "csv", "json"]), default="table", help="[default: table]")


def formats_option() -> click.Option:
    """The same where it may go to a file."""
    choices = click.Choice(["table", "csv", "json", "parquet"])
    return click.Option(["--format", "format_"], type=choices, help="[default: as --out is named]")


def fidelity_option() -> click.Option:
    """Which measurements."""
    text = "Of the measurements: a key of the store, its beginning, or a supernet's method or key.  [default: the study's]"
    return click.Option(["--fidelity"], metavar="KEY|supernet", help=text)


def objective_option() -> click.Option:
    """What the front is made of."""
    return click.Option(["--objective"], multiple=True, metavar="NAME", help="Instead of the study's objectives; repeatable.")


def cost_option() -> click.Option:
    """Costs besides the study's own."""
    text = "Count this too: bytes, or latency; settings as in bytes:dtype=bfloat16 or latency:runtime=compile,batch=8; repeatable."
    return click.Option(["--cost"], multiple=True, metavar="NAME[:SETTING=VALUE,...]", help=text)


def profile() -> list[click.Parameter]:
    """Of ``profile``."""
    return [
        study_argument(),
        cost_option(),
        click.Option(["--latency"], is_flag=True, help="Measure latency, and show from which rank on each type is really faster."),
        click.Option(
            ["--write-table"], type=UserPath(dir_okay=False), metavar="FILE",
            help="Write the latency table as CSV; --cost latency:table=FILE reads it.",
        ),
        space_option(), store_option(), format_option(),
    ]  # fmt: skip


def train() -> list[click.Parameter]:
    """Of ``train-supernet``."""
    return [
        study_argument(),
        click.Option(["--method"], default="sandwich", metavar="NAME", help="Training method.  [default: sandwich]"),
        click.Option(["--epochs"], type=float, default=6.0, metavar="X", help="Passes over the training data.  [default: 6]"),
        click.Option(["--sampling"], metavar="NAME", help="Where configurations are drawn from.  [default: the method's own]"),
        click.Option(["--set"], multiple=True, metavar="NAME=VALUE", help="A hyper-parameter of the method; repeatable."),
        click.Option(["--seed"], type=click.IntRange(0, 2**32 - 1), metavar="N", help="Instead of the study's seed."),
        space_option(),
        store_option(),
    ]


def search() -> list[click.Parameter]:
    """Of ``search``."""
    return [
        study_argument(),
        click.Option(
            ["--trials"], type=click.IntRange(min=1), metavar="N",
            help="Evaluations the study is to have, those in the store among them.  [default: those of its stages, else 40]",
        ),
        click.Option(
            ["--constraint", "--where", "where"], multiple=True, metavar="CONDITION",
            help='Evaluate only what satisfies it, such as "macs <= 0.5"; repeatable.',
        ),
        objective_option(),
        cost_option(),
        click.Option(["--sampler"], type=NameIn("samplers", "SAMPLERS"), default="surrogate", help="[default: surrogate]"),
        click.Option(
            ["--proxy"], multiple=True, type=NameIn("proxies", "PROXIES"),
            help="Begin with the optima of this one; repeatable.  [default: the best of all rules, measured without training]",
        ),
        click.Option(["--allocator"], type=NameIn("allocators", "ALLOCATORS"), help="Solves for these optima.  [default: exactly]"),
        click.Option(["--seed"], type=click.IntRange(0, 2**32 - 1), metavar="N", help="Instead of the study's seed."),
        *halting.options(),
        *machines.options(),
        *screening.options(),
        click.Option(
            ["--retry-failed"],
            is_flag=True,
            help="First try again what failed by an error in code or beyond a limit too; for want of memory or disk it is in any case.",
        ),
        click.Option(["--quiet"], is_flag=True, help="Show no progress: the result alone, and errors."),
        click.Option(["--json"], is_flag=True, help="Print events as JSON, one a line, instead of progress and result."),
        click.Option(
            ["--take-over"], is_flag=True, help="Evaluate what other searches on the same server were about, which are known to be dead.",
        ),
        space_option(),
        store_option(),
    ]  # fmt: skip


def front() -> list[click.Parameter]:
    """Of ``front``."""
    return [
        study_argument(),
        click.Option(["--where"], multiple=True, metavar="CONDITION", help='Such as "macs < 0.4 and accuracy > 0.98 * baseline".'),
        objective_option(),
        click.Option(["--all", "all_"], is_flag=True, help="Dominated networks too."),
        fidelity_option(),
        formats_option(),
        click.Option(["--out"], type=UserPath(dir_okay=False), metavar="FILE", help="Write to a file."),
        click.Option(["--plot"], type=UserPath(dir_okay=False), metavar="FILE", help="Draw it too: .png, .svg or .pdf."),
        space_option(),
        store_option(),
    ]


def proxies() -> list[click.Parameter]:
    """Of ``proxies``."""
    return [
        study_argument(),
        click.Option(["--objective"], metavar="NAME", help="The measured metric.  [default: the first that is an objective]"),
        click.Option(["--fidelity"], metavar="KEY", help="One fidelity of the store.  [default: each that has enough evaluations]"),
        click.Option(["--top"], type=click.IntRange(min=1), default=5, metavar="K", help="How many count as the best.  [default: 5]"),
        click.Option(["--no-calibration"], is_flag=True, help="Leave out the proxies that need training data."),
        click.Option(
            ["--batches"],
            type=click.IntRange(min=0),
            default=2,
            metavar="N",
            help="Calibration batches for the proxies that run networks; 0 leaves these out.  [default: 2]",
        ),
        formats_option(),
        click.Option(["--out"], type=UserPath(dir_okay=False), metavar="FILE", help="Write to a file."),
        click.Option(["--plot"], type=UserPath(dir_okay=False), metavar="FILE", help="Draw it too: .png, .svg or .pdf."),
        space_option(),
        store_option(),
    ]


def report() -> list[click.Parameter]:
    """Of ``report``."""
    return [
        study_argument(),
        click.Option(
            ["--out"], type=UserPath(dir_okay=False), metavar="FILE", help="Where to write the page, .html.  [default: STUDY.html here]",
        ),
        click.Option(
            ["--figures"], type=UserPath(file_okay=False), metavar="DIR", help="Write every figure as SVG and PNG, too.",
        ),
        click.Option(["--latex"], type=UserPath(dir_okay=False), metavar="FILE", help="Write the front as a LaTeX table, too."),
        fidelity_option(),
        click.Option(["--no-calibration"], is_flag=True, help="Leave out the proxies that need training data."),
        click.Option(
            ["--batches"], type=click.IntRange(min=0), default=0, metavar="N",
            help="Calibration batches for the proxies that run networks; 0 leaves these out.  [default: 0]",
        ),
        space_option(),
        store_option(),
    ]  # fmt: skip


def dashboard() -> list[click.Parameter]:
    """Of ``dashboard``."""
    return [
        study_argument(),
        click.Option(
            ["--host"], default="127.0.0.1", metavar="ADDRESS", help="Another address than this needs --token.  [default: 127.0.0.1]",
        ),
        click.Option(["--port"], type=click.IntRange(0, 65535), default=8642, metavar="N", help="0: any that is free.  [default: 8642]"),
        click.Option(
            ["--token"], envvar="RANKSEARCH_TOKEN", metavar="TEXT",
            help="Who opens the page must know it; also from RANKSEARCH_TOKEN, which other users of this machine do not see.",
        ),
        click.Option(
            ["--trials"], type=click.IntRange(min=1), metavar="N",
            help="Evaluations the study is to have: shows the time left.  [default: those of the last search]",
        ),
        click.Option(["--proxies"], is_flag=True, help="Judge proxies too, again and again: takes processor time from the search."),
        fidelity_option(),
        space_option(),
        store_option(),
    ]  # fmt: skip


def compress() -> list[click.Parameter]:
    """Of ``compress``."""
    return [
        study_argument(),
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
            ["--refits"], type=click.IntRange(min=0), default=None, metavar="N",
            help="Rounds in which a model of the loss is fitted to measured networks and solved again; 0: the cheap way.  "
            "[default: 3, with --rule 0]",
        ),
        click.Option(
            ["--contenders"], type=click.IntRange(min=1), default=4, metavar="N", show_default=True,
            help="Rules' networks that are reconstructed: those that lose least after a light reconstruction.",
        ),
        click.Option(
            ["--polish"], type=click.IntRange(min=0), default=0, metavar="N",
            help="Measured exchanges from the best answer on.  [default: 0]",
        ),
        click.Option(
            ["--finish"], type=click.IntRange(min=0), default=16, metavar="N", show_default=True,
            help="Calibration batches that factors of the best answer are fitted to in the end; 0: as many as those of the others.",
        ),
        click.Option(
            ["--distill"], type=click.IntRange(min=0), default=80, metavar="N", show_default=True,
            help="Batches of training data, without labels, on which all its parameters learn the dense network's answers; kept where it "
            "then measures better.",
        ),
        click.Option(
            ["--norms"], type=click.Choice(("auto", "own", "re-estimated")), default="auto", show_default=True,
            help="Statistics of the batch norms of the dense network that others are made to answer like; auto: re-estimated ones where "
            "labelled training batches surely lose less with them.",
        ),
        click.Option(
            ["--recover"], type=click.FloatRange(min=0), default=0.0, metavar="EPOCHS",
            help="Train it for so long afterwards, with the dense network as a teacher; what measures best is kept.  [default: 0]",
        ),
        click.Option(["--onnx"], is_flag=True, help="Write model.onnx too."),
        click.Option(["--torch-export"], is_flag=True, help="Write program.pt2 too (torch.export)."),
        click.Option(["--force"], is_flag=True, help="Replace an earlier export in DIR."),
        cost_option(),
        space_option(),
        store_option(),
    ]  # fmt: skip


def build() -> list[click.Parameter]:
    """Of ``build``."""
    return [
        study_argument(),
        click.Argument(["id"], metavar="ID"),
        click.Option(
            ["--out"],
            required=True,
            type=UserPath(),
            metavar="DIR",
            help="Where to write: weights, manifest.json, and code that loads them without ranksearch.",
        ),
        click.Option(["--onnx"], is_flag=True, help="Write model.onnx too, compared and timed where onnxruntime is installed."),
        fidelity_option(),
        click.Option(["--dense"], is_flag=True, help="Merge the factors back into dense weights."),
        click.Option(["--torch-export"], is_flag=True, help="Write program.pt2 too (torch.export)."),
        click.Option(["--force"], is_flag=True, help="Replace an earlier export in DIR."),
        space_option(),
        store_option(),
    ]


def replay() -> list[click.Parameter]:
    """Of ``replay``."""
    return [
        study_argument(),
        click.Argument(["id"], metavar="ID"),
        fidelity_option(),
        click.Option(["--seed"], type=click.IntRange(0, 2**32 - 1), metavar="N", help="Of the evaluation.  [default: the study's]"),
        click.Option(
            ["--tolerance"], type=click.FloatRange(min=0), default=1e-4, metavar="X",
            help="How far a metric may be off, relative to its size, and still agree.  [default: 1e-4]",
        ),
        space_option(),
        store_option(),
    ]  # fmt: skip
