"""``--cost`` and ``profile --latency``: costs from the command line, and what becomes of them in the store."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from pathlib import Path

import pytest

from ranksearch.cli import main as cli
from ranksearch.cli.costs import KINDS, SETTINGS, parsed
from ranksearch.costs import Bytes
from ranksearch.errors import InvalidArgument
from ranksearch.latency import Latency

STUDY = """
    import torch
    from torch import nn
    from ranksearch.evaluation import Fidelity
    from ranksearch.space import svd_only
    from ranksearch.study import Study
    from ranksearch.tasks import Classification

    def study(*, width: int = 8) -> Study:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 2))
        x = torch.randn(96, 3, 6, 6, generator=torch.Generator().manual_seed(0))
        y = (x.mean(dim=(1, 2, 3)) > 0).long()
        task = Classification(train=(x[:64], y[:64]), validation=(x[64:], y[64:]), batch_size=32, learning_rate=0.05)
        return Study("small", model=net, task=task, space=svd_only(), fidelity=Fidelity(epochs=0, recalibration=0))
"""
TABLE = "# a phone\nsite,type,rank,milliseconds\n,dense,,3.5\n0,dense,,2\n3,dense,,1\n0,svd,1,0.5\n0,svd,8,2.25\n"


@pytest.fixture
def study(tmp_path: Path) -> str:
    (tmp_path / "small.py").write_text(textwrap.dedent(STUDY))
    (tmp_path / "phone.csv").write_text(TABLE)
    return str(tmp_path / "small.py")


def phone(study: str) -> str:
    return f"latency:table={Path(study).with_name('phone.csv')}"


def error(capsys, *arguments: str) -> str:
    assert cli.main(list(arguments)) == 2
    return capsys.readouterr().err


def test_costs_of_the_command_line() -> None:
    assert parsed("bytes") == Bytes() and parsed("bytes:dtype=float16") == Bytes(dtype="float16")
    made = parsed("latency:runtime=compile,batch=8,networks=5,device=AMD EPYC (AVX512)")
    assert made == Latency(runtime="compile", batch=8, networks=5, device="AMD EPYC (AVX512)")
    assert set(KINDS) == set(SETTINGS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("byte", "'byte' is none of bytes, latency, did you mean 'bytes'"), ("bytes:type=float16", "did you mean 'dtype'"),
        ("latency:batch", "'batch' is no setting"), ("latency:batch=", "'batch=' is no setting"),
        ("latency:batch=many", "batch=many is no whole number"), ("latency:batch=0", "batch=0"), ("latency:runtime=x", "runtime='x'"),
        ("bytes:dtype=int8", "dtype='int8'"),
    ],
)  # fmt: skip
def test_what_is_no_cost_is_refused(text: str, message: str, study: str, capsys) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parsed(text)
    told = error(capsys, "search", study, "--cost", text)
    assert message in told and "Traceback" not in told and "loading" in told


def test_added_costs_are_counted_bounded_and_stored(study: str, tmp_path: Path, capsys) -> None:
    store = ["--store", str(tmp_path / "s.db")]
    arguments = ["--runner", "local", "--trials", "5", "--cost", "bytes", "--cost", phone(study), "--objective", "latency"]
    bounds = ["--objective", "accuracy", "--constraint", "latency <= 0.8 and bytes < 0.99"]
    assert cli.main(["search", study, *store, *arguments, *bounds]) == 0
    shown = capsys.readouterr().out
    assert "% latency" in shown and "% bytes" in shown
    assert cli.main(["front", study, *store, "--all", "--format", "json"]) == 0  # without being told
    rows = json.loads(capsys.readouterr().out)
    chosen = [row for row in rows if not row["is_dense"]]
    assert len(chosen) == 4 and all(row["latency_rel"] <= 0.8 and row["bytes"] == 4 * row["params"] for row in rows if row in chosen)
    assert {row["latency"] for row in rows if row["is_dense"]} == {3_500_000}
    assert cli.main(["search", study, *store, "--runner", "local", "--trials", "6", "--constraint", "latency <= 0.8"]) == 0
    capsys.readouterr()
    assert cli.main(["build", study, chosen[0]["id"], *store, "--out", str(tmp_path / "net")]) == 0
    assert "latency" in capsys.readouterr().out
    assert json.loads((tmp_path / "net" / "manifest.json").read_text())["latency"] == chosen[0]["latency"]
    Path(study).with_name("phone.csv").write_text(TABLE.replace("0.5", "0.7"))
    told = error(capsys, "search", study, *store, "--trials", "9", "--cost", phone(study))
    assert "is not what the study counts by" in told


def test_networks_are_compressed_to_a_latency(study: str, tmp_path: Path, capsys) -> None:
    arguments = ["--cost", phone(study), "--to", "latency <= 0.7", "--rule", "uniform", "--rule", "fisher", "--out", str(tmp_path / "net")]
    assert cli.main(["compress", study, *arguments]) == 0
    assert "latency" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "net" / "manifest.json").read_text())
    assert manifest["latency"] <= 0.7 * 3_500_000 and manifest["baseline"]["latency"] == 3_500_000


def test_what_takes_the_place_of_a_declared_cost(study: str, capsys) -> None:
    text = Path(study).read_text().replace("from ranksearch.study", "from ranksearch.costs import COSTS, Bytes\nfrom ranksearch.study")
    Path(study).write_text(text.replace("space=svd_only()", "space=svd_only(), costs=(*COSTS, Bytes())"))
    found = []
    for arguments in ([], ["--cost", "bytes:dtype=float16"]):
        assert cli.main(["profile", study, *arguments, "--format", "json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["bytes"])
    assert found[0] == 2 * found[1]


def test_break_even_of_a_table(study: str, tmp_path: Path, capsys) -> None:
    shown = ["profile", study, "--cost", phone(study), "--latency"]
    assert cli.main(shown) == 0
    text = capsys.readouterr().out
    assert "latency of a phone" in text and "really faster up to" in text
    assert cli.main([*shown, "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    (row,) = data["break_even"]  # the table has no options of the other layer
    assert row["site"] == "0" and row["decomposition"] == "svd" and row["rank"] == [6]  # 0.25 ms per rank from 0.5 ms: 1.75 < 2
    assert row["ratio"] == pytest.approx(1.75 / 2) and data["latency"] == 3_500_000
    assert cli.main([*shown, "--format", "csv"]) == 0
    assert [r["rank"] for r in csv.DictReader(io.StringIO(capsys.readouterr().out))] == ["[6]"]
    assert cli.main([*shown, "--write-table", str(tmp_path / "again.csv")]) == 0
    assert "again.csv" in capsys.readouterr().err
    assert "0,svd,8,2.25,2.25,2.25" in (tmp_path / "again.csv").read_text()


def test_latency_is_measured_where_none_is_declared(study: str, capsys) -> None:
    code = cli.main(["profile", study, "--latency", "--format", "json"])
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert code == 0 or (code == 2 and "none is as fast" in captured.err)  # such small layers may gain nothing
    assert "measuring latency of 2 different layers" in captured.err and "measuring 20 networks as a whole" in captured.err
    assert {row["site"] for row in data["break_even"]} == {"0", "3"} and data["latency"] > 0
