"""Statistics in files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ranksearch.sites import find_sites
from ranksearch.statistics import collect


@pytest.mark.parametrize("length", [0, 100, -1])
def test_statistics_that_were_cut_off_are_made_again(tmp_path: Path, length: int) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval(), torch.randn(6, 3, 6, 6)
    sites = find_sites(model, x[:1])
    first = collect(model, sites, [x], cache=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.unlink()  # what was made before is read from it
    path.write_bytes(whole[:length])
    again = collect(model, sites, [x], cache=tmp_path)
    for name in first.of:
        before, now = first.of[name].input, again.of[name].input
        assert before is not None and now is not None and torch.equal(before, now)
    assert len(path.read_bytes()) == len(whole)
