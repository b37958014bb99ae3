"""What is written is the network, whole or not at all; what was changed afterwards is refused."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InvalidArgument, InvalidModel, MissingDependency, RanksearchError
from ranksearch.networks import export
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra

EXAMPLE = torch.zeros(1, 3, 8, 8)
CONFIGURATION = Configuration({"0": ("svd", (2,)), "3": ("tucker2", (3, 2)), "6": ("svd", (2,))})


def dense() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)
    )


def factorized(model: nn.Module, configuration: Configuration = CONFIGURATION, example: Tensor = EXAMPLE) -> nn.Module:
    built = build(Spectra(model, find_sites(model, example)), configuration)
    with torch.no_grad():  # as after fine-tuning: weights that no factorization of the dense ones gives
        for value in built.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.1)
    return built.eval()


def manifest(configuration: Configuration = CONFIGURATION) -> dict:
    return {"study": "t", "configuration": {s: [d, list(r)] for s, d, r in configuration.choices}, "metrics": {"accuracy": 0.5}}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, nn.Module]:
    model = factorized(dense())
    return export.save(model, tmp_path / "net", manifest=manifest(), example=EXAMPLE), model


def test_round_trip_is_exact_on_a_dense_network_of_other_weights(saved):
    folder, model = saved
    torch.manual_seed(99)
    host = dense()
    nn.init.normal_(host[0].weight)
    before = copy.deepcopy(host.state_dict())
    loaded = export.load(folder, host)
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(loaded(x), model(x))
    assert not loaded.training
    assert [name for name, _ in loaded.named_modules()] == [name for name, _ in model.named_modules()]
    assert all(torch.equal(v, before[k]) for k, v in host.state_dict().items())
    assert isinstance(loaded[0], nn.Sequential)


def test_example_may_be_given(saved):
    folder, model = saved
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(export.load(folder, dense(), x)(x), model(x))


def test_manifest_says_what_it_is(saved):
    folder, _ = saved
    record = json.loads((folder / "manifest.json").read_text())
    assert record["schema"] == 1 and record["study"] == "t" and record["metrics"] == {"accuracy": 0.5}
    assert record["configuration_id"] == CONFIGURATION.id
    assert record["example"] == {"kind": "tensor", "inputs": {"shape": [1, 3, 8, 8], "dtype": "float32"}}
    assert set(record["files"]) == {"model.safetensors", "modeling.py"}
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "model.safetensors", "modeling.py"]
    assert record["tensors"]["3.1.weight"] == {"shape": [2, 3, 3, 3], "dtype": "float32"}
    assert [p.name for p in folder.parent.iterdir()] == ["net"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.middle = nn.Linear(6, 6)

    def forward(self, tokens: Tensor, *, scale: float) -> Tensor:
        return self.head(self.middle(self.embed(tokens)) * scale)


def test_shared_tensors_are_stored_once_and_come_back(tmp_path):
    configuration = Configuration({"middle": ("svd", (2,))})
    host = Tied()
    example = {"tokens": torch.zeros(1, 4, dtype=torch.long), "scale": 2.0}
    model = build(Spectra(host, find_sites(host, example, include="middle")), configuration)
    folder = export.save(model, tmp_path / "tied", manifest=manifest(configuration), example=example)
    assert len({"embed.weight", "head.weight"} & set(load_file(folder / "model.safetensors"))) == 1
    loaded = export.load(folder, Tied())
    tokens = torch.randint(0, 11, (3, 4))
    assert torch.equal(loaded(tokens, scale=0.5), model.eval()(tokens, scale=0.5))
    assert loaded.head.weight is loaded.embed.weight


def test_a_non_empty_directory_is_left_alone(tmp_path, saved):
    folder, model = saved
    with pytest.raises(InvalidArgument, match="not empty"):
        export.save(model, folder, manifest=manifest(), example=EXAMPLE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for force in (False, True):
        with pytest.raises(InvalidArgument):
            export.save(model, tmp_path / "mine", manifest=manifest(), example=EXAMPLE, force=force)
    (folder / "notes.txt").write_text("x")
    with pytest.raises(InvalidArgument, match=r"notes\.txt"):
        export.save(model, folder, manifest=manifest(), example=EXAMPLE, force=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
    with pytest.raises(InvalidArgument, match="file"):
        export.check_target(folder / "notes.txt")


def test_force_replaces_an_export(saved):
    folder, _ = saved
    other = Configuration({"0": ("svd", (1,))})
    export.save(factorized(dense(), other), folder, manifest=manifest(other), example=EXAMPLE, force=True)
    assert export.read_manifest(folder)["configuration_id"] == other.id
    assert [p.name for p in folder.parent.iterdir()] == ["net"]


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path, saved, monkeypatch):
    folder, model = saved
    before = (folder / "manifest.json").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "save_tensors", full)
    with pytest.raises(OSError, match="No space"):
        export.save(model, tmp_path / "new", manifest=manifest(), example=EXAMPLE)
    with pytest.raises(OSError, match="No space"):
        export.save(model, folder, manifest=manifest(), example=EXAMPLE, force=True)
    monkeypatch.undo()
    rename = os.rename
    monkeypatch.setattr(export.os, "rename", lambda a, b: full() if Path(b) == folder and "replaced" not in str(a) else rename(a, b))
    with pytest.raises(OSError, match="No space"):
        export.save(model, folder, manifest=manifest(), example=EXAMPLE, force=True)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    assert (folder / "manifest.json").read_bytes() == before
    export.load(folder, dense())


def test_a_manifest_that_is_not_json_data_is_refused(tmp_path):
    model = factorized(dense())
    for bad in ({"configuration": {}, "x": object()}, {"configuration": {}, "x": float("nan")}, {"x": 1}, {"configuration": {"0": 3}}):
        with pytest.raises(InvalidArgument):
            export.save(model, tmp_path / "net", manifest=bad, example=EXAMPLE)
    assert list(tmp_path.iterdir()) == []


def edit(folder: Path, **changes) -> None:
    record = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(record))


def test_tampering_is_noticed(saved):
    folder, _ = saved
    good = (folder / "manifest.json").read_text()
    edit(folder, configuration={"0": ["svd", [1]]})
    with pytest.raises(InvalidArgument, match="not the one that was saved"):
        export.load(folder, dense())
    edit(folder, configuration={"0": ["svd", [1]]}, configuration_id=Configuration({"0": ("svd", (1,))}).id)
    with pytest.raises(InvalidModel, match="does not fit"):
        export.load(folder, dense())
    edit(folder, configuration={"0": ["magic", [1]]}, configuration_id=Configuration({"0": ("magic", (1,))}).id)
    with pytest.raises(InvalidArgument, match="'magic' is none of"):
        export.load(folder, dense())
    (folder / "manifest.json").write_text(good)
    edit(folder, schema=7)
    with pytest.raises(InvalidArgument, match="schema 7"):
        export.load(folder, dense())
    (folder / "manifest.json").write_text(good[:50])
    with pytest.raises(InvalidArgument, match="not JSON"):
        export.load(folder, dense())
    (folder / "manifest.json").write_text(good)
    edit(folder, example={"kind": "tensor", "inputs": {"type": "Graph"}})
    with pytest.raises(InvalidArgument, match="pass example"):
        export.load(folder, dense())
    (folder / "manifest.json").write_text(good)
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v + 1 for k, v in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(InvalidArgument, match="SHA-256"):
        export.load(folder, dense())
    (folder / "model.safetensors").unlink()
    with pytest.raises(InvalidArgument, match="missing"):
        export.load(folder, dense())
    with pytest.raises(InvalidArgument, match=r"manifest\.json"):
        export.load(folder.parent, dense())


def test_another_dense_network_is_refused(saved):
    folder, _ = saved
    with pytest.raises(InvalidModel, match="'6'"):
        export.load(folder, nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ReLU(), nn.Conv2d(8, 6, 3)))
    wider = dense()
    wider[0], wider[1], wider[3] = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Conv2d(12, 6, 3)
    with pytest.raises(InvalidModel, match="does not fit"):
        export.load(folder, wider)


def test_torch_export_takes_any_batch_and_equals_the_network(tmp_path):
    model = factorized(dense())
    folder = export.save(model, tmp_path / "net", manifest=manifest(), example=EXAMPLE, torch_export=True)
    program = torch.export.load(folder / "program.pt2").module()
    for batch in (1, 5):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(program(x), model(x))
    assert set(export.read_manifest(folder)["files"]) == {"model.safetensors", "modeling.py", "program.pt2"}


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum().item() > 0 else x


def test_what_cannot_be_exported_says_so_and_leaves_nothing(tmp_path):
    with pytest.raises(InvalidModel, match=r"torch\.export fails"):
        export.save(Branching(), tmp_path / "net", manifest={"configuration": {}}, example=torch.zeros(1, 6), torch_export=True)
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_packages_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pip install 'ranksearch\[onnx\]'"):
        export.check_target(tmp_path / "net", onnx=True)


RELOAD = """
import sys
sys.modules["ranksearch"] = None  # an import of it fails
import torch
from torch import nn
from safetensors.torch import load_file
folder = sys.argv[1]
sys.path.insert(0, folder)
from modeling import load
net = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)
)
given = load_file(sys.argv[2])
with torch.no_grad():
    off = (load(net)(given["x"]) - given["y"]).abs().max()
