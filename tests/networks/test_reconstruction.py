"""Reconstruction: the last factors solve their least-squares problem, layer by layer, and nothing else changes."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.errors import InvalidArgument
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra


def _factorized(net: nn.Module, x: Tensor, **choices: tuple[str, tuple[int, ...]]) -> nn.Module:
    return build(Spectra(net, find_sites(net, x[:1])), Configuration(choices))


def _oracle(last: nn.Module, x: Tensor, y: Tensor, ridge: float) -> tuple[Tensor, Tensor | None]:
    """Weight and bias by `torch.linalg.lstsq` in float64, from what enters the last factor and what should leave it."""
    weight = last.get_parameter("weight").detach().double()
    bias = last._parameters.get("bias")
    if isinstance(last, nn.Conv2d):
        rows = F.unfold(x.double(), last.kernel_size, last.dilation, last.padding, last.stride).transpose(1, 2).flatten(0, 1)
        y = y.flatten(2).transpose(1, 2)
    else:
        rows = x.double().flatten(0, -2)
    targets = y.double().reshape(len(rows), -1)
    now = weight.flatten(1)
    if bias is not None:
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
        now = torch.cat([now, bias.detach().double()[:, None]], dim=1)
    pull = (ridge * rows.square().sum(0).mean()).sqrt() * torch.eye(rows.shape[1], dtype=torch.float64)
    found = torch.linalg.lstsq(torch.cat([rows, pull]), torch.cat([targets, pull @ now.T])).solution.T
    return found[:, : weight[0].numel()].reshape(weight.shape), None if bias is None else found[:, -1]


@pytest.mark.parametrize("ridge", [0.0, 0.01, 1.0])
@pytest.mark.parametrize(
    ("layer", "choice"),
    [
        (nn.Conv2d(6, 8, 3, padding=1, bias=False), ("svd", (3,))),
        (nn.Conv2d(6, 8, 3, padding=1), ("svd", (3,))),
        (nn.Conv2d(6, 8, 3, stride=2, padding=1), ("svd_in", (2,))),
        (nn.Conv2d(6, 8, (3, 5), stride=(1, 2), padding=(1, 2), bias=False), ("spatial", (4,))),
        (nn.Conv2d(6, 8, 3, dilation=2), ("spatial_t", (4,))),
        (nn.Conv2d(6, 8, 3), ("tucker2", (2, 3))),
        (nn.Conv2d(6, 8, 3, padding=1), ("cp", (8,))),
        (nn.Linear(6, 5), ("svd", (2,))),
        (nn.Linear(6, 5, bias=False), ("svd", (2,))),
    ],
)
def test_one_layer_solves_the_least_squares_problem(layer: nn.Module, choice: tuple[str, tuple[int, ...]], ridge: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 6, 9, 9) if isinstance(layer, nn.Conv2d) else torch.randn(12, 7, 6)
    net = nn.Sequential(layer).eval()
    short = _factorized(net, x, **{"0": choice})
    chain = short[0]
    assert isinstance(chain, nn.Sequential)
    with torch.no_grad():
        weight, bias = _oracle(chain[-1], chain[:-1](x), net(x), ridge)
        distance = (short(x) - net(x)).square().sum()
        (found,) = reconstruct(short, net, x.split(5), ridge=ridge, held_out=0)
        assert found.site == "0"
        assert torch.allclose(chain[-1].get_parameter("weight").double(), weight, rtol=1e-3, atol=1e-4)
        if bias is not None:
            assert torch.allclose(chain[-1].get_parameter("bias").double(), bias, rtol=1e-3, atol=1e-4)
        left = (short(x) - net(x)).square().sum()
        energy = net(x).square().sum()
    assert found.before == pytest.approx(float(distance / energy), rel=1e-3)
    assert found.after == pytest.approx(float(left / energy), rel=1e-3, abs=1e-6)
    assert found.after <= found.before * (1 + 1e-5)


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


CHOICES = {"first": ("svd", (3,)), "twice": ("tucker2", (4, 4)), "head": ("svd", (3,))}


def _nets() -> tuple[Net, nn.Module, Tensor]:
    torch.manual_seed(1)
    net, x = Net(), torch.randn(48, 3, 8, 8)
    with torch.no_grad():
        for _ in range(60):  # running statistics of the batches to come
            net(x)
    net.eval()
    return net, _factorized(net, x, **CHOICES), x


def test_later_layers_see_what_the_earlier_ones_make() -> None:
    net, short, x = _nets()
    found = reconstruct(short, net, x.split(16), held_out=0)
    assert [r.site for r in found] == ["first", "twice", "head"], "in the order of use"
    assert all(r.after <= r.before for r in found)
    # by hand: the head is fitted to the dense head's answers, from the features of the reconstructed network
    again = _nets()[1]
    reconstruct(again, net, x.split(16), held_out=0)
    head = again.get_submodule("head")
    assert isinstance(head, nn.Sequential)
    seen: list[Tensor] = []
    handle = head[-1].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    norm = again.get_submodule("bn")
    norm.running_mean = norm.running_var = None
    with torch.no_grad():
        for part in x.split(16):
            again(part)
        handle.remove()
        rows = torch.cat([torch.cat(seen), torch.ones(48, 1)], dim=1).double()
        residual = torch.cat([net(part) for part in x.split(16)]).double() - torch.cat([head[-1](s) for s in seen]).double()
    gradient = rows.T @ residual  # of the plain least-squares loss: balanced by the ridge, so small
    assert gradient.abs().max() < 0.05 * rows.square().sum()
    assert float(residual.square().mean()) == pytest.approx(
        found[-1].after * float(torch.cat([net(part).detach() for part in x.split(16)]).square().mean()), rel=0.02
    )


def test_a_network_of_data_in_a_subspace_is_as_good_as_the_dense_one_on_other_data() -> None:
    """Data of two dimensions: three channels tell all of them apart, so that each layer's least squares have a solution without error,
    which the truncated weights, made without data, are not."""
    net = nn.Sequential(nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).double().eval()
    plane = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64))[0]
    x, other = (torch.einsum("cd,ndhw->nchw", plane, torch.randn(64, 2, 4, 4, dtype=torch.float64)) for _ in range(2))
    short = _factorized(net, x, **{"0": ("svd", (3,)), "1": ("svd", (3,)), "4": ("svd", (3,))})
    with torch.no_grad():
        before = (short(other) - net(other)).square().mean()
        found = reconstruct(short, net, x.split(16), ridge=1e-9)
        after = (short(other) - net(other)).square().mean()
    assert [r.site for r in found] == ["0", "1", "4"]
    assert after < 1e-4 * before


def test_nothing_else_changes() -> None:
    net, short, x = _nets()
    short.train()
    dense, before = copy.deepcopy(net.state_dict()), copy.deepcopy(short.state_dict())
    found = reconstruct(short, net, [x])
    assert short.training and not net.training
    for name, value in net.state_dict().items():
        assert torch.equal(value, dense[name]), name
    fitted = {"first.1.weight", "first.1.bias", "twice.2.weight", "head.1.weight", "head.1.bias"}
    assert {name for name, value in short.state_dict().items() if not torch.equal(value, before[name])} == fitted
    assert len(found) == 3
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in [*net.modules(), *short.modules()])


def test_grouped_last_layers_group_by_group() -> None:
    torch.manual_seed(2)
    net, x = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False)).eval(), torch.randn(9, 4, 7, 7)
    short = _factorized(net, x, **{"0": ("svd", (2,))})
    with torch.no_grad():
        (found,) = reconstruct(short, net, [x], ridge=0.0, held_out=0)
        assert found.after == pytest.approx(float((short(x) - net(x)).square().sum() / net(x).square().sum()), rel=1e-3)
        chain = short[0]
        assert isinstance(chain, nn.Sequential)
        seen = chain[:-1](x)
        for group in range(2):  # each half of the answers from its own inputs
            rows = seen.chunk(2, dim=1)[group].flatten(2).transpose(1, 2).flatten(0, 1).double()
            target = net(x).chunk(2, dim=1)[group].flatten(2).transpose(1, 2).flatten(0, 1).double()
            best = torch.linalg.lstsq(rows, target).solution.T
            weight = chain[-1].get_parameter("weight").chunk(2)[group].flatten(1).double()
            assert torch.allclose(weight, best, rtol=1e-3, atol=1e-4)


def test_layers_that_it_cannot_fit_stay() -> None:
    torch.manual_seed(3)
    net, x = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8)).eval(), torch.randn(20, 16)
    assert reconstruct(copy.deepcopy(net), net, [x]) == ()
    spectra = Spectra(net, find_sites(net, x[:1]))
    rank = tuple(int(r) for r in spectra.profile(spectra.sites["0"], "tensor_train").ranks[0])
    short = build(spectra, Configuration({"0": ("tensor_train", rank), "2": ("svd", (2,))}))
    assert [r.site for r in reconstruct(short, net, [x])] == ["2"]


def test_inputs_that_are_all_zero_teach_nothing() -> None:
    net, x = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False)).eval(), torch.zeros(5, 4, 7, 7)
    short = _factorized(net, x, **{"0": ("svd", (2,))})
    before = copy.deepcopy(short.state_dict())
    (found,) = reconstruct(short, net, [x])
    assert found.before == found.after
    assert all(torch.equal(value, before[name]) for name, value in short.state_dict().items())


@pytest.mark.parametrize("ridge", [-1.0, float("nan"), float("inf")])
def test_a_ridge_that_is_none(ridge: float) -> None:
    net, short, x = _nets()
    with pytest.raises(InvalidArgument, match="ridge"):
        reconstruct(short, net, [x], ridge=ridge)


def test_no_batches() -> None:
    net, short, _ = _nets()
    with pytest.raises(InvalidArgument, match="batches is empty"):
        reconstruct(short, net, [])


@pytest.mark.parametrize("held_out", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none(held_out: float) -> None:
    net, short, x = _nets()
    with pytest.raises(InvalidArgument, match="held_out"):
        reconstruct(short, net, [x], held_out=held_out)


def _scarce(seed: int) -> tuple[nn.Module, nn.Module, Tensor]:
    """A layer of 40 inputs at a good rank, and 24 examples: fewer than the last factor has inputs."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 40), nn.Tanh(), nn.Linear(40, 10)).eval()
    fresh = torch.randn(512, 40)
    return net, _factorized(net, fresh, **{"0": ("svd", (32,)), "2": ("svd", (32,))}), fresh


