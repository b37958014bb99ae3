"""What is found in a model, what is left out and why, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.sites import Cost, Sites, find_sites
from ranksearch.space import Configuration
from ranksearch.spectra import Spectra
from ranksearch.surgery import build


class Shared(nn.Module):
    """One convolution under two names, called twice at two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.max_pool2d(self.first(x), 2))


class Tied(nn.Module):
    """Embedding and head share their weight; so do two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.a, self.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.b.weight = self.a.weight
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.b(self.a(self.embed(tokens)).relu()))


def reason(sites: Sites, name: str) -> str:
    return next(s.reason for s in sites.skipped if s.name == name)


def test_costs_are_per_example_and_the_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout(), nn.Linear(8 * 16, 5)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sites = find_sites(model, torch.randn(3, 3, 4, 4))
    assert [s.name for s in sites] == ["0", "4"]
    assert sites["0"].cost == Cost(3 * 8 * 9 + 8, 3 * 8 * 9 * 16) and sites["4"].cost == Cost(128 * 5 + 5, 640)
    assert sites.total == Cost(sum(p.numel() for p in model.parameters()), 3 * 8 * 9 * 16 + 640)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert "BatchNorm2d" in reason(sites, "1")


def test_a_layer_under_two_names_is_one_site_with_two_calls() -> None:
    model = Shared()
    sites = find_sites(model, torch.randn(1, 4, 8, 8))
    assert [s.name for s in sites] == ["first"] and sites["second"] is sites["first"]
    assert sites["first"].positions == 64 + 16
    assert sites.total.macs == sites["first"].cost.macs
    built = build(Spectra(model, sites), Configuration({"first": ("svd", (1,))}))
    assert built.get_submodule("first") is built.get_submodule("second")
    assert isinstance(built.get_submodule("first"), nn.Sequential) and isinstance(model.first, nn.Conv2d)


def test_tied_weights_are_decided_once_or_reported() -> None:
    model = Tied()
    sites = find_sites(model, torch.randint(0, 20, (2, 5)))
    assert [(s.name, s.aliases) for s in sites] == [("a", ("b",))]
    assert "shared with 'head'" in reason(sites, "embed") and "shares its weight with 'embed'" in reason(sites, "head")
    built = build(Spectra(model, sites), Configuration({"a": ("svd", (2,))}))
    assert built.get_submodule("a") is built.get_submodule("b")
    assert built.get_parameter("head.weight") is built.get_parameter("embed.weight")
    assert built(torch.randint(0, 20, (2, 5))).shape == (2, 5, 20)


def test_an_encoder_layer_works_after_its_fused_path_lost_a_weight() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    sites = find_sites(model, x)
    assert [s.name for s in sites] == ["layers.0.linear1", "layers.0.linear2", "layers.1.linear1", "layers.1.linear2"]
    assert "used directly" in reason(sites, "layers.0.self_attn.out_proj")
    assert "MultiheadAttention" in reason(sites, "layers.0.self_attn")
    full = Configuration({s.name: ("svd", (8,)) for s in sites})
    with torch.no_grad():
        built = build(Spectra(model, sites), full)
        torch.testing.assert_close(built(x), model(x), atol=1e-5, rtol=1e-5)
        masked = built(x, src_key_padding_mask=padding)
        torch.testing.assert_close(masked[~padding], model(x, src_key_padding_mask=padding)[~padding], atol=1e-5, rtol=1e-5)


def test_rules_and_reasons() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)))
    model.add_module("spare", nn.Identity())
    x = torch.randn(1, 3, 8, 8)
    sites = find_sites(model, x, include=nn.Conv2d, exclude=["0", lambda _path, module: getattr(module, "kernel_size", 0) == 9])
    assert [s.name for s in sites] == ["1"]
    assert reason(sites, "0") == "excluded" and "not a plain parameter" in reason(sites, "2")
    with pytest.raises(InvalidArgument, match="sites are: 1"):
        sites["0"]
    with pytest.raises(InvalidArgument, match="holds no tensor"):
        find_sites(model, ("text",))
    with pytest.raises(InvalidModel, match="forward pass fails"):
        find_sites(model, torch.randn(1, 4, 8, 8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_unsound_weights_are_refused(value: float) -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with torch.no_grad():
        model[0].weight[1, 2] = value
    with pytest.raises(InvalidModel, match="NaN or infinite"):
        find_sites(model, torch.randn(1, 3))


def test_a_convolution_without_a_batch_dimension_takes_no_channel_shuffle() -> None:
    sites = find_sites(nn.Conv2d(8, 8, 3), torch.randn(8, 6, 6)[None])
    assert sites[""].batched
    unbatched = find_sites(nn.Sequential(nn.Flatten(0, 1), nn.Conv2d(8, 8, 3)), torch.randn(1, 8, 6, 6))["1"]
    assert not unbatched.batched
    tiled = next(d for d in DECOMPOSITIONS if d.name == "tiled_svd")
    assert tiled.undefined(sites[""]) is None and "batch" in (tiled.undefined(unbatched) or "")
