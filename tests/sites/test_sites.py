"""What is found in a model, what is left out and why, and what it costs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.networks.surgery import build
from ranksearch.sites import Cost, Sites, find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra


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
    assert sites["0"].cost == Cost(params=3 * 8 * 9 + 8, macs=3 * 8 * 9 * 16) and sites["4"].cost == Cost(params=128 * 5 + 5, macs=640)
    assert sites.total == Cost(params=sum(p.numel() for p in model.parameters()), macs=3 * 8 * 9 * 16 + 640)
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


def test_tied_weights_are_decided_once() -> None:
    model, tokens = Tied(), torch.randint(0, 20, (2, 5))
    sites = find_sites(model, tokens)
    assert [(s.name, s.aliases, s.head and s.head.name) for s in sites] == [("embed", (), "head"), ("a", ("b",), None)]
    assert sites["head"] is sites["embed"] and sites["embed"].paths == ("embed", "head")
    assert sites["embed"].cost == Cost(params=20 * 8, macs=5 * 20 * 8)  # stored once; the look-up is free, the head is not
    assert sites.total == sites["embed"].cost + sites["a"].cost
    assert not sites.skipped
    built = build(Spectra(model, sites), Configuration({"a": ("svd", (2,))}))
    assert built.get_submodule("a") is built.get_submodule("b")
    assert built.get_parameter("head.weight") is built.get_parameter("embed.weight")
    assert built(tokens).shape == (2, 5, 20)


class Heads(nn.Module):
    """One table, looked up under two names and multiplied by under three; the heads come first."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 20), nn.Linear(8, 20)
        self.encode, self.decode = nn.Embedding(20, 8), nn.Embedding(20, 8)
        self.encode.weight = self.decode.weight = self.two.weight = self.one.weight
        self.two.bias = self.one.bias
        self.three = self.one

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.encode(tokens) + self.decode(tokens.flip(1))
        return torch.cat([self.one(h), self.two(h[:, :1]), self.three(h[:, :2])], dim=1)


def test_a_table_with_many_uses_is_one_site() -> None:
    sites = find_sites(Heads(), torch.randint(0, 20, (2, 5)))
    (site,) = sites
    assert site.kind == "embedding" and not sites.skipped
    assert site.head is not None and set(site.paths) == {"encode", "decode", "one", "two", "three"}
    assert site.positions == 10 and site.head.positions == 5 + 1 + 2
    assert site.cost == sites.total == Cost(params=20 * 8 + 20, macs=8 * 20 * 8)


def test_weights_shared_in_ways_that_cannot_be_built_are_reported() -> None:
    model, tokens = Tied(), torch.randint(0, 20, (2, 5))
    sites = find_sites(model, tokens, exclude=["head", "b"])
    assert not len(sites)
    assert reason(sites, "head") == "excluded"
    assert "shared with 'head'" in reason(sites, "embed") and "shared with 'b'" in reason(sites, "a")
    model.b.bias = nn.Parameter(torch.zeros(8))  # the same weight with a bias of its own
    sites = find_sites(model, tokens)
    assert [s.name for s in sites] == ["embed"]
    assert "shared with 'b'" in reason(sites, "a") and "shares its weight with 'a'" in reason(sites, "b")


def test_a_tied_head_says_which_types_it_does_not_take() -> None:
    site = find_sites(Tied(), torch.randint(0, 20, (2, 5)))["embed"]
    reasons = {d.name: d.undefined(site) for d in DECOMPOSITIONS}
    assert {name for name, why in reasons.items() if why is None} == {"dense", "svd"}
    assert all(why for name, why in reasons.items() if name not in ("dense", "svd"))


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_what_is_no_site_says_why() -> None:
    model = nn.ModuleDict({
        "scaled": Scaled(6, 6), "normed": nn.Embedding(9, 6, max_norm=1.0), "attention": nn.MultiheadAttention(6, 2),
        "norm": nn.LayerNorm(6), "recurrent": nn.GRU(6, 6, batch_first=True), "unused": nn.Linear(6, 6), "plain": nn.Linear(6, 6),
    })  # fmt: skip

    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m, self.positions = model, nn.Parameter(torch.zeros(4, 6))

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.m["norm"](self.m["scaled"](self.m["normed"](tokens) + self.positions))
            x = self.m["attention"](x, x, x)[0]
            return self.m["recurrent"](self.m["plain"](x))[0]

    sites = find_sites(All(), torch.randint(0, 9, (2, 4)))
    assert [s.name for s in sites] == ["m.plain"]
    told = {
        "scaled": "forward pass of its own", "normed": "max_norm", "attention": "unpack_attention", "attention.out_proj": "used directly",
        "norm": "LayerNorm", "recurrent": "unpack_recurrent", "unused": "not called",
        "": "All, which holds 'positions' itself, in no layer",
    }  # fmt: skip
    assert {s.name.removeprefix("m.") for s in sites.skipped} == set(told)
    assert all(words in reason(sites, f"m.{name}" if name else "") for name, words in told.items())


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


def test_the_page_about_sites_runs_and_tells_the_truth(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sites.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict = {"__name__": "example"}
    exec(compile(code, "docs/sites.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "tied to head" in printed and "no decomposition is defined for LayerNorm" in printed and "TransposedLinear" in printed
    attention = {f"body.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in ("q", "k", "v", "out")}
    assert {site.name for site in names["sites"]} == {"embed", *attention, *(f"body.layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2))}
    assert names["small"](names["tokens"]).shape == (1, 16, 1000)
    table, query = 1000 * 64 - 16 * (1000 + 64), 64 * 64 - 8 * (64 + 64)  # what the factors save
    assert sum(p.numel() for p in names["small"].parameters()) == names["sites"].total.params - table - query