def _apart(net: nn.Module, short: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((short(x) - net(x)).square().mean())


@pytest.mark.parametrize("batches", [1, 4])
def test_scarce_examples_leave_no_network_worse(batches: int) -> None:
    """Fitted to all of a few examples, networks get worse on other ones; with some held out they do not."""
    before, unchecked, checked = [], [], []
    for seed in range(6):
        net, short, fresh = _scarce(seed)
        before.append(_apart(net, short, fresh))
        examples = list(torch.randn(24, 40).chunk(batches))
        other = copy.deepcopy(short)
        reconstruct(other, net, examples, held_out=0)
        unchecked.append(_apart(net, other, fresh))
        found = reconstruct(short, net, examples)
        checked.append(_apart(net, short, fresh))
        assert all(r.after <= r.before for r in found)
        unseen = examples[-1][-6:]
        assert _apart(net, short, unseen) <= _apart(net, _scarce(seed)[1], unseen) * (1 + 1e-6)
    assert sum(unchecked) > 1.2 * sum(before)
    assert sum(checked) < 1.05 * sum(before)


def test_a_layer_that_scarce_examples_fit_badly_is_no_price_for_one_that_they_mend() -> None:
    for seed in range(3):
        net, short, fresh = _scarce(seed)
        chain = short[0]
        assert isinstance(chain, nn.Sequential)
        with torch.no_grad():
            chain[-1].get_parameter("weight").mul_(0.3)
        before = _apart(net, short, fresh)
        found = reconstruct(short, net, torch.randn(24, 40).chunk(4))
        assert found[0].after < 0.7 * found[0].before and all(r.after <= r.before for r in found)
        assert _apart(net, short, fresh) < 0.8 * before


def test_plenty_of_examples_are_used_as_well_as_without_a_check() -> None:
    net, short, x = _nets()
    other, fresh = copy.deepcopy(short), torch.randn(64, 3, 8, 8)
    reconstruct(other, net, x.split(16), held_out=0)
    reconstruct(short, net, x.split(16))
    assert _apart(net, short, fresh) < 1.1 * _apart(net, other, fresh)


def test_a_network_that_is_further_from_the_dense_one_is_as_it_was() -> None:
    """All outputs of a layer but one are damaged, and fitting mends these; what the network makes of the layer is that one alone, which
    too few examples fit badly."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 1, bias=False)).eval()
    with torch.no_grad():
        net[1].weight.zero_()[0, 0] = 1.0
    short = _factorized(net, torch.randn(1, 40), **{"0": ("svd", (14,))})
    chain = short[0]
    assert isinstance(chain, nn.Sequential)
    with torch.no_grad():
        chain[-1].get_parameter("weight")[1:] *= 0.2
    before, examples = copy.deepcopy(short.state_dict()), torch.randn(20, 40)
    loose = copy.deepcopy(short)
    reconstruct(loose, net, [examples[:15]], held_out=0)
    assert _apart(net, loose, examples[15:]) > _apart(net, short, examples[15:])
    (found,) = reconstruct(short, net, [examples])
    assert found.after == found.before
    assert all(torch.equal(value, before[name]) for name, value in short.state_dict().items())


class Fussy(Net):
    """Refuses batches whose first number is negative, after its first layer."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if x.flatten()[0] < 0:
            raise RuntimeError("no such batch")
        y = self.bn(y).relu()
        return self.head((y + self.twice(self.twice(y).relu())).mean(dim=(2, 3)))


def test_what_the_network_raises_comes_out_and_nothing_is_left_behind() -> None:
    torch.manual_seed(4)
    net, x = Fussy().eval(), torch.randn(8, 3, 8, 8).abs()
    short = _factorized(net, x, **CHOICES)
    before, threads = copy.deepcopy(short.state_dict()), threading.active_count()
    with pytest.raises(RuntimeError, match="no such batch"):
        reconstruct(short, net, [x, x, -x])
    assert threading.active_count() == threads
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in [*net.modules(), *short.modules()])
    assert torch.equal(short.state_dict()["bn.running_mean"], before["bn.running_mean"])
    assert torch.equal(short.state_dict()["head.1.weight"], before["head.1.weight"])


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
    net, x = Moody().eval(), torch.randn(16, 12)
    choices = {"one": ("svd", (4,)), "two": ("svd", (4,)), "three": ("svd", (2,))}
    short = build(Spectra(net, find_sites(net, x[:6])), Configuration(choices))
    found = reconstruct(short, net, [x[:6], x[6:]], held_out=0)
    assert [r.site for r in found] == ["one", "two", "three"] and all(r.after < r.before for r in found)
    assert torch.is_grad_enabled()


