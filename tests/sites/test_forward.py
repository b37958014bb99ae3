"""How inputs are passed, what their batch is, and what comes back as it was."""

from __future__ import annotations

import random
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.sites import find_sites, fitted, preserved_modes, run
from ranksearch.sites.forward import batch_size

Pair = namedtuple("Pair", "image scale")


@dataclass(frozen=True)
class Boxed:
    image: Tensor
    name: str


def z(*shape: int) -> Tensor:
    return torch.zeros(shape)


BATCHES = [
    (z(4, 3), 0, 4),
    ((z(4, 3), z(4)), 0, 4),
    ({"positions": torch.arange(20), "tokens": z(2, 20)}, 0, 2),  # what has two dimensions decides
    ({"table": z(9, 3), "x": z(2, 5), "lengths": z(2)}, 0, 2),  # the majority
    (z(20, 3, 8), 1, 3),
    (z(20, 3, 8), -2, 3),
    ({"tokens": z(2, 20), "position_ids": z(1, 20)}, {"tokens": 0}, 2),
    ((z(20, 2), z(2, 5)), {0: 1, 1: 0}, 2),
    (z(20, 3), None, 1),
    ({"nested": [{"x": z(3, 4)}, Pair(z(3, 4), 1.0)], "flag": True}, 0, 3),
]


@pytest.mark.parametrize(("example", "batch_dim", "size"), BATCHES, ids=range(len(BATCHES)))
def test_the_batch(example: Any, batch_dim: Any, size: int) -> None:
    assert batch_size(example, batch_dim) == size


@pytest.mark.parametrize(
    ("example", "batch_dim", "message"),
    [
        ({"a": z(2, 20), "b": z(1, 20)}, 0, r"a has 2, b has 1.*batch_dim=\{'a': 0\}"),
        (z(3), 1, "no such dimension"),
        (z(0, 3), 0, "empty"),
        ({"a": z(2, 3)}, {"b": 0}, "no such tensor for 'b'"),
        ({"a": z(2, 3)}, {"a": 2}, r"shape \(2, 3\) for 'a'"),
        ({"a": z(2, 3), "b": z(3, 3)}, {"a": 0, "b": 0}, "must be one number"),
        ("text", 0, "holds no tensor"),
        (torch.tensor(1.0), 0, "holds no tensor"),
    ],
)
def test_no_one_batch(example: Any, batch_dim: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        batch_size(example, batch_dim)


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.head = nn.TransformerEncoderLayer(16, 2, 32), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encode(x).mean(0))


@pytest.mark.parametrize("batch", [1, 3])
def test_where_the_sequence_comes_first(batch: int) -> None:
    example = torch.randn(20, batch, 16)
    with pytest.raises(InvalidArgument, match="batch_dim"):
        find_sites(SequenceFirst(), example)
    sites = find_sites(SequenceFirst(), example, batch_dim=1)
    assert sites.total.macs == 20 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 20 * 20 * 16 + 16 * 3
    assert sites["head"].positions == 1 and sites["encode.linear1"].positions == 20


def test_inputs_come_to_the_type_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(3, 3)).double()
    given = {"x": z(2, 3), "tokens": torch.zeros(2, dtype=torch.int32), "mask": torch.ones(2, dtype=torch.bool), "both": Pair(z(2), 3.0)}
    made = fitted(given, model)
    assert [made["x"].dtype, made["tokens"].dtype, made["mask"].dtype] == [torch.float64, torch.int32, torch.bool]
    assert isinstance(made["both"], Pair) and made["both"].image.dtype == torch.float64 and made["both"].scale == 3.0
    assert fitted(Boxed(z(2), "a"), model).image.dtype == torch.float64
    same = z(2, 3).double()
    assert fitted(same, model) is not same and torch.equal(fitted(same, model), same), "a model may change it in place"
    assert run(model, z(2, 3)).dtype == torch.float64
    mixed = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double())  # which is wanted is not to be told
    assert fitted(z(2, 3), mixed).dtype == torch.float32
    with pytest.raises(InvalidModel, match="meta device"):
        run(nn.Linear(3, 3, device="meta"), z(2, 3))


def test_modes_come_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)).train()
    model[1].eval()
    with pytest.raises(KeyError), preserved_modes(model):
        model.eval()
        raise KeyError
    assert [m.training for m in model.modules()] == [True, True, False]


class Restless(nn.Module):
    """Changes all that a module can in a forward pass, also in evaluation mode."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails = fails
        self.layer, self.table = nn.Linear(4, 4), nn.Embedding(9, 4, max_norm=0.01)
        self.free = nn.Parameter(torch.ones(4))
        self.register_buffer("seen", torch.zeros(()))
        self.count, self.log, self.last = 0, [], None
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.count += 1
        self.log.append(x)
        self.free.data.mul_(2)
        self.layer.register_forward_hook(lambda *args: None)
        self.layer.weight.requires_grad_(False)
        self.norm.train()
        y = self.norm(self.layer(x)) + self.table(torch.arange(len(x))) + torch.rand(4) * random.random() * float(np.random.rand())
        self.last = y
        if self.fails:
            raise ValueError("no")
        return y * self.free


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_exactly_as_it_was(fails: bool) -> None:
    model = Restless(fails).train()
    model.norm.eval()
    model.layer.weight.grad = torch.ones(4, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    if fails:
        with pytest.raises(InvalidModel, match="ValueError: no"):
            find_sites(model, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    else:
        find_sites(model, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert (model.count, model.log, model.last) == (0, [], None)
    assert not model.layer._forward_hooks and model.layer.weight.requires_grad
    assert torch.equal(model.layer.weight.grad, torch.ones(4, 4)) and model.free.grad is None
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert states[2] == np.random.get_state()[1].tolist()
    assert torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled()


class Queries(nn.Module):
    """A layer that is called with a view of a parameter, as in DETR and Perceiver."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.queries = how, nn.Parameter(torch.randn(1, 4, 8))
        self.f, self.drop, self.h = nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "expanded":
            z = self.f(self.queries.expand(len(x), -1, -1))
        else:
            z = self.f(self.drop(self.queries[:, :2]).repeat(len(x), 1, 1))
        return self.h(z.mean(1) + x)


@pytest.mark.parametrize("how", ["expanded", "sliced"])
def test_layers_on_views_of_parameters(how: str) -> None:
    sites = find_sites(Queries(how), torch.randn(2, 8))
    assert [s.name for s in sites] == ["f", "h"]
    assert sites.total.macs == (4 if how == "expanded" else 2) * 64 + 24


@pytest.mark.parametrize(
    ("make", "reason"), [(lambda: nn.LazyLinear(3), "of a lazy module"), (lambda: nn.Linear(8, 3, device="meta"), "on the meta device")]
)
def test_weights_that_are_not_there_are_asked_for(make: Callable[[], nn.Module], reason: str) -> None:
    model, example = nn.Sequential(make()), torch.randn(1, 8)
    state, kind = torch.get_rng_state(), type(model[0].weight)
    with pytest.raises(InvalidModel, match=f"'0.weight' is {reason}"):
        find_sites(model, example)
    assert torch.equal(state, torch.get_rng_state()) and type(model[0].weight) is kind


def test_globs_that_fit_nothing_say_so() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    for options in ({"exclude": ["0", "decoder.*"]}, {"include": "decoder.*"}):
        with pytest.raises(InvalidArgument, match=r"'decoder\.\*' fits the path of no module"):
            find_sites(model, torch.randn(1, 3), **options)
