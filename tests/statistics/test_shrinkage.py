"""How far moments are drawn towards their diagonal, against the noise that dense float64 samples show; and factors of a network with
outlier channels against an independent whitened SVD."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranksearch.decompositions import Kronecker
from ranksearch.decompositions.svd import SVD
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import SampledLabels, collect
from ranksearch.statistics.metric import moments
from ranksearch.statistics.shrinkage import RUN, Noise, shrunk, shrunk_product


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(examples: int, positions: int, size: int, *, seed: int = 0, factors: int = 6) -> Tensor:
    """Vectors of a factor model, shape (examples, positions, size)."""
    mixing = random(factors, size, seed=100)
    return random(examples, positions, factors, seed=seed) @ mixing + random(examples, positions, size, seed=seed + 1)


def weight_of(x: Tensor, *, per_position: bool = True) -> float:
    """The weight of the diagonal for vectors of shape (examples, positions, size)."""
    noise = Noise(1, x.shape[2])
    rows = x.flatten(0, 1).T[None]
    seen = noise.probes(rows.device, lambda: rows.double().square().mean(2)) @ rows
    noise.add(seen, examples=len(x), batch=len(x), sequences=True, per_position=per_position)
    return float(noise.weight())


def oracle(x: Tensor) -> float:
    """The same from the matrices of all samples, one example each, seen through the same random signs: the variances of the entries of
    their mean, over the energy of these entries, in units of the channels' sizes."""
    p, q = Noise(1, x.shape[2])._signs.double().chunk(2)
    x = x.double() / x.double().square().mean(dim=(0, 1)).sqrt()
    each = p @ (x.mT @ x / x.shape[1]) @ q.T
    mean = each.mean(0)
    variance = (each - mean).square().sum(0) / (len(x) * (len(x) - 1))
    return float(variance.sum() / mean.square().sum())


@pytest.mark.parametrize(("examples", "positions", "size"), [(12, 100, 96), (40, 20, 60), (300, 1, 200), (60, 3, 24)])
def test_weight_is_that_of_all_samples(examples, positions, size):
    x = correlated(examples, positions, size)
    assert weight_of(x) == pytest.approx(min(oracle(x), 1.0), rel=1e-3)


def test_nearer_to_the_truth_than_the_sample_moment():
    """As Ledoit and Wolf promise of the mean over samples: nearly as near as with the best weight."""
    place = torch.arange(120)
    truth = 0.5 ** (place[:, None] - place).abs().double()
    root = torch.linalg.cholesky(truth).T
    plain, best, found = [], [], []
    for seed in range(8):
        x = random(60, 120, seed=seed).double() @ root
        sample = x.T @ x / len(x)
        # of (1 - w) off + diagonal, off the least squares weight: the loss is a parabola in w
        off = sample - sample.diagonal().diag()
        gone = float((off * (off - truth)).sum() / off.square().sum())
        for losses, w in ((plain, 0.0), (best, gone), (found, weight_of(x.float()[:, None]))):
            losses.append(float((shrunk(sample[None], torch.tensor([w], dtype=torch.float64))[0] - truth).norm()))
    assert sum(found) < 0.7 * sum(plain)
    assert sum(found) < 1.15 * sum(best)


@pytest.mark.parametrize("examples", [10, 60])
@pytest.mark.parametrize("times", [2, 10])
def test_the_same_samples_again_have_the_noise_of_more_samples(examples, times):
    """The moment stays; the variance of its mean is that over (n - 1) as for any mean."""
    x = correlated(examples, 1, 80)
    assert weight_of(x.repeat(times, 1, 1)) == pytest.approx(weight_of(x) * (examples - 1) / (times * examples - 1), rel=1e-5)


def test_one_sample_says_nothing_of_its_noise():
    assert weight_of(correlated(1, 1, 80)) == 1.0


def test_copies_of_a_position_are_no_further_samples():
    x = correlated(20, 1, 64)
    assert weight_of(x.expand(-1, 50, -1).contiguous()) == pytest.approx(weight_of(x), rel=1e-3)
    assert weight_of(correlated(20, 50, 64)) < weight_of(x) / 10  # different ones are


def test_runs_of_a_long_sequence_are_samples():
    long, short = correlated(1, 8 * RUN, 64), correlated(1, 8 * RUN, 64).reshape(8, RUN, 64)
    assert weight_of(long) == pytest.approx(weight_of(short), rel=1e-4)


