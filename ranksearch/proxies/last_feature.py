"""Relative squared error of the network's last feature on calibration inputs, measured (FLAR-SVD's criterion)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from torch import Tensor, nn

from ranksearch.errors import InvalidArgument
from ranksearch.proxies.context import ProxyContext
from ranksearch.proxies.proxy import ScoreProxy
from ranksearch.sites import evaluating, run
from ranksearch.space import Configuration, SearchSpace


class LastFeature(ScoreProxy):
    """E|f - f_r|^2 / E|f|^2, f the input of a module, by default the last linear layer to be called; or the network's
    output where there is none. It needs no labels, and one forward pass per configuration.

    Args:
        model: the dense network.
        build: makes a configuration's network (see `ranksearch.networks.surgery.build`), batch norm re-estimated or not as
            it will be used.
        batches: inputs, held in memory.
        module: path of the module whose input is the feature.
    """

    name = "last_feature"
    needs = "networks"

    def __init__(
        self, model: nn.Module, build: Callable[[Configuration], nn.Module], batches: Sequence[Any], *, module: str | None = None
    ) -> None:
        if not batches:
            raise InvalidArgument("batches is empty: the feature is measured on at least one batch")
        self.build, self.batches = build, list(batches)
        self.module = module if module is not None else _last_linear(model, self.batches[0])
        self._features = [self._feature(model, batch) for batch in self.batches]

    @classmethod
    def make(cls, context: ProxyContext) -> Self:
        return cls(context.spectra.model, context.network, context.inputs)

    def score(self, space: SearchSpace, indices: np.ndarray) -> np.ndarray:
        total = sum(float(f.square().sum()) for f in self._features)
        scores = []
        for row in np.atleast_2d(indices):
            model = self.build(space.configuration(row))
            error = sum(float((self._feature(model, b) - f).square().sum()) for b, f in zip(self.batches, self._features, strict=True))
            scores.append(error / max(total, 1e-300))
        return np.array(scores, dtype=np.float64)

    def uncovered(self, space: SearchSpace) -> Mapping[str, str]:
        """The last layer itself changes no feature of its own input."""
        return {l.site.name: "comes after the feature: its error is not seen" for l in space.ladders if l.site.name == self.module}

    def _feature(self, model: nn.Module, batch: Any) -> Tensor:
        found: list[Tensor] = []
        handle = None
        if self.module:
            handle = model.get_submodule(self.module).register_forward_pre_hook(lambda _m, args: found.append(args[0].detach()))
        try:
            with evaluating(model):
                output = run(model, batch)
        finally:
            if handle is not None:
                handle.remove()
        if found:
            return found[-1].double()
        if not isinstance(output, Tensor):
            raise InvalidArgument(f"model answers with {type(output).__name__}: name the module whose input is the feature with module=")
        return output.double()


def _last_linear(model: nn.Module, batch: Any) -> str:
    called: list[str] = []
    handles = [
        m.register_forward_hook(lambda _m, _a, _o, name=name: called.append(name))
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear)
    ]
    try:
        with evaluating(model):
            run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return called[-1] if called else ""
