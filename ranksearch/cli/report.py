"""``ranksearch report``: a study as one page, its figures and its table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ranksearch.study import Study


def build_command(study: Study, command: Callable[[str], str], fidelity: str | None) -> tuple[str, str, str]:
    """The command that rebuilds a network, in parts between which its id stands."""
    import shlex

    end = "" if fidelity is None else f" --fidelity {shlex.quote(fidelity)}"
    return f"{command('build')} ", f" --out {shlex.quote(study.name)}-", end


def check(out: Path, figures: Path | None) -> None:
    """Refuse what cannot be written, before any work."""
    from ranksearch.report import figures as drawn
    from ranksearch.report.page import check_path, plotly_script

    check_path(out)
    plotly_script()
    if figures is not None:
        drawn.check_folder(figures)


def write(
    study: Study, out: Path, *, fidelity: str | None, calibrate: bool, batches: int, build: tuple[str, str, str], figures: Path | None,
    latex: Path | None,
) -> None:  # fmt: skip
    """Write the page, and what else is asked for, and say where."""
    page, *others = study.report.write(
        out, figures=figures, latex=latex, fidelity=fidelity, calibrate=calibrate, batches=batches, build=build
    )
    print(f"written to {page} ({page.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)
    if others:
        print(f"with it: {', '.join(map(str, others))}", file=sys.stderr)
