"""Calibration statistics against a naive dense float64 oracle: unfold, and autograd per example."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ranksearch.errors import InvalidArgument
from ranksearch.sites import find_sites
from ranksearch.statistics import LARGEST, GivenLabels, SampledLabels, accumulator_bytes, collect
from ranksearch.statistics.moments import images, lower, to_patch_order


class Net(nn.Module):
    """One layer under test, then a classifier; the layer is used ``times`` times."""

    def __init__(self, layer: nn.Module, features: int, times: int = 1) -> None:
        super().__init__()
        self.layer, self.times = layer, times
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(features, 3)

    def forward(self, x):
        for _ in range(self.times):
            x = self.relu(self.layer(x))
        return self.head(x.flatten(1))


def oracle(model: Net, x: torch.Tensor, y: torch.Tensor):
    """A, G and the squared per-example weight gradients of ``model.layer``, in float64, one example at a time."""
    model = copy.deepcopy(model).double().eval()
    layer = model.layer
    inputs, outputs = [], []

    def hook(_m, args, out):
        inputs.append(args[0].detach())
        out = out.clone()
        out.retain_grad()
        outputs.append(out)
        return out * 1

    layer.register_forward_hook(hook)
    groups = getattr(layer, "groups", 1)
    a_sum, g_sum, rows, squares = 0, 0, 0, 0
    for i in range(len(x)):
        inputs.clear(), outputs.clear(), model.zero_grad()
        F.cross_entropy(model(x[i : i + 1].double()), y[i : i + 1]).backward()
        squares = squares + layer.weight.grad.square()
        for a, out in zip(inputs, outputs, strict=True):
            if isinstance(layer, nn.Linear):
                cols, grad = a.reshape(-1, a.shape[-1]).T[None], out.grad.reshape(-1, out.shape[-1]).T[None]
            else:
                if layer.padding_mode != "zeros":
                    pad = layer.padding
                    a, pad = F.pad(a, (pad[1], pad[1], pad[0], pad[0]), mode=layer.padding_mode), (0, 0)
                else:
                    pad = layer.padding
                kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
                if isinstance(layer, nn.Conv1d):
                    a = a.unsqueeze(2)
                    kernel, stride, dilation, pad = (1, *kernel), (1, *stride), (1, *dilation), (0, *pad)
                cols = F.unfold(a, kernel, dilation=dilation, padding=pad, stride=stride)[0].reshape(groups, -1, out.shape[2:].numel())
                grad = out.grad[0].flatten(1).reshape(groups, -1, cols.shape[2])
            a_sum = a_sum + cols @ cols.mT
            g_sum = g_sum + grad @ grad.mT
            rows += cols.shape[2]
    return a_sum / rows, g_sum / len(x), squares / len(x)


CASES = {
    "conv": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 6), 1),
    "strided": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (3, 7, 6), 1),
    "dilated": (lambda: nn.Conv2d(3, 4, 3, dilation=2, padding=2, bias=False), (3, 6, 6), 1),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 5), 1),
    "reflected": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 5, 5), 1),
    "five": (lambda: nn.Conv2d(2, 3, 5, padding=2), (2, 9, 8), 1),
    "even": (lambda: nn.Conv2d(2, 3, (2, 4), padding=(0, 1)), (2, 6, 9), 1),
    "unpadded": (lambda: nn.Conv2d(2, 3, 3), (2, 6, 6), 1),
    "reflected_wide": (lambda: nn.Conv2d(4, 4, 3, padding=2, groups=2, padding_mode="reflect"), (4, 7, 6), 1),
    "dilated_wide": (lambda: nn.Conv2d(3, 4, 3, dilation=2, padding=1, bias=False), (3, 10, 9), 1),
    "over_padded": (lambda: nn.Conv2d(3, 4, 3, padding=3), (3, 6, 5), 1),
    "conv1d_unit": (lambda: nn.Conv1d(3, 4, 3, padding=1), (3, 9), 1),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1, stride=2), (3, 9), 1),
    "linear": (lambda: nn.Linear(5, 4), (5,), 1),
    "tokens": (lambda: nn.Linear(5, 4), (6, 5), 1),
    "twice": (lambda: nn.Conv2d(4, 4, 3, padding=1), (4, 5, 5), 2),
    "twice_linear": (lambda: nn.Linear(5, 5), (5,), 2),
}


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_dense_oracle(case, diagonal):
    layer, shape, times = CASES[case]
    layer = layer()
    x, y = torch.randn(7, *shape), torch.randint(0, 3, (7,))
    probe = x[:1]
    for _ in range(times):
        probe = layer(probe)
    model = Net(layer, probe.flatten(1).shape[1], times)
    sites = find_sites(model, x[:1])
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    statistics = collect(model, sites, batches, labels=GivenLabels(), diagonal=diagonal, chunk_bytes=2000)
    a, g, squares = oracle(model, x, y)
    torch.testing.assert_close(statistics.input_moment("layer", shrink=False), a, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(statistics.output_moment("layer", shrink=False), g, rtol=1e-4, atol=1e-7)
    s = statistics.of["layer"]
    # every patch once more, one by one: the mean
    with torch.no_grad():
        seen = []
        handle = model.layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        model(x)
        handle.remove()
    rows = torch.cat([lower(sites["layer"], images(sites["layer"], value)).flatten(2) for value in seen], dim=2).double()
    torch.testing.assert_close(s.mean, to_patch_order(sites["layer"], rows.sum(2), (1,)), rtol=1e-4, atol=1e-4)
    assert s.rows == rows.shape[2] and s.examples == 7
    found = statistics.of["layer"].fisher_diagonal
    if diagonal:
        weight = found.reshape(squares.shape) if case != "conv1d" else found.squeeze(2)
        torch.testing.assert_close(weight / 7, squares, rtol=1e-3, atol=1e-8)
        assert statistics.fisher_ratio("layer") == pytest.approx(
            float(squares.sum() / (a.diagonal(dim1=1, dim2=2).sum(1) * g.diagonal(dim1=1, dim2=2).sum(1)).sum()), rel=1e-3
        )
    else:
        assert found is None


def small() -> tuple[nn.Module, torch.Tensor]:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    return model, torch.randn(32, 3, 8, 8)


def test_padding_same_with_an_even_kernel():
    model = nn.Sequential(nn.Conv2d(2, 3, (2, 4), padding="same", dilation=(1, 2)), nn.Flatten(), nn.Linear(75, 2))
    x = torch.randn(3, 2, 5, 5)
    statistics = collect(model, find_sites(model, x[:1]), [x], labels=None)
    padded = F.pad(x.double(), (3, 3, 0, 1))
    columns = F.unfold(padded, (2, 4), dilation=(1, 2)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(statistics.input_moment("0", shrink=False)[0], columns @ columns.T / columns.shape[1], rtol=1e-5, atol=1e-6)


def test_the_model_is_left_as_it_was_and_runs_repeat():
    model, x = small()
    model.train()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    sites = find_sites(model, x[:1])
    runs = [collect(model, sites, [x[:16], x[16:]], labels=SampledLabels(seed=3)) for _ in range(2)]
    other = collect(model, sites, [x[:16], x[16:]], labels=SampledLabels(seed=4))
    assert model.training and all(m.training for m in model.modules())
    assert not model[0].weight.requires_grad and model[5].weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    for name in ("0", "5"):
        assert torch.equal(runs[0].of[name].gradient, runs[1].of[name].gradient)
        assert not torch.equal(runs[0].of[name].gradient, other.of[name].gradient)


def test_sampled_labels_estimate_the_true_fisher():
    model = nn.Sequential(nn.Linear(4, 3))
    x = torch.randn(64, 4)
    statistics = collect(model, find_sites(model, x[:1]), [x], labels=SampledLabels(samples=400))
    p = model(x).detach().double().softmax(1)
    exact = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(0)  # Fisher of a softmax in its logits
    torch.testing.assert_close(statistics.output_moment("0", shrink=False)[0], exact, atol=5e-3, rtol=5e-2)


def test_temperature_is_that_of_the_softmax():
    model = nn.Sequential(nn.Linear(4, 3))
    x = torch.randn(64, 4)
    with torch.no_grad():
        model[0].weight.mul_(10)
    statistics = collect(model, find_sites(model, x[:1]), [x], labels=SampledLabels(samples=400, temperature=5.0))
    p = (model(x).detach().double() / 5).softmax(1)
    exact = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(0)  # Fisher in the logits over 5: what 25 KL is, to second order
    torch.testing.assert_close(statistics.output_moment("0", shrink=False)[0], exact, atol=5e-3, rtol=5e-2)


def test_fisher_error_estimates_the_rise_of_the_loss():
    """tr(G dW A dW^T) / 2 is the KL divergence between the outputs, to second order, when one position is all."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 4))
    x = torch.randn(2000, 6)
    statistics = collect(model, find_sites(model, x[:1]), [x], labels=SampledLabels(samples=20))
    moments = statistics.moments("fisher", shrink=False)["0"]
    change = 0.05 * torch.randn(4, 6, dtype=torch.float64)
    predicted = 0.5 * torch.trace(moments.output[0] @ change @ moments.input[0] @ change.T)
    with torch.no_grad():
        old = model(x).double().log_softmax(1)
        new = (model(x).double() + x.double() @ change.T).log_softmax(1)
    measured = (old.exp() * (old - new)).sum(1).mean()
    assert float(predicted) == pytest.approx(float(measured), rel=0.2)