net[0] = nn.Conv2d(3, 9, 3, padding=1)
try:
    load(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(9), *list(net)[2:]))
except RuntimeError as error:
    print("refused", "1.weight" in str(error))
print(float(off), not net.training)
"""


def test_a_folder_is_loaded_by_its_own_code_in_a_process_without_ranksearch(saved, tmp_path):
    folder, model = saved
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        save_file({"x": x, "y": model(x)}, tmp_path / "inputs")
    command = [sys.executable, "-c", RELOAD, str(folder), str(tmp_path / "inputs")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["refused True", "0.0 True"]


def test_ties_come_back_by_the_code_of_the_folder(tmp_path):
    configuration = Configuration({"embed": ("svd", (2,))})
    host, example = Tied(), {"tokens": torch.zeros(1, 4, dtype=torch.long), "scale": 2.0}
    model = build(Spectra(host, find_sites(host, example)), configuration)
    folder = export.save(model, tmp_path / "tied", manifest=manifest(configuration), example=example)
    loaded = code_of(folder).load(Tied())
    assert loaded.head[1].weight is loaded.embed[0].weight
    tokens = torch.randint(0, 11, (3, 4))
    assert torch.equal(loaded(tokens, scale=0.5), model.eval()(tokens, scale=0.5))
    assert torch.equal(export.load(folder, Tied())(tokens, scale=0.5), loaded(tokens, scale=0.5))


def code_of(folder: Path):
    spec = importlib.util.spec_from_file_location(f"code_of_{folder.name}", folder / "modeling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_has_no_plain_form_is_written_without_code_and_says_why(tmp_path):
    rank = tuple(int(r) for r in next(d for d in DECOMPOSITIONS if d.name == "tensor_ring").ranks(find_sites(dense(), EXAMPLE)["3"])[0])
    configuration = Configuration({"3": ("tensor_ring", rank)})
    model = factorized(dense(), configuration)
    folder = export.save(model, tmp_path / "net", manifest=manifest(configuration), example=EXAMPLE)
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "model.safetensors"]
    assert "'3' holds a ParametrizedConv2d" in export.read_manifest(folder)["loads"]["not_without_ranksearch"]
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(export.load(folder, dense())(x), model(x))


def test_adaptive_structure_is_loaded_onto_other_weights(tmp_path: Path) -> None:
    """Which ranks exist is learned from a weight: those of another weight are no obstacle."""
    model = dense()
    spectra = Spectra(model, find_sites(model, EXAMPLE))
    rank = tuple(int(r) for r in spectra.decomposition("adaptive").errors(spectra.state(spectra.sites["3"], "adaptive")).ranks[-1])
    configuration = Configuration({"3": ("adaptive", rank)})
    network = factorized(model, configuration)
    folder = export.save(network, tmp_path / "net", manifest=manifest(configuration), example=EXAMPLE)
    torch.manual_seed(99)
    host = dense()
    with torch.no_grad():
        host[3].weight.zero_()[0, 0] = 1.0  # rank one: its own path ends at once
    path = Spectra(host, spectra.sites)
    assert list(rank) not in path.decomposition("adaptive").errors(path.state(spectra.sites["3"], "adaptive")).ranks.tolist()
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(export.load(folder, host)(x), network(x))
    wrong = Configuration({"3": ("adaptive", rank[:-1])})
    with pytest.raises(InvalidArgument, match="bonds, each of width 1 or more"):
        export.load(export.save(network, tmp_path / "wrong", manifest=manifest(wrong), example=EXAMPLE), host)


def _export(folder: Path) -> dict[str, Any]:
    """A folder that can be loaded; returns its manifest."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    built = build(Spectra(net, find_sites(net, torch.randn(2, 8))), Configuration({"0": ("svd", (2,))}))
    export.save(built, folder, manifest={"configuration": {"0": ["svd", [2]]}}, example=torch.randn(2, 8))
    return json.loads((folder / "manifest.json").read_text())


