"""Nuclear norms of unfoldings, and sizes without retraining."""

from __future__ import annotations

import pytest
import torch
from method_cases import batch, close, optimizer_of, oracle, supernet
from torch import Tensor
from torch.nn import functional as F

from ranksearch.decompositions.folding import MODES
from ranksearch.supernet.methods import METHODS, Regularized, sized
from ranksearch.supernet.methods.regularized import nuclear_norm


def unfolded(weight: Tensor) -> list[Tensor]:
    if weight.ndim == 2:
        return [weight]
    return [weight.movedim(mode, 0).flatten(1) for mode in range(4)]


def test_the_regularizer_is_the_mean_nuclear_norm_of_the_unfoldings():
    net = supernet()
    weights = [net.weight(site.name) for site in net.sites]
    expected = sum(sum(torch.linalg.svdvals(m).sum() for m in unfolded(w)) / len(unfolded(w)) for w in weights)
    for form in ("gram", "subgradient"):
        method = Regularized(net, F.cross_entropy, strength=0.02, form=form)
        assert method.penalty().detach() == pytest.approx(float(expected.detach()), rel=1e-9)
        found = torch.autograd.grad(method.penalty(), weights)
        for weight, gradient in zip(weights, found, strict=True):
            total = torch.zeros_like(weight)
            for mode, m in enumerate(unfolded(weight.detach())):
                u, _, vh = torch.linalg.svd(m, full_matrices=False)
                part = u @ vh
                shape = [weight.shape[mode], *(n for k, n in enumerate(weight.shape) if k != mode)]
                total += (part.reshape(shape).movedim(0, mode) if weight.ndim == 4 else part) / len(unfolded(weight))
            assert close(gradient, total, 1e-7), form
        loss, _ = oracle(net, batch())
        assert float(method.loss(batch()).detach() - loss) == pytest.approx(0.02 * float(expected.detach()), rel=1e-9)


def test_weights_of_modes():
    net = supernet()
    only = Regularized(net, F.cross_entropy, form="gram", modes={"in": 2.0})
    # the linear layer has its one unfolding under "out"
    expected = sum(torch.linalg.svdvals(net.weight(n).detach().movedim(1, 0).flatten(1)).sum() for n in ("0", "3", "5"))
    assert only.penalty().detach() == pytest.approx(float(expected))
    both = Regularized(net, F.cross_entropy, form="gram", modes={"out": 1.0, "in": 3.0})
    parts = {m: sum(nuclear_norm(MODES[m].fold(net.sites[n], net.weight(n).detach())) for n in ("0", "3", "5")) for m in ("out", "in")}
    linear = torch.linalg.svdvals(net.weight("9").detach()).sum()
    assert both.penalty().detach() == pytest.approx(float(0.25 * parts["out"] + 0.75 * parts["in"] + linear))


def test_a_stale_subgradient_is_a_lower_bound_until_it_is_made_anew():
    net = supernet()
    cheap = Regularized(net, F.cross_entropy, every=4)
    exact = Regularized(net, F.cross_entropy, form="gram")
    gaps = []
    optimizer = optimizer_of(net)
    for step in range(1, 9):
        optimizer.zero_grad()
        cheap.loss(batch(step)).backward()
        gaps.append(float((exact.penalty() - cheap.penalty()).detach()))
        optimizer.step()
        cheap.after_step(step)
    assert gaps[0] == pytest.approx(0, abs=1e-9) and gaps[4] == pytest.approx(0, abs=1e-9)
    assert min(gaps[1:4] + gaps[5:]) > 1e-9


def test_nuclear_norm_of_rank_deficient_and_zero_matrices_has_a_finite_gradient():
    for matrix in (torch.zeros(1, 4, 6), torch.ones(1, 4, 6), torch.randn(1, 6, 2) @ torch.randn(1, 2, 6)):
        leaf = matrix.double().requires_grad_()
        value = nuclear_norm(leaf)
        assert value.detach() == pytest.approx(float(torch.linalg.svdvals(matrix.double()).sum()), abs=1e-5)
        gradient = torch.autograd.grad(value, leaf)[0]
        assert gradient.isfinite().all() and torch.linalg.matrix_norm(gradient, 2).max() <= 1 + 1e-6


def test_sizes_without_retraining_are_better_after_regularized_training():
    """STN's path: train with the regularizer, then types and ranks under storage constraints, nothing trained again."""
    data = [batch(s) for s in range(4)]
    errors: dict[str, list[float]] = {}
    for name, options in (("plain", {}), ("regularized", {"strength": 0.02})):
        net = supernet(("svd",))
        method = METHODS[name](net, F.cross_entropy, **options)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for step in range(1, 121):
            optimizer.zero_grad()
            method.loss(data[step % 4]).backward()
            optimizer.step()
            method.after_step(step)
        net.eval()
        errors[name] = []
        dense = sum(p.numel() for p in net.model.parameters())
        for budget, (configuration, model) in zip((0.35, 0.6), sized(net, (0.35, 0.6)), strict=True):
            assert {kind for _, kind, _ in configuration.choices} == {"adaptive"}
            assert sum(p.numel() for p in model.parameters()) <= budget * dense
            with torch.no_grad():
                outputs, built = net(data[0][0]), model.eval()(data[0][0])
            errors[name].append(float((outputs - built).norm() / outputs.norm()))
    assert all(r < 0.8 * p for r, p in zip(errors["regularized"], errors["plain"], strict=True)), errors