@pytest.fixture(scope="module", params=[0, 1, 2])
def trained(request):
    """A small network trained from scratch on overlapping clusters, and inputs that it was not trained on."""
    generator = torch.Generator().manual_seed(request.param)
    centres = 1.5 * torch.randn(5, 12, generator=generator)
    y = torch.randint(0, 5, (2560,), generator=generator)
    x = centres[y] + torch.randn(2560, 12, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(request.param)
        model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(6):
        for part in range(0, 512, 64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part : part + 64]), y[part : part + 64]).backward()
            optimizer.step()
    return model.requires_grad_(False).eval(), x[512:]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_unit_is_that_of_the_divergence(trained, temperature):
    """Small cuts of a trained network, measured: half of tr(G R A R^T) is T^2 KL of the outputs softened by T, at every T. What
    is left of the ratio is K-FAC's assumption that inputs and gradients are independent."""
    model, x = trained
    statistics = collect(model, find_sites(model, x[:1]), [x], labels=SampledLabels(samples=8, temperature=temperature))
    ratios = []
    for name, m in statistics.moments("fisher", shrink=False).items():
        weight = model.get_submodule(name).weight.double()
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        half = len(s) // 2
        cut = (u[:, half:] * s[half:]) @ vh[half:] * 0.05  # a twentieth of the way to half the rank
        predicted = 0.5 * float((m.output[0] @ cut @ m.input[0] * cut).sum())
        less = copy.deepcopy(model).double()
        less.get_submodule(name).weight.sub_(cut)
        old, new = (net(x.double()).div(temperature).log_softmax(1) for net in (copy.deepcopy(model).double(), less))
        measured = temperature**2 * float((old.exp() * (old - new)).sum(1).mean())
        ratios.append(predicted / measured)
    assert all(0.25 < ratio < 4 for ratio in ratios), ratios  # another power of T is off by a factor 3 or 9
    assert 0.4 < np.exp(np.mean(np.log(ratios))) < 2.5, ratios