HOSTILE = [
    None, -1, 1.5, True, "x", "\ud800", [None], {"a": None}, {"0": ["svd"]}, {"0": ["svd", [-1]]}, {"0": ["svd", [10**30]]},
    {"0": [1, [2]]}, {"0.0.weight": []}, {"a": "b"}, {"kind": "sequence", "inputs": {}},
    {"kind": "tensor", "inputs": {"shape": [10**15], "dtype": "float32"}}, {"kind": "tensor", "inputs": {"shape": [2, 8], "dtype": "load"}},
    {"kind": "tensor", "inputs": {"shape": [-1], "dtype": "float32"}},
]  # fmt: skip


def test_every_hostile_manifest_is_answered(tmp_path: Path) -> None:
    manifest = _export(tmp_path / "e")
    dense = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    weights_only = {"created", "torch", "ranksearch"}  # said for people
    for name in manifest.keys() - weights_only:
        for hostile in HOSTILE:
            changed = manifest | {name: hostile}
            if name == "configuration" and isinstance(hostile, dict):
                with suppress(ValueError):
                    changed["configuration_id"] = Configuration.from_json(json.dumps(hostile)).id
            (tmp_path / "e" / "manifest.json").write_text(json.dumps(changed))
            with suppress(RanksearchError):  # some still say the same; anything else than this error is none
                export.load(tmp_path / "e", dense)
    for raw in (b"", b"\xff\xfe", b"[" * 10**5, b'{"schema": 1', json.dumps(manifest).encode("utf-16")):
        (tmp_path / "e" / "manifest.json").write_bytes(raw)
        with pytest.raises(InvalidArgument):
            export.load(tmp_path / "e", dense)
    (tmp_path / "e" / "manifest.json").unlink()
    os.mkfifo(tmp_path / "e" / "manifest.json")  # nobody writes to it: reading it would wait for ever
    with pytest.raises(InvalidArgument, match=r"holds no manifest\.json"):
        export.load(tmp_path / "e", dense)


def test_every_file_of_an_export_may_be_read_by_whom_the_manifest_may(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        _export(tmp_path / "e")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "e").iterdir()} == {0o640}
