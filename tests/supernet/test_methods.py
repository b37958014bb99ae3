"""The contract that every training method keeps, in a loop of one's own, and each method's loss and gradient against an
independent dense computation in float64."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.decompositions.folding import FOLDINGS, MODES
from ranksearch.errors import InvalidArgument
from ranksearch.sites import find_sites
from ranksearch.space import DENSE, Configuration, SearchSpace, build_space, named
from ranksearch.space.spectra import Spectra
from ranksearch.supernet import RankSupernet
from ranksearch.supernet.methods import METHODS, TRP, Distortion, Joint, LossModule, Method, Plain, Regularized, Sandwich, sized
from ranksearch.supernet.methods.joint import truncated_svd
from ranksearch.supernet.methods.regularized import nuclear_norm
from ranksearch.supernet.sampling import Ratio, Sampling, SmallRank, UniformCost

KINDS = ("svd", "svd_in", "spatial", "spatial_t", "tucker2", "tiled_svd", "decoupled")
NORM = "1"  # the batch norm's path


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Tanh(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(12, 12, 3, padding=1), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    ).double()  # fmt: skip


def supernet(kinds: tuple[str, ...] = KINDS, **options: Any) -> RankSupernet:
    model = network()
    spectra = Spectra(model, find_sites(model, torch.zeros(1, 3, 8, 8).double()), named(*kinds))
    return RankSupernet(model, build_space(spectra), spectra=spectra, **options)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 3, 8, 8, generator=generator).double(), torch.randint(5, (16,), generator=generator)


class Fixed(Sampling):
    """Draws one given configuration."""

    name = "fixed"

    def __init__(self, space: SearchSpace, configuration: Configuration) -> None:
        super().__init__(space)
        self.configuration = configuration

    def draw(self, generator: np.random.Generator) -> Configuration:
        return self.configuration

    def smallest(self) -> Configuration:
        return self.configuration


def gradients(net: RankSupernet, loss: Tensor) -> dict[str, Tensor]:
    net.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in net.model.named_parameters() if p.grad is not None}


def oracle(net: RankSupernet, data: tuple[Tensor, Tensor], weights: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the plain model in training mode with some weights replaced by leaves."""
    model = copy.deepcopy(net.model)
    leaves = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    leaves |= {name: w.detach().clone().requires_grad_() for name, w in (weights or {}).items()}
    loss = F.cross_entropy(functional_call(model, leaves, (data[0],)), data[1])
    found = torch.autograd.grad(loss, list(leaves.values()))
    return loss.detach(), dict(zip(leaves, found, strict=True))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1e-12))


# ---- the contract ---------------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "trp": {"period": 3, "loss_of_energy": 0.1},
    "distortion": {"period": 3, "schedule": "linear", "steps": 8},
    "regularized": {"every": 3, "strength": 1e-2},
}


def make(name: str, net: RankSupernet, *, seed: int = 0, **options: Any) -> Method:
    return METHODS[name](net, F.cross_entropy, seed=seed, **(SETTINGS.get(name, {}) | options))


