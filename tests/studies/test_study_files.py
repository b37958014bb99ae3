"""The studies that come with ranksearch: what they declare, and that they build on small data."""

from __future__ import annotations

import gzip
import importlib.util
import inspect
import io
import struct
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.evaluation import Fidelity
from ranksearch.study import Study
from ranksearch.tasks.networks import cifar_resnet

FOLDER = Path(__file__).parents[2] / "studies"
FILES = sorted(FOLDER.glob("*.py"))
IMAGES = ("digits", "cifar10_resnet20", "fashion_mnist_resnet20")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))


def test_the_studies_are_there() -> None:
    assert {path.stem for path in FILES} >= set(IMAGES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_study_file_is_one_function_with_explained_options_and_does_no_work(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = load(path)
    assert not list(tmp_path.iterdir())
    own = [f for _, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
    assert [f.__name__ for f in own] == ["study"] and module.study.__doc__ and module.__doc__
    for name, parameter in inspect.signature(module.study, eval_str=True).parameters.items():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert get_origin(parameter.annotation) is Annotated, name
        kind, text = get_args(parameter.annotation)
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        assert (choices or kind in (Path, int, float, str, bool)) and isinstance(text, str) and text
        if parameter.default is not parameter.empty:
            assert parameter.default in choices if choices else isinstance(parameter.default, kind), name


@pytest.fixture
def given(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Options of each study for small data in the real formats: 5,010 training images, 10 test images."""
    generator = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "JPEG")
    for split, count in (("train", 5010), ("test", 10)):
        (tmp_path / "cifar").mkdir(exist_ok=True)
        rows = pa.array([{"bytes": buffer.getvalue(), "path": "x.jpg"}] * count)
        table = pa.table({"img": rows, "label": [i % 10 for i in range(count)]})
        pq.write_table(table, tmp_path / "cifar" / f"{split}-00000-of-00001.parquet")
    (tmp_path / "fashion").mkdir()
    for split, count in (("train", 5010), ("t10k", 10)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(count, dtype=np.uint8) % 10)):
            content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
            (tmp_path / "fashion" / f"{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(content, 0))
    save_file(dict(cifar_resnet(20).state_dict()), tmp_path / "cifar.safetensors")
    save_file(dict(cifar_resnet(20, in_channels=1).state_dict()), tmp_path / "fashion.safetensors")
    return {
        "digits": {"training_epochs": 0.1},
        "cifar10_resnet20": {"data": tmp_path / "cifar", "weights": tmp_path / "cifar.safetensors", "epochs": 0.5},
        "fashion_mnist_resnet20": {"data": tmp_path / "fashion", "weights": tmp_path / "fashion.safetensors"},
    }


@pytest.mark.parametrize("path", [FOLDER / f"{name}.py" for name in IMAGES], ids=IMAGES)
def test_a_study_builds(path: Path, given: dict[str, dict[str, Any]]) -> None:
    options = given[path.stem]
    study = load(path).study(**options)
    assert isinstance(study, Study) and study.name == path.stem
    assert not study.model.training
    with torch.no_grad():
        assert study.model(study.task.example()).shape == (1, 10)
    if "epochs" in options:
        assert study.fidelity.epochs == options["epochs"]
    assert set(study.objectives) == {"accuracy", "macs", "params"}
    assert len(list(study.sites)) > 10
    assert study.spec.metric == "fisher"
    for metric in ("weight", "activation"):
        assert load(path).study(**options, metric=metric).spec.metric == metric


def test_digits_without_fine_tuning_is_another_fidelity_of_the_same_store(tmp_path: Path) -> None:
    digits = load(FOLDER / "digits.py").study
    short = {"training_epochs": 0.1, "metric": "weight"}
    tuned, plain = digits(**short), digits(**short, epochs=0.0)
    assert tuned.fingerprint == plain.fingerprint and tuned.fidelity.key != plain.fidelity.key
    space = plain.spec.replace(include="layer1.0.conv*", max_options=3)
    plain, tuned = (study.replace(space=space, store=tmp_path / "digits.db") for study in (plain, tuned))
    plain.run(5, runner="local")
    tuned.replace(fidelity=Fidelity(epochs=0.05, recalibration=8)).run(5, runner="local")
    frame = plain.evaluations()
    assert len(frame) == 10 and frame["fidelity"].nunique() == 2
    assert set(plain.proxies(calibrate=False)["fidelity"]) == set(frame["fidelity"])


def test_wrong_weights_and_folders_are_named(given: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    cifar = load(FOLDER / "cifar10_resnet20.py").study
    with pytest.raises(InvalidModel, match=r"another shape: conv1\.weight"):
        cifar(**given["cifar10_resnet20"] | {"weights": given["fashion_mnist_resnet20"]["weights"]})
    with pytest.raises(InvalidArgument, match="no such folder"):
        cifar(**given["cifar10_resnet20"] | {"data": tmp_path / "none"})
    with pytest.raises(InvalidModel, match="no such file"):
        cifar(**given["cifar10_resnet20"] | {"weights": tmp_path / "none"})
