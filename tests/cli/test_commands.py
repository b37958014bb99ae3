"""The commands from end to end: what they print and what they leave behind."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
from cli_cases import edited, error
from safetensors.torch import load_file

from ranksearch.cli import main as cli
from ranksearch.networks import export
from ranksearch.proxies import PROXIES
from ranksearch.samplers import SAMPLERS
from ranksearch.studyfile import load


def test_search_prints_progress_a_front_and_what_to_do_next(searched):
    path, store, printed = searched
    out, err = printed.split("\x00")
    assert "profiling 3 sites" in err and "10 evaluations wanted" in err and not re.search(r"^ +1/10 .*left", err, re.M)
    assert re.search(r"^ +10/10  front: \d networks?, hypervolume 0\.\d{3}$", err, re.M)
    assert "bright: 10 evaluations stored" in out
    rows = [line for line in out.splitlines() if re.match(r"[0-9a-f]{12} ", line)]
    (dense,) = [line for line in rows if line.endswith("dense")]
    assert "100.0 %" in dense and "+0.0000" in dense and len(rows) >= 2
    commands = [line.strip() for line in out.split("next:")[1].strip().splitlines()]
    assert [c.split()[1] for c in commands] == ["front", "build", "search"]
    assert all(path in c and store in c for c in commands) and "--noise 0.5" in commands[2]


def test_the_next_commands_are_given_what_this_one_was(study, tmp_path, capsys):
    given = ["--constraint", "macs <= 0.9", "--objective", "accuracy", "--objective", "params", "--sampler", "random", "--runner", "local"]
    store = ["--store", str(tmp_path / "s.db")]
    assert cli.main(["search", study, "--data", str(tmp_path), *given, "--trials", "3", *store]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.split("next:")[1].strip().splitlines()]
    following = {words[1]: words[3:] for words in lines}
    assert following["search"] == ["--data", str(tmp_path), *given, *store, "--trials", "6"]
    assert following["front"][:6] == ["--objective", "accuracy", "--objective", "params", *store]
    assert cli.main(["search", study, *following["search"]]) == 0


def test_searching_again_adds_to_what_is_stored(searched, tmp_path, capsys):
    path, store, _ = searched
    mine = str(tmp_path / "mine.db")
    shutil.copy(store, mine)
    data = str(Path(path).parent)
    for trials in ("10", "13"):
        command = ["search", path, "--data", data, "--noise", "0.5", "--trials", trials, "--runner", "local", "--store", mine]
        assert cli.main(command) == 0
        printed = capsys.readouterr()
        assert f"{trials} evaluations wanted, 10 of them in the store" in printed.err
        assert f"{trials} evaluations stored" in printed.out
    before = load(path).create({"data": data, "noise": 0.5}).replace(store=mine)
    assert before.evaluations()["id"].is_unique


def test_samplers_proxies_and_allocators_by_name(study, tmp_path, capsys):
    store = str(tmp_path / "s.db")
    command = ["search", study, "--data", str(tmp_path), "--runner", "local", "--store", store, "--trials", "8"]
    assert cli.main([*command, "--sampler", "random", "--proxy", "operator_norm", "--proxy", "frobenius", "--allocator", "additive"]) == 0
    capsys.readouterr()
    origins = load(study).create({"data": str(tmp_path)}).replace(store=store).evaluations()["origin"].tolist()
    assert origins[0] == "dense" and origins[1].startswith("minimax:operator_norm:") and "random" in origins
    assert {origin.split(":")[0] for origin in origins} <= {"dense", "minimax", "additive", "random"}
    assert cli.main(["search", study, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"[{'|'.join(sampler.name for sampler in SAMPLERS)}]" in shown and "operator_norm" in shown and "minimax" in shown


def test_stages_are_searched_without_a_flag_and_a_scheduler_by_name(study, tmp_path, capsys):
    stages = "stages=[Stage(Fidelity(epochs=0, recalibration=1), 5), Stage(Fidelity(epochs=2, recalibration=1), 4)]"
    edited(study, "fidelity=Fidelity(epochs=0, recalibration=1)", stages)
    edited(study, "from ranksearch.study import Study", "from ranksearch.study import Study\nfrom ranksearch import Stage")
    command = ["search", study, "--data", str(tmp_path), "--runner", "local", "--store", str(tmp_path / "s.db")]
    assert cli.main([*command, "--scheduler", "pareto_asha", "--first-rung", "0.5", "--eta", "2", "--proxy", "frobenius"]) == 0
    printed = capsys.readouterr()
    assert "stage 1 of 2" in printed.err and "stage 2 of 2" in printed.err and "9 evaluations stored" in printed.out
    assert "--trials" not in printed.out.split("next:")[1]
    assert cli.main(["table", study, "curves", "--data", str(tmp_path), "--store", str(tmp_path / "s.db")]) == 0
    assert "0.5" in capsys.readouterr().out
    assert cli.main(command) == 0 and "9 evaluations stored" in capsys.readouterr().out, "it is finished"


def test_front_takes_the_options_from_the_store(searched, capsys):
    path, store, printed = searched
    assert cli.main(["front", path, "--store", store]) == 0
    shown = capsys.readouterr().out.strip()
    assert shown in printed
    assert error(capsys, "front", path, "--store", store + "x").startswith(f"error: {path} needs --data")


def test_front_in_every_format(searched, tmp_path, capsys):
    path, store, _ = searched
    assert cli.main(["front", path, "--store", store, "--format", "csv"]) == 0
    frame = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert {"id", "accuracy", "macs_rel", "params_rel", "is_dense", "on_front"} <= set(frame) and frame["is_dense"].sum() == 1
    assert cli.main(["front", path, "--store", store, "--format", "json"]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == frame["id"].tolist()
    for name, read in (("f.csv", pd.read_csv), ("f.json", pd.read_json), ("f.parquet", pd.read_parquet)):
        assert cli.main(["front", path, "--store", store, "--out", str(tmp_path / name)]) == 0
        printed = capsys.readouterr()
        assert printed.out == "" and f"{len(frame)} rows written" in printed.err
        assert read(tmp_path / name)["id"].tolist() == frame["id"].tolist()
    assert {p.name for p in tmp_path.iterdir()} == {"f.csv", "f.json", "f.parquet"}
    assert "there is no directory" in error(capsys, "front", path, "--store", store, "--out", str(tmp_path / "no" / "f.csv"))


def test_front_with_conditions_objectives_and_all(searched, capsys):
    path, store, _ = searched

    def ids(*more: str) -> pd.DataFrame:
        assert cli.main(["front", path, "--store", store, "--format", "csv", *more]) == 0
        return pd.read_csv(io.StringIO(capsys.readouterr().out))

    everything = ids("--all")
    assert len(everything) == 10 and everything["on_front"].sum() < 10
    cheap = ids("--where", "macs < 0.8", "--where", "accuracy > 0 or loss < 9")
    found = cheap[~cheap["is_dense"] | cheap["on_front"]]
    assert len(found) and (found["macs_rel"] < 0.8).all()
    assert len(ids("--objective", "params", "--objective", "macs")) <= len(ids())
    assert "unknown beauty" in error(capsys, "front", path, "--store", store, "--where", "beauty > 1")
    assert "objectives=['beauty']" in error(capsys, "front", path, "--store", store, "--objective", "beauty")


def test_proxies_in_every_format(searched, tmp_path, capsys):
    path, store, printed = searched
    said = re.search(r"proxies: (\w+) ordered the 9 factorized networks best by accuracy \(Kendall tau (-?\d\.\d\d);", printed)
    assert said and f"ranksearch proxies {path} --store {store}" in printed
    command = ["proxies", path, "--store", store]
    assert cli.main([*command, "--no-calibration", "--format", "csv"]) == 0
    free = pd.read_csv(io.StringIO(capsys.readouterr().out))
    needing = {need: [kind.name for kind in PROXIES if kind.needs == need] for need in ("space", "statistics", "networks")}
    assert free["proxy"].tolist() == needing["space"] and set(free["count"]) == {9}
    best = free.loc[free["kendall"].idxmax()]
    assert said[1] == best["proxy"] and float(said[2]) == pytest.approx(best["kendall"], abs=0.006)
    assert cli.main([*command, "--format", "json", "--top", "2", "--objective", "loss"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["proxy"] for row in rows} == {kind.name for kind in PROXIES}
    assert {row["k"] for row in rows} == {2} and {row["metric"] for row in rows} == {"loss"}
    assert cli.main([*command, "--batches", "0", "--plot", str(tmp_path / "p.png")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("accuracy of 9 factorized networks at full:epochs=0,recalibration=1:")
    assert "(blind choice)" in shown and f"{', '.join(needing['networks'])}: runs networks" in shown
    taus = [float(tau) for tau in re.findall(r"^\w+ +(-?\d\.\d\d) ", shown, re.M)]
    assert len(taus) == len(needing["space"] + needing["statistics"]) and taus == sorted(taus, reverse=True)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    for name, read in (("p.csv", pd.read_csv), ("p.json", pd.read_json), ("p.parquet", pd.read_parquet)):
        assert cli.main([*command, "--no-calibration", "--out", str(tmp_path / name)]) == 0
        assert f"{len(free)} rows written" in capsys.readouterr().err and read(tmp_path / name)["proxy"].tolist() == free["proxy"].tolist()


def test_proxies_that_cannot_be_judged_are_one_line(searched, study, tmp_path, capsys):
    path, store, _ = searched
    command = ("proxies", path, "--store", store)
    assert "metric='beauty': this task reports accuracy, loss" in error(capsys, *command, "--objective", "beauty")
    assert "fidelity='none': nothing was measured at it; the store has full:" in error(capsys, *command, "--fidelity", "none")
    assert "needs --out FILE" in error(capsys, *command, "--format", "parquet")
    assert "'p.gif': a picture ends in" in error(capsys, *command, "--plot", "p.gif")
    assert "0 is not in the range" in error(capsys, *command, "--top", "0")
    data = ("--data", str(tmp_path))
    assert "does not exist" in error(capsys, "proxies", study, *data)
    small = str(tmp_path / "small.db")
    assert cli.main(["search", study, *data, "--trials", "3", "--runner", "local", "--store", small]) == 0
    assert "Kendall" not in capsys.readouterr().out, "three evaluations say nothing of proxies"
    assert "2 factorized networks of this space are measured; at least 3" in error(capsys, "proxies", study, "--store", small)


def test_build_merges_the_factors_back(searched, tmp_path, capsys):
    path, store, _ = searched
    assert cli.main(["front", path, "--store", store, "--format", "json"]) == 0
    row = next(r for r in json.loads(capsys.readouterr().out) if not r["is_dense"])
    target, file = tmp_path / "net", load(path)
    assert cli.main(["build", path, row["id"], "--dense", "--out", str(target), "--store", store]) == 0
    manifest = export.read_manifest(target)
    dense = file.module.network()
    dense.load_state_dict(load_file(target / "model.safetensors"))  # no other layers, no other keys
    assert manifest["params"] == sum(p.numel() for p in dense.parameters()) and manifest["merged"]
    assert file.create(manifest["options"]).task.measure(dense)["accuracy"] == pytest.approx(row["accuracy"], abs=0.02)


def test_build_writes_a_network_that_loads(searched, tmp_path, capsys):
    path, store, _ = searched
    assert cli.main(["front", path, "--store", store, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    row = next(r for r in rows if not r["is_dense"])
    target = tmp_path / "net"
    assert cli.main(["build", path, row["id"][:8], "--out", str(target), "--store", store]) == 0
    shown = capsys.readouterr().out
    assert f"{row['id']} written to {target}" in shown and "loads without ranksearch: modeling.py" in shown
    manifest = export.read_manifest(target)
    assert manifest["id"] == row["id"] and manifest["metrics"]["accuracy"] == pytest.approx(row["accuracy"])
    assert manifest["measured"] == pytest.approx(manifest["metrics"]) and manifest["options"]["noise"] == 0.5
    file = load(path)
    loaded = export.load(target, file.module.network())
    assert sum(p.numel() for p in loaded.parameters()) == row["params"]
    assert file.create(manifest["options"]).task.measure(loaded) == pytest.approx(manifest["measured"])
    assert "is not empty" in error(capsys, "build", path, row["id"], "--out", str(target), "--store", store)
    assert cli.main(["build", path, row["id"], "--out", str(target), "--store", store, "--force"]) == 0
    capsys.readouterr()
    assert "'ffffffff'" in error(capsys, "build", path, "ffffffff", "--out", str(tmp_path / "other"), "--store", store)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net"]
