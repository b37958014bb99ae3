"""Programs take every size that the network takes, and are refused where they compute something else."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidModel
from ranksearch.networks import programs
from ranksearch.networks.programs import difference, exported

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript and onnxruntime are not installed",
)
IMAGE = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)


def pooled() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()


def flattened() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval()


class Sized(nn.Module):
    """Knows the length of its sequences from its first example: traced, it would answer wrongly for any other."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, tokens: Tensor, *, mask: Tensor) -> dict[str, Tensor]:
        length = int(tokens.shape[1]) if tokens.shape[1] == 6 else 1
        return {"mean": (self.table(tokens) * mask[..., None]).sum(dim=1) / length}


def free(found: programs.Exported) -> list[list[bool]]:
    return [[isinstance(n, str) for n in shape] for shape in found.shapes]


def test_image_sizes_are_free_where_the_network_takes_any(tmp_path: Path) -> None:
    model = pooled()
    facts = programs.write(model, IMAGE, tmp_path, torch_export=True, onnx=False)
    assert facts["inputs"] == {"input": ["batch", 3, "size 1", "size 2"]} and facts["difference"]["program.pt2"] < 1e-5
    program = torch.export.load(tmp_path / "program.pt2").module()
    for shape in ((1, 3, 8, 8), (3, 3, 11, 6), (2, 3, 5, 30)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x))


def test_sizes_that_the_network_does_not_take_are_fixed_and_the_batch_is_not() -> None:
    found = exported(flattened(), IMAGE)
    assert free(found) == [[True, False, False, False]]
    assert {probe.shape[0] for probe in found.probes} == {2, 4}


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embed(tokens.view(-1, tokens.shape[-1]))


def test_an_example_that_is_a_part_of_a_larger_tensor_gives_a_program_for_any_batch() -> None:
    found = exported(Flat().eval(), torch.randint(0, 20, (2, 12))[:, :5])
    assert found.shapes[0][0] == "batch"


def test_a_size_at_which_the_program_answers_otherwise_is_fixed() -> None:
    example = {"tokens": torch.arange(12).reshape(2, 6) % 9, "mask": torch.ones(2, 6)}
    found = exported(Sized().eval(), example)
    assert free(found) == [[True, False], [True, False]] and found.names == ("tokens", "mask")


def test_a_language_model_takes_any_length_without_its_cache() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    programs._without_cache(model)
    example = {"input_ids": torch.arange(10).reshape(1, 10)}
    found = exported(model, example)
    assert found.shapes == (("batch", "size 1"),) and found.names == ("input_ids",)
    ids = torch.randint(0, 40, (3, 7))
    with torch.no_grad():
        torch.testing.assert_close(found.program.module()(input_ids=ids).logits, model(ids).logits)


@needs_onnx
def test_onnx_takes_what_the_program_takes_and_is_compared(tmp_path: Path) -> None:
    import onnx

    model = pooled()
    facts = programs.write(model, IMAGE, tmp_path, torch_export=False, onnx=True)
    assert facts["difference"]["model.onnx"] < 1e-5
    onnx.checker.check_model(onnx.load(str(tmp_path / "model.onnx")))
    for shape in ((1, 3, 8, 8), (3, 3, 11, 6)):
        x = torch.randn(shape)
        (got,) = programs.onnx_work(tmp_path / "model.onnx", ["input"], x)()
        torch.testing.assert_close(torch.from_numpy(got), model(x), rtol=1e-4, atol=1e-5)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[4].bias.add_(1.0)
    found = exported(model, IMAGE)
    with pytest.raises(InvalidModel, match="differ from its own"):
        programs._write_onnx(other, found, tmp_path / "other.onnx")


@needs_onnx
def test_a_program_is_quantized_to_int8_afterwards(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8, bias=False), nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 16)).eval()  # two are factors
    x = torch.randn(12, 64)
    names = list(programs.write(model, x, tmp_path, torch_export=False, onnx=True)["inputs"])
    quantize_dynamic(tmp_path / "model.onnx", tmp_path / "int8.onnx", weight_type=QuantType.QInt8)
    (got,) = programs.onnx_work(tmp_path / "int8.onnx", names, x[:5])()
    with torch.no_grad():
        expected = model(x[:5])
    off = (torch.from_numpy(got) - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 0 < off < 0.05
    whole = sum((tmp_path / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert (tmp_path / "int8.onnx").stat().st_size < 0.5 * whole


@pytest.mark.parametrize(
    "got, message",
    [
        ([torch.zeros(3)], "shapes"),
        ([torch.tensor([1.0, 2.0]), torch.zeros(2)], "shapes"),
        ([torch.tensor([1.0, 2.1])], "differ from its own by"),
        ([torch.tensor([1.0, float("nan")])], "differ from its own"),
    ],
)
def test_outputs_that_differ_are_refused(got: list[Tensor], message: str) -> None:
    with pytest.raises(InvalidModel, match=message):
        difference(got, [torch.tensor([1.0, 2.0])])


def test_differences_are_relative_to_the_size_of_the_outputs() -> None:
    expected = torch.tensor([300.0, -400.0])
    assert difference([expected + 0.1], [expected]) == pytest.approx(0.1 / (125000**0.5), rel=1e-3)
    with pytest.raises(InvalidModel, match="other integers"):
        difference([torch.tensor([1, 2])], [torch.tensor([1, 3])])
