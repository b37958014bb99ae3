"""Every way in which a command can end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import click
import forked
import pandas as pd
import pytest
from cli_cases import SEARCH, edited, error, run

from ranksearch.cli import main as cli
from ranksearch.cli import output
from ranksearch.cli.opening import command_line
from ranksearch.cli.tables import table
from ranksearch.errors import StoreError


def test_errors_are_one_line(study, tmp_path, capsys):
    data = ("--data", str(tmp_path))
    assert "no such file" in error(capsys, "search", str(tmp_path / "x.py"))
    assert "study() fails: FileNotFoundError: no data in" in error(capsys, "search", study, "--data", str(tmp_path / "none"))
    assert "not an upper bound on a cost" in error(capsys, "search", study, *data, "--runner", "local", "--where", "speed < 1")
    said = error(capsys, "search", study, *data, "--runner", "local", "--constraint", "macs <= 0.0001")
    assert "the smallest that this space reaches is" in said
    for command in (("search", study, "--constraint"), ("compress", study, "--out", str(tmp_path / "x"), "--to")):
        assert cli.main([*command, "accuracy > 0.9", *data]) == 2
        assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [f"loading {study} ...", "error"]  # no other work
    assert "objectives=['speed']" in error(capsys, "search", study, *data, "--objective", "speed")
    said = error(capsys, "search", study, *data, "--runner", "local", "--workers", "2")
    assert "error: --workers 2: --runner local evaluates one at a time" in said
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
    command = ["-m", "ranksearch.cli", "build", path, row["id"], "--store", store, "--out", str(odd)]
    process = forked.Forked(command, bytes_=True)
    built, _ = process.communicate(60)
    assert process.returncode == 0 and os.fsencode(odd) in built


def test_a_full_disk(study, tmp_path, capsys, monkeypatch):
    edited(study, "x = torch.randn", "raise OSError(28, 'No space left on device', '/data/x')\n    x = torch.randn")
    said = error(capsys, "search", study, "--data", str(tmp_path))
    assert "no space left on the disk (/data/x)" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_behind_stdout(searched):
    path, store, _ = searched
    with open("/dev/full", "w") as full:
        process = forked.Forked(["-m", "ranksearch.cli", "front", path, "--store", store], stdout=full.fileno())
        _, said = process.communicate(60)
    assert process.returncode != 0 and "Traceback" not in said and "space" in said


def test_a_reader_that_goes_away_is_no_error(searched):
    path, store, _ = searched
    process = forked.Forked(["-m", "ranksearch.cli", "front", path, "--store", store, "--format", "json"])
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 141


def test_other_exceptions_are_bugs_and_keep_their_traceback(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ranksearch.cli.results.profile", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["profile", study, "--data", str(tmp_path)])
    monkeypatch.undo()
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(StoreError):
        cli.main(["front", study, "--data", str(tmp_path), "--store", str(tmp_path / "none.db")])


NOTHING = "no evaluation is stored"
# a signal that comes between two steps of Python, just before a sleep, is heard when that sleep is over: many short ones
WAIT = "(print('WAITING', flush=True), [time.sleep(0.05) for _ in range(1200)])"


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
    process = forked.Forked(["-m", "ranksearch.cli", command, study, "--data", str(tmp_path), *more])
    while process.stdout.readline().strip() != "WAITING":
        assert process.poll() is None, process.communicate(60)[1]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said, said
    last = said.strip().splitlines()[-1]
    assert last == (f"interrupted: {message}; run the same command to go on" if message else "interrupted")
    if stage == "third evaluation":
        study = edited(study, new, old)
        again = run("search", study, "--data", str(tmp_path), *SEARCH)
        assert again.returncode == 0 and "8 evaluations wanted, 2 of them in the store" in again.stderr


@pytest.mark.parametrize(("number", "word", "code"), [(signal.SIGTERM, "terminated", 143), (signal.SIGHUP, "hung up", 129)])
def test_a_command_that_is_told_to_end(number, word, code, monkeypatch, capsys, request):
    """At once, once, and with a code that says why; the handlers are then as they were."""
    request.addfinalizer(partial(signal.signal, number, signal.signal(number, signal.SIG_DFL)))  # the tests may run under nohup
    before = [signal.getsignal(each) for each in cli.STOPS]
    timers: list[threading.Timer] = []
    monkeypatch.setattr(threading.Timer, "start", lambda self: timers.append(self))

    def execute(arguments, session):
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)  # somebody is impatient: the end that is under way is not disturbed
            session.searching, session.counted = True, 3

    monkeypatch.setattr("ranksearch.cli.commands.execute", execute)
    assert cli.main([]) == code and [timer.interval for timer in timers] == [cli.GRACE]
    assert capsys.readouterr().err == f"{word}: 3 evaluations are stored; run the same command to go on\n"
    assert [signal.getsignal(each) for each in cli.STOPS] == before


def test_a_command_that_does_not_end_is_cut_short():
    code = (
        "import signal, sys, time\nimport ranksearch.cli.commands as commands\nfrom ranksearch.cli import main\n"
        "def busy(arguments, session):\n    while True:\n        try:\n            print('READY', flush=True)\n"
        "            for _ in range(1200): time.sleep(0.05)\n"
        "        except KeyboardInterrupt: pass\n"
        "commands.execute, main.GRACE = busy, 0.2\nsys.exit(main.main([]))"
    )
    process = forked.Forked(["-c", code])
    assert process.stdout.readline() == "READY\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and said.startswith("terminated: not ended within 0.2 seconds")


def test_a_command_that_is_to_outlive_its_terminal(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr("ranksearch.cli.commands.execute", lambda arguments, session: signal.raise_signal(signal.SIGHUP) or 7)
    try:
        assert cli.main([]) == 7
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nothing_prints_a_password(study, tmp_path, capsys):
    url = "postgresql+psycopg://me:s3cret@127.0.0.1:1/x"
    assert "me:***@127.0.0.1" in error(capsys, "front", study, "--data", str(tmp_path), "--store", url)
    asked = SimpleNamespace(file=SimpleNamespace(path=study, options=[]), given={}, space=SimpleNamespace(words=[]))
    with click.Context(click.Command("build")):
        assert command_line(asked, url)("front").endswith("--store 'postgresql+psycopg://me:***@127.0.0.1:1/x'")
    cli._say(f"error: {url} \x1b[2J")
    assert capsys.readouterr().err == "error: postgresql+psycopg://me:***@127.0.0.1:1/x \\x1b[2J\n"


def test_names_are_no_formulas_and_no_escapes(capsys):
    frame = pd.DataFrame({"origin": pd.array(["=1+1", "-x", "fine", None], dtype="string"), "loss": [-1.0, 2.0, 3.0, 4.0]})
    output.write_frame(frame, "csv", None, lambda: "")
    assert capsys.readouterr().out == "origin,loss\n'=1+1,-1.0\n'-x,2.0\nfine,3.0\n,4.0\n"
    assert "\\x1b[2J" in table(["name"], [["\x1b[2J"]])


def test_closed_streams_lead_nowhere(searched, tmp_path):
    """A file that is opened later does not get the number of one, so that nothing is printed into it."""
    path, store, _ = searched
    before = Path(store).read_bytes()
    result = run_shell(f"{sys.executable} -m ranksearch.cli front {path} --store {store} --out {tmp_path}/f.csv <&- >&- 2>&-")
    assert result.returncode == 0 and (tmp_path / "f.csv").read_text().startswith("id,") and Path(store).read_bytes() == before


def test_a_working_directory_that_is_gone(searched, tmp_path):
    path, store, _ = searched
    (tmp_path / "gone").mkdir()
    leave = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone"
    result = run_shell(f"{leave} && {sys.executable} -m ranksearch.cli front {path} --store {store}")
    assert (result.returncode, result.stderr) == (2, "error: the working directory is gone; change to one that is there\n")


def run_shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=100)
