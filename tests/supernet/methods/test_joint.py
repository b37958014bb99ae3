"""Joint training of the dense and a low-rank network against projections and autograd in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from method_cases import (
    CHOICES,
    NORM,
    Fixed,
    batch,
    close,
    gradients,
    make,
    optimizer_of,
    oracle,
    projector,
    steps,
    supernet,
)
from torch.func import functional_call
from torch.nn import functional as F

from ranksearch.decompositions.folding import FOLDINGS
from ranksearch.errors import InvalidArgument
from ranksearch.supernet.methods import Joint
from ranksearch.supernet.methods.joint import fork, truncated_svd
from ranksearch.supernet.sampling import Ratio, UniformCost


@pytest.mark.parametrize("weight", [0.5, 0.3])
@pytest.mark.parametrize("rescale", [True, False])
def test_joint_is_the_weighted_sum_with_projected_and_rescaled_gradients(weight, rescale):
    net = supernet()
    method = Joint(net, F.cross_entropy, sampling=Fixed(net.space, CHOICES), weight=weight, rescale=rescale)
    full, g = oracle(net, batch())
    lows, projections = {}, {}
    for name, kind, rank in CHOICES.choices:
        lows[f"{name}.weight"], projections[f"{name}.weight"] = projector(kind, net.weight(name).detach(), rank[0])
    low, g_low = oracle(net, batch(), lows)
    value = method.loss(batch())
    assert value.detach() == pytest.approx(float((1 - weight) * full + weight * low), rel=1e-12)
    found = gradients(net, value)
    for name, dense in g.items():
        other = projections[name](g_low[name]) if name in projections else g_low[name]
        if name in projections and rescale:
            other = other * (dense.norm() / other.norm())
        assert close(found[name], (1 - weight) * dense + weight * other), name


def test_joint_has_batch_statistics_of_each_pass():
    net = supernet()
    low_name = f"{NORM}.running_mean".replace(".", "__")
    before = net.low_buffers.get_buffer(low_name).clone()
    own = net.model.get_buffer(f"{NORM}.running_mean").clone()
    Joint(net, F.cross_entropy, sampling=Fixed(net.space, CHOICES)).loss(batch())
    inputs = batch()[0]
    low, _ = projector("svd", net.weight("0").detach(), 2)
    dense_pass = (net.model.get_buffer(f"{NORM}.running_mean"), own, net.weight("0").detach())
    for buffer, was, weight in (dense_pass, (net.low_buffers.get_buffer(low_name), before, low)):
        mean = F.conv2d(inputs, weight, padding=1).mean((0, 2, 3))
        assert close(buffer, 0.9 * was + 0.1 * mean)


@pytest.mark.parametrize("order", [0, 1])
def test_the_fork_does_not_depend_on_the_order_of_the_passes(order):
    weight = torch.randn(4, 3).double().requires_grad_()
    a, b = torch.randn(2, 4, 3).double()
    full, low = fork(weight, 0.25)
    parts = [0.75 * (full * a).sum(), 0.25 * (low * b).sum()]
    sum(parts if order else parts[::-1]).backward()
    assert close(weight.grad, 0.75 * a + 0.25 * b * a.norm() / b.norm())


def test_a_low_rank_gradient_of_zero_stays_zero():
    weight = torch.ones(3, 3).double().requires_grad_()
    full, low = fork(weight, 0.5)
    (full.sum() + 0.0 * low.sum()).backward()
    assert torch.equal(weight.grad, torch.ones(3, 3).double())
    alone = torch.ones(3, 3).double().requires_grad_()
    _, low = fork(alone, 0.5)
    low.sum().backward()  # no gradient from the full-rank pass: a norm of zero
    assert torch.equal(alone.grad, torch.zeros(3, 3).double())


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_gradient_through_the_truncated_svd_is_autograds(shape, rank):
    generator = torch.Generator().manual_seed(rank)
    q1 = torch.linalg.qr(torch.randn(2, shape[0], min(shape), generator=generator).double())[0]
    q2 = torch.linalg.qr(torch.randn(2, shape[1], min(shape), generator=generator).double())[0]
    sigma = torch.linspace(4.0, 0.5, min(shape)).double()  # every gap is fine
    matrix = ((q1 * sigma) @ q2.mT).requires_grad_()
    seed = torch.randn(2, *shape, generator=generator).double()
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    low = (u[..., :rank] * s[:, None, :rank]) @ vh[:, :rank]
    expected = torch.autograd.grad((low * seed).sum(), matrix)[0]
    own = truncated_svd(matrix, rank)
    assert close(own.detach(), low.detach())
    assert close(torch.autograd.grad((own * seed).sum(), matrix)[0], expected)


def test_the_clip_bounds_the_gradient_where_singular_values_meet():
    q = torch.linalg.qr(torch.randn(6, 6).double())[0]
    p = torch.linalg.qr(torch.randn(6, 6).double())[0]
    seed = torch.randn(1, 6, 6).double()
    for sigma in ([3, 2, 2, 1, 1, 0.5], [3, 2, 2 * (1 - 1e-9), 1, 0, 0], [0.0] * 6):
        matrix = ((q * torch.tensor(sigma).double()) @ p.mT)[None].requires_grad_()
        gradient = torch.autograd.grad((truncated_svd(matrix, 2) * seed).sum(), matrix)[0]
        # the worst pair: (a + q b) / (1 - q^2) at q^2 = 0.99
        assert gradient.isfinite().all() and gradient.norm() <= 200 * seed.norm()
    # far apart, the clip changes nothing; at the boundary it is exactly the clipped coefficient
    sigma = torch.tensor([2.0, 1.999]).double()
    matrix = torch.diag(sigma)[None].requires_grad_()
    gradient = torch.autograd.grad(truncated_svd(matrix, 1)[0, 0, 1], matrix)[0][0]
    assert gradient[0, 1] == pytest.approx(1 / (1 - 0.99)) and gradient[1, 0] == pytest.approx(0.99**0.5 / (1 - 0.99))


def test_joint_with_the_gradient_through_the_svd_is_autograds():
    net = supernet(("svd", "svd_in", "spatial"))
    method = Joint(net, F.cross_entropy, sampling=Fixed(net.space, CHOICES), gradient="svd", rescale=False)
    # autograd through torch's SVD of the same foldings, in a network of its own
    model = copy.deepcopy(net.model)
    parameters = dict(model.named_parameters())
    lowered = dict(parameters)
    for name, kind, rank in CHOICES.choices:
        site = net.sites[name]
        matrix = FOLDINGS[kind].fold(site, parameters[f"{name}.weight"].reshape(site.shape))
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        low = (u[..., : rank[0]] * s[:, None, : rank[0]]) @ vh[:, : rank[0]]
        lowered[f"{name}.weight"] = FOLDINGS[kind].unfold(site, low).reshape(parameters[f"{name}.weight"].shape)
    inputs, targets = batch()
    total = 0.5 * F.cross_entropy(functional_call(model, parameters, (inputs,)), targets)
    total = total + 0.5 * F.cross_entropy(functional_call(model, lowered, (inputs,)), targets)
    expected = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))
    value = method.loss(batch())
    assert value.detach() == pytest.approx(float(total.detach()), rel=1e-10)
    found = gradients(net, value)
    for name, kind, rank in CHOICES.choices:  # the clip must not be at work in this comparison
        matrix = FOLDINGS[kind].fold(net.sites[name], net.weight(name).detach().reshape(net.sites[name].shape))
        sigma = torch.linalg.svdvals(matrix)[0]
        assert rank[0] == len(sigma) or (sigma[rank[0]] / sigma[rank[0] - 1]) ** 2 < 0.99
    assert all(close(found[name], g, 1e-7) for name, g in expected.items())


def test_gradient_through_the_svd_refuses_types_without_one():
    net = supernet()
    with pytest.raises(InvalidArgument, match=r"tiled_svd, tucker2.*projection"):
        Joint(net, F.cross_entropy, sampling=UniformCost(net.space), gradient="svd")
    Joint(net, F.cross_entropy, gradient="svd")  # the default sampling is of one SVD folding


def test_joint_draws_by_ratio_and_follows_the_weights():
    net = supernet()
    method = make("joint", net)
    assert isinstance(method.sampling, Ratio) and (method.sampling.low, method.sampling.high) == (0.01, 1.0)
    sigma = method.state_dict()["sampling"]["sigma"]
    steps(method, optimizer_of(net), 1, 19)
    assert method.state_dict()["sampling"]["sigma"] == sigma
    steps(method, optimizer_of(net), 20, 20)
    now = method.state_dict()["sampling"]["sigma"]
    assert now != sigma
    assert np.allclose(now[1], torch.linalg.svdvals(net.weight("3").detach().flatten(1)).numpy())
