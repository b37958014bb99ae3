"""A network learns the dense one's answers as a whole, at the first rate that it bears, and nothing else of it changes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InvalidArgument
from ranksearch.networks import distillation
from ranksearch.networks.distillation import apart, distill, no_room, unseen_first
from ranksearch.networks.recovery import factor_steps
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration, named
from ranksearch.space.spectra import Spectra
from ranksearch.tasks import Classification

LOW = Configuration({"0": ("svd", (2,)), "3": ("spatial", (3,))})


def pair(**options: Any) -> tuple[Spectra, nn.Module]:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 4))
    spectra = Spectra(dense.to(**options).eval(), find_sites(dense, torch.randn(1, 3, 6, 6).to(**options)))
    return spectra, build(spectra, LOW).eval()


def batches(count: int = 24, seed: int = 1) -> list[Tensor]:
    return list(torch.randn(16 * count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)).split(16))


def distance(network: nn.Module, spectra: Spectra, given: list[Tensor]) -> float:
    """Relative squared distance, batch norms by their batch as in training."""
    other = copy.deepcopy(network).train()
    with torch.no_grad():
        return float(sum(((other(x) - (y := spectra.model(x))) ** 2).mean() / (y**2).mean() for x in given)) / len(given)


def flat(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().float().flatten() for parameter in network.parameters()])


def test_it_answers_like_the_dense_network_on_batches_that_it_has_not_seen() -> None:
    spectra, short = pair()
    dense = copy.deepcopy(spectra.model.state_dict())
    buffers = {name: buffer.clone() for name, buffer in short.named_buffers()}
    before, unseen = distance(short, spectra, batches(seed=2)), batches(seed=2)
    assert distill(short, spectra, LOW, lambda: batches(80), steps=80) in distillation.RATES
    assert distance(short, spectra, unseen) < 0.7 * before
    assert all(torch.equal(value, spectra.model.state_dict()[name]) for name, value in dense.items())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in short.named_buffers()), "running statistics"
    assert not short.training and all(p.requires_grad and p.grad is None for p in short.parameters())


def test_within_autocast_it_learns_the_same() -> None:
    """That keeps casts of weights, so that steps would change nothing that is measured."""
    (spectra, plain), (_, other) = pair(), pair()
    assert distill(plain, spectra, LOW, batches, steps=20) > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distill(other, spectra, LOW, batches, steps=20)
    torch.testing.assert_close(flat(other), flat(plain))


def test_the_first_step_is_a_share_of_the_steps_of_factors_and_of_the_size_of_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's first step moves every entry by its rate, whatever the gradient; warming up begins with a fifth."""
    monkeypatch.setattr(distillation, "RATES", (0.01,))
    monkeypatch.setattr(distillation, "RISE", 2.0)
    spectra, short = pair()
    before, sizes = copy.deepcopy(short.state_dict()), factor_steps(short, spectra, LOW)
    assert distill(short, spectra, LOW, batches, steps=1) == 0.01
    for name, parameter in (one for one in short.named_parameters() if one[0] != "0.1.bias"):  # a norm behind it takes it away
        size = sizes.get(name) or max(float(before[name].square().mean().sqrt()), 1e-3)
        moved = (parameter.detach() - before[name]).abs().flatten().quantile(0.75)  # a gradient of zero moves nothing
        assert float(moved) == pytest.approx(0.01 / 5 * size, rel=0.02), name


def test_after_a_rate_that_is_too_large_it_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rates in ((0.003,), (1e4, 3.0, 0.003)):
        monkeypatch.setattr(distillation, "RATES", rates)
        spectra, short = pair()
        assert distill(short, spectra, LOW, batches, steps=30) == 0.003
        found.append(flat(short))
    assert torch.equal(*found)


def test_a_rate_that_is_given_up_draws_no_batch_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def noted() -> Iterator[Tensor]:
        for number, batch in enumerate(batches(30)):
            drawn.append(number)
            yield batch

    monkeypatch.setattr(distillation, "RATES", (1e4, 3.0, 0.003))
    spectra, short = pair()
    assert distill(short, spectra, LOW, noted, steps=25) == 0.003 and drawn == [*range(25)]


def test_where_no_rate_is_borne_it_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "RATES", (1e30, 1e4))
    spectra, short = pair()
    before = flat(short)
    assert distill(short, spectra, LOW, batches, steps=30) == 0 and torch.equal(flat(short), before)


def test_what_is_not_kept_is_undone() -> None:
    spectra, short = pair()
    before, asked = flat(short), []

    def kept(answer: bool) -> bool:
        asked.append(torch.equal(flat(short), before))
        assert not short.training and all(p.grad is None for p in short.parameters())
        return answer

    assert distill(short, spectra, LOW, batches, steps=3, kept=lambda: kept(False)) == 0 and torch.equal(flat(short), before)
    assert distill(short, spectra, LOW, batches, steps=3, kept=lambda: kept(True)) > 0 and not torch.equal(flat(short), before)
    assert asked == [False, False], "once, when it has learned"