def _least_squares(seen: np.ndarray, wanted: np.ndarray) -> float:
    """The least relative squared error of any layer with a bias, by NumPy in float64."""
    rows = np.concatenate([seen, np.ones((len(seen), 1))], axis=1)
    found = np.linalg.lstsq(rows, wanted, rcond=1e-5)[0]
    return float(np.square(rows @ found - wanted).sum() / np.square(wanted).sum())


COLLINEAR: dict[str, tuple[nn.Module, tuple[int, ...], str, tuple[int, ...]]] = {
    # more channels between the factors than the core has rank: inputs of the last factor of rank 6 of 13, 5 of 13 and 9 of 17
    "conv1d": (nn.Conv1d(8, 12, 5, stride=2, padding=2), (6, 8, 17), "tucker2", (1, 12)),
    "conv2d 1 channel": (nn.Conv2d(6, 12, (1, 4)), (8, 6, 5, 9), "tucker2", (1, 12)),
    "conv2d": (nn.Conv2d(6, 16, (2, 2), padding=1), (8, 6, 6, 6), "tucker2", (2, 16)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize("case", COLLINEAR)
def test_without_a_ridge_collinear_inputs_reach_the_least_squares_residual(case: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    layer, shape, kind, rank = COLLINEAR[case]
    net, x = nn.Sequential(copy.deepcopy(layer)).eval().to(dtype), torch.randn(shape, dtype=dtype)
    short = build(Spectra(net, find_sites(net, x[:1])), Configuration({"0": (kind, rank)})).eval()
    with torch.no_grad():
        chain = short[0]
        assert isinstance(chain, nn.Sequential)
        seen, wanted = (value.double().flatten(2).transpose(1, 2).flatten(0, 1).numpy() for value in (chain[:-1](x), net(x)))
        rows = np.concatenate([seen, np.ones((len(seen), 1))], axis=1)
        assert np.linalg.matrix_rank(rows, rtol=1e-5) < rows.shape[1]
        best = _least_squares(seen, wanted)
        (found,) = reconstruct(short, net, [x], ridge=0.0, held_out=0)
        got = float((short(x) - net(x)).double().square().sum() / net(x).double().square().sum())
    assert best - 1e-6 <= got <= best + 1e-4 and found.after == pytest.approx(got, abs=1e-4)
    assert found.before > best + 1e-3  # there was something to gain


@pytest.mark.parametrize("apart", [0.0, 1e-9, 1e-5])
def test_inputs_that_are_copies_of_each_other_up_to_rounding(apart: float) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(10, 7)).eval()
    x = torch.randn(60, 10)
    x[:, 5:] = x[:, :5] + apart * torch.randn(60, 5)
    short = build(Spectra(net, find_sites(net, x[:1])), Configuration({"0": ("svd", (4,))})).eval()
    with torch.no_grad():
        chain = short[0]
        assert isinstance(chain, nn.Sequential)
        chain[0].weight[2] = chain[0].weight[1]  # two equal units besides
        best = _least_squares(chain[:-1](x).double().numpy(), net(x).double().numpy())
        reconstruct(short, net, [x], ridge=0.0, held_out=0)
        got = float((short(x) - net(x)).double().square().sum() / net(x).double().square().sum())
    assert got <= best + 1e-4
