"""Sweeps come to every module in the order of use, whatever visitors look at."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranksearch.networks.reconstruction.answers import Answers
from ranksearch.networks.reconstruction.sweep import Seen, sweep


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last, self.twice, self.first, self.unused = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.twice(self.twice(self.first(x).tanh()).tanh()).tanh())


def test_every_module_is_visited_with_what_it_sees_after_those_before_it_have_changed() -> None:
    network, reference, batches = Net(), Net(), [torch.randn(3, 4), torch.randn(2, 4)]
    seen: dict[str, list[tuple[int, Tensor, Tensor | None]]] = {}

    def visit(path: str, values: Seen) -> None:
        seen[path] = list(values)
        with torch.no_grad():
            network.get_submodule(path).get_parameter("weight").mul_(2)

    with torch.no_grad():
        sweep(network, Answers(reference, batches), ["last", "first", "unused", "twice"], [], visit)
        assert list(seen) == ["first", "twice", "last"]
        assert [number for number, _, _ in seen["twice"]] == [0, 0, 1, 1]
        for number, x in enumerate(batches):
            inner = network.twice(network.twice(network.first(x).tanh()).tanh()).tanh()
            _, given, wanted = seen["last"][number]
            torch.testing.assert_close(given, inner)
            assert wanted is not None
            torch.testing.assert_close(wanted, reference(x))


def test_visitors_that_look_away_do_not_hold_up_the_others() -> None:
    network, reference, batches = Net(), Net(), [torch.randn(3, 4), torch.randn(2, 4)]
    seen: dict[str, int] = {}

    def visit(path: str, values: Seen) -> None:
        seen[path] = 0 if path == "first" else len(list(values))

    with torch.no_grad():
        sweep(network, Answers(reference, batches), ["first", "last"], [], visit)
    assert seen == {"first": 0, "last": 2}


def test_modules_alone_get_inputs_of_one_network() -> None:
    network, reference, batches = Net(), Net(), [torch.randn(3, 4), torch.randn(2, 4)]
    seen: dict[str, list[tuple[int, Tensor, Tensor | None]]] = {}
    with torch.no_grad():
        sweep(network, Answers(reference, batches), ["first", "twice"], ["twice"], lambda path, values: seen.update({path: list(values)}))
        torch.testing.assert_close(seen["twice"][0][1], network.first(batches[0]).tanh())
    assert [(number, wanted) for number, _, wanted in seen["twice"]] == [(0, None), (0, None), (1, None), (1, None)]
