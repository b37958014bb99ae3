"""Going through a network and the dense one together, layer by layer, in the order of use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from torch import Tensor, nn

from ranksearch.networks.lockstep import Pass, passes
from ranksearch.networks.reconstruction.answers import Answers, Stops

Seen = Iterable[tuple[int, Tensor, Tensor | None]]  # number of the batch, a module's input, what the dense network's gives


def sweep(
    network: nn.Module,
    answers: Answers,
    paths: Collection[str],
    alone: Collection[str],
    visit: Callable[[str, Seen], None],
) -> None:
    """Visit modules in the order of use, each with what reaches it and what the dense network's gives, when all before it are as they
    will be.

    All batches go through both networks together and wait at every module, so that one forward pass is enough; what lies between two
    of them is in memory for all batches at once. Modules that are used several times, and those that are ``alone``, take a pass of their
    own.

    Args:
        answers: those of the dense network, to the batches that go through.
        paths: of the modules to visit; those that the first batch does not reach are left out.
        alone: those that the two networks need not give the same examples: what the dense one answers is then left out.
    """
    uses, batches = answers.uses(network, paths), answers.batches
    once = [path for path, count in uses.items() if count == 1 and path not in alone]
    done: set[str] = set()
    with ExitStack() as stack:
        given = stack.enter_context(_inputs_of(network, once, batches))
        wanted = stack.enter_context(answers.passes(once))
        for path in uses:
            if path in once:
                seen = _next(zip(given, wanted, strict=True), path, done)
                visit(path, seen)
                for _ in seen:  # a visitor need not look at all, yet every pass is to come here
                    pass
            elif path in alone:
                visit(path, _inputs(network, path, batches))
            else:  # uses after the first depend on it: a module with several takes passes to the end
                visit(path, _all_uses(network, answers.model, path, batches))
            done.add(path)


def _inputs_of(network: nn.Module, paths: Iterable[str], batches: Sequence[Any]) -> AbstractContextManager[list[Pass]]:
    return passes(network, batches, {path: network.get_submodule(path) for path in paths}, output=False)


def _next(pairs: Iterable[tuple[Stops, Stops]], path: str, done: Collection[str]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Number, input and dense output of a layer, from passes that wait at layers that are done. Passes that wait elsewhere are left
    out: they use the layers in another order, or not at all."""
    for number, pair in enumerate(pairs):
        for one in pair:
            if one.place is None or one.place in done:
                one.advance()
        x, y = (one.value if one.place == path else None for one in pair)
        if x is not None and y is not None:
            yield number, x, y


def _all_uses(network: nn.Module, reference: nn.Module, path: str, batches: Sequence[Any]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The same from fresh passes, use by use."""
    for number, batch in enumerate(batches):
        with (
            _inputs_of(network, [path], [batch]) as (given,),
            Answers(reference, [batch]).passes([path]) as (wanted,),
        ):
            while pair := list(_next([(given, wanted)], path, {path})):
                for _, x, y in pair:
                    yield number, x, y


def _inputs(network: nn.Module, path: str, batches: Sequence[Any]) -> Iterator[tuple[int, Tensor, None]]:
    """What reaches a layer in one network alone, from fresh passes."""
    for number, batch in enumerate(batches):
        with _inputs_of(network, [path], [batch]) as (given,):
            given.advance()
            while given.value is not None:
                yield number, given.value, None
                given.advance()
