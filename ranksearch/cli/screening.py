"""Whether a search screens with a supernet first: ``--supernet`` and what goes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ranksearch.cli.arguments import MaybeValued
from ranksearch.errors import InvalidArgument

if TYPE_CHECKING:
    from ranksearch.study import Screening

COUNT = 100  # configurations, unless a number is given


def options() -> list[click.Parameter]:
    """What ``search`` takes for it."""
    return [
        MaybeValued(
            ["--supernet"],
            metavar="[METHOD|KEY]",
            help="Screen with a trained supernet first, and begin with its front; which one need be said only if there are several.",
        ),
        click.Option(["--screen"], type=click.IntRange(min=1), metavar="N", help=f"Configurations to screen.  [default: {COUNT}]"),
    ]


def check(supernet: str | None, count: int | None) -> None:
    """Refuse what cannot be meant, before anything is loaded.

    Raises:
        InvalidArgument: a number without a supernet."""
    if count is not None and supernet is None:
        raise InvalidArgument(f"--screen {count} needs --supernet: what is screened with")


def screening(supernet: str | None, count: int | None) -> Screening | None:
    """The screening that is asked for; None: none.

    Args:
        supernet: empty text: the only one."""
    from ranksearch.study import Screening

    return None if supernet is None else Screening(supernet or True, count or COUNT)
