"""Unpacked attention and split projections compute what the packed ones compute, and their parts are sites."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.networks import export
from ranksearch.networks.surgery import build
from ranksearch.sites import canonical_weight, find_sites
from ranksearch.sites.attention import PlainAttention, SplitLinear, split_linear, unpack_attention
from ranksearch.space import Configuration, build_space
from ranksearch.space.spectra import Spectra

N, L, S, D, HEADS = 2, 3, 5, 8, 2
SAME = {"rtol": 0.0, "atol": 1e-12}


def attention(seed: int = 0, **options: Any) -> nn.MultiheadAttention:
    """With biases that are not zero, as after training."""
    torch.manual_seed(seed)
    module = nn.MultiheadAttention(D, HEADS, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def inputs(module: nn.MultiheadAttention, *, batched: bool = True) -> list[Tensor]:
    """Query, key and value that require gradients."""
    made = []
    for length, width in ((L, D), (S, module.kdim), (S, module.vdim)):
        shape = (length, width) if not batched else (N, length, width) if module.batch_first else (length, N, width)
        made.append(torch.randn(shape, dtype=torch.float64, requires_grad=True))
    return made


def masks(kind: str, *, batched: bool = True) -> dict[str, Any]:
    """Every way to mask; the first key stays visible, since a row without any is NaN."""
    blocked = torch.rand(L, S) < 0.4
    per_head = torch.rand((N if batched else 1) * HEADS, L, S) < 0.4
    padding = torch.rand(*((N,) if batched else ()), S) < 0.4
    for mask in (blocked, per_head, padding):
        mask[..., 0] = False
    return {
        "none": {},
        "bool": {"attn_mask": blocked},
        "float": {"attn_mask": torch.randn(L, S, dtype=torch.float64)},
        "per head": {"attn_mask": per_head},
        "padding": {"key_padding_mask": padding},
        "added padding": {"key_padding_mask": torch.randn(padding.shape, dtype=torch.float64)},
        "both": {"attn_mask": per_head, "key_padding_mask": padding},
        "causal": {"attn_mask": torch.ones(L, S, dtype=torch.bool).triu(1), "is_causal": True},
        "causal and padding": {"attn_mask": torch.ones(L, S, dtype=torch.bool).triu(1), "key_padding_mask": padding, "is_causal": True},
    }[kind]


def packed_gradients(plain: PlainAttention, original: nn.MultiheadAttention) -> dict[str, Tensor | None]:
    """The gradients of an unpacked attention under the names that its original gives its parameters."""
    parts = [plain.q_proj, plain.k_proj, plain.v_proj]
    gradients = {"out_proj.weight": plain.out_proj.weight.grad, "out_proj.bias": getattr(plain.out_proj.bias, "grad", None)}
    if original.in_proj_bias is not None:
        gradients["in_proj_bias"] = torch.cat([part.bias.grad for part in parts])
    if original.in_proj_weight is not None:
        return gradients | {"in_proj_weight": torch.cat([part.weight.grad for part in parts])}
    return gradients | {f"{name}_proj_weight": part.weight.grad for name, part in zip("qkv", parts, strict=True)}


KINDS = ("none", "bool", "float", "per head", "padding", "added padding", "both", "causal", "causal and padding")
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"batch_first": True, "bias": False}, {"kdim": 6, "vdim": 4, "batch_first": True}, {"kdim": 6})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_same_outputs_weights_and_gradients(kind: str, options: dict[str, Any]) -> None:
    original = attention(**options).train()
    plain = unpack_attention(original)
    assert isinstance(plain, PlainAttention) and plain.training
    for batched in (True, False):
        given, mask = inputs(original, batched=batched), masks(kind, batched=batched)
        for call in ({"need_weights": False}, {"need_weights": True}, {"average_attn_weights": False}):
            found = []
            for module in (original, plain):
                module.zero_grad()
                output, weights = module(*given, **mask, **call)
                total = (output * torch.arange(output.numel()).view_as(output)).sum() + (0 if weights is None else weights.square().sum())
                found.append((output, weights, torch.autograd.grad(total, given, retain_graph=True)))
                total.backward(inputs=list(module.parameters()))
            torch.testing.assert_close(found[1], found[0], **SAME)
            gradients = {name: parameter.grad for name, parameter in original.named_parameters()}
            moved = packed_gradients(plain, original)
            for name, gradient in gradients.items():
                torch.testing.assert_close(moved[name], gradient, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("training", [True, False])
def test_self_attention_in_both_modes_and_its_dropout(training: bool) -> None:
    original = attention(dropout=0.5, batch_first=True).train(training)
    plain = unpack_attention(original)
    x = torch.randn(N, L, D, dtype=torch.float64)
    for call in ({}, {"need_weights": False}):
        outputs = []
        with torch.no_grad():  # in inference the original takes its fused path
            for module in (original, plain):
                torch.manual_seed(3)  # the same entries are dropped
                outputs.append(module(x, x, x, **call))
        torch.testing.assert_close(outputs[1], outputs[0], **SAME)


def test_the_original_is_untouched_and_shares_nothing() -> None:
    original = attention()
    before = copy.deepcopy(original.state_dict())
    random_state = torch.get_rng_state()
    plain = unpack_attention(original)
    assert torch.equal(torch.get_rng_state(), random_state)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], value) for name, value in original.state_dict().items())
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in original.parameters())


def layers(kind: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    options = {"dropout": 0.0, "dtype": torch.float64} | options
    encoder, decoder = nn.TransformerEncoderLayer, nn.TransformerDecoderLayer
    if kind == "encoder layer":
        return encoder(D, HEADS, 16, **options)
    if kind == "decoder layer":
        return decoder(D, HEADS, 16, **options)
    if kind == "encoder":
        return nn.TransformerEncoder(encoder(D, HEADS, 16, **options), 2, enable_nested_tensor=False)
    if kind == "decoder":
        return nn.TransformerDecoder(decoder(D, HEADS, 16, **options), 2)
    return nn.Transformer(D, HEADS, 1, 1, 16, **options)


def arguments(kind: str, batch_first: bool) -> tuple[Tensor, ...]:
    count = 1 if kind.startswith("encoder") else 2
    return tuple(torch.randn(*((N, n, D) if batch_first else (n, N, D)), dtype=torch.float64) for n in (S, L)[:count])


@pytest.mark.parametrize("kind", ["encoder layer", "encoder", "decoder layer", "decoder", "transformer"])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"norm_first": True, "batch_first": True}, {"bias": False}], ids=str)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_within_transformer_layers(kind: str, options: dict[str, Any]) -> None:
    original = layers(kind, **options)
    given = arguments(kind, options.get("batch_first", False))
    for training in (True, False):
        plain = unpack_attention(original.train(training))
        assert not any(isinstance(module, nn.MultiheadAttention) for module in plain.modules())
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(plain(*given), original(*given), **SAME)
    mask = nn.Transformer.generate_square_subsequent_mask(given[0].shape[1 if options.get("batch_first") else 0], dtype=torch.float64)
    name = {"encoder layer": "src_mask", "encoder": "mask", "transformer": "src_mask"}.get(kind, "tgt_mask")
    torch.testing.assert_close(plain(*given, **{name: mask}), original(*given, **{name: mask}), **SAME)


def test_padded_encoders_agree_where_there_is_no_padding() -> None:
    """Torch's nested tensors set padded outputs to zero; the plain path computes them."""
    original = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, HEADS, 16, batch_first=True, dtype=torch.float64), 2).eval()
    plain = unpack_attention(original)
    x, padding = torch.randn(N, S, D, dtype=torch.float64), torch.tensor([[False] * S, [False] * 3 + [True] * 2])
    with torch.no_grad():
        outputs = [module(x, src_key_padding_mask=padding)[~padding] for module in (original, plain)]
    torch.testing.assert_close(outputs[1], outputs[0], **SAME)


