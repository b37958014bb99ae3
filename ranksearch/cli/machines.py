"""Where a search evaluates: ``--runner`` and what goes with it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from ranksearch.errors import InvalidArgument

if TYPE_CHECKING:
    from ranksearch.cli.arguments import StudyArguments
    from ranksearch.runners import Runner

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Size(click.ParamType):
    """Bytes, as ``800M``, ``1.5GiB`` or a plain number."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kmgt]i?|)b?", str(value).strip().lower())
        if found is None or (size := int(float(found[1]) * UNITS[found[2]])) < 1:
            self.fail(f"{value!r} is no amount of memory; write it like 800M or 1.5GiB", param, ctx)
        return size


class Duration(click.ParamType):
    """Seconds, as ``90``, ``30m`` or ``1.5h``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([smhd]|)", str(value).strip().lower())
        if found is None or (seconds := float(found[1]) * SECONDS[found[2]]) <= 0:
            self.fail(f"{value!r} is no duration; write it like 90, 30m or 1.5h", param, ctx)
        return seconds


def options() -> list[click.Parameter]:
    """What ``search`` takes for it."""
    return [
        click.Option(["--runner"], type=click.Choice(["ray_tune", "local"]), default="ray_tune", help="[default: ray_tune]"),
        click.Option(["--workers"], type=click.IntRange(min=1), metavar="N", help="Evaluations at the same time.  [default: one per core]"),
        click.Option(["--address"], metavar="HOST:PORT", help="A running Ray cluster, auto or local.  [default: $RAY_ADDRESS, else local]"),
        click.Option(["--cpus-per-worker"], type=float, default=1.0, metavar="X", help="Cores for each, or a share of one.  [default: 1]"),
        click.Option(["--gpus-per-worker"], type=float, default=0.0, metavar="X", help="GPUs for each, or a share of one.  [default: 0]"),
        click.Option(
            ["--retries"], type=click.IntRange(min=0), default=2, metavar="N",
            help="How often an evaluation is tried again that failed by the machine's fault (memory, disk, a killed worker).  [default: 2]",
        ),
        click.Option(["--time-limit"], type=Duration(), metavar="TIME", help="Of one evaluation, such as 30m; beyond it, it has failed."),
        click.Option(["--memory-limit"], type=Size(), metavar="SIZE", help="Of one evaluation, such as 4GiB, likewise (Linux)."),
    ]  # fmt: skip


def runner(asked: StudyArguments, given: dict[str, Any]) -> Runner:
    """The runner that is asked for; workers of Ray get the modules beside the study and the space by value: they cannot import them.

    Raises:
        InvalidArgument: what a runner in this process cannot have."""
    from ranksearch.runners import LocalRunner, RayTuneRunner

    options = dict(given)
    if options.pop("runner") == "ray_tune":
        return RayTuneRunner(**options, by_value=asked.modules)
    allowed = {"workers": (None, 1), "address": (None,)}
    if wrong := [f"--{name} {options[name]}" for name, values in allowed.items() if options[name] not in values]:
        raise InvalidArgument(
            f"{', '.join(wrong)}: --runner local evaluates one at a time here; use ray_tune"
        )
    limits = [f"--{name.replace('_', '-')}" for name in ("time_limit", "memory_limit") if options[name] is not None]
    if limits:
        raise InvalidArgument(
            f"{', '.join(limits)}: --runner local evaluates in this process, which cannot be ended without the search; use --runner "
            "ray_tune (with --workers 1 for one at a time)"
        )
    return LocalRunner(retries=options["retries"])
