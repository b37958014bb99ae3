"""``--space``: declared spaces by name and by file, their options, and what becomes of a store that is searched in another one."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

from ranksearch.cli import main as cli
from ranksearch.cli.spaces import stored_details

STUDY = """
    from typing import Annotated
    import torch
    from torch import nn
    from ranksearch.evaluation import Fidelity
    from ranksearch.space import {import_}
    from ranksearch.study import Study
    from ranksearch.tasks import Classification

    def study(*, noise: Annotated[float, "added to the data"] = 0.0, depth: int = 1) -> Study:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.Linear(16, 2)
        )
        x = torch.randn(96, 3, 6, 6, generator=torch.Generator().manual_seed(0)) + noise
        y = (x.mean(dim=(1, 2, 3)) > noise).long()
        task = Classification(train=(x[:64], y[:64]), validation=(x[64:], y[64:]), batch_size=32, learning_rate=0.05)
        return Study("bright", model=net, task=task, space={space}, fidelity=Fidelity(epochs=0, recalibration=0))
"""
SPACES = """
    '''Two spaces.'''
    from typing import Annotated
    from ranksearch.space import SpaceSpec, named

    def space(
        *, types: Annotated[str, "separated by commas"] = "svd,tucker2", trials: int = 0, depth: int = 3, head: bool = True
    ) -> SpaceSpec:
        return SpaceSpec(named(*types.split(",")), exclude=() if head else "6", round_to=depth)

    def convolutions() -> SpaceSpec:
        return SpaceSpec(named("spatial"), include="[02]")

    OBJECT = SpaceSpec(named("svd_in"))

    def wrong():
        return 3

    def fisher() -> SpaceSpec:
        return SpaceSpec(named("svd"), metric="fisher", calibration=1)
