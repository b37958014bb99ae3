"""Surgery: the built network computes what the reconstructed weights compute, and the original is untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ranksearch.decompositions import DECOMPOSITIONS, Moments
from ranksearch.errors import InvalidArgument
from ranksearch.networks import export
from ranksearch.networks.surgery import build, tied_head
from ranksearch.sites import find_sites
from ranksearch.space import Configuration, build_space
from ranksearch.space.spectra import Spectra


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(x)).relu()
        x = self.twice(self.twice(x).relu())
        return self.head(x.mean(dim=(2, 3)))


def _net() -> Net:
    net = Net().double()
    net.bn.running_mean.normal_()
    net.bn.running_var.uniform_(0.5, 2.0)
    return net.eval()


def test_built_network_equals_the_network_with_reconstructed_weights() -> None:
    net, x = _net(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    spectra = Spectra(net, find_sites(net, x[:1]))
    configuration = Configuration({"conv": ("tucker2", (2, 5)), "twice": ("spatial", (4,)), "head": ("svd", (2,))})
    oracle = copy.deepcopy(net)
    for name, decomposition, rank in configuration.choices:
        site = spectra.sites[name]
        weight = spectra.decomposition(decomposition).reconstruct(site, spectra.state(site, decomposition), rank)
        oracle.get_submodule(name).weight.data.copy_(weight.reshape(oracle.get_submodule(name).weight.shape))
    built = build(spectra, configuration)
    assert torch.allclose(built(x), oracle(x), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(built(x), net(x), atol=1e-3)


def test_cost_of_space_equals_the_built_network() -> None:
    net, x = _net(), torch.randn(1, 3, 16, 16, dtype=torch.float64)
    # storage-only types save no MACs; composing their weight is work that a forward pass counts and the site does not
    spectra = Spectra(net, find_sites(net, x), [d for d in DECOMPOSITIONS if not d.storage_only])
    space = build_space(spectra)
    for indices in space.sample(8, seed=1):
        built = build(spectra, space.configuration(indices))
        assert find_sites(built, x).total == space.cost(indices)
        for name, table in space.cost_tables.items():
            assert table.score(indices) == getattr(space.cost(indices), name)


def test_original_is_untouched_and_shares_nothing() -> None:
    net, x = _net(), torch.randn(1, 3, 16, 16, dtype=torch.float64)
    before = copy.deepcopy(net.state_dict())
    spectra = Spectra(net, find_sites(net, x))
    built = build(spectra, Configuration({"twice": ("svd", (2,))}))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert isinstance(net.twice, nn.Conv2d)


def test_model_that_is_itself_a_site() -> None:
    layer = nn.Linear(12, 10).double().eval()
    x = torch.randn(3, 12, dtype=torch.float64)
    spectra = Spectra(layer, find_sites(layer, x[:1]))
    built = build(spectra, Configuration({"": ("svd", (10,))}))
    assert torch.allclose(built(x), layer(x), atol=1e-12)


def test_tied_layers_stay_tied() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    net[2].weight, net[2].bias = net[0].weight, net[0].bias
    sites = find_sites(net, torch.randn(1, 8))
    assert [s.aliases for s in sites] == [("2",)]
    built = build(Spectra(net, sites), Configuration({"0": ("svd", (2,))}))
    assert built[0] is built[2]
    assert sum(p.numel() for p in built.parameters()) == 8 * 2 * 2 + 8


class Language(nn.Module):
    """Tokens to logits with one table for both; the bias of the head has a second user."""

    def __init__(self, *, bias: bool = True, tail: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(8, 20, bias=bias)
        self.embed = nn.Embedding(20, 8, padding_idx=3)
        self.body = nn.Linear(8, 8)
        self.tail = nn.Linear(4, 20) if tail else None
        self.head.weight = self.embed.weight
        if tail:
            self.tail.bias = self.head.bias

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.body(self.embed(tokens)).tanh()
        logits = self.head(h)
        return logits if self.tail is None else logits + self.tail(h[..., :4])


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"tail": True}], ids=str)
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_tied_embedding_is_factorized_once(options: dict, rank: int) -> None:
    net, tokens = Language(**options).double().eval(), torch.randint(0, 20, (2, 5))
    tokens[0, 0] = 3  # the padding, whose row no look-up moves
    spectra = Spectra(net, find_sites(net, tokens))
    site = spectra.sites["embed"]
    svd = spectra.decomposition("svd")
    built = build(spectra, Configuration({"embed": ("svd", (rank,))}))

    table = svd.reconstruct(site, spectra.state(site, "svd"), (rank,)).flatten(1).T
    oracle = copy.deepcopy(net)
    oracle.embed.weight.data.copy_(table)
    assert oracle.head.weight is oracle.embed.weight
    torch.testing.assert_close(built(tokens), oracle(tokens), rtol=1e-12, atol=1e-12)

    down, up = built.embed[0].weight, built.embed[1].weight
    assert built.head[0].weight is up and built.head[1].weight is down
    if options.get("tail"):
        assert built.tail.bias is built.head[1].bias is not net.head.bias
    cost = svd.cost(site, (rank,))
    fixed = spectra.sites.total - site.cost
    assert sum(p.numel() for p in built.parameters()) == cost.params + fixed.params
    assert find_sites(built, tokens).total == cost + fixed

    # both uses move the factors: the sum of the chain rule on the dense table of either use
    built(tokens).square().sum().backward()
    copies = copy.deepcopy(net)
    looked_up, multiplied = (table.detach().clone().requires_grad_() for _ in range(2))
    h = copies.body(nn.functional.embedding(tokens, looked_up, padding_idx=3)).tanh()
    logits = h @ multiplied.T + (0 if net.head.bias is None else net.head.bias)
    logits = logits if net.tail is None else logits + copies.tail(h[..., :4])
    logits.square().sum().backward()
    assert looked_up.grad.abs().sum() > 0 and multiplied.grad.abs().sum() > 0
    torch.testing.assert_close(up.grad, (looked_up.grad + multiplied.grad).T @ down.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(down.grad, (looked_up.grad + multiplied.grad) @ up.detach(), rtol=1e-9, atol=1e-9)


def test_costs_of_a_space_with_a_tied_head_equal_the_built_network() -> None:
    net, tokens = Language().double().eval(), torch.randint(0, 20, (1, 5))
    spectra = Spectra(net, find_sites(net, tokens), [d for d in DECOMPOSITIONS if not d.storage_only])
    space = build_space(spectra)
    assert [ladder.site.name for ladder in space.ladders] == ["embed", "body"]
    for indices in [*space.sample(8, seed=1), space.dense]:
        configuration = space.configuration(indices)
        assert find_sites(build(spectra, configuration), tokens).total == space.cost(indices)
        by_head = Configuration({"head" if name == "embed" else name: (d, rank) for name, d, rank in configuration.choices})
        assert list(space.indices(by_head)) == list(indices)
    # nothing is gained by moments of one use alone
    moments = {name: Moments(input=torch.eye(width, dtype=torch.float64)[None]) for name, width in (("embed", 20), ("body", 8))}
    assert list(Spectra(net, spectra.sites, moments=moments).moments) == ["body"]


def test_a_tied_network_is_saved_and_loaded_tied(tmp_path) -> None:
    net, tokens = Language(tail=True).eval(), torch.randint(0, 20, (2, 5))
    configuration = Configuration({"embed": ("svd", (3,)), "body": ("svd", (2,))})
    built = build(Spectra(net, find_sites(net, tokens)), configuration).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    manifest = {"configuration": {s: [d, list(r)] for s, d, r in configuration.choices}}
    folder = export.save(built, tmp_path / "net", manifest=manifest, example=tokens, torch_export=True)
    stored = sum(value.numel() for value in load_file(folder / export.WEIGHTS).values())
    assert stored == sum(p.numel() for p in built.parameters())
    loaded = export.load(folder, Language(tail=True))
    assert torch.equal(loaded(tokens), built(tokens))
    assert loaded.head[1].weight is loaded.embed[0].weight and loaded.head[0].weight is loaded.embed[1].weight
    assert loaded.tail.bias is loaded.head[1].bias


def test_a_head_of_a_layer_that_is_no_chain_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no tied head"):
        tied_head(nn.Sequential(nn.Embedding(4, 2), nn.ReLU()), None)


def test_frozen_and_typed_like_the_original() -> None:
    layer = nn.Sequential(nn.Linear(8, 8)).bfloat16().train()
    layer[0].weight.requires_grad_(False)
    built = build(Spectra(layer, find_sites(layer, torch.randn(1, 8).bfloat16())), Configuration({"0": ("svd", (2,))}))
    assert all(p.dtype == torch.bfloat16 and p.requires_grad == (name == "0.1.bias") for name, p in built.named_parameters())
    assert built[0].training


def test_the_memory_format_is_that_of_the_original() -> None:
    net, x = _net(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    configuration = Configuration({"conv": ("tucker2", (2, 5)), "twice": ("spatial", (4,)), "head": ("svd", (2,))})
    plain = build(Spectra(net, find_sites(net, x[:1])), configuration)
    net.to(memory_format=torch.channels_last)
    built = build(Spectra(net, find_sites(net, x[:1])), configuration)
    assert built.twice[0].weight.is_contiguous(memory_format=torch.channels_last) and not built.twice[0].weight.is_contiguous()
    assert plain.twice[0].weight.is_contiguous() and not plain.twice[0].weight.is_contiguous(memory_format=torch.channels_last)
    seen = []
    built.twice.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    assert torch.allclose(built(x), plain(x), rtol=1e-10, atol=1e-10)
    assert all(output.is_contiguous(memory_format=torch.channels_last) for output in seen) and len(seen) == 2


def test_unknown_site_and_undefined_decomposition() -> None:
    layer = nn.Sequential(nn.Linear(8, 8))
    spectra = Spectra(layer, find_sites(layer, torch.randn(1, 8)))
    with pytest.raises(InvalidArgument, match="'nope'"):
        build(spectra, Configuration({"nope": ("svd", (2,))}))
    with pytest.raises(InvalidArgument, match="two-dimensional"):
        build(spectra, Configuration({"0": ("spatial", (2,))}))