@pytest.mark.parametrize("where", ["of a step", "of the judgement"])
def test_after_an_error_it_is_as_it_was(where: str) -> None:
    spectra, short = pair()
    before, steps = flat(short), []

    def breaking(outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        if where == "of a step" and len(steps) == 5:  # two of three steps are taken, after three losses
            assert not torch.equal(flat(short), before)
            raise RuntimeError("no memory")
        return (outputs - wanted).square().mean()

    def judge() -> bool:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        distill(short, spectra, LOW, batches, steps=3, divergence=breaking, kept=judge)
    assert torch.equal(flat(short), before) and len(steps) == (5 if where == "of a step" else 6)


@pytest.mark.parametrize(
    ("losses", "before", "borne"),
    [
        ([1.0, 1.0, 3.1], [1.0] * 16, False),  # broken
        ([1.0, 1.0, 2.9], [1.0] * 16, True),
        ([2.0] * 5 + [1.05] * 11, [1.0] * 16, True),  # those of the first steps, at a small rate, do not count
        ([1.0] * 5 + [1.15] * 11, [1.0] * 16, False),
        ([1.0] * 16 + [9.0], [1.0] * 16, True),  # proved
        ([1.0] * 16 + [float("nan")], [1.0] * 16, False),
        ([1.2], [1.0], False),
    ],
)
def test_what_speaks_against_a_rate(losses: list[float], before: list[float], borne: bool) -> None:
    assert distillation._borne(losses, before) == borne


def test_all_batches_are_used_and_used_again() -> None:
    given: list[int] = []

    def three() -> Iterator[Tensor]:
        for number, batch in enumerate(batches(3)):
            given.append(number)
            yield batch

    spectra, short = pair()
    assert distill(short, spectra, LOW, three, steps=7) > 0
    assert given[-7:] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("count", "seen", "kept", "numbers"),
    [(3, 2, 1, [3, 4, 5, 0, 1]), (9, 2, 1, [3, 4, 5, 6, 7, 0, 1]), (2, 0, 0, [0, 1]), (5, 8, 0, [*range(8)])],
)
def test_batches_that_nothing_has_seen_come_first(count: int, seen: int, kept: int, numbers: list[int]) -> None:
    data = torch.arange(16.0)[:, None], torch.arange(16) % 2
    task = Classification(train=data, validation=data, batch_size=2, learning_rate=0.1)
    order = [*task.calibration(8)]
    found = [*unseen_first(task, count, seen=seen, kept=kept)]
    assert len(found) == len(numbers) and all(torch.equal(one, order[number]) for one, number in zip(found, numbers, strict=True))


def test_a_last_batch_of_one_example_is_left_out_where_norms_normalize_by_their_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "_borne", lambda losses, before: True)
    torch.manual_seed(0)
    low = Configuration({"0": ("svd", (2,))})
    for norm, used in ((nn.BatchNorm1d(16), 3), (nn.Identity(), 4)):
        dense = nn.Sequential(nn.Linear(16, 16), norm, nn.Linear(16, 4)).eval()
        spectra = Spectra(dense, find_sites(dense, torch.randn(1, 16)), named("svd"))
        seen: list[int] = []
        short = build(spectra, low)
        short.register_forward_pre_hook(lambda module, given, seen=seen: seen.append(len(given[0])))
        assert distill(short, spectra, low, lambda: torch.randn(49, 16).split(16), steps=4) > 0
        assert seen[-4:] == [16, 16, 16, *([16] if used == 3 else [1])]


