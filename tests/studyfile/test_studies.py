"""A study file is found, imported and read; whatever is wrong with it is said in one line that names file and line."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from pathlib import Path

import cloudpickle
import pytest

import ranksearch
from ranksearch.errors import EmptySpace, InvalidArgument, StudyFileError
from ranksearch.runners import LocalRunner, RayTuneRunner
from ranksearch.studyfile import load

HEAD = """
    '''A small study.

    More about it.'''
    from pathlib import Path
    from typing import Annotated, Literal, Optional
    import torch
    from torch import nn
    from ranksearch.errors import EmptySpace
    from ranksearch.evaluation import Fidelity
    from ranksearch.study import Study
    from ranksearch.tasks import Classification

    def make(name="small"):
        x = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))
        y = torch.arange(32) % 2
        task = Classification(train=(x, y), validation=(x, y), batch_size=16, learning_rate=0.05)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
        return Study(name, model=net, task=task, fidelity=Fidelity(epochs=0, recalibration=0))
"""


def write(folder: Path, body: str, *, name: str = "small.py", head: str = HEAD) -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(head) + textwrap.dedent(body))
    return path


@pytest.fixture(autouse=True)
def _imports_as_before(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("ranksearch_study_") or name in ("helper_of_a_study",):
            del sys.modules[name]


OPTIONS = """
    def study(
        *,
        data: Annotated[Path, "folder with images"],
        epochs: float = 1.0,
        depth: Annotated[int, "of the network"] = 20,
        fast: bool = False,
        mode: Literal["a", "b"] = "a",
        level: Literal[1, 2] = 1,
        note: Optional[str] = None,
        limit: int | None = 7,
    ) -> Study:
        made = make()
        made.model.seen = (data, epochs, depth, fast, mode, level, note, limit)
        return made
