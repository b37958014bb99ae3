"""What the dense network answers is found once, and is the same whether it is kept or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidArgument
from ranksearch.networks.reconstruction import dense_answers, reconstruct
from ranksearch.networks.reconstruction.answers import Answers, Stops
from ranksearch.networks.surgery import build
from ranksearch.sites import evaluating, find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra


class Net(nn.Module):
    """Its norm's answers are changed in place after they were seen; how often it was called is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3)
        self.head, self.calls = nn.Linear(6, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.second(self.norm(self.first(x)).relu_())
        return self.head(x.mean(dim=(2, 3)))


PATHS = ["first", "norm", "second", "head"]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def batches() -> list[Tensor]:
    return list(torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(1)).split(4))


def gone_through(stops: Sequence[Stops]) -> list[list[tuple[str | None, Tensor]]]:
    """Every stop of passes, to the end."""
    found = []
    for one in stops:
        steps = []
        one.advance()
        while one.value is not None:
            steps.append((one.place, one.value.clone()))
            one.advance()
        assert one.place is None
        found.append(steps)
    return found


def asked(answers: Answers, paths: Sequence[str]) -> list[list[tuple[str | None, Tensor]]]:
    with torch.no_grad(), answers.passes(paths) as stops:
        return gone_through(stops)


@pytest.mark.parametrize("room", [0.0, 10000.0, 1e9])  # for no batch, for one of them, and for all
def test_passes_that_were_kept_stop_where_those_through_the_network_do(net: Net, batches: list[Tensor], room: float) -> None:
    expected = asked(Answers(net, batches), PATHS)
    answers = Answers(net, batches, paths=PATHS, room=room)
    for paths in (["first", "second"], PATHS, ["norm"]):  # the first asks for some, all are kept
        wanted = [[step for step in steps if step[0] in paths] for steps in expected]
        for found, steps in zip(asked(answers, paths), wanted, strict=True):
            assert [place for place, _ in found] == [place for place, _ in steps]
            assert all(torch.equal(one, other) for (_, one), (_, other) in zip(found, steps, strict=True))
    net.calls = 0
    asked(answers, PATHS)
    assert net.calls == {0.0: 3, 10000.0: 2, 1e9: 0}[room]


def test_passes_that_nobody_followed_to_the_end_are_kept_as_a_whole(net: Net, batches: list[Tensor]) -> None:
    answers = Answers(net, batches, paths=PATHS, room=1e9)
    with torch.no_grad(), answers.passes(["first", "head"]) as stops:
        for one in stops:
            one.advance()
    net.calls = 0
    assert [[place for place, _ in steps] for steps in asked(answers, PATHS)] == [PATHS] * 3
    assert net.calls == 0


def test_outputs_are_found_once(net: Net, batches: list[Tensor]) -> None:
    answers = Answers(net, batches)
    with torch.no_grad():
        assert torch.equal(answers.output(1), net(batches[1]))
        net.calls = 0
        answers.output(1)
    assert net.calls == 0
    assert answers.on(list(batches)) is answers and answers.on(batches[:2]).batches == batches[:2]


def test_uses_are_counted_on_the_first_network_alone(net: Net, batches: list[Tensor]) -> None:
    answers = Answers(net, batches, paths=PATHS)
    assert list(answers.uses(net, ["head", "first"]).items()) == [("first", 1), ("head", 1)]
    net.calls = 0
    assert list(answers.uses(net, PATHS)) == PATHS and net.calls == 0


CHOICES: list[dict[str, Any]] = [{"first": ("svd", (3,)), "head": ("svd", (2,))}, {"second": ("svd", (2,))}]


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_reconstructions_that_share_answers_are_those_that_do_not(net: Net, batches: list[Tensor], held_out: float) -> None:
    """To the last bit, and at most one pass of each batch goes through the dense network for its layers."""
    spectra = Spectra(net, find_sites(net, batches[0][:1]))
    shared = dense_answers(net, spectra.sites, batches)
    for number, choices in enumerate(CHOICES):
        configuration = Configuration(choices)
        alone, together = build(spectra, configuration), build(spectra, configuration)
        expected = reconstruct(alone, spectra, configuration, batches, held_out=held_out)
        net.calls = 0
        assert reconstruct(together, spectra, configuration, shared, held_out=held_out) == expected
        assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), together.parameters(), strict=True))
        assert net.calls == (0 if number else 3 + (held_out > 0))
        if not held_out:  # nothing was undone
            plain = build(spectra, configuration)
            assert any(not torch.equal(a, b) for a, b in zip(together.parameters(), plain.parameters(), strict=True))


def test_answers_of_another_network_are_refused(net: Net, batches: list[Tensor]) -> None:
    spectra, configuration = Spectra(net, find_sites(net, batches[0][:1])), Configuration(CHOICES[1])
    with pytest.raises(InvalidArgument, match="another network"):
        reconstruct(build(spectra, configuration), spectra, configuration, Answers(Net(), batches))


def test_what_a_network_raises_is_not_kept(net: Net, batches: list[Tensor]) -> None:
    answers = Answers(net, [batches[0], torch.zeros(4, 2, 6, 6)], paths=PATHS, room=1e9)
    with evaluating(net), pytest.raises(RuntimeError), answers.passes(PATHS) as stops:
        gone_through(stops)
    net.calls = 0
    with evaluating(net), pytest.raises(RuntimeError), answers.passes(PATHS) as stops:
        gone_through(stops)
    assert net.calls == 2