@pytest.mark.parametrize("unit", [1e-18, 1e-6, 1.0, 1e6, 1e12])
def test_weight_knows_no_unit(unit):
    x = correlated(16, 40, 48)
    scale = torch.ones(48)
    scale[[3, 17, 40]] = torch.tensor([30.0, 1e3, 1e4])  # outliers
    assert weight_of(unit * x * scale) == pytest.approx(weight_of(x), rel=1e-3)
    weight = torch.tensor([0.3], dtype=torch.float64)
    moment = (x.flatten(0, 1).T @ x.flatten(0, 1)).double()[None]
    outer = (scale[:, None] * scale).double()
    torch.testing.assert_close(shrunk(outer * moment, weight), outer * shrunk(moment, weight))
    torch.testing.assert_close(shrunk(moment, weight).diagonal(dim1=1, dim2=2), moment.diagonal(dim1=1, dim2=2))


def test_a_faint_channel_of_the_first_batch_does_not_rule():
    x = correlated(32, 20, 48)
    fainter = x.clone()
    fainter[:16, :, 5] *= 1e-4  # what the first pass hardly shows
    noise, asked = Noise(1, 48), []

    def energies(rows: Tensor) -> Tensor:
        asked.append(rows)
        return rows.double().square().mean(2)

    for part in fainter.split(16):
        rows = part.flatten(0, 1).T[None]
        seen = noise.probes(rows.device, partial(energies, rows)) @ rows
        noise.add(seen, examples=16, batch=16, sequences=True, per_position=True)
    assert float(noise.weight()) < 0.1 and len(asked) == 1  # later passes are not looked at


def test_images_count_once_and_long_sequences_by_runs():
    """Smooth images: 64 positions of one image tell less than 64 images do."""
    torch.manual_seed(0)
    smooth = F.interpolate(torch.randn(24, 6, 2, 2), size=(16, 16), mode="bilinear")
    model = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))
    model = model.eval()
    sites = find_sites(model, smooth[:1])
    found = {}
    for name, data in (("smooth", smooth), ("rough", torch.randn(24, 6, 16, 16) + smooth)):
        found[name] = collect(model, sites, [data[:12], data[12:]], labels=SampledLabels()).of["0"]
    patches = F.unfold(smooth.double(), 3, padding=1).mT  # (images, positions, 54)
    scale = smooth[:12].double().square().mean(dim=(0, 2, 3)).sqrt().repeat_interleave(9)
    each = (patches / scale).mT @ (patches / scale) / patches.shape[1]
    off = ~torch.eye(54, dtype=torch.bool)
    variance = (each - each.mean(0)).square().sum(0)[off].sum() / (24 * 23)
    wanted = float(variance / each.mean(0).square()[off].sum())
    assert float(found["smooth"].input_shrinkage) == pytest.approx(wanted, rel=0.5)
    assert 0 <= float(found["smooth"].output_shrinkage) <= 1


