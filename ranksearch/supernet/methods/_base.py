"""The contract of a training method: it has a loss for a batch, and does something after an optimiser step, in anybody's loop.

    for step, batch in enumerate(batches, start=1):
        optimizer.zero_grad()
        method.loss(batch).backward()
        optimizer.step()
        method.after_step(step)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch import checks
from ranksearch.decompositions import Rank
from ranksearch.errors import InvalidArgument
from ranksearch.sites import arguments
from ranksearch.space import DENSE, Configuration, SearchSpace
from ranksearch.supernet.network import RankSupernet, canonical, layered
from ranksearch.supernet.projections import PROJECTIONS
from ranksearch.supernet.sampling import Sampling

Loss = Callable[[Any, Any], Tensor]  # (outputs, targets) -> scalar
Batch = Sequence[Any]  # (inputs, targets); inputs: a tensor, a tuple of positional or a mapping of keyword arguments


class Method(ABC):
    """One way to train a supernet. ``METHODS`` lists those that there are.

    Args:
        supernet: what is trained; its weights are the only parameters.
        loss: ``loss(outputs, targets)``, a scalar, such as a task's own.
        sampling: where low-rank configurations are drawn from; each method that draws has a default of its own.
        seed: of these draws. Processes that train one network together must share it.
    """

    name: ClassVar[str]
    draws: ClassVar[bool] = False  # whether it takes a ``sampling`` to draw configurations from

    def __init__(self, supernet: RankSupernet, loss: Loss, *, sampling: Sampling | None = None, seed: int = 0) -> None:
        if not callable(loss):
            raise InvalidArgument(f"loss={loss!r}: must be callable as loss(outputs, targets)")
        self.supernet, self.criterion, self.sampling, self.seed = supernet, loss, sampling, checks.whole("seed", seed, least=0)
        self.generator = np.random.default_rng(self.seed)
        if sampling is not None and sampling.follow:
            sampling.observe(self.weights())

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The scalar to call ``backward`` on. This may run the network several times; a NaN is not hidden."""

    def after_step(self, step: int) -> None:
        """Do what the method does after an optimiser step; call it after every one.

        Args:
            step: how many steps have been made: 1 after the first.
        """
        self.supernet.tick()
        if self.sampling is not None and self.sampling.follow and step % self.sampling.follow == 0:
            self.sampling.observe(self.weights())

    def state_dict(self) -> dict[str, Any]:
        """What a run needs, besides weights and optimiser, to go on exactly as if it had not stopped. Values are tensors, or what
        JSON can hold."""
        state: dict[str, Any] = {"method": self.name, "generator": self.generator.bit_generator.state}
        if self.sampling is not None:
            state["sampling"] = self.sampling.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            InvalidArgument: the state of another method.
        """
        if state.get("method") != self.name:
            found = state.get("method")
            raise InvalidArgument(f"state of method {found!r} cannot be loaded into {self.name!r}; resume with the same method")
        self.generator.bit_generator.state = state["generator"]
        if self.sampling is not None:
            self.sampling.load_state_dict(state["sampling"])

    @final
    def weights(self) -> dict[str, Tensor]:
        """The canonical dense weights, by site, without gradient."""
        return {site.name: canonical(self.supernet.weight(site.name).detach(), site) for site in self.supernet.sites}

    @final
    def overwrite(self, weights: Mapping[str, Tensor]) -> None:
        """Replace dense weights in place. They are given by site, in the canonical shape; bases are made anew."""
        with torch.no_grad():
            for name, dense in weights.items():
                weight = self.supernet.weight(name)
                weight.copy_(layered(dense.to(weight.dtype), self.supernet.sites[name], weight))
        self.supernet.refresh()

    @final
    def run(
        self, configuration: Configuration, inputs: Any, through: Mapping[str, Tensor] | None = None, *, projected: bool = False
    ) -> Any:
        """The network's outputs at a configuration; ``through`` and ``projected``: see `RankSupernet.forward_with`."""
        args, kwargs = arguments(inputs)
        return self.supernet.forward_with(configuration, *args, through=through, projected=projected, **kwargs)

    @final
    def dense(self, batch: Batch) -> Tensor:
        """The loss of the dense network."""
        inputs, targets = batch
        return self.criterion(self.run(DENSE, inputs), targets)

    @final
    def module(self) -> LossModule:
        """The loss as a module, for wrappers that hook ``forward``, such as DistributedDataParallel."""
        return LossModule(self)


@final
class LossModule(nn.Module):
    """``module(inputs, targets)`` is the method's loss. DistributedDataParallel synchronises gradients of passes that run
    inside its own ``forward``: wrap this, not the supernet, and call ``backward`` on what it returns."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.supernet = method.supernet
        self.method = method

    def forward(self, inputs: Any, targets: Any) -> Tensor:
        return self.method.loss((inputs, targets))


def projecting(supernet: RankSupernet) -> tuple[str, ...]:
    """The decompositions of a supernet's space that project, in the order of the table."""
    present = set().union(*(ladder.present for ladder in supernet.space.ladders))
    names = tuple(name for name in PROJECTIONS if name in present)
    if not names:
        raise InvalidArgument(
            f"supernet: its space has none of the types that project ({', '.join(PROJECTIONS)}); add one to the space's decompositions"
        )
    return names


def at_least(space: SearchSpace, site: str, decomposition: str, rank: int) -> tuple[str, Rank]:
    """The option of one type (with ranks of one number) next above a rank on a site's ladder; dense where there is none."""
    ladder = next(ladder for ladder in space.ladders if ladder.site.name == site)
    ranks = sorted(o.rank for o in ladder.options if o.decomposition == decomposition and o.rank[0] >= rank)
    return (decomposition, ranks[0]) if ranks else ("dense", ())