def test_other_units_have_other_statistics_in_the_cache(tmp_path, monkeypatch):
    """Statistics that were written in another unit are not read."""
    model, x = small()
    sites = find_sites(model, x[:1])
    collect(model, sites, [x], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr("ranksearch.statistics.collection.UNIT", "another")
    collect(model, sites, [x], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_centred_moment_is_the_covariance():
    model, x = small()
    statistics = collect(model, find_sites(model, x[:1]), [x + 2], labels=None)
    columns = F.unfold((x + 2).double(), 3, padding=1).transpose(0, 1).flatten(1)
    found = statistics.input_moment("0", center=True, shrink=False)[0]
    torch.testing.assert_close(found, torch.cov(columns, correction=0), rtol=1e-3, atol=1e-3)


def test_cache_answers_for_the_same_weights_and_data_only(tmp_path):
    model, x = small()
    sites = find_sites(model, x[:1])
    first = collect(model, sites, [x], cache=tmp_path, diagonal=True)
    again = collect(model, sites, [x], cache=tmp_path, diagonal=True)
    assert len(list(tmp_path.iterdir())) == 1
    for name in first.of:
        for key in ("input", "mean", "gradient", "fisher_diagonal"):
            assert torch.equal(getattr(first.of[name], key), getattr(again.of[name], key))
        assert first.of[name].rows == again.of[name].rows
    collect(model, sites, [x + 1], cache=tmp_path, diagonal=True)
    with torch.no_grad():
        model[0].weight.mul_(2)
    collect(model, sites, [x], cache=tmp_path, diagonal=True)
    assert len(list(tmp_path.iterdir())) == 3


def test_large_dimensions_are_kept_as_a_kronecker_product(monkeypatch):
    model, x = small()
    sites = find_sites(model, x[:1])
    exact = collect(model, sites, [x], labels=None).input_moment("0", shrink=False)
    monkeypatch.setattr("ranksearch.statistics.inputs.LARGEST", 20)
    statistics = collect(model, sites, [x], labels=None)
    assert statistics.of["0"].input is None and "Kronecker" in statistics.uncovered["0"]
    product = statistics.input_moment("0", shrink=False)
    found = torch.kron(product.channel[0], product.tap[0])[None]
    torch.testing.assert_close(found.diagonal(dim1=1, dim2=2).sum(), exact.diagonal(dim1=1, dim2=2).sum(), rtol=1e-5, atol=0)
    blocks = exact.reshape(3, 9, 3, 9)  # the marginals are exact
    torch.testing.assert_close(torch.einsum("aibi->ab", found.reshape(3, 9, 3, 9)), torch.einsum("aibi->ab", blocks), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.einsum("aiaj->ij", found.reshape(3, 9, 3, 9)), torch.einsum("aiaj->ij", blocks), rtol=1e-4, atol=1e-5)
    assert LARGEST == 4608
    centred, covariance = statistics.input_moment("0", center=True, shrink=False), exact_covariance(model, sites, x)
    covariance = covariance.reshape(3, 9, 3, 9)
    torch.testing.assert_close(centred.channel[0], torch.einsum("aibi->ab", covariance), rtol=1e-4, atol=1e-5)
    tap = torch.einsum("aiaj->ij", covariance)
    torch.testing.assert_close(centred.tap[0], tap / tap.trace(), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("ranksearch.statistics.statistics.machine_memory", lambda: 1000.0)
    with pytest.raises(InvalidArgument, match=r"site='0': its input moment.*exclude='0'"):
        statistics.moments("activation")


def exact_covariance(model, sites, x):
    """Of the inputs of the first layer, whatever the limit."""
    patches = nn.functional.unfold(x, 3, padding=sites.sites[0].padding).transpose(1, 2).flatten(0, 1).double()
    return (patches - patches.mean(0)).T @ (patches - patches.mean(0)) / len(patches)


def test_embeddings_have_counts_and_conv1d_of_transformers_is_a_matrix():
    transformers_conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 6)
            self.mix = transformers_conv1d(5, 6)
            self.head = nn.Linear(5, 2)

        def forward(self, tokens):
            return self.head(self.mix(self.embed(tokens)).mean(1))

    model = Text()
    tokens = torch.randint(0, 11, (8, 4))
    statistics = collect(model, find_sites(model, tokens[:1]), [tokens])
    assert torch.equal(statistics.of["embed"].counts, torch.bincount(tokens.flatten(), minlength=11).double())
    moments = statistics.moments()
    vectors = model.embed(tokens).detach().double().flatten(0, 1)
    torch.testing.assert_close(statistics.input_moment("mix", shrink=False)[0], vectors.T @ vectors / 32, rtol=1e-4, atol=1e-5)
    assert moments["mix"].output.shape == (1, 5, 5) and moments["embed"].input.shape == (1, 11, 11)


def test_the_rows_of_a_large_embedding_count_as_equally_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Embedding(50, 6), nn.Linear(6, 2))
    tokens = torch.arange(50).repeat(2).reshape(25, 4)  # every row as often as every other
    sites = find_sites(model, tokens[:1])
    statistics = collect(
        model, sites, [tokens], labels=SampledLabels(sample=lambda out, _: out.argmax(1), loss=nn.functional.cross_entropy)
    )
    exact = {metric: statistics.moments(metric, shrink=False)["0"] for metric in ("activation", "fisher")}
    monkeypatch.setattr("ranksearch.statistics.statistics.LARGEST", 40)
    change = torch.randn(6, 50, dtype=torch.float64)
    for metric, kept in exact.items():
        large = statistics.moments(metric, shrink=False)["0"]
        assert large.input is None and large.output is not None and kept.input is not None
        g = torch.eye(6, dtype=torch.float64) if kept.output is None else kept.output[0]
        expected = torch.trace(g @ change @ kept.input[0] @ change.T)
        torch.testing.assert_close(torch.trace(large.output[0] @ change @ change.T), expected)


def test_what_was_not_reached_is_reported():
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.dead = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.used(x) + self.dead(x).detach()

    model = Dead()
    statistics = collect(model, find_sites(model, torch.randn(1, 4)), [torch.randn(5, 4)])
    assert "no gradient" in statistics.uncovered["dead"] and "used" not in statistics.uncovered


def test_refusals():
    model, x = small()
    sites = find_sites(model, x[:1])
    for wrong in (
        {"samples": 0},
        {"temperature": 0.0},
        {"temperature": float("inf")},
        {"temperature": 2.0, "loss": nn.functional.mse_loss},
    ):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            SampledLabels(**wrong)
    with pytest.raises(InvalidArgument, match="diagonal"):
        collect(model, sites, [x], labels=None, diagonal=True)
    with pytest.raises(InvalidArgument, match="empty"):
        collect(model, sites, [])
    with pytest.raises(InvalidArgument, match="collect with"):
        collect(model, sites, [x], labels=None).moments("fisher")


def test_accumulator_bytes_is_what_they_hold():
    model, x = small()
    sites = find_sites(model, x[:1])
    statistics = collect(model, sites, [x], diagonal=True)
    held = sum(8 * getattr(s, k).numel() for s in statistics.of.values() for k in ("input", "gradient", "fisher_diagonal"))
    assert accumulator_bytes(sites, diagonal=True) == held
    inputs = sum(8 * s.input.numel() for s in statistics.of.values() if s.input is not None)
    assert accumulator_bytes(sites, gradients=False) == inputs < held


def test_moments_that_the_machine_cannot_hold_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small()
    sites = find_sites(model, x[:1])
    needed = 2 * accumulator_bytes(sites, gradients=False)
    monkeypatch.setattr("ranksearch.statistics.memory.machine_memory", lambda: float(needed))
    collect(model, sites, [x], labels=None)
    largest = max(sites, key=lambda site: accumulator_bytes([site]))
    with pytest.raises(InvalidArgument, match=rf"the moments of {len(sites)} layers take .* exclude='{largest.name}'"):
        collect(model, sites, [object()])


class Positions(nn.Module):
    """Tokens plus positions, looked up once for the whole batch (as transformers does) or for every example."""

    def __init__(self, shared: bool, projected: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.positions = nn.Embedding(11, 6), nn.Embedding(5, 6)
        self.project = nn.Linear(6, 6) if projected else nn.Identity()
        self.head = nn.Linear(30, 3)
        self.shared = shared

    def forward(self, x):
        places = torch.arange(5)[None]
        places = places if self.shared else places.expand(len(x), 5)
        return self.head(torch.tanh(self.tokens(x) + self.project(self.positions(places))).flatten(1))


@pytest.mark.parametrize("projected", [False, True])
def test_what_the_whole_batch_shares_counts_for_every_example(projected):
    x = torch.randint(11, (64, 5), generator=torch.Generator().manual_seed(1))
    found = {}
    for shared in (True, False):
        model = Positions(shared, projected)
        batches = [x[i : i + 16] for i in range(0, 64, 16)]
        options = {"labels": SampledLabels(samples=200), "diagonal": projected}
        found[shared] = collect(model, find_sites(model, x[:1]), batches, **options)
    name = "project" if projected else "positions"
    one, every = (found[shared].of[name] for shared in (True, False))
    assert (one.examples, one.rows) == (every.examples, every.rows)
    a, b = (found[shared].input_moment(name, shrink=False) for shared in (True, False))
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    # gradients of the shared output are sums over the batch: alike in the mean over sampled labels
    g, h = (found[shared].output_moment(name, shrink=False) for shared in (True, False))
    assert (g - h).norm() < 0.15 * h.norm()
    if projected:
        assert (one.fisher_diagonal - every.fisher_diagonal).norm() < 0.2 * every.fisher_diagonal.norm()