def test_projections_are_sites_that_can_be_factorized() -> None:
    model = unpack_attention(layers("decoder layer", batch_first=True)).eval()
    given = arguments("decoder layer", True)
    sites = find_sites(model, given)
    for part in ("self_attn", "multihead_attn"):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            assert sites[f"{part}.{name}"].shape == (D, D, 1, 1)
    assert {s.type for s in sites.skipped} == {"LayerNorm"}
    spectra = Spectra(model, sites)
    configuration = Configuration({"self_attn.q_proj": ("svd", (2,)), "multihead_attn.out_proj": ("svd", (3,)), "linear1": ("svd", (1,))})
    oracle = copy.deepcopy(model)
    for name, decomposition, rank in configuration.choices:
        weight = spectra.decomposition(decomposition).reconstruct(sites[name], spectra.state(sites[name], decomposition), rank)
        oracle.get_submodule(name).weight.data.copy_(weight.flatten(1))
    built = build(spectra, configuration)
    for training in (True, False):
        torch.testing.assert_close(built.train(training)(*given), oracle.train(training)(*given), **SAME)
    assert not torch.allclose(built(*given), model(*given), atol=1e-3)
    space = build_space(Spectra(model, sites, [d for d in DECOMPOSITIONS if d.name == "svd"]))
    for indices in space.sample(3, seed=1):
        assert find_sites(build(spectra, space.configuration(indices)), given).total == space.cost(indices)


