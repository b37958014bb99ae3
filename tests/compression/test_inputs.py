"""Whatever a user's model does and a user's batches are: nothing of theirs changes, and answers are those of plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ranksearch import compress
from ranksearch.compression import Compressed
from ranksearch.errors import EmptySpace, InvalidArgument, InvalidModel, RanksearchWarning
from ranksearch.space import mixture, svd_only
from ranksearch.statistics import statistics
from ranksearch.tasks import Agreement

CHEAP: dict[str, Any] = {"rules": ["fisher_relative", "energy_weight"], "finish": 0, "distill": 4}


def layers(last: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, last)).eval()


def batches(count: int = 10, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*(shape or (16, 16)), generator=generator) for _ in range(count)]


class Around(nn.Module):
    """A network within another."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.inner, self._forward = layers(), forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self.inner, x)


def alike(one: Compressed, other: Compressed) -> bool:
    return one.configuration == other.configuration and one.chosen.least == pytest.approx(other.chosen.least, rel=1e-5)


def test_no_gradient_reaches_what_made_the_batches() -> None:
    backbone, plain = nn.Linear(16, 16), batches()
    made = [backbone(x) for x in plain]
    found = compress(layers(), made, params=0.5, **CHEAP)
    assert backbone.weight.grad is None and found.chosen.distill == 4
    assert alike(found, compress(layers(), [x.detach() for x in made], params=0.5, **CHEAP))
    made[0].sum().backward()  # its graph is whole
    leaves = [x.clone().requires_grad_() for x in plain]
    compress(layers(), leaves, params=0.5, **CHEAP)
    assert all(leaf.grad is None for leaf in leaves)


def test_a_model_that_changes_its_input_in_place_leaves_the_batches_as_they_are() -> None:
    def less(inner: nn.Module, x: Tensor) -> Tensor:
        x -= 3.0
        return inner(x)

    given = [x + 3 for x in batches()]
    before = copy.deepcopy(given)
    found = compress(Around(less), given, params=0.5, **CHEAP)
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))
    assert alike(found, compress(Around(lambda inner, x: inner(x - 3.0)), given, params=0.5, **CHEAP))


def test_buffers_that_a_model_writes_when_it_runs_stay() -> None:
    class Counts(Around):
        def __init__(self) -> None:
            super().__init__(lambda inner, x: inner(x))
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += len(x)
            return super().forward(x)

    model = Counts()
    for data in (batches(), Agreement(batches(), batches(2), model)):
        compress(model, data, params=0.5, **CHEAP)
        assert float(model.seen) == 0


def test_within_autocast_it_comes_to_what_it_comes_to_outside() -> None:
    """Which keeps casts of weights, so that fits seemed to do nothing."""
    options = {"rules": ["energy_weight"], "finish": 0, "distill": 8}
    plain = compress(layers(), batches(), params=0.5, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = compress(layers(), batches(), params=0.5, **options)
    assert alike(within, plain) and within.chosen.reconstructed == pytest.approx(plain.chosen.reconstructed, rel=1e-5)


def test_a_model_with_an_autocast_of_its_own_learns() -> None:
    """Its casts of weights must not outlive what is written into these."""

    def cast(inner: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return inner(x).float()

    options = {"rules": ["energy_weight"], "reconstruction": 0, "finish": 0, "distill": 16}
    found, plain = (compress(model, batches(), params=0.5, **options).chosen for model in (Around(cast), layers()))
    assert found.distilled == pytest.approx(plain.distilled, rel=0.2) and found.distilled < 0.8 * found.loss


@pytest.mark.parametrize(
    "answers",
    [
        lambda y: {"out": y}, lambda y: (None, y), lambda y: {"deep": [{"er": y}]}, lambda y: (y.argmax(1), y),
        lambda y: (y, y.square().mean()),
    ],
    ids=["mapping", "none first", "nested", "classes first", "a loss beside it"],
)  # fmt: skip
def test_outputs_in_any_container_are_compared_as_the_tensor_alone(answers: Callable[[Tensor], Any]) -> None:
    found = compress(Around(lambda inner, x: answers(inner(x))), batches(), params=0.5, **CHEAP)
    assert alike(found, compress(Around(lambda inner, x: inner(x)), batches(), params=0.5, **CHEAP))


def test_all_outputs_count() -> None:
    """Were the first alone compared, nothing would keep the other one's layers."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = layers(), layers()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(x), self.two(x)

    model, unseen = Heads(), torch.randn(256, 16)
    found = compress(model, batches(), params=0.6, rules=["fisher_relative"], finish=0, distill=0)
    with torch.no_grad():
        errors = [
            float((mine - wanted).square().mean() / wanted.square().mean())
            for mine, wanted in zip(found.model(unseen), model(unseen), strict=True)
        ]
    assert max(errors) < 5 * min(errors), "both are the same network"


@pytest.mark.parametrize("size", [1, 16])
def test_norms_of_one_value_per_channel(size: int) -> None:
    """DeepLab's image pooling has a norm behind it; and the third of several batches may hold one example."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
            self.point, self.other = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
            self.last = nn.Conv2d(32, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x)).relu()
            pooled = self.other(self.point(x.mean((2, 3), keepdim=True))).relu()
            return self.last(torch.cat([x, pooled.expand(-1, -1, *x.shape[2:])], 1))

    given = batches(10, size, 3, 8, 8)
    given[2] = given[2][:1]
    model = Pooled().eval()
    before = copy.deepcopy(model.state_dict())
    found = compress(model, given, params=0.5, **CHEAP)
    assert found.chosen.reconstructed < float("inf")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_single_example_of_any_shape_is_not_cut() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 7)

        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            return self.three(adjacency @ self.two((adjacency @ self.one(x)).relu()).relu())

    model, one = Graph(), [(torch.randn(40, 16), torch.rand(40, 40).softmax(1))]
    found = compress(model, Agreement(one, one, model, batch_dim=None), params=0.5, **CHEAP)
    assert found.chosen.reconstructed <= found.chosen.loss


