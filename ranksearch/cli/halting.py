"""Which evaluations a search stops early: ``--scheduler`` and what goes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ranksearch.cli.arguments import NameIn
from ranksearch.errors import InvalidArgument

if TYPE_CHECKING:
    from ranksearch.schedulers import Scheduler


def options() -> list[click.Parameter]:
    """What ``search`` takes for it."""
    return [
        click.Option(
            ["--scheduler"], type=NameIn("schedulers", "SCHEDULERS"), default="none",
            help="Stops evaluations early that promise little; they count among --trials, and are no results.  [default: none]",
        ),
        click.Option(["--first-rung"], type=float, metavar="EPOCHS", help="Of fine-tuning, before it looks at one.  [default: 1]"),
        click.Option(["--eta"], type=float, metavar="X", help="One of so many goes on, to X times as many epochs.  [default: 3]"),
    ]  # fmt: skip


def scheduler(name: str, first_rung: float | None, eta: float | None) -> Scheduler:
    """The scheduler that is asked for.

    Raises:
        InvalidArgument: options that it does not have, or that are out of range."""
    from ranksearch.schedulers import SCHEDULERS, NoStopping

    (found,) = (each for each in SCHEDULERS if each.name == name)
    given = {key: value for key, value in (("first", first_rung), ("eta", eta)) if value is not None}
    if isinstance(found, NoStopping) and given:
        raise InvalidArgument("--first-rung and --eta need a --scheduler that stops evaluations, such as pareto_asha")
    return type(found)(**given)
