"""Networks with weights of few bits in files, in programs, under reconstruction and back to dense weights."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ranksearch.decompositions import KNOWN
from ranksearch.networks import export
from ranksearch.networks.merge import merged
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra

EXAMPLE = torch.zeros(2, 3, 8, 8)
CHOICES = {"0": ("dense@int4", ()), "3": ("tucker2@int8", (3, 2)), "6": ("svd@int4", (2,))}


def dense() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)
    ).eval()


def built(model: nn.Module, choices: dict = CHOICES) -> tuple[Spectra, Configuration, nn.Module]:
    spectra, configuration = Spectra(model, find_sites(model, EXAMPLE), KNOWN), Configuration(choices)
    return spectra, configuration, build(spectra, configuration).eval()


def inputs(count: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2)).to(dtype)


def saved(network: nn.Module, configuration: Configuration, folder: Path, **options: Any) -> Path:
    manifest = {"configuration": {site: [kind, list(rank)] for site, kind, rank in configuration.choices}}
    return export.save(network, folder, manifest=manifest, example=EXAMPLE.to(next(network.parameters()).dtype), **options)


def code_of(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("modeling", folder / "modeling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_of_few_bits_comes_back_bit_for_bit_with_and_without_ranksearch(tmp_path: Path, dtype: torch.dtype) -> None:
    _, configuration, network = built(dense().to(dtype))
    folder = saved(network, configuration, tmp_path / "net")
    x = inputs(dtype=dtype)
    other = dense()  # of other weights, in float32
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
        wanted = network(x)
        assert torch.equal(export.load(folder, copy.deepcopy(other).to(dtype))(x), wanted)
        assert torch.equal(code_of(folder).load(other)(x), wanted)
    assert "ranksearch" not in [line.split()[1] for line in (folder / "modeling.py").read_text().splitlines() if line.startswith("import ")]
    held = sum(t.numel() * t.itemsize for t in network.state_dict().values())
    assert (folder / "model.safetensors").stat().st_size < held + 4096  # integers are stored as such


def test_programs_compute_what_the_network_does(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    _, configuration, network = built(dense())
    manifest = export.read_manifest(saved(network, configuration, tmp_path / "net", onnx=True, torch_export=True))
    assert set(manifest["programs"]["difference"]) == {"model.onnx", "program.pt2"}  # which are compared when they are written
    program = torch.export.load(tmp_path / "net" / "program.pt2")
    assert {value.dtype for name, value in program.state_dict.items() if name.endswith("qweight")} == {torch.int8, torch.uint8}
    with torch.no_grad():
        torch.testing.assert_close(program.module()(inputs(5)), network(inputs(5)))


def test_reconstruction_refits_rounded_factors_and_keeps_them_rounded() -> None:
    model = dense()
    spectra, configuration, network = built(model)
    batches = list(torch.randn(6, 48, 3, 8, 8, generator=torch.Generator().manual_seed(3)))
    held = {name: (value.dtype, value.shape) for name, value in network.state_dict().items()}
    fitted = reconstruct(network, spectra, configuration, batches)
    assert all(one.after <= one.before for one in fitted) and any(one.after < 0.8 * one.before for one in fitted)
    assert {name: (value.dtype, value.shape) for name, value in network.state_dict().items()} == held
    with torch.no_grad():
        before = [(build(spectra, configuration).eval()(x) - model(x)).square().mean() for x in batches]
        after = [(network.eval()(x) - model(x)).square().mean() for x in batches]
    assert torch.stack(after).mean() < torch.stack(before).mean()


def test_the_answers_of_rounded_layers_merge_into_dense_weights() -> None:
    model = dense()
    spectra, configuration, network = built(model)
    plain = merged(network, model, spectra.sites, [site for site, _, _ in configuration.choices], inputs())
    assert [type(module) for module in plain.children()] == [type(module) for module in model.children()]
    with torch.no_grad():
        torch.testing.assert_close(plain(inputs()), network(inputs()), rtol=1e-4, atol=1e-5)


def test_layers_keep_their_integers_through_changes_of_type_and_copies() -> None:
    _, _, network = built(dense())
    half, again = copy.deepcopy(network).half(), copy.deepcopy(network)
    for name, value in network.state_dict().items():
        if name.endswith("qweight"):
            assert torch.equal(half.state_dict()[name], value) and torch.equal(again.state_dict()[name], value)
        elif name.endswith("scale"):
            assert half.state_dict()[name].dtype == torch.float16


def test_embeddings_look_rows_up_and_dequantize_no_others() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 7, padding_idx=3), nn.Linear(7, 4))
    tokens = torch.arange(20).reshape(4, 5)
    spectra = Spectra(model, find_sites(model, tokens), KNOWN)
    for choice in (("dense@int4", ()), ("svd@int8", (4,))):
        network = build(spectra, Configuration({"0": choice}))
        table: Any = network.get_submodule("0" if choice[0].startswith("dense") else "0.0")
        assert table.layer.padding_idx == 3
        with torch.no_grad():
            torch.testing.assert_close(table(tokens), table.dequantized()[tokens])
            assert table(tokens[0, :2]).shape == (2, table.shape[1])
