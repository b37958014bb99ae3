"""Evaluations made again from what the store has of them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import torch
from torch import nn

from ranksearch.cli import main as cli
from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity
from ranksearch.space import DENSE, svd_only
from ranksearch.study import Study
from ranksearch.tasks import Classification

FILE = """
    import sys
    sys.path.insert(0, {folder!r})
    from test_replay import make
    def study():
        return make(None)
"""


def make(store: str | None, **changes) -> Study:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    y = (x.mean(dim=1) > 0).long()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    task = Classification(train=(x[:32], y[:32]), validation=(x[32:], y[32:]), batch_size=16, learning_rate=0.05)
    fidelity = Fidelity(epochs=2, recalibration=0)
    return Study("again", **{"model": net, "task": task, "space": svd_only(), "fidelity": fidelity, "store": store} | changes)


@pytest.fixture
def store(tmp_path: Path) -> str:
    where = str(tmp_path / "again.db")
    make(where).run(4, runner="local")
    return where


def change(store: str, column: str, value: str, id: str) -> None:
    with sqlite3.connect(store) as connection:
        connection.execute(f"UPDATE ranksearch_evaluations SET {column} = {value} WHERE configuration_id = ?", (id,))
    connection.close()


def test_every_row_comes_to_the_same_bit_for_bit(store: str) -> None:
    study = make(store)
    for id in study.evaluations()["id"]:
        found = study.results.replay(id[:8])
        assert found.verdict(0.0) == "identical" and not found.elsewhere
        assert found.now.request.seed == found.then.seed and found.then.provenance == found.now.provenance


def test_what_differs_is_told_and_how_far(store: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "again.py").write_text("\n".join(line[4:] for line in FILE.format(folder=str(Path(__file__).parent)).splitlines()))
    command = ["replay", str(tmp_path / "again.py"), DENSE.id, "--store", store]
    assert cli.main(command) == 0 and "it agrees, bit for bit" in capsys.readouterr().out
    change(store, "metrics", "json_set(metrics, '$.loss', json_extract(metrics, '$.loss') * 1.00001)", DENSE.id)
    assert cli.main(command) == 0 and "it agrees within 0.0001, though not bit for bit" in capsys.readouterr().out
    assert cli.main([*command, "--tolerance", "1e-7"]) == 1
    change(store, "provenance", "json_set(provenance, '$.torch', '1.0', '$.host', 'else')", DENSE.id)
    assert cli.main([*command, "--tolerance", "1e-7"]) == 1
    assert f"it does not agree (another machine: torch 1.0, now {torch.__version__})" in capsys.readouterr().out
    change(store, "provenance", "NULL", DENSE.id)
    assert cli.main([*command, "--tolerance", "1e-7"]) == 1 and "is not known" in capsys.readouterr().out


def test_as_many_threads_as_then(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    change(store, "provenance", f"json_set(provenance, '$.threads', {before + 2})", DENSE.id)
    found = make(store).results.replay(DENSE.id)
    assert found.now.provenance is not None and found.now.provenance["threads"] == before + 2 and torch.get_num_threads() == before
    assert not found.elsewhere


def test_failures_and_seeds(store: str) -> None:
    study = make(store)
    change(store, "status", "'failed'", DENSE.id)
    assert study.results.replay(DENSE.id).verdict(1.0) == "different"
    change(store, "seed", "7", DENSE.id)
    assert study.results.replay(DENSE.id).now.request.seed == 7, "the only one"
    with pytest.raises(InvalidArgument, match="seed 3; seeds 7 are there"):
        study.results.replay(DENSE.id, seed=3)
    with pytest.raises(InvalidArgument, match="no evaluated configuration has it"):
        study.results.replay("none")
