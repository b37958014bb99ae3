"""A supernet at a configuration is the network that it extracts; with the dense one it is the user's model."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import supernet_cases as cases
import torch
from torch import Tensor, nn

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InvalidArgument
from ranksearch.networks import batch_norm, surgery
from ranksearch.sites import find_sites
from ranksearch.space import DENSE, Configuration, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.supernet import PROJECTIONS, RankSupernet
from ranksearch.supernet.network import REFIT


def inputs(count: int = 6) -> Tensor:
    return torch.randn(count, 4, 9, 9, dtype=torch.float64)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def randomize_low(net: RankSupernet) -> None:
    for name, buffer in net.low_buffers.named_buffers():
        if "mean" in name:
            buffer.normal_()
        elif "var" in name:
            buffer.uniform_(0.5, 2.0)


@pytest.mark.parametrize("name", list(PROJECTIONS))
@pytest.mark.parametrize("metric", [False, True])
def test_activated_output_is_the_extracted_networks(name: str, metric: bool) -> None:
    model = cases.Net().double()
    moments = {s.name: cases.moments_of(s) for s in find_sites(model, inputs(1))} if metric else None
    model, _, net = cases.build(model, types=(cases.BY_NAME[name],), moments=moments)
    randomize_low(net)
    net.eval()
    x = inputs()
    for number, configuration in enumerate(cases.configurations(name, net.sites)):
        assert configuration.choices
        net.activate(configuration)
        with torch.no_grad():
            found = net(x)
            assert torch.equal(net(x), found)  # from the kept weights
        extracted = net.extract().eval()
        assert (extracted(x) - found).abs().max() < 1e-9
        assert (net(x) - found).abs().max() < 1e-12  # with gradients
        for site in net.sites:  # what was asked for is what was built
            changed = not isinstance(extracted.get_submodule(site.name), type(model.get_submodule(site.name)))
            assert changed <= (configuration[site.name][0] != "dense")
        with torch.no_grad():  # stale bases: weights have moved since
            for site in net.sites:
                net.weight(site.name).add_(0.05 * torch.randn_like(net.weight(site.name)))
            moved = net(x)
            assert (moved - found).abs().max() > 1e-6
            assert (net.extract().eval()(x) - moved).abs().max() < 1e-9
        if number % 2:
            net.refresh()


def test_a_mixture_of_types_in_training_mode() -> None:
    """Batch statistics too, and the running ones that they leave behind."""
    _, space, net = cases.build()
    x = inputs()
    for row in space.sample(4, seed=3):
        net.activate(space.configuration(row))
        extracted = net.extract()
        net.train(), extracted.train()
        assert (net(x) - extracted(x)).abs().max() < 1e-9
        wanted = dict(extracted.named_buffers())
        for full, name in net._low_names.items():
            assert torch.allclose(net.low_buffers.get_buffer(name).double(), wanted[full].double(), atol=1e-9)


def test_fresh_supernet_is_the_built_network() -> None:
    """In the weight metric: what `surgery.build` makes of the same configuration, of types that are not fitted."""
    model = cases.Net().double()
    cases.randomize(model)
    spectra = Spectra(model, find_sites(model, inputs(1)), CLOSED)
    space = build_space(spectra)
    net = RankSupernet(model, space, spectra=spectra).eval()
    x = inputs()
    for row in space.sample(3, seed=5):
        configuration = space.configuration(row)
        net.activate(configuration)
        assert (net(x) - surgery.build(spectra, configuration).eval()(x)).abs().max() < 1e-9


def test_dense_is_bit_identical_and_the_model_is_never_edited() -> None:
    model, space, net = cases.build(cases.Net(), example=torch.randn(1, 4, 9, 9))
    before, x = state_of(model), torch.randn(6, 4, 9, 9)
    for training in (False, True):
        twin = copy.deepcopy(model).train(training)
        net.train(training)
        for configuration in (DENSE, space.configuration(space.sample(1, 0)[0]), DENSE):
            net.activate(configuration)
            if configuration == DENSE:
                assert torch.equal(net(x), twin(x))
            else:
                net(x).sum().backward()
        for key, value in twin.state_dict().items():
            assert torch.equal(value, net.model.state_dict()[key])  # low-rank passes leave the dense statistics alone
    with torch.no_grad():
        net.weight("first").zero_()
    net.extract(space.configuration(space.sample(1, 1)[0]))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_gradient_reaches_the_dense_weight_through_the_projector() -> None:
    """Against autograd through the dense network at W_r: dL/dW = U_r U_r^T dL/dW_r."""
    _, _, net = cases.build()
    configuration = cases.configurations("svd", net.sites)[2]
    x = inputs()
    net.eval().activate(configuration)
    net(x).square().sum().backward()
    twin = net.extract(DENSE).eval()
    for full, name in net._low_names.items():
        twin.get_buffer(full).copy_(net.low_buffers.get_buffer(name))
    for choice in net.choices(configuration):
        twin.get_submodule(choice.site.name).weight.data.copy_(net.low_weight(choice))
    twin(x).square().sum().backward()
    for choice in net.choices(configuration):
        g = twin.get_submodule(choice.site.name).weight.grad
        weight = net.weight(choice.site.name)
        groups = choice.site.groups
        bases = net.bases(choice)
        side = bases.sides[0]
        p = side.out[..., : choice.rank[0]] @ side.into[:, : choice.rank[0]]
        folded = g.reshape(groups, choice.site.c_out // groups, -1)
        wanted = p @ folded if bases.left else folded @ p.mT
        assert (weight.grad - wanted.reshape(weight.shape)).abs().max() < 1e-9


def test_through_takes_the_place_of_the_weights() -> None:
    _, space, net = cases.build()
    configuration, x = space.configuration(space.sample(1, 2)[0]), inputs()
    net.eval()
    through = {site.name: net.weight(site.name).detach().clone().requires_grad_() for site in net.sites}
    out = net.forward_with(configuration, x, through=through)
    assert torch.equal(out, net.forward_with(configuration, x))
    out.square().sum().backward()
    assert all(net.weight(name).grad is None and tensor.grad is not None for name, tensor in through.items())
    scaled = {name: 2 * tensor.detach() for name, tensor in through.items()}
    assert not torch.allclose(net.forward_with(DENSE, x, through=scaled), net.forward_with(DENSE, x))
    low = {choice.site.name: net.low_weight(choice) for choice in net.choices(configuration)}
    assert torch.equal(net.forward_with(configuration, x, through=low, projected=True), out)
    few = dict(list(low.items())[:2])  # the others are projected here
    assert torch.equal(net.forward_with(configuration, x, through=few, projected=True), out)
    assert net.active == DENSE
    assert all(isinstance(net.model.get_submodule(site.name).weight, nn.Parameter) for site in net.sites)
    with torch.inference_mode():
        net.refresh()
        net.forward_with(configuration, x)
    net.forward_with(configuration, x).sum().backward()  # such bases serve training too


def test_kept_weights_follow_every_change() -> None:
    _, _, net = cases.build()
    one, two = cases.configurations("svd", net.sites)[:2]
    x = inputs()
    net.eval().requires_grad_(False)

    def check() -> Tensor:
        with torch.no_grad():
            found = net(x)
        with torch.enable_grad():
            net.requires_grad_(True)
            fresh = net(x).detach()  # never from the kept ones
            net.requires_grad_(False)
        assert torch.equal(found, fresh)
        return found

    net.activate(one)
    first = check()
    net.activate(two)
    assert not torch.equal(check(), first)
    net.activate(one)
    assert torch.equal(check(), first)
    with torch.no_grad():
        net.weight("first").mul_(1.5)
    second = check()
    assert not torch.equal(second, first)
    with torch.no_grad():
        net.weight("first").add_(torch.randn_like(net.weight("first")))
    third = check()
    net.refresh()
    assert not torch.equal(check(), third)  # other bases
    state = state_of(net)
    with torch.no_grad():
        net.weight("hidden").zero_()
    fourth = check()
    net.load_state_dict(state)
    assert not torch.equal(check(), fourth)


def test_ticks_refresh() -> None:
    _, _, net = cases.build(refresh=3)
    (configuration,) = cases.configurations("svd", net.sites, count=0)[:1]
    (choice, *_) = net.choices(configuration)
    first = net.bases(choice)
    net.tick(), net.tick()
    assert net.bases(choice) is first
    net.tick()
    assert net.bases(choice) is not first


def test_bases_travel_in_a_checkpoint() -> None:
    _, space, net = cases.build()
    configuration, x = space.configuration(space.sample(1, 4)[0]), inputs()
    net.eval().activate(configuration)
    net(x)
    net.tick()
    with torch.no_grad():
        net.weight("first").add_(torch.randn_like(net.weight("first")))
    other = copy.deepcopy(net)
    tensors, state = net.bases_state()
    other.load_state_dict(net.state_dict())
    other.load_bases_state({k: v.clone() for k, v in tensors.items()}, state)
    assert torch.equal(net(x), other(x))
    net.tick(), other.tick()
    assert torch.equal(net(x), other(x))


def test_recalibration_is_that_of_the_extracted_network() -> None:
    _, space, net = cases.build()
    batches = [inputs(8) for _ in range(3)]
    dense = {k: v.clone() for k, v in net.model.named_buffers()}
    for row in space.sample(2, seed=6):
        net.activate(space.configuration(row))
        extracted = net.extract()
        assert net.recalibrate(iter(batches)) == batch_norm.recalibrate(extracted, batches) == 3
        assert (net.eval()(batches[0]) - extracted.eval()(batches[0])).abs().max() < 1e-9
    assert all(torch.equal(v, dense[k]) for k, v in net.model.named_buffers())
    net.activate(DENSE)
    low = {k: v.clone() for k, v in net.low_buffers.named_buffers()}
    twin = net.extract()
    batch_norm.recalibrate(twin, batches)
    net.recalibrate(batches)
    assert torch.equal(net(batches[0]), twin.eval()(batches[0]))
    assert all(torch.equal(v, low[k]) for k, v in net.low_buffers.named_buffers())


CLOSED = tuple(d for d in cases.TYPES if d.name == "dense" or not PROJECTIONS[d.name].fitted)  # bases a function of the weights alone


def test_state_dict_covers_weights_and_both_sets_of_statistics() -> None:
    _, space, net = cases.build(types=CLOSED)
    randomize_low(net)
    other = cases.build(types=CLOSED)[2]
    other.load_state_dict(net.state_dict())
    x = inputs()
    for configuration in (DENSE, space.configuration(space.sample(1, 7)[0])):
        net.eval().activate(configuration), other.eval().activate(configuration)
        assert torch.equal(net(x), other(x))
    again = pickle.loads(pickle.dumps(net))
    assert torch.equal(again(x), net(x))


class Sequence(nn.Module):
    """A tied embedding, a convolution in one dimension that is used twice, and a layer with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.same = self.conv
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 20)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens).transpose(1, 2)
        x = torch.tanh(self.norm(self.same(torch.tanh(self.conv(x)))))
        return self.head(x.transpose(1, 2))