def optimizer_of(net: RankSupernet) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def steps(method: Method, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    found = []
    for step in range(first, last + 1):
        optimizer.zero_grad()
        loss = method.loss(batch(step))
        loss.backward()
        optimizer.step()
        method.after_step(step)
        found.append(float(loss.detach()))
    return found


def test_the_table_has_every_method_once():
    assert {"plain", "joint", "sandwich", "trp", "distortion", "regularized"} <= set(METHODS)
    assert all(METHODS[name].name == name for name in METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_training_lowers_the_loss_in_a_loop_of_ones_own(name):
    net = supernet()
    method, data = make(name, net), batch()
    optimizer = optimizer_of(net)
    before = float(method.dense(data).detach())
    for step in range(1, 25):
        optimizer.zero_grad()
        method.loss(data).backward()
        optimizer.step()
        method.after_step(step)
    assert float(method.dense(data).detach()) < 0.95 * before


@pytest.mark.parametrize("name", METHODS)
def test_the_seed_decides_everything(name):
    runs = []
    for seed in (5, 5, 6):
        net = supernet()
        runs.append((steps(make(name, net, seed=seed), optimizer_of(net), 1, 5), net.weight("3").detach().clone()))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    if name in ("joint", "sandwich"):  # the methods that draw
        assert runs[0][0] != runs[2][0]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("done", [2, 3])  # with period 3: one step before what the method does, and right after it
def test_a_restored_run_goes_on_as_if_it_had_not_stopped(name, done):
    net = supernet(refresh=1)
    method, optimizer = make(name, net), optimizer_of(net)
    steps(method, optimizer, 1, done)
    state = method.state_dict()
    tensors = {k: v.clone() for k, v in state.items() if isinstance(v, Tensor)}
    plain = json.loads(json.dumps({k: v for k, v in state.items() if k not in tensors}))  # all the rest is JSON
    weights, momentum = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    expected = steps(method, optimizer, done + 1, 8)

    other = supernet(refresh=1)
    resumed, optimizer = make(name, other, seed=99), optimizer_of(other)
    other.load_state_dict(weights)
    optimizer.load_state_dict(momentum)
    resumed.load_state_dict(plain | tensors)
    assert steps(resumed, optimizer, done + 1, 8) == expected
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_a_state_of_another_method_is_refused(name):
    method = make(name, supernet())
    with pytest.raises(InvalidArgument, match=f"'another'.*{name}"):
        method.load_state_dict(method.state_dict() | {"method": "another"})


@pytest.mark.parametrize("name", METHODS)
def test_nan_surfaces(name):
    net = supernet()
    method = make(name, net)
    inputs, targets = batch()
    inputs[0, 0, 0, 0] = float("nan")
    loss = method.loss((inputs, targets))
    assert loss.isnan()
    loss.backward()
    assert net.weight("3").grad.isnan().any()


@pytest.mark.parametrize("name", METHODS)
def test_every_step_is_counted_by_the_supernet(name):
    net = supernet()
    calls: list[int] = []
    original = net.tick
    net.tick = lambda: (calls.append(1), original())[1]
    steps(make(name, net), optimizer_of(net), 1, 4)
    assert len(calls) == 4


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_a_module_for_wrappers_of_forward(name):
    net, twin = supernet(), supernet()
    module = make(name, net).module()
    assert isinstance(module, LossModule)
    assert {id(p) for p in module.parameters()} == {id(p) for p in net.parameters()}
    a, b = module(*batch()), make(name, twin).loss(batch())
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", METHODS)
def test_inputs_may_be_positional_or_by_keyword(name):
    inputs, targets = batch()
    losses = [make(name, supernet()).loss((given, targets)) for given in (inputs, (inputs,), {"input": inputs})]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("plain", {"seed": -1}, "seed=-1: must be a whole number"),
    ("joint", {"weight": 1.0}, "weight=1.0: must be a finite number above 0 and below 1"),
    ("joint", {"weight": float("nan")}, "weight=nan"),
    ("joint", {"gradient": "full"}, "gradient='full' is none of projection, svd"),
    ("sandwich", {"random": -1}, "random=-1"),
    ("sandwich", {"weight": 0}, "weight=0: must be a finite number above 0"),
    ("trp", {"folding": "rows"}, "folding='rows' is none of channel, spatial, decoupled"),
    ("trp", {"period": 0}, "period=0"),
    ("trp", {"loss_of_energy": 1.0}, "loss_of_energy=1.0"),
    ("trp", {"nuclear": -1e-4}, "nuclear=-0.0001"),
    ("trp", {"sites": ("nowhere",)}, "site='nowhere' is not a site"),
    ("trp", {"sites": ()}, "sites: none is left"),
    ("distortion", {"decomposition": "cp"}, "decomposition='cp' is none of tucker2, svd, tiled_svd"),
    ("distortion", {"ratio": 0.0}, "ratio=0.0"),
    ("distortion", {"period": 1.5}, "period=1.5"),
    ("distortion", {"schedule": "cosine"}, "schedule='cosine' is none of constant, linear"),
    ("distortion", {"schedule": "linear", "steps": None}, "steps=None.*linear"),
    ("distortion", {"ramp": 2.0}, "ramp=2.0"),
    ("distortion", {"target": DENSE}, "target: it is the dense network"),
    ("distortion", {"target": Configuration({"9": ("tucker2", (1, 1))})}, "target: tucker2 is not defined for '9'"),
    ("regularized", {"strength": 0.0}, "strength=0.0"),
    ("regularized", {"form": "exact"}, "form='exact' is none of gram, subgradient"),
    ("regularized", {"every": 0}, "every=0"),
    ("regularized", {"modes": {"depth": 1.0}}, "modes=.*out, in, height, width"),
    ("regularized", {"modes": {"out": -1.0}}, "modes\\['out'\\]=-1.0"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_hyper_parameters_out_of_range_are_refused(name, options, message):
    seed = options.get("seed", 0)
    with pytest.raises(InvalidArgument, match=message):
        make(name, supernet(), **{**options, "seed": seed})


def test_a_loss_that_cannot_be_called_is_refused():
    with pytest.raises(InvalidArgument, match="loss=3: must be callable"):
        Plain(supernet(), 3)  # type: ignore[arg-type]


# ---- plain ----------------------------------------------------------------------------------------------------------


def test_plain_is_the_models_own_loss_and_gradient():
    net = supernet()
    loss, expected = oracle(net, batch())
    value = make("plain", net).loss(batch())
    assert torch.equal(value.detach(), loss)
    found = gradients(net, value)
    assert all(torch.equal(found[name], g) for name, g in expected.items())


# ---- joint ----------------------------------------------------------------------------------------------------------

CHOICES = Configuration({"0": ("svd", (2,)), "3": ("spatial", (5,)), "5": ("svd_in", (4,)), "9": ("svd", (3,))})


def projector(kind: str, weight: Tensor, rank: int) -> tuple[Tensor, Any]:
    """The low-rank weight, and g -> the gradient with the singular vectors of the shorter side held fixed."""
    o, i, kh, kw = weight.shape if weight.ndim == 4 else (*weight.shape, 1, 1)
    blocks = weight.reshape(o, i, kh, kw)
    order = {"svd": (0, 1, 2, 3), "svd_in": (0, 2, 3, 1), "spatial": (0, 2, 1, 3), "spatial_t": (0, 3, 1, 2)}[kind]
    rows = {"svd": 1, "svd_in": 3, "spatial": 2, "spatial_t": 2}[kind]

    def fold(w: Tensor) -> Tensor:
        w = w.reshape(o, i, kh, kw).permute(order)
        return w.reshape(int(np.prod(w.shape[:rows])), -1)

    def unfold(m: Tensor) -> Tensor:
        shape = [(o, i, kh, kw)[a] for a in order]
        back = [order.index(a) for a in range(4)]
        return m.reshape(shape).permute(back).reshape(weight.shape)

    matrix = fold(blocks)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    low = unfold((u[:, :rank] * s[:rank]) @ vh[:rank])

    def project(g: Tensor) -> Tensor:
        g = fold(g)
        return unfold(u[:, :rank] @ (u[:, :rank].mT @ g) if matrix.shape[0] <= matrix.shape[1] else (g @ vh[:rank].mT) @ vh[:rank])

    return low, project


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
    from ranksearch.supernet.methods.joint import fork

    weight = torch.randn(4, 3).double().requires_grad_()
    a, b = torch.randn(2, 4, 3).double()
    full, low = fork(weight, 0.25)
    parts = [0.75 * (full * a).sum(), 0.25 * (low * b).sum()]
    sum(parts if order else parts[::-1]).backward()
    assert close(weight.grad, 0.75 * a + 0.25 * b * a.norm() / b.norm())


def test_a_low_rank_gradient_of_zero_stays_zero():
    from ranksearch.supernet.methods.joint import fork

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


# ---- sandwich -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("random", [0, 1, 3])
def test_sandwich_distils_the_dense_network_into_smaller_ones(random):
    net = supernet()
    method = Sandwich(net, F.cross_entropy, sampling=SmallRank(net.space), random=random, weight=0.7, seed=3)
    generator = np.random.default_rng(3)
    configurations = [method.sampling.smallest(), *(method.sampling.draw(generator) for _ in range(random))]
    inputs, targets = batch()
    model = copy.deepcopy(net.model)
    outputs = model(inputs)
    soft = outputs.detach().softmax(1)
    total = F.cross_entropy(outputs, targets)
    for configuration in configurations:
        student = supernet().extract(configuration).train()(inputs)
        total = total + 0.7 * F.cross_entropy(student, soft)
    value = method.loss(batch())
    assert value.detach() == pytest.approx(float(total.detach()), rel=1e-9)


def test_the_teacher_gets_no_gradient_from_its_students():
    net = supernet()
    configuration = Configuration({name: (kind, rank) for name, kind, rank in CHOICES.choices})
    method = Sandwich(net, F.cross_entropy, sampling=Fixed(net.space, configuration), random=0)
    _, g = oracle(net, batch())
    lows, projections = {}, {}
    for name, kind, rank in configuration.choices:
        lows[f"{name}.weight"], projections[f"{name}.weight"] = projector(kind, net.weight(name).detach(), rank[0])
    soft = copy.deepcopy(net.model)(batch()[0]).detach().softmax(1)
    _, g_low = oracle(net, (batch()[0], soft), lows)
    found = gradients(net, method.loss(batch()))
    for name, dense in g.items():
        assert close(found[name], dense + (projections[name](g_low[name]) if name in projections else g_low[name])), name


def test_other_outputs_need_a_distillation_of_their_own():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.body(x)
            return y, y.mean()

    model = Pair()
    spectra = Spectra(model, find_sites(model, torch.zeros(1, 3, 8, 8).double()), named("svd"))
    net = RankSupernet(model, build_space(spectra), spectra=spectra)
    loss = lambda outputs, targets: F.cross_entropy(outputs[0], targets)  # noqa: E731
    with pytest.raises(InvalidArgument, match=r"answers with tuple, not logits.*distillation"):
        Sandwich(net, loss).loss(batch())
    method = Sandwich(net, loss, distillation=lambda outputs, teacher: F.mse_loss(outputs[0], teacher[0]))
    assert method.loss(batch()).isfinite()


# ---- trp ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folding", ["channel", "spatial", "decoupled"])
def test_trp_truncates_by_energy_and_adds_the_nuclear_subgradient_once(folding):
    net = supernet()
    method = TRP(net, F.cross_entropy, folding=folding, period=2, loss_of_energy=0.3, nuclear=0.01)
    assert method.sites == ("3", "5")  # neither the first convolution nor the linear layer
    optimizer = optimizer_of(net)
    steps(method, optimizer, 1, 1)
    before = {name: net.weight(name).detach().clone() for name in ("0", "3", "5", "9")}
    method.after_step(2)
    assert torch.equal(net.weight("0"), before["0"]) and torch.equal(net.weight("9"), before["9"])
    subgradient = {}
    for name in ("3", "5"):
        weight = before[name]
        o, i, kh, kw = weight.shape
        spatial = weight.permute(1, 2, 0, 3).reshape(1, i * kh, o * kw)
        rows = {"channel": weight.reshape(1, o, -1), "spatial": spatial, "decoupled": weight.flatten(2)}
        u, s, vh = torch.linalg.svd(rows[folding], full_matrices=False)
        kept = s.square().sum(0).cumsum(0) / s.square().sum()
        rank = int((kept < 0.7).sum()) + 1
        assert 1 <= rank < s.shape[1]

        def back(m: Tensor, shape: tuple[int, ...] = (o, i, kh, kw)) -> Tensor:
            o, i, kh, kw = shape
            return m.reshape(i, kh, o, kw).permute(2, 0, 1, 3) if folding == "spatial" else m.reshape(shape)

        assert close(net.weight(name).detach(), back((u[..., :rank] * s[:, None, :rank]) @ vh[:, :rank]))
        subgradient[f"{name}.weight"] = 0.01 * back(u[..., :rank] @ vh[:, :rank])
        assert method.ranks[name] == rank
    loss, g = oracle(net, batch(7))
    value = method.loss(batch(7))
    nuclear = sum(float((w * net.model.get_parameter(n).detach()).sum()) for n, w in subgradient.items())
    folded = [FOLDINGS[method.decomposition].fold(net.sites[n], net.weight(n).detach()) for n in ("3", "5")]
    norms = sum(float(torch.linalg.svdvals(m).sum()) for m in folded)
    assert nuclear == pytest.approx(0.01 * norms)  # at the truncated weight the term is the nuclear norm
    assert float(value.detach() - loss) == pytest.approx(nuclear)
    found = gradients(net, value)
    assert all(close(found[n], w + subgradient.get(n, 0.0), 1e-8) for n, w in g.items())
    method.after_step(3)  # no truncation: the term is gone
    assert torch.equal(method.loss(batch(7)).detach(), loss)


def test_trp_final_ranks_are_on_the_ladders():
    net = supernet()
    method = TRP(net, F.cross_entropy, period=1, loss_of_energy=0.6)
    steps(method, optimizer_of(net), 1, 3)
    configuration = method.configuration()
    net.space.indices(configuration)
    for name in method.sites:
        kind, rank = configuration[name]
        sigma = torch.linalg.svdvals(net.weight(name).detach().flatten(1))
        needed = int((sigma >= 0.05 * sigma[0]).sum())
        assert needed == method.ranks[name]
        assert (kind == "svd" and rank[0] >= needed) or kind == "dense"
    assert configuration.choices


# ---- distortion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tucker2", "svd", "tiled_svd"])
def test_distortion_overwrites_weights_by_their_reconstruction(kind):
    net = supernet()
    method = Distortion(net, F.cross_entropy, decomposition=kind, ratio=0.5, period=3)
    decomposition = next(d for d in DECOMPOSITIONS if d.name == kind)
    optimizer = optimizer_of(net)
    for step in (1, 2, 3):
        steps_before = {s.name: net.weight(s.name).detach().clone() for s in net.sites}
        loss, _ = oracle(net, batch(step))
        optimizer.zero_grad()
        value = method.loss(batch(step))
        assert torch.equal(value.detach(), loss)  # ordinary training between distortions
        value.backward()
        optimizer.step()
        steps_before = {s.name: net.weight(s.name).detach().clone() for s in net.sites}
        method.after_step(step)
        for site in net.sites:
            expected = steps_before[site.name]
            if step == 3 and site.name not in method.untouched:
                rank = method.target[site.name][1]
                state = decomposition.prepare(site, expected.reshape(site.shape))
                expected = decomposition.reconstruct(site, state, rank).reshape(expected.shape)
                assert not close(steps_before[site.name], expected, 1e-3)
            assert close(net.weight(site.name).detach(), expected)
    assert set(method.untouched) == {"svd": set(), "tucker2": {"9"}, "tiled_svd": {"9"}}[kind]
    ratios = {"svd": {"0": (4,), "3": (6,), "5": (6,), "9": (2,)}, "tucker2": {"0": (2, 4), "3": (4, 6), "5": (6, 6)}}
    assert all(method.target[name][1] == rank for name, rank in ratios.get(kind, {}).items())
    if kind == "tiled_svd":
        assert method.target["3"] == ("tiled_svd", (2, 1, 3))


def test_a_linear_schedule_falls_from_full_rank_to_the_target():
    net = supernet()
    target = Configuration({"3": ("tucker2", (2, 4)), "5": ("svd", (3,)), "0": ("tiled_svd", (2, 1, 1))})
    method = Distortion(net, F.cross_entropy, target=target, schedule="linear", steps=100, ramp=0.5, period=10)
    assert method.ranks(0) == {"3": (8, 12), "5": (12,), "0": (2, 1, 4)}
    assert method.ranks(25) == {"3": (5, 8), "5": (8,), "0": (2, 1, 2)}
    assert method.ranks(50) == method.ranks(100) == {"3": (2, 4), "5": (3,), "0": (2, 1, 1)}
    method.after_step(50)
    assert torch.linalg.matrix_rank(net.weight("5").detach().flatten(1)) == 3
    constant = Distortion(net, F.cross_entropy, target=target)
    assert constant.ranks(0) == constant.ranks(10**6) == dict((s, r) for s, _, r in target.choices)


# ---- regularized ----------------------------------------------------------------------------------------------------


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


# ---- mixed precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in METHODS), ("regularized", {"form": "gram"}), ("joint", {"gradient": "svd"})]
)
def test_autocast_changes_no_weight_by_more_than_its_precision(name, options):
    weights = []
    for enabled in (False, True):
        model = network().float()
        spectra = Spectra(model, find_sites(model, torch.zeros(1, 3, 8, 8)), named("svd", "tucker2"))
        net = RankSupernet(model, build_space(spectra), spectra=spectra)
        method, optimizer = make(name, net, **options), optimizer_of(net)
        for step in range(1, 5):
            optimizer.zero_grad()
            inputs, targets = batch(step)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = method.loss((inputs.float(), targets))
                loss.backward()
                optimizer.step()
                method.after_step(step)
            assert loss.isfinite()
        weights.append(torch.cat([p.detach().flatten() for p in net.model.parameters()]))
        assert all(p.dtype == torch.float32 for p in net.model.parameters())
    assert (weights[0] - weights[1]).norm() < 0.05 * weights[0].norm()