def test_half_precision_learns_by_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 0.0003 and less are below what bfloat16 tells apart (a 256th), so that alone none of them would change a weight."""
    monkeypatch.setattr(distillation, "RATES", (0.0003,))
    monkeypatch.setattr(distillation, "RISE", 2.0)
    spectra, short = pair(dtype=torch.bfloat16)
    before = flat(short)
    assert distill(short, spectra, LOW, lambda: batches(60), steps=60) == 0.0003
    assert {p.dtype for p in short.parameters()} == {torch.bfloat16}
    assert float((flat(short) != before).float().mean()) > 0.2


def test_what_was_frozen_learns_and_is_frozen_again() -> None:
    spectra, _ = pair()
    spectra.model.requires_grad_(False)
    short = build(spectra, LOW)
    before = copy.deepcopy(short.state_dict())
    assert distill(short, spectra, LOW, batches, steps=4) > 0
    same = {name for name, p in short.named_parameters() if torch.equal(p, before[name])}
    assert same <= {"0.1.bias"}, "a norm behind it takes it away, so that its gradient may be zero"
    assert not any(p.requires_grad for p in short.parameters())


def test_weights_of_few_bits_stay() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8)).eval()
    spectra = Spectra(dense, find_sites(dense, torch.randn(1, 12)), named("svd", "svd@int8"))
    low = Configuration({"0": ("svd@int8", (3,))})
    short = build(spectra, low)
    before = {name: value.clone() for name, value in short.state_dict().items()}
    assert distill(short, spectra, low, lambda: list(torch.randn(64, 12).split(16)), steps=6) > 0
    changed = {name for name, value in short.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, _ in short.named_parameters()}


def test_sparse_gradients_are_taken() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Embedding(20, 12, sparse=True), nn.Linear(12, 10), nn.Linear(10, 8)).eval()
    low, tokens = Configuration({"1": ("svd", (3,))}), torch.arange(20)[:, None]
    spectra = Spectra(dense, find_sites(dense, tokens[:1]), named("svd"))
    short = build(spectra, low)
    assert distill(short, spectra, low, lambda: [tokens], steps=20) > 0
    assert not torch.equal(short.get_parameter("0.weight"), dense.get_parameter("0.weight"))


def test_a_network_that_takes_no_gradient_learns_nothing() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(12, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x).detach()

    torch.manual_seed(0)
    dense = Cut().eval()
    spectra = Spectra(dense, find_sites(dense, torch.randn(1, 12)))
    low = Configuration({"first": ("svd", (3,))})
    assert distill(build(spectra, low), spectra, low, lambda: [torch.randn(4, 12)], steps=3) == 0


def test_without_a_divergence_all_numbers_of_an_output_count_alike() -> None:
    wanted = {"a": torch.tensor([3.0, 4.0]), "b": (torch.tensor([[10.0]]), torch.tensor([1]))}
    outputs = {"a": torch.tensor([3.0, 9.0]), "b": (torch.tensor([[11.0]]), torch.tensor([5]))}
    assert float(apart(outputs, wanted)) == pytest.approx((25 / 25 + 1 / 100) / 2)
    assert float(apart(outputs, wanted, lambda *_: None)) == float(apart(outputs, wanted))
    assert float(apart(outputs, wanted, lambda one, other: (one["a"] - other["a"]).abs().sum())) == 5


@pytest.mark.parametrize(
    ("options", "message"), [({"steps": -1}, "steps=-1"), ({"steps": 2, "batches": lambda: []}, "batches gives none")]
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    spectra, short = pair()
    with pytest.raises(InvalidArgument, match=message):
        distill(short, spectra, LOW, **({"batches": batches} | options))


def test_no_step_changes_nothing() -> None:
    spectra, short = pair()
    before = flat(short)
    assert distill(short, spectra, LOW, batches, steps=0) == 0 and torch.equal(flat(short), before)


def test_memory_for_five_copies_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    _, short = pair(dtype=torch.bfloat16)
    needed = 5 * 4 * sum(p.numel() for p in short.parameters())
    monkeypatch.setattr(distillation, "device_memory", lambda device: 2.0 * needed)
    assert no_room(short) is None
    monkeypatch.setattr(distillation, "device_memory", lambda device: 2.0 * needed - 1)
    assert "GiB" in (no_room(short) or "")


@pytest.mark.parametrize("name", [d.name for d in DECOMPOSITIONS if d.name != "dense"])
def test_steps_of_factors_change_a_weight_by_no_more_than_its_norm(name: str) -> None:
    """To first order, whatever the direction: the sum over factors of σ_max(J_f) |change of f| is |W|."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(6, 8, 3), nn.Flatten()).double().eval()
    spectra = Spectra(dense, find_sites(dense, torch.randn(1, 6, 5, 5).double()), named(name))
    site, kind = spectra.sites["0"], spectra.decomposition(name)
    if kind.undefined(site) is not None:
        pytest.skip(f"{name} is not defined for this layer")
    profile = spectra.profile(site, name)
    assert profile is not None
    low = Configuration({"0": (name, tuple(int(r) for r in profile.ranks[len(profile.ranks) // 2]))})
    steps = factor_steps(short := build(spectra, low), spectra, low)
    assert set(steps) <= {path for path, _ in short.named_parameters()} and steps
    weight = kind.compose(site, spectra.factors(site, name, low.choices[0][2]))
    eye = torch.eye(6 * 25).reshape(-1, 6, 5, 5).double()
    bias = short(torch.zeros(1, 6, 5, 5).double()).detach()
    before = short(eye).detach() - bias  # the layer as a matrix; every entry of the weight is in it nine times
    small = 1e-6
    for trial in range(3):
        other = copy.deepcopy(short)
        with torch.no_grad():
            for path, step in steps.items():
                parameter = other.get_parameter(path)
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(trial)).to(parameter)
                parameter.add_(small * step * noise / noise.square().mean().sqrt())
        change = (other(eye).detach() - other(torch.zeros(1, 6, 5, 5).double()).detach() - before).norm() / 3
        assert 0 < float(change) <= small * float(weight.norm()) * 1.001
