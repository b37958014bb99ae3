"""Commands that answer questions: what they print, what they write, and that wrong ones end with 2."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from cli_cases import error

from ranksearch.cli import main as cli
from ranksearch.cli.questions import FRAMES, _amount


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 0
    return capsys.readouterr().out


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    return json.loads(printed(capsys, *arguments, "--format", "json"))


def test_one_network(searched, capsys) -> None:
    path, store, _ = searched
    at = (path, "--store", store)
    every = pd.DataFrame(rows(capsys, "front", *at, "--all"))
    (dense,) = every[every["is_dense"]].to_dict("records")
    (best,) = rows(capsys, "best", *at, "--where", "macs <= 0.6")
    assert best["accuracy"] == every.loc[every["macs_rel"] <= 0.6, "accuracy"].max()
    enough = every[every["accuracy"] >= 0.9 * dense["accuracy"]]
    for cost, options in (("macs", []), ("params", ["--by", "params"])):
        (cheapest,) = rows(capsys, "cheapest", *at, "--within", "0.1", *options)
        assert cheapest[cost] == enough[cost].min()
    (knee,) = rows(capsys, "knee", *at)
    assert knee["on_front"] and knee["id"] in printed(capsys, "knee", *at)
    found = rows(capsys, "feasible", *at, "--where", "macs <= 0.9", "--where", "accuracy >= baseline - 0.2")
    wanted = every[(every["macs_rel"] <= 0.9) & (every["accuracy"] >= dense["accuracy"] - 0.2)]
    assert {row["id"] for row in found} == set(wanted["id"])


def test_sweep(searched, capsys) -> None:
    path, store, _ = searched
    shown = printed(capsys, "sweep", path, "--store", store, "--budget", "macs=1,0.6,0.000001").splitlines()
    assert [line.split("  ")[0] for line in shown[2:]] == ["macs <= 1", "macs <= 0.6", "macs <= 1e-06"] and "none measured" in shown[-1]
    (best,) = rows(capsys, "best", path, "--store", store, "--where", "macs <= 0.6")
    assert [row["id"] for row in rows(capsys, "sweep", path, "--store", store, "--budget", "macs=0.6,1e-6")] == [best["id"], None]
    assert "write COST=VALUE" in error(capsys, "sweep", path, "--store", store, "--budget", "macs:0.5")
    assert "costs are: params, macs" in error(capsys, "sweep", path, "--store", store, "--budget", "speed=0.5")


def test_layers_of_the_front(searched, capsys) -> None:
    path, store, _ = searched
    at = (path, "--store", store)
    front = [row["id"] for row in rows(capsys, "front", *at)]
    dense, other = next(row["id"] for row in rows(capsys, "front", *at, "--all") if row["is_dense"]), front[0]
    changed = rows(capsys, "diff", path, dense, other, "--store", store)
    assert changed and all(row["decomposition_before"] == "dense" != row["decomposition_after"] for row in changed)
    assert changed[0]["site"] in printed(capsys, "diff", path, dense, other, "--store", store)
    assert "nothing changed" in printed(capsys, "diff", path, dense, dense, "--store", store)
    assert [row["site"] for row in rows(capsys, "spared", *at)] == ["0", "3", "6"]
    assert "no evaluated configuration" in error(capsys, "diff", path, dense, "nothing", "--store", store)


@pytest.mark.parametrize(
    ("amount", "sign", "shown"), [(1327104, "", "1,327,104"), (-1327104.0, "+", "-1,327,104"), (0.1234567, "+", "+0.123457")]
)
def test_amounts_that_are_counted_have_all_digits(amount: float, sign: str, shown: str) -> None:
    assert _amount(amount, sign) == shown


def test_compare(searched, capsys) -> None:
    path, store, _ = searched
    both = ("compare", path, path, "--store", store, "--other-store", store)
    found = rows(capsys, *both, "--budget", "0.8")
    assert [row["measure"] for row in found] == ["hypervolume", "coverage", "accuracy"] and found[0]["difference"] == 0
    assert found[1]["a"] == 1.0 and "no intervals: they need two seeds" in printed(capsys, *both)
    assert "does not exist" in error(capsys, *both[:-1], store + "x") or "needs --data" in error(capsys, *both[:-1], store + "x")


def test_every_frame_as_a_file(searched, tmp_path: Path, capsys) -> None:
    path, store, _ = searched
    for name in FRAMES:
        out = tmp_path / f"{name}.parquet"
        assert cli.main(["table", path, name, "--store", store, "--out", str(out)]) == 0
        assert "id" in pd.read_parquet(out).columns
    capsys.readouterr()
    assert "relative_error" in printed(capsys, "table", path, "layers", "--store", store)
    assert "end it in .csv, .json, .parquet, .txt" in error(capsys, "front", path, "--store", store, "--out", str(tmp_path / "a.zip"))
    assert not (tmp_path / "a.zip").exists()
    assert "parquet needs --out" in error(capsys, "table", path, "layers", "--store", store, "--format", "parquet")


def test_nothing_found_is_said(searched, capsys) -> None:
    path, store, _ = searched
    assert cli.main(["front", path, "--store", store, "--where", "accuracy > 2", "--format", "csv"]) == 0
    assert "no measured network satisfies accuracy > 2" in capsys.readouterr().err
    assert cli.main(["front", path, "--store", store, "--where", "macs <= 1"]) == 0
    assert "satisfies" not in capsys.readouterr().err
    for command in ("best", "knee", "cheapest"):
        assert "no evaluated network satisfies" in error(capsys, command, path, "--store", store, "--where", "accuracy > 2")
        assert "is empty" in error(capsys, command, path, "--store", store, "--where", "")


def test_errors_of_bounds_show_bounds(study, tmp_path: Path, capsys) -> None:
    shown = error(capsys, "search", study, "--data", str(tmp_path), "--runner", "local", "--constraint", "macs <")
    assert "params < 100000" in shown and "accuracy" not in shown
