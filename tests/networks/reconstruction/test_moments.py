"""Moments of layers against im2col by `F.unfold`, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.networks.reconstruction.moments import LayerMoments
from ranksearch.sites import Site, find_sites

LAYERS = {
    "padded": (nn.Conv2d(4, 6, 3, padding=1), (5, 4, 7, 8)),
    "strided": (nn.Conv2d(4, 6, 3, stride=2, bias=False), (5, 4, 7, 8)),
    "grouped": (nn.Conv2d(4, 6, (3, 2), padding=(1, 0), groups=2), (5, 4, 7, 8)),
    "reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (5, 4, 7, 8)),
    "dilated": (nn.Conv1d(4, 6, 3, padding=2, dilation=2), (5, 4, 12)),
    "pointwise": (nn.Conv2d(4, 6, 1), (5, 4, 3, 3)),
    "pointwise strided": (nn.Conv2d(4, 6, 1, stride=2, groups=2), (5, 4, 7, 8)),
    "linear": (nn.Linear(5, 3), (5, 6, 5)),
    "few": (nn.Conv2d(40, 6, 3, padding=1), (5, 40, 2, 2)),  # positions, against inputs: they are kept one by one
    "few grouped": (nn.Conv2d(40, 6, 3, stride=2, padding=1, bias=False, groups=2), (5, 40, 5, 3)),
    "few linear": (nn.Linear(24, 3), (5, 2, 24)),
    "few at first": (nn.Conv2d(12, 6, 3, padding=1), (5, 12, 4, 4)),  # the first use alone would be kept
}
FEW = {"few": 5, "few grouped": 5, "few linear": 5, "few at first": 2, "strided": 2}  # examples up to which there are few


def unfolded(site: Site, layer: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs with a one behind them (groups, d + 1, positions), and answers (groups, c_out / groups, positions)."""
    if isinstance(layer, nn.Linear):
        rows, answers = x.reshape(-1, site.c_in).T, y.reshape(-1, site.c_out).T
    else:
        assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
        if isinstance(layer, nn.Conv1d):
            x, y = x[:, :, None], y[:, :, None]
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        height, width = site.padding
        assert isinstance(height, int) and isinstance(width, int)
        patches = F.unfold(F.pad(x, (width, width, height, height), mode=mode), site.kernel, site.dilation, 0, site.stride)
        rows, answers = patches.transpose(0, 1).flatten(1), y.flatten(2).transpose(0, 1).flatten(1)
    rows, answers = (value.double().reshape(site.groups, -1, value.shape[1]) for value in (rows, answers))
    return torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1), answers


def case(name: str) -> tuple[Site, nn.Module, Tensor, Tensor]:
    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    site = find_sites(nn.Sequential(layer).eval(), x[:1])["0"]
    with torch.no_grad():
        return site, layer, x, layer(x) + torch.randn(layer(x).shape)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_sums_over_several_uses_are_those_of_all_patches(name: str, weighed: bool) -> None:
    site, layer, x, y = case(name)
    rows, answers = unfolded(site, layer, x, y)
    factor = torch.randn(site.groups, site.c_out // site.groups, 9, dtype=torch.float64)
    output = factor @ factor.mT if weighed else None
    found = LayerMoments.none(site, output, x.device)
    found.add(x[:2], y[:2])
    assert (found.examples is not None) == (name in FEW) and found.inputs.any(), "sums that were asked for are not the last word"
    found.add(x[2:], y[2:])
    assert (found.examples is not None) == (FEW.get(name) == 5)
    assert found.count == rows.shape[2] and found.usable
    torch.testing.assert_close(found.inputs, rows @ rows.mT, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.cross, answers @ rows.mT, rtol=1e-4, atol=1e-3)
    weight = torch.randn(site.shape, dtype=torch.float64)
    bias = torch.randn(site.c_out, dtype=torch.float64) if site.bias else None
    full = weight.reshape(site.groups, -1, rows.shape[1] - 1) @ rows[:, :-1]
    residual = full + (0 if bias is None else bias.reshape(site.groups, -1, 1)) - answers

    def square(value: Tensor) -> float:
        return float((value * (value if output is None else output @ value)).sum())

    assert found.error(weight, bias) == pytest.approx(square(residual) / square(answers), rel=1e-4)
    own = found.answered_by(weight, bias)  # the answers of that very layer
    assert abs(own.error(weight, bias)) < 1e-9
    assert own.error(0 * weight, None) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["padded", "few"])
def test_inputs_alone_say_nothing_of_answers(name: str) -> None:
    site, _, x, _ = case(name)
    found = LayerMoments.none(site, None, x.device)
    assert not found.usable
    found.add(x, None)
    assert found.usable and found.energy == 0 and not found.cross.any()


@pytest.mark.parametrize("name", ["padded", "few"])
def test_what_is_zero_or_not_finite_is_of_no_use(name: str) -> None:
    site, _, x, y = case(name)
    spoiled = [torch.where(torch.arange(t.numel()).reshape(t.shape) == t.numel() // 2, float("inf"), t) for t in (x, y)]
    for inputs, answers in ((0 * x, y), (float("nan") * x, y), (spoiled[0], y), (x, spoiled[1])):
        found = LayerMoments.none(site, None, x.device)
        found.add(inputs, answers)
        assert not found.usable


@pytest.mark.parametrize("name", ["linear", "padded"])
def test_inputs_far_from_zero_keep_what_they_vary_by(name: str) -> None:
    """Products in float32 would leave nothing of it, once the squares of the means are taken off."""
    site, layer, x, y = case(name)
    x = x + 3000.0
    rows, answers = unfolded(site, layer, x, y)
    found = LayerMoments.none(site, None, x.device)
    found.examples = None
    found.add(x, y)
    torch.testing.assert_close(found.inputs, rows @ rows.mT, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.cross, answers @ rows.mT, rtol=1e-6, atol=1e-1)
