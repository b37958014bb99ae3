"""Reconstruction of whole networks: layers are fitted in the order of use, to the dense answers at the inputs that the compressed network
gives, and nothing is left worse than it was."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.decompositions import KNOWN, Moments
from ranksearch.errors import InvalidArgument
from ranksearch.networks.reconstruction import Reconstructed, left_out, reconstruct
from ranksearch.networks.reconstruction.layer import Layer
from ranksearch.networks.reconstruction.refit import QUICK, THOROUGH, Effort, refit
from ranksearch.networks.reconstruction.regression import LEAST
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra

Choices = dict[str, tuple[str, tuple[int, ...]]]


class Case:
    """A dense network, a factorized one, and what the latter is made of."""

    def __init__(self, net: nn.Module, x: Tensor, choices: Choices) -> None:
        self.net, self.x = net.eval(), x
        self.spectra = Spectra(net, find_sites(net, x[:1]))
        self.configuration = Configuration(choices)
        self.short = build(self.spectra, self.configuration).eval()

    def reconstruct(self, batches: Iterable[Any], **options: Any) -> tuple[Reconstructed, ...]:
        return reconstruct(self.short, self.spectra, self.configuration, batches, **options)

    def apart(self, network: nn.Module, x: Tensor) -> float:
        with torch.no_grad():
            return float((network(x) - self.net(x)).square().mean())


class Net(nn.Module):
    """Layers used in another order than they are named in, one of them twice, batch norm, a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.first(x)).relu()
        x = x + self.twice(self.twice(x).relu())
        return self.head(x.mean(dim=(2, 3)))


CHOICES: Choices = {"first": ("svd", (3,)), "twice": ("tucker2", (4, 4)), "head": ("svd", (3,))}


def images(count: int) -> Tensor:
    """Smooth ones: neighbours are alike."""
    return F.interpolate(torch.randn(count, 3, 3, 3), size=(8, 8), mode="bilinear")


def whole(choices: Choices = CHOICES) -> Case:
    torch.manual_seed(1)
    net, x = Net(), images(48)
    with torch.no_grad():
        for _ in range(60):  # running statistics of the batches to come
            net(x)
    return Case(net, x, choices)


