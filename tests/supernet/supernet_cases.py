"""Small networks whose every layer is another kind of site, and the types that each takes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.decompositions import DECOMPOSITIONS, Moments
from ranksearch.sites import Site, canonical_weight, find_sites
from ranksearch.space import Configuration, SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.supernet import PROJECTIONS, RankSupernet

TYPES = tuple(d for d in DECOMPOSITIONS if d.name == "dense" or d.name in PROJECTIONS)
BY_NAME = {d.name: d for d in TYPES}


class Net(nn.Module):
    """Convolutions with padding, stride, dilation, "same" padding, groups and a bias; batch norm; linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.strided = nn.Conv2d(8, 12, (3, 5), stride=2, padding=(1, 2), bias=True)
        self.norm2 = nn.BatchNorm2d(12)
        self.grouped = nn.Conv2d(12, 8, 3, padding="same", groups=2, bias=False)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2, padding_mode="reflect")
        self.norm3 = nn.BatchNorm2d(8)
        self.pointwise = nn.Conv2d(8, 16, 1)
        self.hidden = nn.Linear(16, 12)
        self.linear = nn.Linear(12, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm1(self.first(x)))
        x = torch.tanh(self.norm2(self.strided(x)))
        x = torch.tanh(self.norm3(self.dilated(self.grouped(x))))
        x = self.pointwise(x).mean((2, 3))
        return self.linear(torch.tanh(self.hidden(x)))


def randomize(model: nn.Module) -> None:
    """Statistics, scale and shift of every batch norm at random."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)


def build(
    model: nn.Module | None = None, *, example: Any = None, types: Any = TYPES, moments: dict[str, Moments] | None = None, **options: Any
) -> tuple[nn.Module, SearchSpace, RankSupernet]:
    """(model, space, supernet) of `Net` in float64, unless another model is given; that of `Net` is one for all and left as it is."""
    if model is None:
        model, space, spectra = _of_net(types)
    else:
        example = torch.randn(1, 4, 9, 9, dtype=torch.float64) if example is None else example
        randomize(model)
        spectra = Spectra(model, find_sites(model, example), types, moments=moments)
        space = build_space(spectra)
    return model, space, RankSupernet(model, space, spectra=spectra, **options)


@cache
def _of_net(types: Any) -> tuple[nn.Module, SearchSpace, Spectra]:
    torch.manual_seed(0)
    model = Net().double()
    randomize(model)
    spectra = Spectra(model, find_sites(model, torch.randn(1, 4, 9, 9, dtype=torch.float64)), types)
    return model, build_space(spectra), spectra


def configurations(name: str, sites: Any, *, count: int = 3) -> list[Configuration]:
    """Smallest, largest and ``count`` random configurations of one type, at every site where it is defined."""
    decomposition, generator = BY_NAME[name], torch.Generator().manual_seed(1)
    ranks = {site.name: decomposition.ranks(site) for site in sites if decomposition.undefined(site) is None}
    picks = [dict.fromkeys(ranks, 0), {s: len(r) - 1 for s, r in ranks.items()}]
    picks += [{s: int(torch.randint(len(r), (), generator=generator)) for s, r in ranks.items()} for _ in range(count)]
    return [Configuration({s: (name, tuple(int(v) for v in ranks[s][i])) for s, i in pick.items()}) for pick in picks]


def moments_of(site: Site, *, output: bool = True, input: bool = True) -> Moments:
    """Random well-conditioned moments."""
    d = site.shape[1] * site.kernel[0] * site.kernel[1]

    def moment(size: int) -> Tensor:
        root = torch.randn(site.groups, size, 2 * size, dtype=torch.float64)
        return root @ root.mT / size

    return Moments(moment(d) if input else None, moment(site.c_out // site.groups) if output else None)


def weight_of(model: nn.Module, site: Site) -> Tensor:
    """A copy of the canonical weight."""
    return canonical_weight(model.get_submodule(site.name), site).clone()