"""


def test_options_are_read_from_the_signature(tmp_path):
    file = load(write(tmp_path, OPTIONS))
    assert [(o.name, o.type, o.help, o.required, o.default, o.choices, o.optional) for o in file.options] == [
        ("data", Path, "folder with images", True, None, (), False),
        ("epochs", float, "", False, 1.0, (), False),
        ("depth", int, "of the network", False, 20, (), False),
        ("fast", bool, "", False, False, (), False),
        ("mode", str, "", False, "a", ("a", "b"), False),
        ("level", int, "", False, 1, (1, 2), False),
        ("note", str, "", False, None, (), True),
        ("limit", int, "", False, 7, (), True),
    ]
    assert file.help == "A small study."


def test_postponed_annotations_are_read_too(tmp_path):
    head = HEAD.replace("from pathlib", "from __future__ import annotations\n    from pathlib", 1)
    file = load(write(tmp_path, OPTIONS, head=head))
    assert [o.type for o in file.options] == [Path, float, int, bool, str, int, str, int]


def test_create_converts_what_the_store_or_the_command_line_gives(tmp_path, monkeypatch):
    file = load(write(tmp_path, OPTIONS))
    monkeypatch.chdir(tmp_path)
    study = file.create({"data": "images", "epochs": 2, "depth": "56", "fast": "true", "mode": "b", "level": "2", "limit": None})
    assert study.model.seen == (Path("images"), 2.0, 56, True, "b", 2, None, None)
    assert study.options == {
        "data": str(tmp_path / "images"), "epochs": 2.0, "depth": 56, "fast": True, "mode": "b", "level": 2, "note": None, "limit": None,
    }  # fmt: skip
    assert file.create(study.options).options == study.options


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs --data"),
        ({"data": ".", "epoch": 1}, "did you mean 'epochs'"),
        ({"data": ".", "depth": 1.5}, "--depth: 1.5 is not a whole number"),
        ({"data": ".", "depth": True}, "--depth: True is not a whole number"),
        ({"data": ".", "epochs": "many"}, "'many' is not a number"),
        ({"data": ".", "fast": "maybe"}, "'maybe' is not true or false"),
        ({"data": ".", "mode": "c"}, "'c' is not one of a, b"),
        ({"data": 3}, "3 is not a path"),
        ({"data": ".", "epochs": None}, "None is not a number"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, given, message):
    with pytest.raises(InvalidArgument, match=message):
        load(write(tmp_path, OPTIONS)).create(given)


def test_an_object_is_a_study_too(tmp_path):
    file = load(write(tmp_path, "study = make('plain')\n"))
    assert file.options == () and file.create().name == "plain" and file.create().options == {}
    with pytest.raises(InvalidArgument, match="it takes none"):
        file.create({"x": 1})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def study(:\n", r"small\.py, line \d+: not valid Python"),
        ("import no_such_module_anywhere\n", r"small\.py, line \d+: importing it fails: ModuleNotFoundError: No module named 'no_such"),
        ("def f():\n        raise KeyError('k')\n    f()\n", r"small\.py, line \d+: importing it fails: KeyError: 'k'"),
        ("raise SystemExit(3)\n", "importing it fails: SystemExit: 3"),
        ("x = 1\n", r"declares no study: give it a function study\(\)"),
        ("def studdy(): return make()\n", r"did you mean studdy\(\)"),
        ("mine = make()\n", "it has mine: rename it to study"),
        ("study = 3\n", "study is of type int, neither"),
        ("class study: ...\n", "study is a class, neither"),
        ("async def study(): return make()\n", "study is of type function, neither"),
        ("study = Study\n", "study is a class, neither"),
        ("other = make()\n    def study(): return make()\n", r"twice: a function study\(\) and an object other"),
        ("def study(*, x): ...\n", "parameter 'x' of study\\(\\) has no type"),
        ("def study(*, x: list = ()): ...\n", "parameter 'x' of study\\(\\) has type list"),
        ("def study(*, x: int | str = 1): ...\n", "parameter 'x' of study"),
        ("from typing import Literal\n    def study(*, x: Literal['a', 'b'] = 'c'): ...\n", "the default of study.*'c' is not one of a, b"),
        ("def study(*, x: int = 1.5): ...\n", "the default of study.*1.5 is not a whole number"),
        ("def study(*args: int): ...\n", r"takes \*args"),
        ("def study(**options: int): ...\n", r"takes \*\*options"),
        ("def study(*, x: 'Missing' = 1): ...\n", "annotations of study\\(\\) cannot be read: NameError"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, body, message):
    before = set(sys.modules)
    with pytest.raises(StudyFileError, match=message):
        load(write(tmp_path, "    " + body))
    assert not [m for m in set(sys.modules) - before if m.startswith("ranksearch_study_")]


def test_files_that_are_none(tmp_path):
    write(tmp_path, "study = make()\n", name="digits.py")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "binary.py").write_bytes(b"\x00\x01\xff")
    (tmp_path / "latin.py").write_bytes("x = 'ä'".encode("latin-1"))
    with pytest.raises(StudyFileError, match=r"no such file; did you mean .*digits\.py"):
        load(tmp_path / "digit.py")
    with pytest.raises(StudyFileError, match="no such file"):
        load(tmp_path / "none" / "x.py")
    with pytest.raises(StudyFileError, match="is a directory"):
        load(tmp_path)
    with pytest.raises(StudyFileError, match="not a Python file"):
        load(tmp_path / "notes.txt")
    for name in ("binary.py", "latin.py"):
        with pytest.raises(StudyFileError, match=f"{name}.* not (valid )?Python"):
            load(tmp_path / name)


def test_a_study_function_that_fails_or_returns_something_else(tmp_path):
    failing = load(write(tmp_path, "    def study(*, x: int = 0):\n        return {}[x]\n", name="failing.py"))
    with pytest.raises(StudyFileError, match=r"failing\.py, line \d+: study\(\) fails: KeyError: 0"):
        failing.create()
    nothing = load(write(tmp_path, "    def study(): ...\n", name="nothing.py"))
    with pytest.raises(StudyFileError, match=r"study\(\) returns None, not a"):
        nothing.create()


def test_deliberate_errors_interrupts_and_a_full_disk_pass_through(tmp_path):
    with pytest.raises(EmptySpace, match=r"^no layer$"):
        load(write(tmp_path, "    raise EmptySpace('no layer')\n", name="a.py"))
    with pytest.raises(KeyboardInterrupt):
        load(write(tmp_path, "    raise KeyboardInterrupt\n", name="b.py"))
    with pytest.raises(OSError, match="full") as caught:
        load(write(tmp_path, f"    raise OSError({errno.ENOSPC}, 'full')\n", name="c.py"))
    assert caught.value.errno == errno.ENOSPC


def test_modules_beside_the_file_are_found_and_travel_by_value(tmp_path):
    (tmp_path / "helper_of_a_study.py").write_text("def double(x):\n    return 2 * x\n")
    file = load(write(tmp_path, "    from helper_of_a_study import double\n    def triple(x): return double(x) + x\n    study = make()\n"))
    assert {m.__name__ for m in file.modules} == {file.module.__name__, "helper_of_a_study"}
    for module in file.modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        data = cloudpickle.dumps(file.module.triple)
    finally:
        for module in file.modules:
            cloudpickle.unregister_pickle_by_value(module)
    # a process that has neither file on its path
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read())(7))"
    result = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, cwd="/", check=True)
    assert result.stdout.strip() == b"21"


def test_two_files_of_one_name_are_two_modules(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = load(write(tmp_path / "a", "    study = make('one')\n"))
    second = load(write(tmp_path / "b", "    study = make('two')\n"))
    assert first.module.__name__ != second.module.__name__
    assert (first.create().name, second.create().name) == ("one", "two")
    assert load(tmp_path / "a" / "small.py").module.__name__ == first.module.__name__
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_study_is_loaded_in_one_call_with_its_options_and_modules(tmp_path):
    path = write(tmp_path, "def study(*, name: str = 'small'):\n    return make(name)\n")
    study = ranksearch.load_study(path, name="other")
    assert study.name == "other" and study.options == {"name": "other"}
    assert [module.__file__ for module in study.modules] == [str(path)]
    assert study.replace(seed=3).modules == study.modules
    with pytest.raises(InvalidArgument, match="did you mean 'name'"):
        ranksearch.load_study(path, nam="other")


def test_workers_get_what_a_study_file_defines(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))
    study = ranksearch.load_study(write(tmp_path, "def study():\n    return make()\n"))
    carried = []

    class Watched(LocalRunner):
        def carrying(self, modules):
            carried.extend(modules)
            return self

    study.run(1, runner=Watched())
    assert tuple(carried) == study.modules != ()
    assert RayTuneRunner(workers=1, by_value=[sys]).carrying(study.modules).by_value == (sys, *study.modules)
