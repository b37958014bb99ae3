"""How a search is shown: a live table on a terminal, lines in a pipe, events for scripts, or nothing."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from cli_cases import error
from rich.console import Console

from ranksearch.cli import main as cli
from ranksearch.cli.progress.display import Standing
from ranksearch.cli.progress.front import FrontSize
from ranksearch.cli.progress.live import LiveTable, spread
from ranksearch.cli.progress.times import TimeLeft
from ranksearch.evaluation import Fidelity, Outcome, Request
from ranksearch.space import DENSE, Configuration
from ranksearch.study import Finished, Planned
from ranksearch.studyfile import load


@pytest.fixture
def again(searched: tuple[str, str, str], tmp_path: Path) -> list[str]:
    """A search that goes on in a copy of a finished study."""
    path, store, _ = searched
    mine = str(tmp_path / "mine.db")
    shutil.copy(store, mine)
    return ["search", path, "--data", str(Path(path).parent), "--noise", "0.5", "--runner", "local", "--store", mine]


def test_events_are_one_object_a_line_and_nothing_else_is_printed(again: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*again, "--json", "--trials", "12"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    events = [json.loads(line) for line in printed.out.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[-4:] == ["stage", "finished", "finished", "end"] and "profiled" in kinds
    (planned,) = [event for event in events if event["event"] == "planned"]
    assert (planned["done"], planned["total"]) == (10, 12)
    first, last, end = events[-3:]
    assert (first["done"], last["done"], last["total"], last["failed"]) == (11, 12, 12, 0)
    study = load(again[1]).create({"data": again[3], "noise": 0.5}).replace(store=again[-1])
    rows = study.evaluations().set_index("id")
    for event in (first, last):
        row = rows.loc[event["id"]]
        assert event["status"] == "done" and event["metrics"] == {name: row[name] for name in ("accuracy", "loss")}
        assert event["costs"] == {"params": row["params"], "macs": row["macs"]} and event["origin"] == row["origin"]
        assert Configuration.from_json(json.dumps(event["configuration"])).id == event["id"]
    front = study.front()
    assert [row["id"] for row in end["front"]] == front["id"].tolist() and (end["stored"], end["failed"]) == (12, 0)
    assert last["front"] == int((front["on_front"] & ~front["is_dense"]).sum()) and 0 < last["hypervolume"] < 1


def test_quiet_prints_the_result_alone(again: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*again, "--quiet", "--trials", "11"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "11 evaluations stored" in printed.out
    assert "--quiet and --json exclude each other" in error(capsys, *again, "--quiet", "--json")


def test_the_live_table_shows_the_front_how_far_it_is_and_what_failed(searched: tuple[str, str, str]) -> None:
    path, store, _ = searched
    study = load(path).create({"data": str(Path(path).parent), "noise": 0.5}).replace(store=store)
    front = study.front()
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=120, height=40, legacy_windows=False)
    shown = console.file
    assert isinstance(shown, io.StringIO)
    table = LiveTable(study, console=console)
    table.planned(Planned(20, 10))
    standing = Standing(TimeLeft(clock=iter(range(0, 1000, 3)).__next__), done=11, total=20, failed=1, front=FrontSize(3, 0.5))
    for _ in range(2):
        standing.left.finished(1.0)
    failed = Outcome(Request(DENSE, study.fidelity, 0), "failed", error="OutOfMemoryError: [bold]no memory")
    assert table.due(last=True)
    table.finished(Finished(failed, 11, 20), standing)
    text = shown.getvalue()
    assert "20 evaluations wanted, 10 of them in the store" in text
    assert f"{DENSE.id} failed: OutOfMemoryError: [bold]no memory" in text, "markup in errors is text"
    assert "11/20" in text and "left" in text and "per minute" in text and "1 failure" in text and "front: 3 networks" in text
    assert all(id in text for id in front["id"]) and "% MACs" in text
    table.close()
    assert shown.getvalue().endswith("\x1b[2K"), "the table is gone in the end"


def test_a_low_terminal_shows_rows_spread_over_the_front() -> None:
    assert spread(3, 5) == [0, 1, 2] and spread(5, 5) == [0, 1, 2, 3, 4]
    assert spread(9, 3) == [0, 4, 8] and spread(100, 2) == [0, 99]
    for count in range(1, 40):
        for room in range(2, 12):
            chosen = spread(count, room)
            assert chosen == sorted(set(chosen)) and len(chosen) == min(count, room) and chosen[0] == 0 and chosen[-1] == count - 1


def test_a_table_of_a_fidelity_that_nothing_is_measured_at(searched: tuple[str, str, str]) -> None:
    path, store, _ = searched
    study = load(path).create({"data": str(Path(path).parent), "noise": 0.5}).replace(store=store, fidelity=Fidelity(epochs=3))
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    table = LiveTable(study, console=console)
    table.planned(Planned(2, 0))
    table.finished(Finished(Outcome(Request(DENSE, study.fidelity, 0), "done"), 1, 2), Standing(TimeLeft(), 1, 2))
    table.close()
    assert "1/2" in console.file.getvalue()  # type: ignore[attr-defined]
