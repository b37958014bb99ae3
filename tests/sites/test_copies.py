"""What may be kept on a model: copied, or refused by name before anything is run."""

from __future__ import annotations

import collections
import copy
import sqlite3
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ranksearch.errors import InvalidModel, RanksearchError
from ranksearch.runners._worker import pickled
from ranksearch.sites import copied, find_sites

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def loss() -> torch.Tensor:
    """With a graph behind it."""
    return (torch.arange(3.0) * torch.ones(3, requires_grad=True)).square()


PLACES: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda m: setattr(m[0], "aux", loss()),
    "object": lambda m: setattr(m, "state", SimpleNamespace(last=SimpleNamespace(loss=loss()))),
    "containers": lambda m: setattr(m, "kept", [{"a": (loss(),)}, collections.deque([loss()])]),
    "buffer": lambda m: m.register_buffer("last", loss()),
    "set": lambda m: setattr(m[2], "losses", {loss()}),
}


@pytest.mark.parametrize("place", PLACES)
def test_tensors_with_a_graph_are_copied_without_it_wherever_they_are(place: str) -> None:
    net = model()
    PLACES[place](net)
    twin = copied(net)
    assert len(find_sites(net, X).sites) == 2
    with torch.no_grad():
        assert torch.equal(net(X), twin(X))


def test_a_tensor_with_a_graph_keeps_its_values_its_identity_and_its_graph() -> None:
    net = model()
    net.one = net.two = loss()  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    twin: Any = copied(net)
    assert torch.equal(twin.one, loss()) and twin.one is twin.two and twin.one.grad_fn is None and not twin.one.requires_grad
    assert net.one.grad_fn is not None
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(net)  # outside, torch is as it was


class Hook:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, *_: Any) -> None:
        return None


def rows() -> Any:
    yield 1


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "lock": (lambda m: setattr(m[0], "lock", threading.Lock()), r"0\.lock of Linear holds a _thread\.lock"),
    "deep": (lambda m: setattr(m, "locks", {"a": [SimpleNamespace(b=threading.RLock())]}), r"locks\['a'\]\[0\]\.b of Sequential holds a"),
    "generator": (lambda m: setattr(m[2], "rows", rows()), r"2\.rows of Linear holds a generator"),
    "connection": (lambda m: setattr(m, "db", sqlite3.connect(":memory:")), r"db of Sequential holds a sqlite3\.Connection"),
    "module": (lambda m: setattr(m, "library", threading), r"library of Sequential holds a module"),
    "hook": (lambda m: m[0].register_forward_hook(Hook()), r"0\._forward_hooks\[\d+\]\.lock of Linear holds a _thread\.lock"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_copied_is_refused_by_attribute_and_module(case: str) -> None:
    net = model()
    put, told = REFUSED[case]
    put(net)
    for act in (copied, lambda m: find_sites(m, X)):
        with pytest.raises(InvalidModel, match=rf"cannot be deep-copied.*: {told}.*take it out"):
            act(net)


def test_what_copies_but_cannot_be_sent_to_workers_is_told() -> None:
    class Handle:
        def __deepcopy__(self, memo: Any) -> Handle:
            return self

        def __reduce__(self) -> Any:
            raise TypeError("cannot pickle a handle")

    net = model()
    net.handle = Handle()  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    assert len(find_sites(net, X).sites) == 2
    with pytest.raises(RanksearchError, match=r"cannot be sent to workers: TypeError: cannot pickle a handle; .*runner='local'"):
        pickled(net, ())  # pyright: ignore[reportArgumentType]
    assert pickled(model(), ())  # pyright: ignore[reportArgumentType]
    with_graph = model()
    with_graph.aux = loss()  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    assert pickled(with_graph, ())  # pyright: ignore[reportArgumentType]
