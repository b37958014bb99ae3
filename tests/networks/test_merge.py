"""Merged back, a network has the dense one's layers and its own outputs; weights are those that `compose` puts together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InvalidModel
from ranksearch.networks import merge
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra

LAYERS = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1), (1, 4, 7, 7)),
    "strided": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(2, 1), dilation=(2, 1)), (1, 4, 12, 12)),
    "same, reflected, grouped": (lambda: nn.Conv2d(4, 6, (3, 5), padding="same", groups=2, padding_mode="reflect"), (1, 4, 9, 9)),
    "3-D": (lambda: nn.Conv3d(4, 6, (3, 2, 3), stride=(1, 2, 1), padding=(1, 0, 2), dilation=(1, 1, 2)), (1, 4, 4, 5, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, (3, 4), stride=2, padding=1, output_padding=(1, 0), groups=2), (1, 6, 5, 4)),
    "1-D": (lambda: nn.Conv1d(4, 6, 5, stride=2, padding=3), (1, 4, 15)),
    "linear": (lambda: nn.Linear(12, 8), (2, 12)),
    "linear without bias": (lambda: nn.Linear(12, 8, bias=False), (2, 12)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_weight_of_a_layer_is_the_composed_one(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    model = nn.Sequential(make()).double().eval()
    sites = find_sites(model, torch.randn(shape, dtype=torch.float64))
    (site,) = sites
    spectra = Spectra(model, sites)
    for decomposition in DECOMPOSITIONS[1:]:
        if decomposition.undefined(site) is None:
            rank = tuple(int(r) for r in decomposition.ranks(site)[0])
            layer = build(spectra, Configuration({"0": (decomposition.name, rank)}))[0]
            composed = decomposition.compose(site, spectra.factors(site, decomposition.name, rank))
            torch.testing.assert_close(merge.weight_of(layer, model[0], site), composed, msg=decomposition.name)


class Text(nn.Module):
    """An embedding with a tied head of a bias of its own, a convolution and batch norm between."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11)
        self.head.weight = self.embed.weight
        self.mix, self.norm = nn.Conv1d(6, 6, 3, padding=1), nn.BatchNorm1d(6)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.mix(self.embed(tokens).mT)).mT)


def trained() -> tuple[nn.Module, nn.Module, Configuration, Tensor]:
    torch.manual_seed(0)
    dense, tokens = Text().eval(), torch.arange(8).reshape(2, 4)
    configuration = Configuration({"embed": ("svd", (3,)), "mix": ("svd_in", (2,))})
    network = build(Spectra(dense, find_sites(dense, tokens)), configuration).eval()
    with torch.no_grad():
        for value in (*network.parameters(), network.norm.running_mean):
            value.add_(torch.rand_like(value) * 0.3)
    return dense, network, configuration, tokens


def test_a_trained_network_is_merged_with_its_ties_and_changes_neither() -> None:
    dense, network, configuration, tokens = trained()
    before = [{name: value.clone() for name, value in each.state_dict().items()} for each in (dense, network)]
    merged = merge.merged(network, dense, find_sites(dense, tokens), [site for site, _, _ in configuration.choices], tokens)
    assert [(n, type(m)) for n, m in merged.named_modules()] == [(n, type(m)) for n, m in dense.named_modules()]
    assert merged.head.weight is merged.embed.weight
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens), network(tokens), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(merged(tokens), dense(tokens), atol=1e-2)
    for each, state in zip((dense, network), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in each.state_dict().items())


def test_a_layer_that_is_forgotten_is_noticed() -> None:
    dense, network, _, tokens = trained()
    with pytest.raises(InvalidModel, match="outputs differ"):
        merge.merged(network, dense, find_sites(dense, tokens), ["embed"], tokens)