def test_an_encoder_whose_projections_were_factorized_works_in_inference(tmp_path) -> None:
    original = layers("encoder", batch_first=True).eval()
    x = torch.randn(N, S, D, dtype=torch.float64)
    model = unpack_attention(original)
    sites = find_sites(model, x)
    configuration = Configuration({s.name: ("svd", (min(s.shape[:2]),)) for s in sites})  # full rank: the same function
    assert len(configuration.choices) == 2 * 6
    built = build(Spectra(model, sites), configuration)
    with torch.no_grad():
        torch.testing.assert_close(built(x), original(x), rtol=0.0, atol=1e-10)
    data = {"configuration": {s: [d, list(r)] for s, d, r in configuration.choices}}
    folder = export.save(built, tmp_path / "net", manifest=data, example=x, torch_export=True)
    with torch.no_grad():
        assert torch.equal(export.load(folder, model)(x), built(x))


def test_attentions_that_are_tied_stay_tied() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = attention(0), attention(1)
            self.b.in_proj_weight, self.b.out_proj.weight = self.a.in_proj_weight, self.a.out_proj.weight
            self.c = self.a

        def forward(self, x: Tensor) -> Tensor:
            for layer in (self.a, self.b, self.c):
                x = layer(x, x, x)[0]
            return x

    model, x = Pair(), torch.randn(L, 1, D, dtype=torch.float64)
    plain = unpack_attention(model)
    assert plain.c is plain.a and plain.a.q_proj.weight is plain.b.q_proj.weight
    assert plain.a.out_proj.weight is plain.b.out_proj.weight and plain.a.q_proj.bias is not plain.b.q_proj.bias
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(plain(x), model(x), **SAME)


def test_frozen_weights_and_types_are_kept() -> None:
    original = nn.MultiheadAttention(D, HEADS, dtype=torch.bfloat16).eval()
    original.in_proj_weight.requires_grad_(False)
    plain = unpack_attention(original)
    assert not plain.q_proj.weight.requires_grad and plain.q_proj.bias.requires_grad and plain.out_proj.weight.requires_grad
    assert all(p.dtype == torch.bfloat16 for p in plain.parameters()) and not any(m.training for m in plain.modules())


class Other(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any):
        output, weights = super().forward(*args, **kwargs)
        return output * 2, weights


def parametrized() -> nn.MultiheadAttention:
    module = attention()
    nn.utils.parametrizations.weight_norm(module, "in_proj_weight")
    return module


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: attention(add_bias_kv=True), "add_bias_kv"),
        (lambda: attention(add_zero_attn=True), "add_zero_attn"),
        (lambda: Other(D, HEADS), "forward pass of its own"),
        (parametrized, "parametrized"),
    ],
)
def test_what_cannot_be_unpacked_is_refused_unless_excluded(make: Any, reason: str) -> None:
    model = nn.Sequential()
    model.add_module("odd", make())
    model.add_module("plain", attention())
    with pytest.raises(InvalidModel, match=reason) as caught:
        unpack_attention(model)
    assert "'odd'" in str(caught.value) and "exclude" in str(caught.value)
    left = unpack_attention(model, exclude="odd")
    assert isinstance(left.odd, nn.MultiheadAttention) and isinstance(left.plain, PlainAttention)


def test_a_packed_weight_in_use_elsewhere_is_refused() -> None:
    model = nn.Sequential(attention(), nn.Linear(D, 3 * D, dtype=torch.float64))
    model[1].weight = model[0].in_proj_weight
    with pytest.raises(InvalidModel, match="also used by '1'"):
        unpack_attention(model)