@pytest.mark.parametrize("bias", [True, False])
def test_at_full_rank_a_layer_is_the_regression_on_the_inputs_that_it_really_gets(bias: bool) -> None:
    """Two linear layers: the second one, of full rank, is what NumPy fits to the dense answers on what the first one, cut, passes on."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 6, bias=bias)).double(), torch.randn(64, 10, dtype=torch.float64)
    case = Case(net, x, {"0": ("svd", (3,)), "2": ("svd", (6,))})
    case.reconstruct(x.split(16), ridge=0.01, held_out=0)
    with torch.no_grad():
        seen, wanted = case.short[:2](x).numpy(), net(x).numpy()  # type: ignore[index]
        chain = case.short[2]  # type: ignore[index]
        weight = chain(torch.eye(8, dtype=torch.float64)) - chain(torch.zeros(1, 8, dtype=torch.float64))
        shift = chain(torch.zeros(1, 8, dtype=torch.float64))
    mean_x, mean_y = (seen.mean(0), wanted.mean(0)) if bias else (np.zeros(8), np.zeros(6))
    sizes = ((seen - mean_x) ** 2).mean(0)
    pull = np.diag(np.sqrt(0.01 * len(seen) * (sizes + LEAST * sizes.mean())))
    dense = net[2].get_parameter("weight").detach().numpy()
    rows = np.concatenate([seen - mean_x, pull])
    expected = np.linalg.lstsq(rows, np.concatenate([wanted - mean_y, pull @ dense.T]), rcond=None)[0]
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shift.numpy()[0], mean_y - mean_x @ expected if bias else 0, atol=1e-4)


def test_the_report_is_of_the_layers_in_order_and_of_what_they_answer() -> None:
    net: Any = Net()
    net.bn = nn.Identity()
    case = Case(net, images(48), {"first": ("svd", (3,)), "head": ("svd", (3,))})
    x = case.x
    with torch.no_grad():
        wanted = net.first(x)
        before = float((case.short.first(x) - wanted).square().sum() / wanted.square().sum())  # type: ignore[operator]
        first, head = case.reconstruct(x.split(16), held_out=0)
        after = float((case.short.first(x) - wanted).square().sum() / wanted.square().sum())  # type: ignore[operator]
        last = float((case.short(x) - net(x)).square().sum() / net(x).square().sum())
    assert (first.site, head.site) == ("first", "head"), "in the order of use"
    assert first.before == pytest.approx(before, rel=1e-3) and first.after == pytest.approx(after, rel=1e-3)
    assert head.after == pytest.approx(last, rel=1e-3, abs=1e-6)


def test_without_a_report_the_network_is_the_same_and_no_error_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [whole() for _ in range(2)]
    assert cases[0].reconstruct(cases[0].x.split(16), held_out=0)
    checked = copy.deepcopy(cases[1].short)

    def measured(*given: Any) -> float:
        raise AssertionError("an error was measured")

    with monkeypatch.context() as patch:
        patch.setattr(Layer, "error", measured)
        assert cases[1].reconstruct(cases[1].x.split(16), held_out=0, report=False) == ()
    for one, other in zip(cases[0].short.parameters(), cases[1].short.parameters(), strict=True):
        assert torch.equal(one, other)
    assert reconstruct(checked, cases[1].spectra, cases[1].configuration, cases[1].x.split(16), report=False) == ()


@pytest.mark.parametrize(
    "choices",
    [
        CHOICES,
        {"first": ("cp", (4,)), "twice": ("spatial", (6,))},
        {"first": ("svd_in", (2,)), "twice": ("grouped_svd", (2, 2))},
        {"first": ("decoupled", (1,)), "twice": ("tiled_svd", (2, 2, 2))},
    ],
)
def test_outputs_get_nearer_on_images_that_nothing_has_seen(choices: Choices) -> None:
    case = whole(choices | {"head": ("svd", (3,))})
    fresh = images(64)
    before = case.apart(case.short, fresh)
    found = case.reconstruct(case.x.split(12))
    assert [one.site for one in found] == ["first", "twice", "head"]
    assert case.apart(case.short, fresh) < before


def test_within_autocast_it_is_the_same() -> None:
    """Which keeps casts of weights: checks would see none of the fits, and undo them."""
    cases = [whole() for _ in range(2)]
    assert cases[0].reconstruct(cases[0].x.split(16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cases[1].reconstruct(cases[1].x.split(16))
    for one, other in zip(cases[0].short.parameters(), cases[1].short.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_errors_weigh_as_output_gradients_say() -> None:
    """Of five answers one matters to the loss: at rank 1 it is kept nearly as it was, at the price of the others."""
    case = Case(nn.Sequential(nn.Linear(6, 5)), torch.randn(64, 6), {"0": ("svd", (1,))})
    alike, weighed = copy.deepcopy(case.short), case.short
    output = torch.diag(torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64))[None]
    reconstruct(alike, case.spectra, case.configuration, [case.x], held_out=0)
    reconstruct(weighed, case.spectra, case.configuration, [case.x], held_out=0, moments={"0": Moments(output=output)})
    with torch.no_grad():
        apart = [(network(case.x) - case.net(case.x)).square().mean(0) for network in (alike, weighed)]
    assert apart[1][0] < 1e-3 * case.net(case.x).var(0)[0] and apart[1].sum() > apart[0].sum()


def test_composed_types_are_fitted_too() -> None:
    torch.manual_seed(2)
    mixing = torch.randn(16, 16) * torch.logspace(0, -1.5, 16)[:, None]
    net = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8)).eval()
    x, fresh = torch.randn(160, 16) @ mixing, torch.randn(160, 16) @ mixing
    spectra = Spectra(net, find_sites(net, x[:1]))
    for kind in ("tensor_train", "tensor_ring", "adaptive"):
        profile = spectra.profile(spectra.sites["0"], kind)
        assert profile is not None
        case = Case(net, x, {"0": (kind, tuple(int(r) for r in profile.ranks[len(profile.ranks) // 2]))})
        before, (found,) = case.apart(case.short, fresh), case.reconstruct(x.split(40))
        assert found.site == "0" and found.after < found.before
        assert case.apart(case.short, fresh) < before, kind


def test_nothing_else_changes() -> None:
    case = whole()
    case.short.train()
    dense, before = copy.deepcopy(case.net.state_dict()), copy.deepcopy(case.short.state_dict())
    found = case.reconstruct([case.x], held_out=0)
    assert case.short.training and not case.net.training
    assert all(torch.equal(value, dense[name]) for name, value in case.net.state_dict().items())
    fitted = {name for name, _ in case.short.named_parameters()}
    assert {name for name, value in case.short.state_dict().items() if not torch.equal(value, before[name])} == fitted
    assert len(found) == 3
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in [*case.net.modules(), *case.short.modules()])


def narrow(monkeypatch: pytest.MonkeyPatch, limit: int, memory: float = 0) -> None:
    """More inputs have no moment: patches of convolutions, and what takes more than half of a machine's memory in bytes."""
    monkeypatch.setattr("ranksearch.networks.reconstruction.room.LARGEST", limit)
    monkeypatch.setattr("ranksearch.networks.reconstruction.room.device_memory", lambda device: memory)