"""


@pytest.fixture
def study(tmp_path: Path) -> str:
    (tmp_path / "bright.py").write_text(textwrap.dedent(STUDY.format(import_="svd_only", space="svd_only()")))
    (tmp_path / "mine.py").write_text(textwrap.dedent(SPACES))
    return str(tmp_path / "bright.py")


def spaces(study: str) -> str:
    return str(Path(study).with_name("mine.py"))


def types(capsys, *arguments: str) -> dict[str, set[str]]:
    """Site -> types, as ``profile`` has them."""
    assert cli.main(["profile", *arguments, "--format", "json"]) == 0
    return {site["site"]: set(site["options"]) for site in json.loads(capsys.readouterr().out)["sites"]}


def search(study: str, store: Path, *arguments: str, trials: int = 4) -> int:
    return cli.main(["search", study, "--store", str(store), "--runner", "local", "--trials", str(trials), *arguments])


def error(capsys, *arguments: str) -> str:
    assert cli.main(list(arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.endswith("...")]
    assert len(lines) == 1, lines
    return lines[0]


def test_a_space_by_name_file_function_and_object(study, capsys):
    assert types(capsys, study) == {"0": {"svd"}, "2": {"svd"}, "5": {"svd"}, "6": {"svd"}}
    assert types(capsys, study, "--space", "mixture", "--no-cp")["0"] == {"svd", "svd_in", "spatial", "spatial_t", "tucker2", "grouped_svd"}
    assert types(capsys, study, "--space", spaces(study))["0"] == {"svd", "tucker2"}
    assert types(capsys, study, "--space=" + spaces(study), "--types", "svd_in,cp", "--no-head")["0"] == {"svd_in", "cp"}
    assert types(capsys, study, "--space", spaces(study) + ":convolutions") == {"0": {"spatial"}, "2": {"spatial"}}
    assert types(capsys, study, "--space", spaces(study) + ":OBJECT")["2"] == {"svd_in"}
    assert types(capsys, study, "--space", "study")["0"] == {"svd"}


def test_options_of_a_space_have_help_and_names_of_their_own(study, capsys):
    assert cli.main(["search", study, "--space", spaces(study), "--help"]) == 0
    of_study, rest = capsys.readouterr().out.split("Options of the space")
    of_space, own = rest.split("\nOptions:\n")
    assert "--noise" in of_study and "--depth" in of_study and "--types TEXT" in of_space and "separated by commas" in of_space
    # the study has --depth, the command has --trials
    assert "--space-depth N" in of_space and "--space-trials N" in of_space and "--head / --no-head" in of_space
    assert " --trials N" in own
    one = types(capsys, study, "--space", spaces(study), "--depth", "1", "--space-depth", "1")
    assert one["6"] == {"svd"}, "rank 1 of 2 is no multiple of 3"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("mixtur", "space 'mixtur' is neither a space of ranksearch nor a Python file; did you mean mixture?"),
        ("", "space '' is neither a space of ranksearch nor a Python file; name one of mixture, svd_only, all_types, or a file"),
        ("none.py", "none.py: no such file"),
        ("{spaces}:convolution", "declares no space 'convolution': did you mean convolutions?"),
        ("{spaces}:", "declares no space ''"),
        ("{spaces}:wrong", "wrong() returns of type int, not a ranksearch.space.SpaceSpec"),
        ("{folder}", "is a directory"),
        ("{study}:study", "study() returns of type Study, not a ranksearch.space.SpaceSpec"),
    ],
)
def test_what_is_no_space_is_said(study, capsys, space, message):
    text = space.format(spaces=spaces(study), folder=Path(study).parent, study=study)
    assert message in error(capsys, "profile", study, "--space", text)


def test_the_choice_is_stored_and_used_again(study, tmp_path, capsys):
    store = tmp_path / "bright.db"
    assert search(study, store, "--space", spaces(study), "--types", "svd_in", "--no-head") == 0
    printed = capsys.readouterr()
    assert "instead of" not in printed.err
    stored = stored_details(str(store))["space"]
    assert stored["source"] == f"{spaces(study)}:space" and stored["options"] == {"types": "svd_in", "trials": 0, "depth": 3, "head": False}
    assert types(capsys, study, "--store", str(store)) == {"0": {"svd_in"}, "2": {"svd_in"}, "5": set()}
    # one option of the same space: the others stay
    assert types(capsys, study, "--store", str(store), "--types", "svd")["5"] == {"svd"}
    assert "6" not in types(capsys, study, "--store", str(store), "--types", "svd")
    assert search(study, store, trials=5) == 0, "the choice is used by a search that names none"
    assert "instead of" not in capsys.readouterr().err and stored_details(str(store))["space"] == stored
    # from another folder, as the path is absolute; and a file that is gone is said
    Path(spaces(study)).rename(tmp_path / "gone.py")
    said = error(capsys, "profile", study, "--store", str(store))
    assert "was searched in the space" in said and "no such file" in said and "--space study for the study's own" in said
    assert types(capsys, study, "--store", str(store), "--space", "study")["6"] == {"svd"}


def test_another_space_of_a_store_keeps_its_facts(study, tmp_path, capsys):
    store = tmp_path / "bright.db"
    assert search(study, store, trials=4) == 0 and stored_details(str(store))["space"] is None
    capsys.readouterr()
    assert search(study, store, "--space", spaces(study) + ":convolutions", trials=6) == 0
    printed = capsys.readouterr()
    assert f"space: {spaces(study)}:convolutions instead of the study's own; what is stored stays, and counts among --trials" in printed.err
    assert "6 evaluations wanted, 4 of them in the store" in printed.err and "6 evaluations stored" in printed.out
    assert cli.main(["front", study, "--store", str(store), "--all", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 6
    # networks of the first space can still be built, though the second has neither their types nor their layers
    for row in rows:
        assert cli.main(["build", study, row["id"], "--store", str(store), "--out", str(tmp_path / row["id"])]) == 0
        manifest = json.loads((tmp_path / row["id"] / "manifest.json").read_text())
        assert manifest["measured"] == pytest.approx(manifest["metrics"]) and manifest["params"] == row["params"]
        assert manifest["space"] == {"source": f"{spaces(study)}:convolutions", "options": {}}
    found = {name for row in rows for name, _ in json.loads((tmp_path / row["id"] / "manifest.json").read_text())["configuration"].values()}
    assert found == {"svd", "spatial"}
    capsys.readouterr()
    assert search(study, store, "--space", "study", trials=6) == 0
    assert "space: the study's own instead of" in capsys.readouterr().err and stored_details(str(store))["space"] is None


def test_the_metric_is_the_studys_unless_the_space_has_one(study, tmp_path, capsys):
    text = STUDY.format(import_="svd_only", space='svd_only().replace(metric="activation", calibration=1)')
    Path(study).write_text(textwrap.dedent(text))
    store = tmp_path / "bright.db"
    assert search(study, store) == 0 and search(study, store, "--space", "mixture", "--no-cp") == 0
    assert cli.main(["profile", study, "--space", spaces(study)]) == 0
    assert "errors in the activation metric" in capsys.readouterr().out
    said = error(capsys, "search", study, "--runner", "local", "--store", str(store), "--space", spaces(study) + ":fisher")
    assert "weights, data, fine-tuning or the metric of the space differ; use another --store" in said


def test_the_next_commands_name_what_is_not_stored(study, tmp_path, capsys):
    store = tmp_path / "bright.db"
    assert search(study, store, "--space", spaces(study), "--no-head") == 0
    following = [line.strip() for line in capsys.readouterr().out.split("next:")[1].splitlines() if "ranksearch" in line]
    assert not any("--space" in line for line in following if line.split()[1] != "search")
    assert f"--space {spaces(study)} --no-head" in next(line for line in following if line.split()[1] == "search")


def test_a_study_imports_from_the_search_spaces_above_it(tmp_path, capsys, monkeypatch):
    clone = tmp_path / "clone"
    (clone / "studies" / "deep").mkdir(parents=True)
    shutil.copytree(Path(__file__).parents[2] / "search_spaces", clone / "search_spaces", ignore=shutil.ignore_patterns("__pycache__"))
    mine = "from ranksearch.space import SpaceSpec, named\ndef space():\n    return SpaceSpec(named('spatial'))\n"
    (clone / "search_spaces" / "of_my_own.py").write_text(mine)
    study = clone / "studies" / "deep" / "bright.py"
    study.write_text(textwrap.dedent(STUDY.format(import_="svd_only\n    from search_spaces.of_my_own import space", space="space()")))
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "search_spaces"}
    for name in kept:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry or ".") / "search_spaces").is_dir()])
    monkeypatch.chdir(tmp_path)
    try:
        assert types(capsys, "clone/studies/deep/bright.py")["0"] == {"spatial"}
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "search_spaces"]:
            del sys.modules[name]
        sys.modules.update(kept)


def test_a_space_file_hides_no_module_of_its_name(study, tmp_path, capsys):
    (tmp_path / "json.py").write_text("from ranksearch.space import SpaceSpec, named\ndef space():\n    return SpaceSpec(named('svd'))\n")
    assert types(capsys, study, "--space", str(tmp_path / "json.py"))["0"] == {"svd"}
    assert json.loads("1") == 1 and sys.modules["json"].__file__ != str(tmp_path / "json.py")


def test_a_glob_without_effect_is_one_line(study, capsys):
    text = STUDY.format(import_="svd_only", space='svd_only().replace(exclude=("5", "4*"))')
    Path(study).write_text(textwrap.dedent(text))
    assert cli.main(["profile", study, "--format", "csv"]) == 0
    printed = capsys.readouterr()
    assert [line for line in printed.err.splitlines() if "warning" in line] == [
        "warning: exclude='4*' matches no layer that could be factorized; layers are called 0, 2, 5, ..."
    ]
    assert "warning" not in printed.out