def test_is_causal_without_its_mask_is_refused() -> None:
    x = torch.randn(L, 1, D, dtype=torch.float64)
    with pytest.raises(InvalidArgument, match="needs attn_mask"):
        unpack_attention(attention())(x, x, x, is_causal=True)


# -- fused linear layers ---------------------------------------------------------------------------------------------


class Fused(nn.Module):
    """Attention as many vision transformers write it."""

    def __init__(self, qkv: nn.Module) -> None:
        super().__init__()
        self.qkv, self.out = qkv, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split((6, 6, 6), dim=-1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v))


def conv1d() -> nn.Module:
    layer = pytest.importorskip("transformers.pytorch_utils").Conv1D(18, 6)
    nn.init.normal_(layer.bias)
    return layer


FUSED = {"linear": lambda: nn.Linear(6, 18), "no bias": lambda: nn.Linear(6, 18, bias=False), "conv1d": conv1d}


@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED)
def test_the_parts_of_a_fused_layer_are_sites(make: Any) -> None:
    model = Fused(make()).double().eval()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    split = split_linear(model, {"qkv": (6, 6, 6)})
    assert isinstance(split.qkv, SplitLinear) and not split.qkv.training
    torch.testing.assert_close(split(x), model(x), **SAME)
    sites, whole = find_sites(split, x), find_sites(model, x)
    assert sites.total == whole.total
    assert [s.name for s in sites] == ["qkv.parts.0", "qkv.parts.1", "qkv.parts.2", "out"]
    rows = canonical_weight(model.qkv, whole["qkv"])
    for k in range(3):
        assert torch.equal(canonical_weight(split.qkv.parts[k], sites[f"qkv.parts.{k}"]), rows[6 * k : 6 * k + 6])
    built = build(Spectra(split, sites), Configuration({"qkv.parts.1": ("svd", (1,))}))
    assert torch.equal(built.qkv(x)[..., :6], split.qkv(x)[..., :6]) and not torch.allclose(built(x), split(x))
    split.qkv(x).square().sum().backward()
    model.qkv(x).square().sum().backward()
    gradient = torch.cat([part.weight.grad for part in split.qkv.parts])
    whole_gradient = model.qkv.weight.grad if isinstance(model.qkv, nn.Linear) else model.qkv.weight.grad.T
    torch.testing.assert_close(gradient, whole_gradient, **SAME)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_gpt2_is_split_and_factorized() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=12, n_layer=1, n_head=2, vocab_size=40, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).eval()
    split = split_linear(model, {"transformer.h.0.attn.c_attn": (12, 12, 12)})
    example = {"input_ids": torch.randint(0, 40, (1, 7))}
    with torch.no_grad():
        torch.testing.assert_close(split(**example).logits, model(**example).logits)
    sites = find_sites(split, example)
    assert sites["transformer.wte"].head is not None and sites["lm_head"] is sites["transformer.wte"]
    assert sites.total.params == model.num_parameters()
    ranks = {"transformer.wte": (3,), "transformer.h.0.attn.c_attn.parts.0": (2,), "transformer.h.0.mlp.c_fc": (4,)}
    choices = {name: ("svd", rank) for name, rank in ranks.items()}
    built = build(Spectra(split, sites), Configuration(choices))
    assert built(**example).logits.shape == (1, 7, 40)
    saved = sum(sites[name].cost.params for name in choices)
    spent = sum(Spectra(split, sites).decomposition(d).cost(sites[name], rank).params for name, (d, rank) in choices.items())
    assert sum(p.numel() for p in built.parameters()) == sites.total.params - saved + spent


def test_wrong_splits_are_refused() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 6), normed)
    model[3].weight = model[2].weight
    wrong = (("9", (3, 3), "does not have"), ("1", (3, 3), "a ReLU"), ("0", (3, 2), "6 outputs"), ("0", (6, 0), "positive"))
    for path, sizes, reason in wrong:
        with pytest.raises(InvalidArgument, match=reason):
            split_linear(model, {path: sizes})
    with pytest.raises(InvalidModel, match="used by 2, 3"):
        split_linear(model, {"2": (3, 3)})
    with pytest.raises(InvalidModel, match="plain weight"):
        split_linear(model, {"4": (3, 3)})