def test_embeddings_are_left_out_by_name_and_of_wide_layers_the_last_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 5), nn.Linear(5, 4))
    case = Case(net, torch.randint(20, (16, 3)), {"0": ("svd", (2,)), "1": ("svd", (2,)), "2": ("svd", (2,))})
    narrow(monkeypatch, 5)
    left = left_out(case.spectra, case.configuration)
    assert list(left) == ["0"] and "embedding" in left["0"]
    before = copy.deepcopy(case.short.state_dict())
    assert [one.site for one in case.reconstruct(case.x.split(4), held_out=0)] == ["1", "2"]
    changed = {name for name, value in case.short.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.1.weight", "1.1.bias", "2.0.weight", "2.1.weight", "2.1.bias"}
    twins = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 4))
    twins[1].bias = twins[0].bias
    shared = Case(twins, torch.randn(4, 5), {str(i): ("svd", (2,)) for i in range(3)})
    assert list(left_out(shared.spectra, shared.configuration)) == ["0", "1"]
    dense = Case(net, torch.randint(20, (16, 3)), {})
    assert dense.reconstruct(dense.x.split(4)) == ()


def test_inputs_that_are_all_zero_teach_nothing() -> None:
    case = Case(nn.Sequential(nn.Conv2d(4, 6, 3, bias=False)), torch.zeros(5, 4, 7, 7), {"0": ("svd", (2,))})
    before = copy.deepcopy(case.short.state_dict())
    (found,) = case.reconstruct([case.x])
    assert found.before == found.after
    assert all(torch.equal(value, before[name]) for name, value in case.short.state_dict().items())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ridge": -1.0}, "ridge"), ({"ridge": float("nan")}, "ridge"), ({"held_out": -0.1}, "held_out"), ({"held_out": 1.0}, "held_out"),
        ({"held_out": float("nan")}, "held_out"), ({"rounds": 0}, "rounds"),
    ],
)  # fmt: skip
def test_options_that_are_none(options: dict[str, float], match: str) -> None:
    case = whole()
    with pytest.raises(InvalidArgument, match=match):
        case.reconstruct([case.x], **options)


def test_no_batches() -> None:
    with pytest.raises(InvalidArgument, match="batches is empty"):
        whole().reconstruct([])


