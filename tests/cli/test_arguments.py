"""Help, and arguments that are wrong."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from cli_cases import error

from ranksearch import __version__
from ranksearch.cli import main as cli


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
    result = subprocess.run([sys.executable, "-m", "ranksearch", "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"ranksearch {__version__}\n"), result.stderr


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
        (["search", "{study}", "--sampler", "nsga9"], "'nsga9' is not one of"),
        (["search", "{study}", "--scheduler", "hyperband"], "'hyperband' is not one of none, asha, pareto_asha"),
        (["search", "{study}", "--eta", "4", "--data", "."], "--first-rung and --eta need a --scheduler"),
        (["search", "{study}", "--scheduler", "asha", "--eta", "1", "--data", "."], "eta=1.0"),
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