def test_tied_and_repeated_layers() -> None:
    tokens = torch.randint(20, (3, 6))
    _, _, net = cases.build(Sequence().double(), example=tokens[:1])
    assert {site.name for site in net.sites} == {"table", "conv"}
    net.eval()
    for name in ("svd", "svd_in", "tucker2", "grouped_svd", "decoupled", "tiled_svd"):
        for configuration in cases.configurations(name, net.sites, count=1):
            net.activate(configuration)
            assert (net(tokens) - net.extract().eval()(tokens)).abs().max() < 1e-9
    net.activate(Configuration({"same": ("svd", (2,))}))  # by its other name
    assert (net(tokens) - net.extract().eval()(tokens)).abs().max() < 1e-9


def test_a_model_that_is_one_layer() -> None:
    x = torch.randn(5, 7, dtype=torch.float64)
    _, _, net = cases.build(nn.Linear(7, 6).double(), example=x[:1])
    net.activate(Configuration({"": ("svd", (2,))}))
    assert (net(x) - net.extract()(x)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"nowhere": ("svd", (1,))}, "not a site"),
        ({"first": ("tensor_ring", (1, 1, 1))}, "no projection"),
        ({"first": ("svd", (99,))}, "widths"),
        ({"hidden": ("spatial", (1,))}, "not defined"),
    ],
)
def test_what_cannot_be_activated_is_refused(choices: dict[str, Any], message: str) -> None:
    assert "tensor_ring" in {d.name for d in DECOMPOSITIONS}
    net = cases.build()[2]
    with pytest.raises(InvalidArgument, match=message):
        net.activate(Configuration(choices))
    assert net.active == DENSE


