"""What the dense network answers to fixed batches: found once for all networks that are fitted to the same ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from ranksearch.networks.lockstep import passes
from ranksearch.sites import UnpackedExperts, map_tensors, run

Step = tuple[str, Tensor]  # the path of a module, and what it gave


class Stops(Protocol):
    """What goes through a network from stop to stop, as `ranksearch.networks.lockstep.Pass` does."""

    @property
    def place(self) -> str | None:
        """Where it is; None before the first stop and after the end."""

    @property
    def value(self) -> Tensor | None:
        """What was seen there."""

    def advance(self) -> None:
        """Go on to the next stop, or to the end."""


class Answers:
    """What a dense network gives for batches: its outputs, and, as far as there is room, what modules in it give. The network and the
    batches must not change meanwhile, and it is in the mode in which it is asked.

    Args:
        batches: of inputs, see `ranksearch.sites.run`.
        paths: of the modules whose answers are kept.
        room: bytes that these may take; batches that have no room pass through the network whenever they are asked for.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Any], *, paths: Collection[str] = (), room: float = 0.0) -> None:
        self.model, self.batches = model, list(batches)
        self._paths, self._room = frozenset(paths), room
        self._kept: dict[int, list[Step]] = {}
        self._outputs: dict[int, Any] = {}
        self._uses: dict[str, int] = {}
        self._counted: frozenset[str] = frozenset()
        self._routed = any(isinstance(module, UnpackedExperts) for module in model.modules())

    def on(self, batches: Sequence[Any]) -> Answers:
        """The answers to other batches, of which nothing is known yet; these, where the batches are the same."""
        same = len(batches) == len(self.batches) and all(one is other for one, other in zip(batches, self.batches, strict=True))
        return self if same else Answers(self.model, batches)

    def output(self, number: int) -> Any:
        """What the network answers to a batch."""
        if number not in self._outputs:
            self._outputs[number] = map_tensors(lambda tensor: tensor.detach(), run(self.model, self.batches[number]))
        return self._outputs[number]

    def uses(self, network: nn.Module, paths: Collection[str]) -> dict[str, int]:
        """How often a network that stands in for this one uses modules for the first batch, in the order of first use; those that it does
        not use are left out. All such networks use them alike, but for experts, which choose by what they are given."""
        if self._routed or not self._counted.issuperset(paths):
            self._counted = self._paths.union(paths)
            self._uses = _uses(network, self._counted, self.batches[0])
        return {path: count for path, count in self._uses.items() if path in paths}

    @contextmanager
    def passes(self, paths: Collection[str]) -> Iterator[list[Stops]]:
        """A pass of every batch, which stops after the modules at these paths with what they give; none of them is begun."""
        wanted = frozenset(paths)
        new = [number for number in range(len(self.batches)) if not (number in self._kept and wanted <= self._paths)]
        keep = wanted <= self._paths and self._room > 0
        stops = {path: self.model.get_submodule(path) for path in (self._paths if keep else wanted)}
        with passes(self.model, [self.batches[number] for number in new], stops, output=True) as made:
            noting = {number: _Noted(self, one, wanted) for number, one in zip(new, made, strict=True)} if keep else {}
            fresh: dict[int, Stops] = {**dict(zip(new, made, strict=True)), **noting}
            yield [fresh[n] if n in fresh else _Replayed(self._kept[n], wanted) for n in range(len(self.batches))]
            for number, one in noting.items():
                if (steps := one.all()) is not None:
                    self._kept[number] = steps

    def take(self, size: int) -> bool:
        """Whether there is room for so many bytes more, which are then taken; negative ones are given back."""
        if size > self._room:
            return False
        self._room -= size
        return True


class _Noted:
    """A pass of which all stops are kept, as long as there is room for them."""

    def __init__(self, answers: Answers, inner: Stops, wanted: Collection[str]) -> None:
        self._answers, self._inner, self._wanted = answers, inner, wanted
        self._steps: list[Step] | None = []

    @property
    def place(self) -> str | None:
        return self._inner.place

    @property
    def value(self) -> Tensor | None:
        return self._inner.value

    def advance(self) -> None:
        self._inner.advance()
        while self.place is not None and self.value is not None:
            self._note(self.place, self.value)
            if self.place in self._wanted:
                return
            self._inner.advance()

    def _note(self, place: str, value: Tensor) -> None:
        if self._steps is None:
            return
        if self._answers.take(value.nbytes):
            self._steps.append((place, value.clone()))  # what follows may change it in place
            return
        self._answers.take(-sum(known.nbytes for _, known in self._steps))
        self._steps = None

    def all(self) -> list[Step] | None:
        """All stops, those that nobody has come to yet, too; None where there was no room for them."""
        while self._steps is not None:
            self.advance()
            if self.place is None:
                break
        return self._steps


class _Replayed:
    """A pass that was kept."""

    def __init__(self, steps: Iterable[Step], wanted: Collection[str]) -> None:
        self._left = iter([step for step in steps if step[0] in wanted])
        self.place: str | None = None
        self.value: Tensor | None = None

    def advance(self) -> None:
        self.place, self.value = next(self._left, (None, None))


def _uses(network: nn.Module, paths: Collection[str], example: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    with ExitStack() as stack:
        for path in paths:

            def used(_module: nn.Module, _args: Any, path: str = path) -> None:
                counts[path] = counts.get(path, 0) + 1

            stack.callback(network.get_submodule(path).register_forward_pre_hook(used).remove)
        run(network, example)
    return counts
