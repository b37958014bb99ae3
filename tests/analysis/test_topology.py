"""The comparison of learned topologies, as a user runs it."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import save_file

SCRIPT = Path(__file__).parents[2] / "analysis" / "topology.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return forked.run(str(SCRIPT), *options)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    folder = tmp_path_factory.mktemp("topology")
    random = torch.Generator().manual_seed(0)
    weights, out = folder / "weights.safetensors", folder / "table.md"
    conv, head = torch.randn(8, 6, 3, 3, generator=random), torch.randn(7, 8, generator=random)
    save_file({"conv.weight": conv, "bn.weight": torch.ones(8), "head.weight": head}, weights)
    done = run("--weights", str(weights), "--structured", "--seeds", "1", "--budgets", "0.5", "--out", str(out))
    assert done.returncode == 0, done.stderr
    lines = out.read_text().splitlines()
    assert lines[0] in done.stdout and "adaptive errs less in" in lines[-1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:] if line.startswith("|")]


def test_weights_that_the_type_is_defined_for_have_a_row(table: list[list[str]]) -> None:
    assert [row[0] for row in table] == ["conv", "train, seed 0", "star, seed 0", "Tucker, seed 0", "ring, seed 0"]  # 7 is prime
    assert table[0][1] == "8 x 6 x 3 x 3"


def test_stored_numbers_are_within_the_budget(table: list[list[str]]) -> None:
    for row in table:
        sizes = [int(n) for n in row[1].split(" x ")]
        budget, rule, adaptive = int(row[2]), int(row[3]), int(row[7])
        assert 0 < rule <= budget and 0 < adaptive <= budget < math.prod(sizes)
        for stored, bonds in ((rule, row[5]), (adaptive, row[9])):
            widths = [1] * len(sizes) + [0]
            for bond in bonds.split(", ") if bonds != "rank one" else ():
                left, width, right = bond.split("-")
                for end in (left, right):
                    node = len(sizes) if end == "hub" else int(end[1:]) - 1
                    widths[node] = max(1, widths[node]) * int(width)
            assert stored == sum(n * w for n, w in zip([*sizes, 1], widths, strict=True))


def test_of_noiseless_structures_adaptive_finds_what_made_them(table: list[list[str]]) -> None:
    for row in table[1:]:
        assert float(row[8]) < 1e-9 and row[7] == row[2]


def test_nothing_to_compare_on_is_an_error() -> None:
    done = run()
    assert done.returncode == 2 and "--weights, --structured or --random" in done.stderr and "Traceback" not in done.stderr
