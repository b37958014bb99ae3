"""3-D and transposed convolutions are sites: found, counted, lowered, built, reconstructed and written like the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ranksearch.networks import export
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.sites import canonical_weight, find_sites, to_stored
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.statistics.moments import gradients, images, lower

LAYERS = {
    "3-D": (lambda: nn.Conv3d(4, 6, (3, 2, 3), stride=(1, 2, 1), padding=(1, 0, 2), dilation=(1, 1, 2)), (2, 4, 4, 5, 6)),
    "3-D same, even, grouped": (lambda: nn.Conv3d(4, 6, (2, 1, 3), padding="same", groups=2), (2, 4, 4, 3, 5)),
    "3-D circular": (lambda: nn.Conv3d(4, 2, 2, padding=1, padding_mode="circular", bias=False), (2, 4, 3, 4, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, (3, 4), stride=2, padding=1, output_padding=(1, 0)), (2, 6, 5, 4)),
    "transposed, padded beyond its reach": (lambda: nn.ConvTranspose1d(5, 6, 2, stride=3, padding=3), (2, 5, 9)),
    "transposed 3-D, dilated, grouped": (lambda: nn.ConvTranspose3d(4, 6, (2, 1, 3), dilation=(1, 1, 2), groups=2), (1, 4, 3, 2, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_windows_times_the_canonical_weight_are_the_outputs(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make().double(), torch.randn(shape, dtype=torch.float64)
    (site,) = find_sites(nn.Sequential(layer), x)
    weight, output = canonical_weight(layer, site), layer(x)
    assert torch.equal(to_stored(weight, site, layer.weight.shape), layer.weight)
    rows = weight.reshape(site.groups, -1, *weight.shape[1:]).permute(0, 1, 3, 4, 2).flatten(2)
    got = torch.einsum("god,gdnp->ngop", rows, lower(site, images(site, x)).double()).flatten(1, 2)
    got = got if layer.bias is None else got + layer.bias[:, None]
    torch.testing.assert_close(got, output.flatten(2), rtol=1e-5, atol=1e-5)  # windows are float32
    assert gradients(site, output).shape == output.flatten(2).shape


class Decoder(nn.Module):
    """A video of four frames to one picture, twice as large."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Conv3d(3, 8, (4, 3, 3), padding=(0, 1, 1))
        self.up = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.relu(self.time(x)).squeeze(2))


def test_a_network_of_both_is_built_fitted_and_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Decoder().eval(), torch.randn(6, 3, 4, 5, 5)
    sites = find_sites(model, x)
    assert [site.kind for site in sites] == ["conv3d", "conv_transpose2d"] and sites.skipped == ()
    configuration = Configuration({"time": ("svd", (3,)), "up": ("svd", (2,))})
    spectra = Spectra(model, sites)
    built = build(spectra, configuration).eval()
    with torch.no_grad():
        before = float((built(x) - model(x)).square().mean())
        reconstruct(built, spectra, configuration, [x], held_out=0)
        assert float((built(x) - model(x)).square().mean()) < 0.9 * before
    manifest = {"configuration": {site: [name, list(rank)] for site, name, rank in configuration.choices}}
    folder = export.save(built, tmp_path / "net", manifest=manifest, example=x)
    with torch.no_grad():
        assert torch.equal(export.load(folder, Decoder())(x), built(x))
    assert "nn.ConvTranspose2d(8, 2," in (folder / "modeling.py").read_text()


def test_a_transposed_layer_that_is_told_its_output_size_is_left_alone() -> None:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose1d(4, 4, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x, output_size=[10])

    (skipped,) = find_sites(Told().eval(), torch.randn(2, 4, 4)).skipped
    assert skipped.name == "up" and "output_size" in skipped.reason