class Tokens(nn.Module):
    """Logits per token, classes on axis 1, of a residual stream with outlier channels, as language models have."""

    def __init__(self, size: int = 48, inner: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(200, size)
        self.up, self.down, self.head = nn.Linear(size, inner), nn.Linear(inner, size), nn.Linear(size, 30)
        self.register_buffer("outliers", torch.ones(size))
        self.outliers[[1, 20]] = torch.tensor([40.0, 150.0])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        mixed = x + 0.5 * x.roll(1, dims=1).cumsum(dim=1) / 3
        normed = F.rms_norm(mixed, mixed.shape[-1:]) * self.outliers
        return self.head(mixed + self.down(F.silu(self.up(normed)))).movedim(-1, 1)


@pytest.fixture(scope="module")
def language():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Tokens().eval()
        basis = random(10, 48, seed=5)
        with torch.no_grad():  # words that are alike: ten directions carry most of what tokens differ by
            model.embed.weight.copy_(random(200, 10, seed=6) @ basis + random(200, 48, seed=7))
            model.up.weight.div_(model.outliers)  # what outliers bring is as large as the rest
    tokens = torch.randint(0, 200, (80, 64), generator=torch.Generator().manual_seed(8))
    return model, tokens[:16], tokens[16:]


def whitened(weight: Tensor, rank: int, a: Tensor | None, g: Tensor | None) -> Tensor:
    """The best weight of a rank in tr(G R A R^T), by an eigendecomposition of both moments with a small ridge, float64."""

    def root(moment: Tensor | None, size: int) -> Tensor:
        if moment is None:
            return torch.eye(size, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(moment)
        return (vectors * (values + 1e-9 * values.median()).clamp_min(1e-300).sqrt()) @ vectors.T

    left, right = root(g, weight.shape[0]), root(a, weight.shape[1])
    u, s, vh = torch.linalg.svd(left @ weight.double() @ right, full_matrices=False)
    kept = (u[:, :rank] * s[:rank]) @ vh[:rank]
    return torch.linalg.solve(left, kept) @ torch.linalg.inv(right)


def raw(model: Tokens, tokens: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The mean of a a^T over tokens, and the sum over positions of g g^T averaged over examples, for the true Fisher at one sampled label,
    float64, without the code under test."""
    model = copy.deepcopy(model).double()
    seen = {}

    def keep(_module, args, out):
        out.retain_grad()
        seen["a"], seen["out"] = args[0], out

    model.get_submodule(name).register_forward_hook(keep)
    model.requires_grad_(True)
    logits = model(tokens)
    drawn = torch.multinomial(logits.movedim(1, -1).flatten(0, 1).softmax(-1), 1, generator=torch.Generator().manual_seed(1))
    (F.cross_entropy(logits, drawn.reshape(tokens.shape)) * len(tokens)).backward()
    a, g = seen["a"].detach().flatten(0, -2), seen["out"].grad.flatten(0, -2)
    return a.T @ a / len(a), g.T @ g / len(tokens)


@pytest.mark.parametrize("metric", ["weight", "activation", "fisher"])
def test_factors_are_those_of_a_whitened_svd(language, metric):
    """A model with outlier channels and as few sequences as calibration has: in every metric the factors of ``svd`` are those of an
    independent whitened SVD, and on tokens that no calibration saw the metric is worth what it promises."""
    model, seen, held_out = language
    sites = find_sites(model, seen[:1])
    statistics = collect(model, sites, seen.split(4), labels=SampledLabels(samples=4))
    known = moments(statistics, metric)
    spectra = Spectra(model, sites, [SVD()], moments=known)
    for name in ("up", "down"):
        rank = 16
        weight = model.get_submodule(name).weight.detach().double()
        a, g = (None if part is None else part[0].double() for part in ((known[name].input, known[name].output) if known else (None, None)))
        truth_a, truth_g = raw(model, held_out, name)
        given = {"weight": (None, None), "activation": (a, None), "fisher": (a, g)}[metric]
        truth = {"weight": (None, None), "activation": (truth_a, None), "fisher": (truth_a, truth_g)}[metric]
        layer = build(spectra, Configuration({name: ("svd", (rank,))})).get_submodule(name)
        residual = weight - (layer[1].weight @ layer[0].weight).detach().double()
        assert error(residual, *given) == pytest.approx(error(weight - whitened(weight, rank, *given), *given), rel=1e-3)
        if metric != "weight":
            assert error(residual, *truth) < 0.5 * error(weight - whitened(weight, rank, None, None), *truth)  # the metric is not lost


def error(residual: Tensor, a: Tensor | None, g: Tensor | None) -> float:
    """tr(G R A R^T)."""
    right = residual if a is None else residual @ a
    return float((residual * (right if g is None else g @ right)).sum())


def test_a_product_is_drawn_to_its_diagonal_as_far_as_a_whole_moment_beside_both_diagonals() -> None:
    channel, tap = (torch.randn(2, n, n, dtype=torch.float64) for n in (3, 4))
    weight = torch.tensor([0.36, 1.0], dtype=torch.float64)
    found = shrunk_product(Kronecker(channel, tap), weight)
    for group, kept in enumerate((0.64, 0.0)):
        for i, j, s, t in ((0, 1, 2, 3), (1, 1, 2, 2), (2, 0, 1, 1)):
            share = math.sqrt(kept) ** ((i != j) + (s != t))
            entry = found.channel[group, i, j] * found.tap[group, s, t]
            assert entry.item() == pytest.approx(share * (channel[group, i, j] * tap[group, s, t]).item())
    single = shrunk_product(Kronecker(channel[:, :1, :1], tap), weight)  # one channel: the taps alone are the moment
    torch.testing.assert_close(single.tap, shrunk(tap, weight))
