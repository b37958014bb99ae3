"""The command line from end to end: what it prints, what it leaves behind, and every way it can end."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest

from ranksearch import __version__
from ranksearch.cli import main as cli
from ranksearch.errors import StoreError
from ranksearch.networks import export
from ranksearch.proxies import PROXIES
from ranksearch.studyfile import load

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


@pytest.fixture
def study(tmp_path: Path) -> str:
    path = tmp_path / "bright.py"
    path.write_text(textwrap.dedent(STUDY))
    return str(path)


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> tuple[str, str, str]:
    """A study file, the store of a finished search, and what the search printed."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "bright.py").write_text(textwrap.dedent(STUDY))
    path, store = str(folder / "bright.py"), str(folder / "bright.db")
    out = run("search", path, "--data", str(folder), "--noise", "0.5", "--trials", "10", "--runner", "local", "--store", store)
    assert out.returncode == 0, out.stderr
    return path, store, out.stdout + "\x00" + out.stderr


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ranksearch.cli", *arguments], capture_output=True, text=True, timeout=120, **options)


def error(capsys, *arguments: str, code: int = 2) -> str:
    """The one line that a failing command prints on stderr."""
    assert cli.main(list(arguments)) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.endswith("...")]
    assert len(lines) == 1, lines
    return lines[0]


# -- help and arguments ----------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    """What makes a first answer slow is what it imports: the packages below take seconds, of what is installed only click is needed."""
    code = (
        "import sys\nfrom ranksearch.cli.main import main\ncode = main(['--help'])\n"
        "heavy = {'torch', 'ray', 'optuna', 'pandas', 'sqlalchemy', 'numpy', 'scipy', 'rich', 'matplotlib', 'moocore'} & set(sys.modules)\n"
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(word in result.stdout for word in ("profile", "search", "front", "build", "STUDY"))


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ranksearch {__version__}\n"


def test_a_study_shows_its_options_in_a_group_of_their_own(study, capsys):
    for arguments in (["search", study, "--help"], ["search", "--help", study], ["search", "--trials", "3", study, "--help"]):
        assert cli.main(arguments) == 0
        shown = capsys.readouterr().out
        own, ours = shown.split("\nOptions:\n")
        assert f"Options of {study}" in " ".join(own.split())
        assert re.search(r"--data PATH +where the data is +\[required\]", own)
        assert re.search(r"--noise X +added to the data +\[default: 0\.0\]", own)
        assert "--shuffle / --no-shuffle" in own and "--trials" in ours and "--trials" not in own
    assert cli.main(["search", "--help"]) == 0
    assert "options of its own" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "{study}", "--nois", "1"], "no such option --nois; did you mean --noise?"),
        (["search", "{study}", "--trails", "5"], "no such option --trails; did you mean --trials?"),
        (["front", "{study}", "--zzz"], "no such option --zzz; see ranksearch front {study} --help"),
        (["search", "{study}", "--noise", "much"], "'much' is not a valid float"),
        (["search", "{study}", "--trials", "0"], "0 is not in the range x>=1"),
        (["search", "{study}", "--sampler", "nsga3"], "'nsga3' is not one of"),
        (["search", "{study}", "--proxy", "energie"], "'energie' is not one of"),
        (["search", "{study}", "--allocator", "greediest"], "'greediest' is not one of"),
        (["serch", "{study}"], "no such command 'serch'; did you mean 'search'?"),
        (["{study}"], "put a command before it: ranksearch search {study}"),
        (["search"], "missing argument 'STUDY'"),
        (["build", "{study}", "abc"], "missing option '--out'"),
        (["search", "{study}", "extra"], "unexpected extra argument"),
        (["search", "{study}"], "{study} needs --data"),
        (["front", "{study}", "--format", "parquet"], "--format parquet needs --out FILE"),
    ],
)
def test_wrong_arguments(study, capsys, arguments, message):
    said = error(capsys, *[a.format(study=study) for a in arguments])
    assert said.startswith("error: ") and message.format(study=study) in said


def test_a_study_may_bring_its_own_seed_and_nothing_else_of_ours(tmp_path, capsys):
    path = tmp_path / "seeded.py"
    path.write_text("def study(*, seed: int = 3): ...\n")
    assert cli.main(["search", str(path), "--help"]) == 0
    own, ours = capsys.readouterr().out.split("\nOptions:\n")
    assert "--seed" in own and "--seed" not in ours
    path.write_text("def study(*, store: str = ''): ...\n")
    assert "its option --store is the command's own" in error(capsys, "search", str(path))


# -- the commands ----------------------------------------------------------------------------------------------------


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
    assert "[nsga2|tpe|random]" in shown and "operator_norm" in shown and "minimax" in shown


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


