"""Re-estimated statistics against moments of all examples at once, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ranksearch import tensors
from ranksearch.errors import InvalidArgument
from ranksearch.networks.batch_norm import recalibrate

SPLITS = [(16, 16, 16), (128, 2), (5, 1, 7), (1, 9), (1, 1, 1), (10,)]


def channels(x: Tensor) -> Tensor:
    """(channels, values), float64."""
    return x.double().transpose(0, 1).flatten(1)


@pytest.mark.parametrize("cached", [tensors.CACHED, 50])  # batches as a whole, and piece by piece
@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("spatial", [(), (4,), (3, 5)], ids=str)
def test_statistics_are_the_moments_of_all_examples_whatever_the_batches(
    sizes: tuple[int, ...], spatial: tuple[int, ...], cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "CACHED", cached)
    norm = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[len(spatial)](6, momentum=0.3)
    net = nn.Sequential(norm, nn.Dropout(0.5)).train()
    x = 3 * torch.randn(sum(sizes), 6, *spatial) + 100  # a mean far from 0 is where single precision loses the variance
    before = copy.deepcopy(dict(net.named_parameters()))
    assert recalibrate(net, x.split(list(sizes))) == 1
    values = channels(x)
    assert torch.allclose(norm.running_mean.double(), values.mean(dim=1), rtol=1e-6)
    assert torch.allclose(norm.running_var.double(), values.var(dim=1), rtol=1e-5)
    assert int(norm.num_batches_tracked) == len(sizes)
    assert norm.momentum == 0.3 and all(m.training for m in net.modules())
    assert all(torch.equal(before[name], parameter) for name, parameter in net.named_parameters())


def test_layers_behind_see_what_training_would_show_them() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3), nn.BatchNorm1d(3)).double().eval()
    batches = list((2 * torch.randn(12, 4, dtype=torch.float64) + 1).split([6, 4, 2]))
    recalibrate(net, batches)
    trained = copy.deepcopy(net).train()
    with torch.no_grad():
        seen = torch.cat([trained[:3](batch) for batch in batches])
    assert torch.allclose(net[3].running_mean, seen.mean(dim=0)) and torch.allclose(net[3].running_var, seen.var(dim=0))


def test_a_batch_of_one_is_normalized_by_the_batches_before_it() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Identity(), nn.BatchNorm1d(4)).double()
    x = 2 * torch.randn(9, 4, dtype=torch.float64) + 1
    recalibrate(net, x.split([8, 1]))
    scale = (x.var(dim=0, correction=0) + net[0].eps).rsqrt()
    first = (x[:8] - x[:8].mean(dim=0)) * (x[:8].var(dim=0, correction=0) + net[0].eps).rsqrt()
    seen = torch.cat([first, (x[8:] - x.mean(dim=0)) * scale])
    assert torch.allclose(net[2].running_mean, seen.mean(dim=0)) and torch.allclose(net[2].running_var, seen.var(dim=0))


def test_instance_norms_with_running_statistics_are_averaged_over_examples() -> None:
    plain = nn.InstanceNorm2d(3)
    norm = nn.InstanceNorm2d(3, track_running_stats=True)
    net = nn.Sequential(nn.Conv2d(2, 3, 1), norm, plain).double().eval()
    x = torch.randn(7, 2, 4, 5, dtype=torch.float64)
    assert recalibrate(net, x.split([5, 2])) == 1
    with torch.no_grad():
        seen = net[0](x).flatten(2)
    assert torch.allclose(norm.running_mean, seen.mean(dim=2).mean(dim=0))
    assert torch.allclose(norm.running_var, seen.var(dim=2).mean(dim=0))
    assert plain.running_mean is None
    unbatched = copy.deepcopy(net)
    recalibrate(unbatched, list(x))
    assert torch.allclose(unbatched[1].running_mean, norm.running_mean)


def test_norms_that_run_without_values_or_without_statistics_stay() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
            self.untracked = nn.BatchNorm1d(3, track_running_stats=False)
            self.unused.running_mean.fill_(7.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.untracked(self.used(input=x))  # by keyword

    net = Net().eval()
    assert recalibrate(net, [torch.randn(5, 3)]) == 1
    assert (net.unused.running_mean == 7).all() and int(net.unused.num_batches_tracked) == 0
    assert int(net.used.num_batches_tracked) == 1


def test_a_pass_that_fails_changes_nothing() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).train()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError):
        recalibrate(net, [torch.randn(4, 3), torch.randn(4, 5)])
    with pytest.raises(InvalidArgument, match="empty"):
        recalibrate(net, [])
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(module.training and not module._forward_pre_hooks for module in net.modules())
    assert recalibrate(nn.Linear(2, 2), iter(())) == 0


def test_half_precision_and_shared_norms() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3)).to(torch.bfloat16)
    x = torch.randn(64, 3).to(torch.bfloat16)
    recalibrate(net, [x])
    assert torch.equal(net[0].running_mean, x.double().mean(dim=0).to(torch.bfloat16))
    norm = nn.BatchNorm1d(3).double()
    shared = nn.Sequential(norm, nn.Tanh(), norm)
    recalibrate(shared, [y := torch.randn(8, 3, dtype=torch.float64)])
    again = torch.tanh(copy.deepcopy(norm).train()(y))
    assert torch.allclose(norm.running_mean, torch.cat([y, again]).mean(dim=0))
