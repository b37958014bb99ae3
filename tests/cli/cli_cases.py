"""A study file, and how the tests of the command line run commands on it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import forked

from ranksearch.cli import main as cli

STUDY = """
    from pathlib import Path
    from typing import Annotated
    import time
    import torch
    from torch import nn
    from ranksearch.evaluation import Fidelity
    from ranksearch.study import Study
    from ranksearch.tasks import Classification

    def network():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)
        )

    def study(
        *,
        data: Annotated[Path, "where the data is"],
        noise: Annotated[float, "added to the data"] = 0.0,
        shuffle: bool = False,
    ) -> Study:
        '''A network that tells bright from dark.'''
        if not data.is_dir():
            raise FileNotFoundError(f"no data in {data}")
        x = torch.randn(160, 3, 6, 6, generator=torch.Generator().manual_seed(0)) + noise
        y = (x.mean(dim=(1, 2, 3)) > noise).long()
        task = Classification(train=(x[:96], y[:96]), validation=(x[96:], y[96:]), batch_size=32, learning_rate=0.05)
        return Study("bright", model=network(), task=task, fidelity=Fidelity(epochs=0, recalibration=1))
"""


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return forked.run("-m", "ranksearch.cli", *arguments, **options)


def error(capsys, *arguments: str, code: int = 2) -> str:
    """The one line that a failing command prints on stderr, beside what it does and, on a slow machine, how far it is with the sites."""
    assert cli.main(list(arguments)) == code
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if not line.endswith("...") and not re.match(r"site [0-9,]+ of [0-9,]+ profiled", line)]
    assert len(lines) == 1, lines
    return lines[0]


def edited(study: str, old: str, new: str) -> str:
    text = Path(study).read_text()
    assert old in text
    Path(study).write_text(text.replace(old, new))
    return study


SEARCH = ("--runner", "local", "--trials", "8")
