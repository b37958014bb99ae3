from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.tasks.networks import ResidualBlock, cifar_resnet, digits_net, load_weights


def test_the_layout_and_size_of_the_paper() -> None:
    model = cifar_resnet(20)
    keys = set(model.state_dict())
    stems = {f"layer{s}.{i}.{part}" for s in (1, 2, 3) for i in range(3) for part in ("conv1", "bn1", "conv2", "bn2")}
    assert {key.rsplit(".", 1)[0] for key in keys} == stems | {"conv1", "bn1", "linear"}
    assert sum(p.numel() for p in model.parameters()) == 269_722  # 0.27 M in the paper
    assert sum(p.numel() for p in cifar_resnet(56).parameters()) == 853_018
    assert 100_000 < sum(p.numel() for p in digits_net().parameters()) < 200_000


@pytest.mark.parametrize(
    ("model", "shape"),
    [(cifar_resnet(20), (3, 32, 32)), (cifar_resnet(20, in_channels=1, classes=7), (1, 28, 28)), (digits_net(), (1, 8, 8))],
)
def test_shapes(model: nn.Module, shape: tuple[int, ...]) -> None:
    assert model.eval()(torch.rand(2, *shape)).shape == (2, model.get_submodule("linear").out_features)


def test_the_shortcut_subsamples_pixels_and_pads_channels_on_both_sides() -> None:
    block = ResidualBlock(4, 8, 2).eval()
    assert block.bn2.weight is not None
    nn.init.zeros_(block.bn2.weight)  # the residual branch is silent
    x = torch.rand(2, 4, 7, 7)
    expected = torch.zeros(2, 8, 4, 4)
    expected[:, 2:6] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), expected)


def test_a_block_is_relu_of_branch_plus_shortcut() -> None:
    block = ResidualBlock(3, 3, 1).eval()
    x = torch.randn(2, 3, 5, 5)
    scale = 1 / (1 + 1e-5) ** 0.5
    branch = F.conv2d(F.relu(scale * F.conv2d(x, block.conv1.weight, padding=1)), block.conv2.weight, padding=1) * scale
    torch.testing.assert_close(block(x), F.relu(branch + x))


@pytest.mark.parametrize("options", [{"depth": 18}, {"depth": 2}, {"depth": 20, "in_channels": 0}, {"depth": 20, "classes": 0}])
def test_impossible_networks_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument):
        cifar_resnet(**options)


def _saved(tmp_path: Path, edit=lambda state: None) -> Path:
    torch.manual_seed(5)
    state = dict(digits_net().state_dict())
    edit(state)
    save_file(state, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_weights_are_loaded(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    torch.manual_seed(5)
    twin = digits_net()
    model = digits_net()
    assert load_weights(model, path) is model
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))


def test_counters_of_batch_norm_may_be_missing(tmp_path: Path) -> None:
    path = _saved(tmp_path, lambda state: [state.pop(key) for key in list(state) if key.endswith("num_batches_tracked")])
    model = load_weights(digits_net(), path)
    counters = [tensor for key, tensor in model.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counters and not any(int(counter) for counter in counters)


def _nan(state: dict[str, torch.Tensor]) -> None:
    state["layer2.0.conv1.weight"] = state["layer2.0.conv1.weight"] * torch.nan


MISFITS = [
    (lambda state: state.pop("linear.bias"), "missing: linear.bias"),
    (lambda state: state.update(extra=torch.zeros(2)), "unexpected: extra"),
    (lambda state: state.update({"linear.bias": torch.zeros(3)}), r"another shape: linear.bias: \(3,\) instead of \(10,\)"),
    (_nan, "NaN or infinite: layer2.0.conv1.weight"),
    (lambda state: [state.pop(k) for k in list(state) if k.startswith("layer3") and not k.endswith("tracked")], "and 16 more"),
]


@pytest.mark.parametrize(("edit", "message"), MISFITS, ids=["missing", "unexpected", "shape", "nan", "many"])
def test_misfits_are_named_and_nothing_is_loaded(tmp_path: Path, edit, message: str) -> None:
    model = digits_net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidModel, match=message):
        load_weights(model, _saved(tmp_path, edit))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="no such file"):
        load_weights(digits_net(), tmp_path / "none.safetensors")
    with pytest.raises(InvalidModel, match="no such file"):
        load_weights(digits_net(), tmp_path)
    for content in (b"", b"not weights at all", _saved(tmp_path).read_bytes()[:5000]):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(InvalidModel, match="not a readable safetensors file"):
            load_weights(digits_net(), tmp_path / "bad")


SHARED = Path(os.environ.get("RANKSEARCH_SHARED", "nowhere"))


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="RANKSEARCH_SHARED does not hold trained weights")
@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("resnet20_cifar10", cifar_resnet(20)),
        ("resnet56_cifar10", cifar_resnet(56)),
        ("resnet20_fashion_mnist", cifar_resnet(20, in_channels=1)),
    ],
)
def test_trained_weights_fit(name: str, model: nn.Module) -> None:
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    loaded = load_weights(model, SHARED / "models" / f"{name}.safetensors")
    assert not torch.equal(loaded.state_dict()["conv1.weight"], before["conv1.weight"])


def test_widths_are_shares_of_the_channels_of_every_layer() -> None:
    plain, narrow = digits_net(), digits_net(width=0.5)
    shapes = {name: module.weight.shape[:2] for name, module in plain.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    for name, (out, into) in shapes.items():
        ends = (out if name == "linear" else out // 2, into if name == "conv1" else into // 2)
        assert narrow.get_submodule(name).weight.shape[:2] == ends
    x = torch.randn(2, 1, 8, 8)
    assert narrow(x).shape == plain(x).shape
    assert [m.shape for m in digits_net(width=1).parameters()] == [m.shape for m in plain.parameters()]
    with pytest.raises(InvalidArgument, match="width"):
        digits_net(width=0.01)