def scarce(seed: int) -> tuple[Case, Tensor]:
    """Inputs of 40 dimensions, few of them strong, and 24 examples."""
    torch.manual_seed(seed)
    strong = torch.logspace(0, -1, 40)[:, None] * torch.linalg.qr(torch.randn(40, 40))[0]
    net = nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 40), nn.Tanh(), nn.Linear(40, 10))
    return Case(net, torch.randn(24, 40) @ strong, {"0": ("svd", (20,)), "2": ("svd", (20,))}), torch.randn(512, 40) @ strong


@pytest.mark.parametrize("batches", [1, 4])
def test_scarce_examples_gain_on_others_and_leave_nothing_worse(batches: int) -> None:
    gains = []
    for seed in range(4):
        case, fresh = scarce(seed)
        before, unseen = case.apart(case.short, fresh), case.x[-6:]
        kept = case.apart(case.short, unseen)
        found = case.reconstruct(case.x.chunk(batches))
        assert all(one.after <= one.before for one in found)
        assert case.apart(case.short, unseen) <= kept * (1 + 1e-6)
        gains.append(case.apart(case.short, fresh) / before)
    assert sum(gains) / len(gains) < 0.9


def test_a_network_that_is_further_from_the_dense_one_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that is worse, in a metric in which it seems better, is undone."""
    case, _ = scarce(0)
    before = copy.deepcopy(case.short.state_dict())
    inner = "ranksearch.networks.reconstruction.layer.LayerMoments.error"
    monkeypatch.setattr(inner, lambda self, weight, bias: float(weight.square().mean()))
    zero = "ranksearch.networks.reconstruction.layer.refit"
    monkeypatch.setattr(zero, lambda kind, site, rank, factors, goal, effort: tuple(0 * f for f in factors))
    found = case.reconstruct(case.x.chunk(4))
    assert len(found) == 2 and all(one.after == one.before for one in found)
    assert all(torch.equal(value, before[name]) for name, value in case.short.state_dict().items())


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_a_thorough_fit_takes_more_steps_in_every_layer(held_out: float, monkeypatch: pytest.MonkeyPatch) -> None:
    efforts: list[Effort] = []

    def noted(kind: Any, site: Any, rank: Any, factors: Any, goal: Any, effort: Effort) -> Any:
        efforts.append(effort)
        return refit(kind, site, rank, factors, goal, effort)

    monkeypatch.setattr("ranksearch.networks.reconstruction.layer.refit", noted)
    for thorough, effort in ((False, QUICK), (True, THOROUGH)):
        efforts.clear()
        case = whole()
        case.reconstruct(images(32).chunk(4), thorough=thorough, held_out=held_out)
        assert efforts and set(efforts) == {effort}
    assert THOROUGH.steps > QUICK.steps and THOROUGH.inner > QUICK.inner


def test_every_fit_of_a_layer_goes_on_from_the_one_before_and_that_to_all_examples_from_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    case, calls = whole(), []

    def noted(kind: Any, site: Any, rank: Any, factors: Any, goal: Any, effort: Effort) -> Any:
        found = refit(kind, site, rank, factors, goal, effort)
        calls.append((site.name, factors, found))
        return found

    monkeypatch.setattr("ranksearch.networks.reconstruction.layer.refit", noted)
    case.reconstruct(images(64).chunk(4))
    for name, (kind, rank) in CHOICES.items():
        of_layer = [(given, found) for site, given, found in calls if site == name]
        *checked, (given, _) = of_layer
        assert len(checked) == 4, "ridges"
        ends = [case.spectra.factors(case.spectra.sites[name], kind, rank), *(found for _, found in checked)]
        assert all(same(one, end) for (one, _), end in zip(checked, ends, strict=False))
        assert any(same(given, end) for end in ends[1:])


def same(factors: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(factors, others, strict=True))


class Fussy(Net):
    """Refuses batches whose first number is negative, after its first layer."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if x.flatten()[0] < 0:
            raise RuntimeError("no such batch")
        y = self.bn(y).relu()
        return self.head((y + self.twice(self.twice(y).relu())).mean(dim=(2, 3)))


