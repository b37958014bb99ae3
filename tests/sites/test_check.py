"""Layers that can be replaced, and those that cannot: at full rank, the network built from the sites equals the original, whatever
is on its layers, and what a layer has is carried over or named."""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InvalidModel
from ranksearch.networks.surgery import build
from ranksearch.sites import Sites, find_sites, run, tensors_of
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
SVD = [d for d in DECOMPOSITIONS if d.name == "svd"]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def full_rank(model: nn.Module, example: Any) -> tuple[Sites, nn.Module]:
    """The sites, and the network with all of them factorized without a loss."""
    sites = find_sites(model, example)
    ranks = {s.name: ("svd", (min(s.c_out, s.shape[1] * s.kernel[0] * s.kernel[1]),)) for s in sites}
    return sites, build(Spectra(model, sites, SVD), Configuration(ranks))


def same_outputs(model: nn.Module, built: nn.Module, example: Any) -> None:
    with torch.no_grad():
        for (_, a), (_, b) in zip(tensors_of(run(model, example)), tensors_of(run(built, example)), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


def on_first(change: Callable[[nn.Linear], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = mlp()
        change(model[0])
        return model

    return make


def buffer_bias(layer: nn.Linear) -> None:
    bias = layer.bias.detach().clone()
    del layer.bias
    layer.register_buffer("bias", bias)


def plain_bias(layer: nn.Linear) -> None:
    bias = layer.bias.detach().clone()
    del layer.bias
    layer.bias = bias  # pyright: ignore[reportAttributeAccessIssue]


def int_weight(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(torch.ones(16, 8, dtype=torch.int8), requires_grad=False)
    layer.forward = lambda x: F.linear(x, torch.ones(16, 8))  # pyright: ignore[reportAttributeAccessIssue]


class Net(nn.Module):
    """Two linear layers, used in ways that are the subclasses' own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)


class ReadsType(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.a.weight.dtype).to(self.b.weight.device) if self.a.weight.is_floating_point() else x
        return self.b(self.a(input=x).type_as(self.b.weight)) * self.a.in_features + x.new_ones(self.b.weight.shape[0])


class ReadsBias(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) - (self.b.bias if self.b.bias is not None else 0)


class UsesWeight(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.a(x), self.b.weight) + self.b(x)


class UsesTransposed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) @ self.b.weight.T


class UsesNorm(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(x) / self.b.weight.norm() + self.a(x)


class AsksKind(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + (self.b(x) if isinstance(self.b, nn.Linear) else self.b(x) * 2)


class CallsMethod(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv1d(1, 1, 3, padding=1)  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Tensor) -> Tensor:
        return self.b._conv_forward(self.b(self.a(x)[:, None]), torch.ones(1, 1, 3), None)


class BoundMethods(Net):
    def __init__(self) -> None:
        super().__init__()
        self.calls = [self.b.forward]

    def forward(self, x: Tensor) -> Tensor:
        return self.calls[0](self.a(x)) + self.b(x)


class TransposedTie(Net):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(8, 8, bias=False)
        self.c.weight = nn.Parameter(self.b.weight.data.T)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


class KeptTranspose(Net):
    """A buffer that is a view of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("back", self.b.weight.data.T)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) @ self.back


class Lora(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lora_A, self.lora_B = nn.ModuleDict({"x": nn.Linear(8, 2, bias=False)}), nn.ModuleDict({"x": nn.Linear(2, 8, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) + self.lora_B["x"](self.lora_A["x"](x.to(self.lora_A["x"].weight.dtype))))


class Packed(nn.Module):
    """A layer that holds its weight in integers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.ones(8, 8, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.qweight.to(x.dtype)


class Restless(Net):
    def __init__(self) -> None:
        super().__init__()
        self.ticks = 0.0

    def forward(self, x: Tensor) -> Tensor:
        global TICKS
        TICKS += 1.0
        return self.b(self.a(x)) + TICKS


TICKS = 0.0


def conv(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 2, **options))


# what is made: the reason why its odd layer ("0" of a sequence, "b" of a net) is no site, or None where it is one
ZOO: dict[str, tuple[Callable[[], nn.Module], str, str | None]] = {
    "hook that changes outputs": (on_first(lambda m: m.register_forward_hook(lambda _m, _a, y: y.relu() * 2)), "0", "changes its output"),
    "hook that writes": (on_first(lambda m: m.register_forward_hook(lambda _m, _a, y: [y.mul_(2), None][1])), "0", "changes its output"),
    "pre-hook that changes inputs": (on_first(lambda m: m.register_forward_pre_hook(lambda _m, a: (a[0] * 3,))), "0", "changes its input"),
    "hook that looks": (on_first(lambda m: m.register_forward_hook(lambda _m, _a, y: None)), "0", None),
    "backward hook": (on_first(lambda m: m.register_full_backward_hook(lambda *_: None)), "0", None),
    "gradient hook": (on_first(lambda m: m.weight.register_hook(lambda g: g * 0)), "0", "gradient hook"),
    "gradient hook on the bias": (on_first(lambda m: m.bias.register_hook(lambda g: g * 0)), "0", "its bias has a gradient hook"),
    "forward set on it": (on_first(lambda m: setattr(m, "forward", lambda x: x.repeat(1, 2))), "0", "a forward set on it"),
    "pruned bias": (on_first(lambda m: prune.l1_unstructured(m, "bias", 0.5)), "0", "its bias is no parameter"),
    "pruned weight": (on_first(lambda m: prune.l1_unstructured(m, "weight", 0.5)), "0", "not a plain parameter"),
    "bias as a buffer": (on_first(buffer_bias), "0", "its bias is no parameter"),
    "bias as a plain tensor": (on_first(plain_bias), "0", "its bias is no parameter"),
    "another buffer": (on_first(lambda m: m.register_buffer("scale", torch.ones(1))), "0", "'scale'"),
    "another parameter": (on_first(lambda m: m.register_parameter("mask", nn.Parameter(torch.ones(1)))), "0", "'mask'"),
    "a child": (on_first(lambda m: m.add_module("adapter", nn.Linear(8, 16))), "0", "'adapter'"),
    "plain attributes": (on_first(lambda m: setattr(m, "note", {"a": 1})), "0", None),
    "integer weights": (on_first(int_weight), "0", "forward set on it"),
    "complex": (lambda: nn.Sequential(nn.Linear(8, 3, dtype=torch.complex64)), "0", "complex"),
    "complex convolution": (conv(dtype=torch.complex64), "1", "complex"),
    "0 wide": (lambda: nn.Sequential(nn.Linear(8, 0, bias=False), nn.Linear(0, 4)), "0", "empty"),
    "quantized": (lambda: nn.Sequential(Packed(), nn.Linear(8, 3)), "0", "quantized"),
    "type and shape are read": (ReadsType, "b", None),
    "bias is read": (ReadsBias, "b", None),
    "weight is used": (UsesWeight, "b", "uses its weight"),
    "transposed weight is used": (UsesTransposed, "b", "uses its weight"),
    "norm of the weight is used": (UsesNorm, "b", "uses its weight"),
    "kind is asked": (AsksKind, "b", "gives other outputs"),
    "method is called": (CallsMethod, "b", "_conv_forward"),
    "forward is called": (BoundMethods, "b", "uses its"),
    "tied by a view": (TransposedTie, "b", "view of memory that 'c'"),
    "view as a buffer": (KeptTranspose, "b", "view of memory"),
    "LoRA": (Lora, "lora_A.x", "already low-rank"),
    "layer in LoRA": (Lora, "b", None),
    "grouped": (conv(groups=2), "1", None),
    "reflected": (conv(padding=1, padding_mode="reflect"), "1", None),
    "padded to the same size": (conv(padding="same", dilation=2), "1", None),
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.filterwarnings("ignore:Using padding='same'", "ignore:Initializing zero-element", "ignore:Complex modules")
def test_at_full_rank_nothing_changes(name: str) -> None:
    make, path, reason = ZOO[name]
    torch.manual_seed(1)
    model = make().eval()
    example = X.to(torch.complex64) if name.startswith("complex") else X
    sites, built = full_rank(model, example)
    same_outputs(model, built, example)
    found = {s.name: s.reason for s in sites.skipped}
    if reason is None:
        assert path in {p for s in sites for p in s.paths} and type(built.get_submodule(path)) is not type(model.get_submodule(path))
    else:
        assert reason in found[path]


def test_what_a_layer_has_is_carried_over() -> None:
    seen: list[tuple[str, int]] = []
    model = mlp()
    model[0].register_forward_pre_hook(lambda m, _a: seen.append(("before", m.in_features)))
    model[0].register_forward_hook(lambda m, _a, k, _y: seen.append(("after", m.out_features)), with_kwargs=True)
    model[0].register_full_backward_hook(lambda *_: seen.append(("back", 0)))
    model[0].tag = "mine"
    model[0].bias.requires_grad_(False)
    _, built = full_rank(model, X)
    seen.clear()
    built(X).sum().backward()
    assert seen == [("before", 8), ("after", 16), ("back", 0)]
    layer = built[0]
    assert layer.tag == "mine" and (layer.in_features, layer.out_features) == (8, 16)
    assert [p.requires_grad for p in layer.parameters()] == [True, True, False]  # two factors, the bias
    assert all(p.grad is None for p in model.parameters())


def test_reads_are_answered_by_what_is_built() -> None:
    model = ReadsType().double()
    sites, built = full_rank(model, X)
    assert {s.name: s.reads for s in sites} == {"a": ("weight",), "b": ("weight",)}
    weight = built.a.weight
    assert (weight.dtype, tuple(weight.shape), bool(weight.isnan().all())) == (torch.float64, (8, 8), True)
    assert set(built.a.state_dict()) == {"0.weight", "1.weight", "1.bias"}
    assert built.float().a.weight.dtype == torch.float32
    assert isinstance(built.a, nn.Sequential) and built.a.bias is built.a[1].bias


def test_strides_are_answered() -> None:
    class Down(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            pad = self.conv.stride[0] - 1
            return self.conv(F.pad(x, (pad, pad, pad, pad)))

    model, x = Down().eval(), torch.randn(2, 3, 8, 8)
    _, built = full_rank(model, x)
    same_outputs(model, built, x)


def test_ties_by_a_view_stay_ties_in_what_is_built() -> None:
    model = TransposedTie()
    sites = find_sites(model, X)
    assert [s.name for s in sites] == ["a"] and sites.total.params == 64 + 64 + 8 + 8
    built = build(Spectra(model, sites, SVD), Configuration({"a": ("svd", (2,))}))
    with torch.no_grad():
        built.b.weight.fill_(3.0)
    assert bool((built.c.weight == 3.0).all()) and not bool((model.b.weight == 3.0).any())


def closure(model: nn.Module) -> nn.Module:
    original = model.forward
    model.forward = lambda x: original(x) * 1.0  # pyright: ignore[reportAttributeAccessIssue]
    return model


def compiled_method(model: nn.Module) -> nn.Module:
    model.forward = torch.compile(model.forward, backend="eager")  # pyright: ignore[reportAttributeAccessIssue]
    return model


def wrapped_method(model: nn.Module) -> nn.Module:
    original = model.forward

    @functools.wraps(original)
    def forward(*args: Any) -> Any:
        return original(*args)

    model.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    return model


class Captures(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = lambda h: self.b(h.relu())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x))


class CapturesParameter(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.scaled = lambda h: h * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(self.b(self.a(x)))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: closure(mlp()), "0.weight.*functions set on it: forward"),
        (lambda: compiled_method(mlp()), "2.weight"),
        (lambda: wrapped_method(mlp()), "2.weight.*forward"),
        (Captures, r"\(b.bias, b.weight\).*functions set on it: head"),
        (CapturesParameter, r"\(scale\).*functions set on it: scaled"),
    ],
)
def test_models_whose_copies_run_the_original_are_refused(make: Callable[[], nn.Module], named: str) -> None:
    model = make().train()
    with pytest.raises(InvalidModel, match=named):
        find_sites(model, X)
    assert model.training and all(p.grad is None for p in model.parameters())


def test_a_method_bound_anew_is_copied_with_the_model() -> None:
    model = mlp()
    model.forward = types.MethodType(lambda self, x: self[2](self[0](x) * 2), model)
    sites, built = full_rank(model, X)
    assert len(sites) == 2
    same_outputs(model, built, X)
    low = build(Spectra(model, sites, SVD), Configuration({"0": ("svd", (1,))}))
    assert not torch.allclose(low(X), model(X), atol=1e-3)


class Around(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel], ids=["compiled", "parallel"])
def test_wrappers_are_looked_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    plain = mlp()
    sites, built = full_rank(wrap(plain), X)
    assert [s.name for s in sites] == ["0", "2"] and isinstance(built, nn.Sequential)
    same_outputs(plain, built, X)
    inside = Around(wrap(plain))
    sites, built = full_rank(inside, X)
    assert [s.name for s in sites] == ["body.0", "body.2", "head"]
    assert not any("module." in name or "_orig_mod" in name for name in built.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(built.eval()(X), inside.head(plain(X)), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_copied_is_refused_and_what_has_a_graph_is_not() -> None:
    model = mlp()
    model.lock = threading.Lock()
    with pytest.raises(InvalidModel, match=r"cannot be deep-copied.*lock"):
        find_sites(model, X)
    del model.lock
    model.last = model(X)
    _, built = full_rank(model, X)
    assert model.last.grad_fn is not None
    same_outputs(model, built, X)


def test_models_that_do_not_answer_twice_alike_are_taken_as_they_are() -> None:
    assert [s.name for s in find_sites(Restless(), X)] == ["a", "b"]
