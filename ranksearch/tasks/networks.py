"""Small residual networks for the studies that come with ranksearch, and loading of weights with every misfit named."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch import checks
from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.home import user_path

WIDTHS = (16, 32, 64)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters ("option A"): where the resolution halves, pixels are
    subsampled and channels padded with zeros, half before and half after (He et al. 2016, section 4.2)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.stride = stride
        self.pad = ((c_out - c_in) // 2, c_out - c_in - (c_out - c_in) // 2)

    def forward(
        self,
        x: Tensor,  # shape: (n, c_in, h, w)
    ) -> Tensor:  # shape: (n, c_out, ceil(h / stride), ceil(w / stride))
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
        if any(self.pad):
            shortcut = F.pad(shortcut, (0, 0, 0, 0, *self.pad))
        return F.relu(out + shortcut)


class CifarResNet(nn.Module):
    """The residual network of He et al. 2016, section 4.2, with widths 16, 32, 64 or others. State dict: ``conv1, bn1,
    layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear``."""

    def __init__(self, blocks: int, in_channels: int, classes: int, widths: tuple[int, int, int] = WIDTHS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(blocks, widths[0], widths[0], 1)
        self.layer2 = _stage(blocks, widths[0], widths[1], 2)
        self.layer3 = _stage(blocks, widths[1], widths[2], 2)
        self.linear = nn.Linear(widths[2], classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(
        self,
        x: Tensor,  # shape: (n, in_channels, h, w)
    ) -> Tensor:  # shape: (n, classes)
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean((2, 3)))


def _stage(blocks: int, c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(c_in if i == 0 else c_out, c_out, stride if i == 0 else 1) for i in range(blocks)))


def cifar_resnet(depth: int, *, in_channels: int = 3, classes: int = 10, width: float = 1.0) -> CifarResNet:
    """An untrained ResNet for small images: depth 20, 32, 44, 56, 110 are those of the paper.

    Args:
        width: every layer has so many times the paper's channels, rounded.

    Raises:
        InvalidArgument: ``depth`` is not 6 n + 2, a count below 1, or a width that leaves a layer no channel.
    """
    if depth < 8 or depth % 6 != 2:
        raise InvalidArgument(f"depth={depth}: must be 6 n + 2, such as 20, 32, 44 or 56")
    checks.whole("in_channels", in_channels, least=1)
    checks.whole("classes", classes, least=1)
    checks.number("width", width, least=0.5 / WIDTHS[0], hint="a multiple of the channels of every layer")
    first, second, third = (max(1, round(channels * width)) for channels in WIDTHS)
    return CifarResNet((depth - 2) // 6, in_channels, classes, (first, second, third))


def digits_net(*, width: float = 1.0) -> CifarResNet:
    """An untrained network for 8 x 8 x 1 images of digits: the same layout at depth 14, 172,000 parameters at ``width`` 1."""
    return cifar_resnet(14, in_channels=1, width=width)


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a safetensors file into ``model``, in place, and return it; on an error nothing is changed. Counters of
    batch norm (``num_batches_tracked``) may be missing.

    Raises:
        InvalidModel: no such file, not a safetensors file, keys missing, left over or misshapen, NaN or infinity.
    """
    path = user_path(path)
    if not path.is_file():
        raise InvalidModel(f"weights {path}: no such file; give the path of a .safetensors file")
    try:
        found = load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InvalidModel(f"weights {path}: not a readable safetensors file ({error}); write it with safetensors save_file") from error
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in found if key not in wanted]
    shapes = {key: (tuple(found[key].shape), tuple(wanted[key].shape)) for key in wanted if key in found}
    misshapen = [f"{key}: {got} instead of {right}" for key, (got, right) in shapes.items() if got != right]
    broken = [key for key, tensor in found.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    problems = [
        f"{what}: {_some(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen), ("NaN or infinite", broken))
        if keys
    ]
    if problems:
        listed = "; ".join(problems)
        raise InvalidModel(f"weights {path} do not fit {type(model).__name__}: {listed}; use weights saved from this very network")
    model.load_state_dict(found, strict=False)
    return model


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