def test_fitted_bases_wait_longer_and_go_on_from_where_they_were() -> None:
    """A tick drops what is a function of the weights; CP kernels stay until their turn, move with the network, are in the
    state of the bases, and are then fitted to the weights as they are, better than the old ones."""
    net = cases.build(refresh=1)[2]
    configuration = cases.configurations("cp", net.sites)[2]
    (choice, *_) = net.choices(configuration)
    svd = net.choices(cases.configurations("svd", net.sites)[2])[0]
    before, other = net.bases(choice), net.bases(svd)
    with torch.no_grad():
        net.weight(choice.site.name).add_(0.3 * torch.randn_like(net.weight(choice.site.name)))
    net.tick()
    assert net.bases(choice) is before and net.bases(svd) is not other
    assert torch.equal(net.double().bases(choice).sides[0].out, before.sides[0].out)
    tensors, state = net.bases_state()
    twin = copy.deepcopy(net)
    twin.load_bases_state({k: v.clone() for k, v in tensors.items()}, state)
    stale = (net.low_weight(choice) - net.weight(choice.site.name)).norm()
    for _ in range(REFIT):
        net.tick(), twin.tick()
    assert net.bases(choice) is not before
    assert (net.low_weight(choice) - net.weight(choice.site.name)).norm() < stale
    assert torch.equal(net.low_weight(choice), twin.low_weight(choice))
    kept = net.bases(choice)
    net.refresh()
    assert net.bases(choice) is kept, "the weight has not changed: another sweep would make results depend on who asked before"
    assert pickle.loads(pickle.dumps(net)).low_weight(choice).equal(net.low_weight(choice))


