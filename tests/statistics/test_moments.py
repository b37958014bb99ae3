"""Second moments of patches without patches, against `F.unfold` in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ranksearch.sites import find_sites
from ranksearch.statistics import moments
from ranksearch.statistics.moments import displaced, displaced_gram, symmetrize, to_patch_order

LAYERS = {
    "padded": (nn.Conv2d(4, 6, 3, padding=1), (5, 4, 7, 8)),
    "bare": (nn.Conv2d(3, 6, (2, 3)), (5, 3, 6, 8)),
    "dilated": (nn.Conv2d(4, 6, 3, padding=2, dilation=2), (5, 4, 9, 8)),
    "unequal": (nn.Conv2d(4, 6, (3, 2), padding=(0, 1), dilation=(1, 3)), (5, 4, 7, 8)),
    "reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (5, 4, 7, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (5, 4, 7, 8)),
    "one row": (nn.Conv2d(4, 6, (1, 3), padding=(0, 1)), (5, 4, 3, 8)),
    "many": (nn.Conv2d(2, 3, 3, padding=1), (70, 2, 12, 12)),  # several pieces
}


@pytest.mark.parametrize("convolved", [True, False])
@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format], ids=["channels last", "contiguous"])
@pytest.mark.parametrize("name", LAYERS)
def test_sums_of_displaced_products_are_those_of_patches(
    name: str, memory: torch.memory_format, convolved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positive inputs: nothing cancels, so that the sums hold to float32's precision in every entry."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: convolved)
    layer, shape = LAYERS[name]
    x = torch.rand(shape).contiguous(memory_format=memory)
    site = find_sites(nn.Sequential(layer).eval(), x[:1])["0"]
    assert displaced(site, *shape[2:])
    height, width = (int(n) for n in layer.padding)
    padded = F.pad(x, (width, width, height, height), mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    patches = F.unfold(padded.double(), site.kernel, site.dilation).transpose(0, 1).flatten(1).reshape(site.groups, -1, 1)
    rows = patches.reshape(site.groups, shape[1] // site.groups * site.kernel[0] * site.kernel[1], -1)
    found = torch.zeros(site.groups, rows.shape[1], rows.shape[1], dtype=torch.float64)
    assert displaced_gram(site, x, found) == rows.shape[2]
    torch.testing.assert_close(to_patch_order(site, symmetrize(found), (1, 2)), rows @ rows.mT, rtol=1e-5, atol=1e-5)


def test_many_positions_are_summed_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 alone a small number is lost beside a large sum: the first image is large, the others are small."""
    x = torch.full((65, 1, 8, 8), 1e-2)
    x[0] = 100.0
    site = find_sites(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1)).eval(), x[:1])["0"]
    monkeypatch.setattr(moments, "PIECE", 64)
    found = torch.zeros(1, 9, 9, dtype=torch.float64)
    displaced_gram(site, x, found)
    small = float(found[0, 4, 4]) - 64 * 100.0**2
    assert small == pytest.approx(64 * 64 * 1e-4, rel=1e-4)