def test_classes_that_are_ruled_out_are_left_out_of_the_divergence() -> None:
    def masked(value: float) -> Compressed:
        model = Around(lambda inner, x: inner(x).masked_fill(torch.arange(8) > 5, value))
        task = Agreement(batches(), batches(2), model, axis=1)
        return compress(model, task, params=0.5, rules=["energy_weight"], finish=0, distill=0)

    assert alike(masked(float("-inf")), masked(-1e4))
    numbers = compress(Around(lambda inner, x: inner(x).masked_fill(torch.arange(8) > 5, float("-inf"))), batches(), params=0.5, **CHEAP)
    assert numbers.chosen.reconstructed < numbers.chosen.loss < float("inf")


@pytest.mark.parametrize("scale", [1e-16, 1e16])
def test_the_distance_has_no_scale(scale: float) -> None:
    def scaled(by: float) -> Compressed:
        model = layers().double()
        with torch.no_grad():
            model[4].weight.mul_(by)
            model[4].bias.mul_(by)
        return compress(model, [x.double() for x in batches()], params=0.5, rules=["frobenius"], finish=0, distill=0)

    found, plain = scaled(scale), scaled(1.0)
    assert found.chosen.loss == pytest.approx(plain.chosen.loss, rel=1e-6)


def test_where_no_loss_is_finite_it_says_so() -> None:
    given = batches()
    given[-1][0, 0] = float("nan")
    with pytest.warns(RanksearchWarning, match="no network has a finite loss"):
        compress(layers(), given, params=0.5, **CHEAP)


def test_a_space_may_be_named() -> None:
    one, other = (compress(layers(), batches(), params=0.5, space=space, **CHEAP) for space in ("svd_only", svd_only()))
    assert alike(one, other)
    with pytest.raises(InvalidArgument, match=r"space='svd'.*svd_only"):
        compress(layers(), batches(), params=0.5, space="svd", **CHEAP)
    with pytest.raises(InvalidArgument, match=r"latency=0.5 is neither.*Latency"):
        compress(layers(), batches(), latency=0.5, **CHEAP)


def test_weights_made_in_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = layers()
    with pytest.raises(InvalidModel, match="inference_mode"):
        compress(model, batches(), params=0.5, **CHEAP)
    assert compress(copy.deepcopy(model), batches(), params=0.5, **CHEAP).chosen.least < float("inf")


@pytest.mark.parametrize("rules", [None, ["fisher", "uniform"]])
def test_nothing_to_factorize_is_said_at_once(rules: list[str] | None) -> None:
    with pytest.raises(EmptySpace, match="loosen include/exclude"):
        compress(layers(), batches(), params=0.9, space=mixture().replace(exclude="*"), rules=rules)


def test_a_rule_whose_moments_cannot_be_made_has_a_note_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "machine_memory", lambda: 100.0)
    found = compress(layers(), batches(), params=0.5, rules=["uniform", "activation", "balf"], reconstruction=0, finish=0, distill=0)
    assert found.chosen.rule == "uniform"
    assert [one.rule for one in found.tried if one.note] == ["activation", "balf"]