def test_bad_arguments() -> None:
    model, space, _ = cases.build()
    spectra = Spectra(model, find_sites(model, inputs(1)), cases.TYPES)
    with pytest.raises(InvalidArgument, match="refresh"):
        RankSupernet(model, space, spectra=spectra, refresh=0)
    with pytest.raises(InvalidArgument, match="not in the model"):
        RankSupernet(nn.Linear(3, 3), space, spectra=spectra)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_autocast(device: str) -> None:
    """Projections stay in the weights' precision; the layers run in bfloat16, gradients arrive in float32."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    net = cases.build(cases.Net(), example=torch.randn(1, 4, 9, 9))[2]
    net = net.to(device).train()
    x = torch.randn(6, 4, 9, 9, device=device)
    configuration = cases.configurations("svd", net.sites)[2]
    with torch.autocast(device, dtype=torch.bfloat16):
        out = net.forward_with(configuration, x)
        assert out.dtype == torch.bfloat16
        for choice in net.choices(configuration):
            assert net.bases(choice).sides[0].out.dtype == torch.float32
            assert net.low_weight(choice).dtype == torch.float32
    out.float().square().sum().backward()
    plain = net.forward_with(configuration, x)
    assert (out.float() - plain).norm() < 0.1 * plain.norm()
    for choice in net.choices(configuration):
        grad = net.weight(choice.site.name).grad
        assert grad is not None and grad.dtype == torch.float32 and bool(torch.isfinite(grad).all())
    net.eval().activate(configuration)
    with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
        assert (net(x).float() - net.extract()(x).float()).norm() < 0.05 * net(x).float().norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", list(PROJECTIONS))
def test_on_a_gpu(name: str) -> None:
    _, _, net = cases.build()
    x = inputs()
    net.eval()
    for configuration in cases.configurations(name, net.sites, count=1):
        net.cpu().activate(configuration)
        wanted = net(x)
        net.cuda()
        assert (net(x.cuda()).cpu() - wanted).abs().max() < 1e-8
        assert (net.extract()(x.cuda()).cpu() - wanted).abs().max() < 1e-8