def test_profile_tells_that_statistics_are_collected(study, tmp_path, capsys):
    edited(study, 'Study("bright", ', 'Study("bright", space=mixture().replace(metric="fisher", calibration=2), ')
    edited(study, "import time\n", "from ranksearch.space import mixture\n")
    assert cli.main(["profile", study, "--data", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "collecting statistics of 2 batches for the fisher metric ..." in printed.err and "errors in the fisher metric" in printed.out


def test_build_writes_a_network_that_loads(searched, tmp_path, capsys):
    path, store, _ = searched
    assert cli.main(["front", path, "--store", store, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    row = next(r for r in rows if not r["is_dense"])
    target = tmp_path / "net"
    assert cli.main(["build", path, row["id"][:8], "--out", str(target), "--store", store]) == 0
    assert f"{row['id']} written to {target}" in capsys.readouterr().out
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


def test_profile_shows_sites_costs_and_what_was_skipped(study, tmp_path, capsys):
    assert cli.main(["profile", study, "--data", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^0 +conv2d +8x3x3x3 +224 ", shown, re.M)
    assert re.search(r"^no decomposition is defined for BatchNorm2d +BatchNorm2d +1 +16 +1$", shown, re.M)
    assert re.search(r"^3 +conv2d .* \w+ .*: error 0\.\d\d$", shown, re.M) and "best at half the params" in shown
    assert re.search(r"^spatial +6 +", shown, re.M) and "configurations; the smallest has" in shown
    assert cli.main(["profile", study, "--data", str(tmp_path), "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [s["site"] for s in data["sites"]] == ["0", "3", "6"]
    assert data["params"] == sum(s["params"] for s in data["sites"]) + sum(s["params"] for s in data["skipped"])
    assert data["macs"] == sum(s["macs"] for s in data["sites"])
    assert cli.main(["profile", study, "--data", str(tmp_path), "--format", "csv"]) == 0
    frame = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert frame["params"].sum() == data["params"] and frame["skipped"].notna().sum() == len(data["skipped"])
    assert {path.name for path in Path(os.environ["RANKSEARCH_HOME"]).iterdir()} <= {"cache"}, "no store was made"


def test_profile_names_what_is_not_counted(study, tmp_path, capsys):
    edited(study, "return nn.Sequential(", "return nn.Sequential(Spectrum(),")
    spectrum = "class Spectrum(nn.Module):\n    def forward(self, x):\n        return torch.fft.fft(x).real\n\n"
    edited(study, "def network():", f"{spectrum}def network():")
    assert cli.main(["profile", study, "--data", str(tmp_path)]) == 0
    assert "no rule counts these operators: aten::_fft_r2c" in capsys.readouterr().out
    assert cli.main(["profile", study, "--data", str(tmp_path), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["uncounted"] == ["aten::_fft_r2c"]


# -- every way it can end ----------------------------------------------------------------------------------------------


def edited(study: str, old: str, new: str) -> str:
    text = Path(study).read_text()
    assert old in text
    Path(study).write_text(text.replace(old, new))
    return study


def test_errors_are_one_line(study, tmp_path, capsys):
    data = ("--data", str(tmp_path))
    assert "no such file" in error(capsys, "search", str(tmp_path / "x.py"))
    assert "study() fails: FileNotFoundError: no data in" in error(capsys, "search", study, "--data", str(tmp_path / "none"))
    assert "not an upper bound on a cost" in error(capsys, "search", study, *data, "--runner", "local", "--where", "speed < 1")
    said = error(capsys, "search", study, *data, "--runner", "local", "--constraint", "macs <= 0.0001")
    assert "the smallest that this space reaches is" in said
    assert "objectives=['speed']" in error(capsys, "search", study, *data, "--objective", "speed")
    said = error(capsys, "search", study, *data, "--runner", "local", "--workers", "2")
    assert "--workers 2, --address None: --runner local evaluates one at a time" in said
    (tmp_path / "text.db").write_text("not a database" * 100)
    assert "text.db" in error(capsys, "search", study, *data, "--runner", "local", "--store", str(tmp_path / "text.db"))
    assert "does not exist" in error(capsys, "front", study, *data)
    assert {path.name for path in Path(os.environ["RANKSEARCH_HOME"]).iterdir()} <= {"cache"}, "no store was made"


def test_an_empty_space_still_shows_what_was_skipped(study, tmp_path, capsys):
    edited(study, 'Study("bright", ', 'Study("bright", space=replace(mixture(), exclude="*"), ')
    edited(study, "import time\n", "from dataclasses import replace\nfrom ranksearch.space import mixture\n")
    assert cli.main(["profile", study, "--data", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert re.search(r"^excluded +Conv2d +2 +808 +0, 3$", printed.out, re.M)
    assert re.search(r"^excluded +Linear +1 +258 +6$", printed.out, re.M)
    assert printed.err.splitlines()[-1].startswith("error: the space has no site")
    assert error(capsys, "search", study, "--data", str(tmp_path), "--runner", "local").startswith("error: the space has no site")


def test_nan_weights(study, tmp_path, capsys):
    edited(study, "    return Study", "    net = network()\n    net[0].weight.data[0] = float('nan')\n    return Study")
    edited(study, "model=network()", "model=net")
    assert "holds NaN" in error(capsys, "profile", study, "--data", str(tmp_path))


def test_the_store_of_another_study(searched, tmp_path, capsys):
    path, store, _ = searched
    said = error(capsys, "search", path, "--data", str(tmp_path), "--noise", "0.25", "--runner", "local", "--store", store)
    assert store in said
    other = tmp_path / "other.py"
    other.write_text(Path(path).read_text().replace('"bright"', '"other"'))
    said = error(capsys, "search", str(other), "--data", str(tmp_path), "--noise", "0.5", "--runner", "local", "--store", store)
    assert "bright" in said and "other" in said


def test_odd_characters_seeds_and_empty_conditions(searched, study, tmp_path, capsys):
    path, store, _ = searched
    where = ("--store", store)
    for odd in ("\x00", "abc\x07"):
        assert "no id has such characters" in error(capsys, "build", path, odd, "--out", str(tmp_path / "x"), *where)
    surrogate = os.fsdecode(b"abc\xff")
    for arguments, said in (
        (("build", path, surrogate, "--out", str(tmp_path / "x"), *where), "no id has such characters"),
        (("front", path, "--fidelity", surrogate, *where), "nothing was measured at it"),
        (("front", path, "--store", surrogate), "does not have them either"),
        (("front", path, *where, "--where", surrogate), "cannot be read"),
    ):
        result = run(*arguments)
        assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr, result.stderr
    for command in (("front", path, *where), ("search", path, "--data", str(tmp_path), "--noise", "0.5", "--runner", "local", *where)):
        assert "condition '' is empty" in error(capsys, *command, "--where", "")
        assert "nests more than 100 levels deep" in error(capsys, *command, "--where", "macs < " + "-" * 1900 + "1")
    # each condition is read by itself: two halves do not make a whole
    assert "cannot be read" in error(capsys, "front", path, *where, "--where", "macs < 1) or (macs < 2", "--where", "macs < 1")
    for seed in ("-1", str(2**32), "9" * 40):
        said = error(capsys, "search", study, "--data", str(tmp_path), "--seed", seed)
        assert "is not in the range 0<=x<=4294967295" in said


def test_addresses_are_checked_before_any_work(study, tmp_path, capsys):
    command = ("search", study, "--data", str(tmp_path), "--address")
    assert "address='nonsense' is no address of a Ray cluster" in error(capsys, *command, "nonsense")
    assert "address='127.0.0.1:1' cannot be reached" in error(capsys, *command, "127.0.0.1:1")
    assert list(Path(os.environ["RANKSEARCH_HOME"]).iterdir()) == []


def test_a_tilde_is_the_home_folder_in_every_path(searched, tmp_path, monkeypatch, capsys):
    path, store, _ = searched
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    shutil.copy(store, tmp_path / "x" / "s.db")
    shutil.copy(path, tmp_path / "x" / "bright.py")
    monkeypatch.setenv("RANKSEARCH_HOME", "~/rs")
    for url in ("~/x/s.db", f"sqlite:///{tmp_path}/x/s.db", "sqlite:///~/x/s.db"):
        assert cli.main(["front", "~/x/bright.py", "--store", url, "--out", "~/x/f.json", "--plot=~/x/f.png"]) == 0
        row = json.loads((tmp_path / "x" / "f.json").read_text())[0]
        (tmp_path / "x" / "f.json").unlink()
    assert cli.main(["build", "~/x/bright.py", row["id"], "--store=~/x/s.db", "--out", "~/x/net"]) == 0
    assert cli.main(["search", "~/x/bright.py", "--data=~/x", "--trials", "1", "--runner", "local"]) == 0
    assert not [p for p in tmp_path.rglob("*") if p.name == "~"] and (tmp_path / "rs" / "bright.db").exists()
    assert {"f.png", "net", "s.db", "bright.py"} <= {p.name for p in (tmp_path / "x").iterdir()}


def test_what_native_code_prints_does_not_reach_stdout(searched, tmp_path):
    path, store, _ = searched
    noisy = tmp_path / "bright.py"
    noisy.write_text("import ctypes, os\nctypes.CDLL(None).puts(b'from C')\nos.write(1, b'raw')\n" + Path(path).read_text())
    odd = tmp_path / "\udcff.json"
    out = run("front", str(noisy), "--store", store, "--format", "json")
    assert out.returncode == 0 and json.loads(out.stdout) and "from C" in out.stderr and "raw" in out.stderr
    row = json.loads(out.stdout)[0]
    command = [sys.executable, "-m", "ranksearch.cli", "build", path, row["id"], "--store", store, "--out", str(odd)]
    built = subprocess.run(command, capture_output=True, check=True)
    assert os.fsencode(odd) in built.stdout


def test_a_full_disk(study, tmp_path, capsys, monkeypatch):
    edited(study, "x = torch.randn", "raise OSError(28, 'No space left on device', '/data/x')\n    x = torch.randn")
    said = error(capsys, "search", study, "--data", str(tmp_path))
    assert "no space left on the disk (/data/x)" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_behind_stdout(searched):
    path, store, _ = searched
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ranksearch.cli", "front", path, "--store", store]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode != 0 and "Traceback" not in result.stderr and "space" in result.stderr


def test_a_reader_that_goes_away_is_no_error(searched):
    path, store, _ = searched
    command = [sys.executable, "-m", "ranksearch.cli", "front", path, "--store", store, "--format", "json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_other_exceptions_are_bugs_and_keep_their_traceback(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ranksearch.cli.results.profile", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["profile", study, "--data", str(tmp_path)])
    monkeypatch.undo()
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(StoreError):
        cli.main(["front", study, "--data", str(tmp_path), "--store", str(tmp_path / "none.db")])


NOTHING = "no evaluation is stored"
WAIT = "(print('WAITING', flush=True), time.sleep(60))"
SEARCH = ("--runner", "local", "--trials", "8")


@pytest.mark.parametrize(
    ("stage", "old", "new", "command", "message"),
    [
        ("import", "import torch\n", f"{WAIT}\nimport torch\n", "search", NOTHING),
        ("import that fails", "import torch\n", f"try: {WAIT}\nexcept BaseException: raise ImportError('half')\n", "search", NOTHING),
        ("making the study", "    x = torch", f"    {WAIT}\n    x = torch", "search", NOTHING),
        ("profile", "    x = torch", f"    {WAIT}\n    x = torch", "profile", None),
        ("example", "    return Study", f"    task.example = lambda: {WAIT}\n    return Study", "search", NOTHING),
        (
            "third evaluation", "    return Study",
            f"    calls, real = iter(range(99)), task.measure\n"
            f"    task.measure = lambda model: {WAIT} if next(calls) == 2 else real(model)\n    return Study",
            "search", "2 evaluations are stored",
        ),
    ],
)  # fmt: skip
def test_ctrl_c_at_every_stage(study, tmp_path, stage, old, new, command, message):
    edited(study, old, new)
    more = SEARCH if command == "search" else ()
    process = subprocess.Popen(
        [sys.executable, "-m", "ranksearch.cli", command, study, "--data", str(tmp_path), *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    while process.stdout.readline().strip() != "WAITING":
        assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said, said
    last = said.strip().splitlines()[-1]
    assert last == (f"interrupted: {message}; run the same command to go on" if message else "interrupted")
    if stage == "third evaluation":
        study = edited(study, new, old)
        again = run("search", study, "--data", str(tmp_path), *SEARCH)
        assert again.returncode == 0 and "8 evaluations wanted, 2 of them in the store" in again.stderr


def test_profile_shows_every_path_of_a_site_and_tied_heads(tmp_path: Path, capsys) -> None:
    (tmp_path / "words.py").write_text(textwrap.dedent("""
        import torch
        from torch import nn
        from ranksearch.space import mixture
        from ranksearch.study import Study
        from ranksearch.tasks import Classification

        class Words(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.body = nn.Embedding(40, 16), nn.Linear(16, 16)
                self.again, self.head = self.body, nn.Linear(16, 40)
                self.head.weight = self.embed.weight

            def forward(self, x):
                return self.head(self.again(self.body(self.embed(x)).mean(dim=1)))

        def study() -> Study:
            torch.manual_seed(0)
            x, y = torch.randint(0, 40, (64, 5)), torch.randint(0, 40, (64,))
            task = Classification(train=(x[:32], y[:32]), validation=(x[32:], y[32:]), batch_size=16, learning_rate=0.1)
            return Study("words", model=Words(), task=task)
    """))
    assert cli.main(["profile", str(tmp_path / "words.py"), "--format", "json"]) == 0
    sites = {site["site"]: site for site in json.loads(capsys.readouterr().out)["sites"]}
    assert {name: (site["kind"], site["aliases"]) for name, site in sites.items()} == {
        "embed": ("embedding + head", "head"), "body": ("linear", "again")
    }  # fmt: skip