def test_what_the_network_raises_comes_out_and_nothing_is_left_behind() -> None:
    x = torch.randn(8, 3, 8, 8).abs()
    case = Case(Fussy(), x, CHOICES)
    before, threads = copy.deepcopy(case.short.state_dict()), threading.active_count()
    with pytest.raises(RuntimeError, match="no such batch"):
        case.reconstruct([x, x, -x])
    assert threading.active_count() == threads
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in [*case.net.modules(), *case.short.modules()])
    assert all(torch.equal(value, before[name]) for name, value in case.short.state_dict().items())


class Moody(nn.Module):
    """Uses one of its layers for some batches only, and holds gradients on where it pleases."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = self.one(x).relu()
            if x.shape[0] == 6:
                x = self.two(x).relu()
            return self.three(x)


def test_layers_that_only_some_batches_use() -> None:
    x = torch.randn(16, 12)
    choices: Choices = {"one": ("svd", (4,)), "two": ("svd", (4,)), "three": ("svd", (2,))}
    net = Moody().eval()
    spectra, configuration = Spectra(net, find_sites(net, x[:6])), Configuration(choices)
    short = build(spectra, configuration)
    found = reconstruct(short, spectra, configuration, [x[:6], x[6:]], held_out=0)
    assert [r.site for r in found] == ["one", "two", "three"] and all(r.after < r.before for r in found)
    assert torch.is_grad_enabled()


WIDE: dict[str, tuple[str, tuple[int, ...]]] = {
    "svd": ("svd", (3,)), "spatial": ("spatial", (4,)), "spatial_t": ("spatial_t", (4,)), "svd_in": ("svd_in", (2,)),
    "tucker2": ("tucker2", (3, 4)), "grouped_svd": ("grouped_svd", (2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WIDE))
def test_the_last_of_a_wide_layer_is_the_regression_of_the_dense_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(6, 7, 3, stride=(2, 1), padding=1, dilation=(1, 2))).double()
    case = Case(net, torch.randn(40, 6, 9, 9, dtype=torch.float64), {"0": WIDE[name]})
    narrow(monkeypatch, 40)
    assert left_out(case.spectra, case.configuration) == {}
    first = copy.deepcopy(case.short[0][:-1])
    (found,) = case.reconstruct([case.x], held_out=0, ridge=0.0)
    assert found.after < found.before
    last = case.short[0][-1]
    with torch.no_grad():
        inputs, wanted = first(case.x), net(case.x)
        assert torch.equal(case.short[0][:-1](case.x), inputs)
        geometry = {"kernel_size": last.kernel_size, "stride": last.stride, "padding": last.padding, "dilation": last.dilation}
        rows = F.unfold(inputs, **geometry).transpose(1, 2).flatten(0, 1)
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)
        oracle = torch.linalg.lstsq(rows, wanted.flatten(2).transpose(1, 2).flatten(0, 1)).solution.T
    torch.testing.assert_close(last.weight.flatten(1), oracle[:, :-1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last.bias, oracle[:, -1], rtol=1e-5, atol=1e-6)


def test_rounded_last_layers_are_fitted_and_wide_layers_that_have_none_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1))
    site = find_sites(net, torch.randn(1, 6, 5, 5))
    types = [d for d in KNOWN if d.name in ("svd@int4", "decoupled", "tensor_ring")]
    spectra = Spectra(net.eval(), site, types)
    narrow(monkeypatch, 40)
    choices = Configuration({"0": ("svd@int4", (5,))})
    short, x = build(spectra, choices).eval(), torch.randn(40, 6, 5, 5)
    (found,) = reconstruct(short, spectra, choices, x.split(10), held_out=0)
    with torch.no_grad():
        assert found.after < found.before and len(short[0][-1](torch.randn(1, 5, 2, 2)).unique()) > 1
    ranks = {d.name: tuple(d.ranks(site["0"])[0].tolist()) for d in types}
    for name, why in (("decoupled", "groups of its own"), ("tensor_ring", "no chain of layers")):
        (told,) = left_out(spectra, Configuration({"0": (name, ranks[name])})).values()
        assert "54 inputs, over 40" in told and why in told
