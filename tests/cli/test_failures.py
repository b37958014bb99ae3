"""Evaluations that fail, from the command line: the dense network's ends it, others are tried again when asked."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from ranksearch.cli import main as cli
from ranksearch.space import DENSE
from ranksearch.store import Store

STUDY = """
    import sys
    from pathlib import Path
    import torch
    from torch import nn
    from ranksearch.evaluation import Fidelity
    from ranksearch.space import svd_only
    from ranksearch.study import Study
    from ranksearch.tasks import Classification

    BROKEN = Path(__file__).with_name("broken")

    class Fragile(Classification):
        '''Says whom the machine has no memory for in a file beside it.'''

        def measure(self, model, split="validation"):
            small = any(isinstance(module, nn.Sequential) for module in list(model.modules())[1:])
            whom, _, how = BROKEN.read_text().partition(" ") if BROKEN.exists() else ("", "", "")
            if whom == ("small" if small else "dense"):
                if how == "exit":
                    sys.exit("\x1b[2J")
                raise MemoryError("nothing left")
            return super().measure(model, split)

    def study() -> Study:
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        y = (x.mean(dim=1) > 0).long()
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        task = Fragile(train=(x[:32], y[:32]), validation=(x[32:], y[32:]), batch_size=32, learning_rate=0.05)
        return Study("fragile", model=net, task=task, space=svd_only(), fidelity=Fidelity(epochs=0, recalibration=0))
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "fragile.py").write_text(textwrap.dedent(STUDY))
    where = ["--store", str(tmp_path / "s.db")]
    return ["search", str(tmp_path / "fragile.py"), "--runner", "local", "--retries", "0", "--trials", "5", *where]


def statuses(tmp_path: Path) -> dict[str, tuple[str, str | None]]:
    with Store.open(tmp_path / "s.db", create=False) as store:
        return {record.configuration_id: (record.status, record.error_kind) for record in store.records()}


def test_a_dense_network_that_fails_ends_the_command_with_its_error(command, tmp_path, capsys):
    (tmp_path / "broken").write_text("dense")
    for _ in range(2):
        assert cli.main(command) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and "Traceback" not in shown.err
        lines = [line for line in shown.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and "--workers" in lines[0]
        assert "the dense network cannot be evaluated: MemoryError: nothing left" in lines[0]
        assert statuses(tmp_path) == {DENSE.id: ("failed", "machine")}
    (tmp_path / "broken").unlink()
    assert cli.main(command) == 0
    assert set(statuses(tmp_path).values()) == {("done", None)} and len(statuses(tmp_path)) == 5


@pytest.mark.parametrize(("kind", "flags"), [("machine", []), ("code", ["--retry-failed"])])
def test_what_may_come_to_something_else_is_tried_again(command, tmp_path, capsys, kind, flags):
    """The machine's failures by the same command, which is no fact about networks; those of code when asked."""
    (tmp_path / "broken").write_text("small" if kind == "machine" else "small exit")
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    again = " ".join(["--trials 5", *flags]) + "\n"
    assert "4 of them failed" in shown and again in shown and ("--retry-failed" in shown) is bool(flags)
    before = statuses(tmp_path)
    assert list(before.values()).count(("failed", kind)) == 4
    (tmp_path / "broken").unlink()
    if flags:
        assert cli.main(command) == 0 and statuses(tmp_path) == before
    assert cli.main([*command, *flags]) == 0
    after = statuses(tmp_path)
    assert after.keys() == before.keys() and set(after.values()) == {("done", None)}
    assert again not in capsys.readouterr().out.split("next:")[-1]


def test_failures_in_a_row_end_the_command(command, tmp_path, capsys):
    (tmp_path / "broken").write_text("small exit")
    assert cli.main([*command, "--trials", "9"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: 5 evaluations in a row failed, the last one with SystemExit: \\x1b[2J;") and "--retry-failed" in last
    assert list(statuses(tmp_path).values()).count(("failed", "code")) == 5
